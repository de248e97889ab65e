"""A GPT-2 that the user supplies for prompt expansion: where it lies, and whether it can be used.

    models/prompt_expansion/<name>/    config.json, a tokenizer, weights, and if wanted positive.txt

Only looked for here; the worker runs it (extras/expansion.py).
"""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

FOLDER = "prompt_expansion"  # below the models folder
PACKAGE = "transformers"
_CONFIG_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """One folder. name: of the folder, for people. is_usable: the package to run it is there."""

    name: str
    path: Path
    is_usable: bool

    @property
    def note(self) -> str:
        """What to say of it beside a prompt that is to be expanded."""
        if self.is_usable:
            return (
                f"The language model {self.name} adds its words when a picture is painted; they "
                "stand in the picture's recipe."
            )
        return (
            f"The language model {self.name} needs the Python package {PACKAGE}, which is not "
            "installed beside Easel, or does not fit it; until it does, Easel's own phrases are "
            "added."
        )


def find_language_model(models_path: Path) -> LanguageModel | None:
    """The first folder, by name, that says it holds a GPT-2; None if there is none."""
    try:
        folders = sorted(path for path in (models_path / FOLDER).iterdir() if path.is_dir())
    except OSError:
        return None
    for path in folders:
        if _kind(path / "config.json") == "gpt2":
            usable = importlib.util.find_spec(PACKAGE) is not None
            return LanguageModel(path.name[:80], path, usable)
    return None


def _kind(config: Path) -> str:
    try:
        with config.open("rb") as file:
            content = json.loads(file.read(_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError):
        return ""
    return str(content.get("model_type", "")) if isinstance(content, dict) else ""
