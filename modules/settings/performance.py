"""Performance modes by name: Easel's own and the user's, one JSON file each.

    <checkout>/performance/draft.json
    {"title": "Draft", "steps": 12, "forced": {"cfg_scale": 3.0, "sampler": "euler"},
     "lora": {"file": "mine.safetensors", "weight": 0.9}}

A file with the name of one of Easel's modes takes its place; a broken one is left out.
"""

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from modules.settings.jsonfile import first_complaint, read_json_object
from modules.spec.errors import ConfigError, SpecError, StudioError
from modules.spec.performance import MODES, PerformanceMode, make_mode

FOLDER = "performance"


class Modes(dict[str, PerformanceMode]):
    """Modes by name. `notices` has one sentence for each file that is broken."""

    notices: tuple[str, ...] = ()


def load_modes(root: Path) -> Modes:
    """Easel's modes, then the user's under `root`/performance."""
    modes = Modes({mode.name: mode for mode in MODES})
    notices: list[str] = []
    for path in sorted((root / FOLDER).glob("*.json")):
        try:
            mode = read_mode(path)
            modes[mode.name] = mode
        except ConfigError as error:
            notices.append(str(error))
    modes.notices = tuple(notices)
    return modes


def read_mode(path: Path) -> PerformanceMode:
    """One mode's file; ConfigError names the file, the key and what is allowed."""
    called = f"Performance mode {path.stem[:64]!r}"
    content = read_json_object(path, called)
    if "name" in content:
        raise ConfigError(f"{called}: the key 'name' is not known; the file's name is its name.")
    content.setdefault("title", path.stem)
    content.setdefault("steps_upscale", content.get("steps"))
    try:
        return make_mode({**content, "name": path.stem})
    except ValidationError as error:
        raise ConfigError(f"{called}: {first_complaint(error)}") from None
    except (StudioError, ValueError) as error:
        sentence = str(error).removesuffix(".")
        raise ConfigError(f"{called}: {sentence}.") from None


def find_mode(modes: Mapping[str, PerformanceMode], name: str) -> PerformanceMode | None:
    """The mode called `name`, None for ''. Raises SpecError for a name that nobody has."""
    if not name:
        return None
    if name not in modes:
        raise SpecError(
            f"There is no performance mode {name[:64]!r}; choose one of {', '.join(modes)}.",
            "performance",
        )
    return modes[name]
