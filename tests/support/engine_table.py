"""Makes docs/ENGINE.md of what the engine's tests recorded.

EASEL_ENGINE_REPORT=report.jsonl python3 launch.py test tests/ldm_patched tests/extras
.venv/bin/python -m tests.support.engine_table report.jsonl
"""

import json
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parents[2] / "docs" / "ENGINE.md"
HEADINGS = {
    "family": "Model families",
    "text encoder": "Text encoders",
    "image encoder": "Image encoders",
    "VAE": "VAE",
    "adapter": "Adapters",
    "sampler": "Samplers",
    "scheduler": "Schedulers",
}
HEAD = """# What the engine's numbers are held against

Tests made this page. Each row is the largest difference that one of them measured over all its
cases, and the most that it allows. Networks have random weights; samplers ask a denoiser whose
answer is known exactly. To make it again:

```
{how}
```

Measured with {versions}.
"""


def page(lines: Iterable[Mapping[str, Any]]) -> str:
    """The page of these records (see engine_report.record), as Markdown.

    Raises ValueError for a difference that its test does not allow.
    """
    rows: dict[tuple[str, str, str, str], Mapping[str, Any]] = {}
    for line in lines:
        test = line["test"].split("[")[0]
        if line["difference"] > line["tolerance"]:
            raise ValueError(f"{line['test']} measured more than it allows.")
        key = (line["kind"], line["name"], line["reference"], test)
        if key not in rows or line["difference"] > rows[key]["difference"]:
            rows[key] = line
    kinds = {key[0] for key in rows}
    order = [kind for kind in HEADINGS if kind in kinds] + sorted(kinds - HEADINGS.keys())
    how = "\n".join(line.strip() for line in (__doc__ or "").splitlines()[2:] if line.strip())
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers")
    )
    parts = [HEAD.format(how=how, versions=versions)]
    for kind in order:
        parts.append(f"## {HEADINGS.get(kind, kind[:1].upper() + kind[1:])}\n")
        parts.append(
            "| | held against | test | largest difference | allowed |\n|---|---|---|---|---|"
        )
        parts += [_row(key, rows[key]) for key in sorted(rows) if key[0] == kind]
        parts.append("")
    return "\n".join(parts)


def _row(key: tuple[str, str, str, str], line: Mapping[str, Any]) -> str:
    _, name, reference, test = key
    path, _, function = test.partition("::")
    cells = [
        _plain(name),
        _plain(reference),
        f"[{function.rpartition('::')[2]}](../{path})",
        f"{line['difference']:.1e}",
        f"{line['tolerance']:.1e}",
    ]
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """`text` inside a cell."""
    return text.replace("|", "\\|")


def main(arguments: list[str]) -> None:
    """Write docs/ENGINE.md from the files named."""
    texts = [Path(name).read_text(encoding="utf-8") for name in arguments]
    TARGET.write_text(
        page(json.loads(line) for text in texts for line in text.splitlines()), encoding="utf-8"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
