"""Presets of the user's own: save, rename, delete. They lie in presets/own, one JSON file each."""

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

from modules.settings.presets import NOT_IN_PRESETS, OWN, Presets, load_presets, read_preset
from modules.spec.errors import ConfigError, OutputFolder, SpecError
from modules.spec.task_spec import TaskSpec

# The user's words belong to a picture; a preset keeps the way of painting.
_WORDS = frozenset({"prompt", "image_count"})


def settings_of(spec: TaskSpec) -> dict[str, Any]:
    """What a preset made from `spec` holds: the fields that are not as they are by default."""
    values = spec.model_dump(mode="json", exclude_defaults=True)
    return {k: v for k, v in values.items() if k not in NOT_IN_PRESETS | _WORDS}


def differences(settings: dict[str, Any], spec: TaskSpec) -> dict[str, tuple[Any, Any]]:
    """Fields whose values in a preset's `settings` and in `spec` differ: (preset's, spec's)."""
    base = TaskSpec.from_mapping(settings).model_dump(mode="json")
    now = spec.model_dump(mode="json")
    left_out = NOT_IN_PRESETS | _WORDS | ({"negative_prompt"} - settings.keys())
    return {k: (base[k], now[k]) for k in base if k not in left_out and base[k] != now[k]}


def save_preset(root: Path, presets: Presets, title: str, spec: TaskSpec) -> str:
    """Write `spec` as the preset `title` and take it into `presets`; gives its name.

    One of the user's own with that name is replaced. Raises SpecError for a name that cannot be
    or that one of Easel's presets has, OutputFolder where nothing can be written.
    """
    title = " ".join(title.split())
    name = _name_of(title, presets)
    path = root / "presets" / OWN / f"{name}.json"
    content = {"title": title, "settings": settings_of(spec)}
    _write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    _reload(root, presets)
    return name


def rename_preset(root: Path, presets: Presets, name: str, title: str) -> str:
    """Give one of the user's own presets another title; gives its new name."""
    old = _own_file(root, presets, name)
    title = " ".join(title.split())
    new = _name_of(title, presets)
    if new != name and new in presets:
        raise SpecError(f"There is a preset {title!r} already; choose another name.", "preset")
    content = json.loads(old.read_text("utf-8-sig")) | {"title": title}
    _write(old.with_name(f"{new}.json"), json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    if new != name:
        old.unlink(missing_ok=True)
    _reload(root, presets)
    return new


def delete_preset(root: Path, presets: Presets, name: str) -> None:
    """Remove one of the user's own presets. Raises SpecError for one of Easel's."""
    _own_file(root, presets, name).unlink(missing_ok=True)
    _reload(root, presets)


def _name_of(title: str, presets: Presets) -> str:
    name = re.sub(r"[^\w.+ -]", "_", title).strip(" .")
    if not name or len(title) > 64:
        raise SpecError("Give the preset a name of up to 64 letters.", "preset")
    if name in presets and name not in presets.own:
        raise SpecError(f"{title!r} is one of Easel's presets; choose another name.", "preset")
    return name


def _own_file(root: Path, presets: Presets, name: str) -> Path:
    if name not in presets.own:
        raise SpecError(
            "Only presets of your own can be changed; save this one under a name first.", "preset"
        )
    return root / "presets" / OWN / f"{name}.json"


def _reload(root: Path, presets: Presets) -> None:
    """Bring `presets` up to date in place: others hold on to it."""
    fresh = load_presets(root)
    for name in [name for name in presets if name not in fresh]:
        del presets[name]
    presets.update(fresh)
    presets.own, presets.notices = fresh.own, fresh.notices


def _write(path: Path, text: str) -> None:
    """The whole file or nothing of it, and never one that could not be read again."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, "utf-8")
        os.replace(temporary, path)
        read_preset(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OutputFolder(
            "The preset cannot be saved; check that Easel may write into its folder presets."
        ) from error
    except ConfigError as error:
        path.unlink(missing_ok=True)
        raise SpecError(str(error), "preset") from None
