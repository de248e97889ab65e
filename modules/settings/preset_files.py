"""Presets of the user's own: save, rename, delete. They lie in presets/own, one JSON file each."""

import json
import os
import re
import tempfile
import threading
from pathlib import Path
from typing import Any

from modules.settings.presets import NOT_IN_PRESETS, OWN, Preset, Presets, load_presets, read_preset
from modules.spec.errors import ConfigError, OutputFolder, SpecError
from modules.spec.task_spec import TaskSpec

# The user's words and pictures belong to a picture; a preset keeps the way of painting.
_WORDS = frozenset({"prompt", "image_prompts", "image_count"})
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_writing = threading.Lock()  # two pages may save at once


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
    with _writing:
        name = _name_of(title, presets)
        same = _same_name(name, presets)
        if same is not None and presets[same].title != title:
            raise _taken(presets[same].title)
        name = same or name
        _write(_path(root, name), {"title": title, "settings": settings_of(spec)})
        _reload(root, presets)
    return name


def rename_preset(root: Path, presets: Presets, name: str, title: str) -> str:
    """Give one of the user's own presets another title; gives its new name.

    A file of Fooocus becomes one of ours.
    """
    title = " ".join(title.split())
    with _writing:
        require_own(presets, name)
        new = _name_of(title, presets)
        if (same := _same_name(new, presets)) == name:
            new = name  # with other capitals it is the same file on some disks
        elif same is not None:
            raise _taken(presets[same].title)
        content = presets[name].model_dump(mode="json", exclude={"name"}, exclude_defaults=True)
        _write(_path(root, new), content | {"title": title})
        if new != name:
            _remove(_path(root, name))
        _reload(root, presets)
    return new


def delete_preset(root: Path, presets: Presets, name: str) -> None:
    """Remove one of the user's own presets. Raises SpecError for one of Easel's."""
    with _writing:
        require_own(presets, name)
        _remove(_path(root, name))
        _reload(root, presets)


def _name_of(title: str, presets: Presets) -> str:
    name = re.sub(r"[^\w.+ -]", "_", title).strip(" .")
    if not name or len(title) > 64:
        raise SpecError("Give the preset a name of up to 64 letters.", "preset")
    if _RESERVED.fullmatch(name):
        raise SpecError(
            f"{title!r} cannot be the name of a file on Windows; choose another name.", "preset"
        )
    same = _same_name(name, presets)
    if same is not None and same not in presets.own:
        raise SpecError(
            f"{presets[same].title!r} is one of Easel's presets; choose another name.", "preset"
        )
    return name


def _same_name(name: str, presets: Presets) -> str | None:
    """The preset whose file `name` would be on a disk that does not tell capitals apart."""
    return next((known for known in presets if known.casefold() == name.casefold()), None)


def _taken(title: str) -> SpecError:
    return SpecError(f"There is a preset {title!r} already; choose another name.", "preset")


def require_own(presets: Presets, name: str) -> Preset:
    """The user's own preset `name`. Raises SpecError for one of Easel's, or of nobody's."""
    if name not in presets.own:
        raise SpecError(
            "Only presets of your own can be changed; save this one under a name first.", "preset"
        )
    return presets[name]


def _path(root: Path, name: str) -> Path:
    return root / "presets" / OWN / f"{name}.json"


def reload_presets(root: Path, presets: Presets) -> None:
    """Take into `presets` what the files say now."""
    with _writing:
        _reload(root, presets)


def _reload(root: Path, presets: Presets) -> None:
    """Bring `presets` up to date in place: others hold on to it."""
    fresh = load_presets(root)
    for name in [name for name in presets if name not in fresh]:
        del presets[name]
    presets.update(fresh)
    presets.own, presets.notices = fresh.own, fresh.notices


def _write(path: Path, content: dict[str, Any]) -> None:
    """The whole file or nothing of it, and never one that could not be read again."""
    try:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
            temporary = Path(folder, path.name)
            temporary.write_text(text, "utf-8")
            read_preset(temporary)
            os.replace(temporary, path)
    except UnicodeEncodeError:
        raise SpecError("Give the preset a name of whole characters.", "preset") from None
    except ConfigError as error:
        raise SpecError(str(error), "preset") from None
    except OSError as error:
        raise _unwritable() from error


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable() from error


def _unwritable() -> OutputFolder:
    return OutputFolder(
        "The preset cannot be saved; check that Easel may write into its folder presets."
    )
