"""Presets: named groups of settings, one JSON file each, data only and validated on load.

    {"title": "Fast", "description": "...", "settings": {"steps": 15}, "downloads": [...]}

`settings` holds TaskSpec fields; those it leaves out keep their defaults. A download says what
the preset can use and where it may be fetched; nothing is fetched by loading a preset.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from modules.settings.fooocus_preset import from_fooocus, is_fooocus_preset
from modules.settings.jsonfile import first_complaint, read_json_object
from modules.spec.errors import ConfigError, SpecError, StudioError
from modules.spec.task_spec import TaskSpec

# A preset is a way of painting, not a picture.
NOT_IN_PRESETS = frozenset({"preset", "seed", "first_index"})
OWN = "own"  # the sub-folder of those that the user made
_NAME = re.compile(r"[\w.+ -]{1,64}")


class ModelFolder(StrEnum):
    """Sub-folders of the models folder."""

    CHECKPOINTS = "checkpoints"
    LORAS = "loras"
    EMBEDDINGS = "embeddings"
    VAE = "vae"
    TEXT_ENCODERS = "text_encoders"
    VAE_APPROX = "vae_approx"
    CONTROLNET = "controlnet"
    CLIP_VISION = "clip_vision"
    IPADAPTER = "ipadapter"
    UPSCALE_MODELS = "upscale_models"
    INPAINT = "inpaint"


class Download(BaseModel):
    """One public file. size in bytes; sha256 as 64 small hex digits; None where not known.

    url: https; plain http only to this very computer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = Field(min_length=1, max_length=255)
    folder: ModelFolder
    url: str = Field(
        pattern=r"^(https://[^\s]|http://(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?/)[^\s]*$",
        max_length=2_000,
    )
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    size: int | None = Field(None, gt=0)

    @property
    def key(self) -> str:
        """What requests call it by, such as `loras/ink.safetensors`."""
        return f"{self.folder}/{self.file}"

    @property
    def link(self) -> str:
        """The address for everybody who sees the page; '' for one that may hold a secret."""
        return public_link(self.url)

    @field_validator("file")
    @classmethod
    def _file_is_a_plain_name(cls, name: str) -> str:
        if not re.fullmatch(r"[\w+ ()\[\]-][\w.+ ()\[\]-]*", name) or name.endswith((".", " ")):
            raise ValueError("must be a plain file name")
        return name


class Preset(BaseModel):
    """One preset. `settings` are validated values of TaskSpec fields, in JSON form."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str = Field(min_length=1, max_length=64)
    description: str = Field("", max_length=500)
    settings: dict[str, Any] = Field(default_factory=dict)
    downloads: tuple[Download, ...] = ()
    instead: tuple[str, ...] = ()  # checkpoints that do as well where the named one is missing

    def apply(self, values: Mapping[str, Any] | None = None) -> TaskSpec:
        """The TaskSpec of this preset, with `values` (field name → value) on top."""
        return TaskSpec.from_mapping({**self.settings, "preset": self.name, **(values or {})})


class Presets(dict[str, Preset]):
    """Presets by name, `default` first, the user's last. `own` are the names of the user's;
    `notices` has one sentence for each file that is broken."""

    notices: tuple[str, ...] = ()
    own: frozenset[str] = frozenset()


def public_link(url: str) -> str:
    """`url`, or '' where it names a user or has a query, which is where secrets stand."""
    place = url.partition("://")[2].partition("/")[0]
    return "" if "@" in place or "?" in url else url


def load_presets(root: Path) -> Presets:
    """Read every preset under `root`/presets, then those under presets/own, which may take the
    place of others; a broken one is skipped with a notice."""
    presets = Presets()
    notices: list[str] = []
    paths = sorted((root / "presets").glob("*.json"), key=lambda p: (p.stem != "default", p.stem))
    own = sorted((root / "presets" / OWN).glob("*.json"))
    for path in [*paths, *own]:
        try:
            presets[path.stem] = read_preset(path)
        except ConfigError as error:
            notices.append(str(error))
    presets.own = frozenset(path.stem for path in own if path.stem in presets)
    presets.notices = tuple(notices)
    return presets


def preset_named(presets: Mapping[str, Preset], name: str) -> Preset:
    """The preset `name`. Raises SpecError, naming those there are."""
    if name not in presets:
        raise SpecError(
            f"Preset {name[:64]!r} is not there; choose one of {', '.join(presets) or 'none'}.",
            "preset",
        )
    return presets[name]


def read_preset(path: Path) -> Preset:
    """One preset file, ours or Fooocus's; ConfigError names the file, the key and what is
    allowed."""
    name = f"Preset {path.stem[:64]!r}"
    if not _NAME.fullmatch(path.stem):
        raise ConfigError(f"{name} has a name of odd characters; rename the file.")
    content = read_json_object(path, name)
    if "name" in content:
        raise ConfigError(f"{name}: the key 'name' is not known; the file's name is its name.")
    if is_fooocus_preset(content):
        try:
            content = from_fooocus(content, path.stem)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}.") from None
    settings = content.get("settings", {})
    if not isinstance(settings, dict):
        raise ConfigError(f"{name}: 'settings' must be an object in braces {{ }}.")
    for key in NOT_IN_PRESETS & settings.keys():
        raise ConfigError(f"{name}: {key!r} cannot be part of a preset; remove it.")
    try:
        spec = TaskSpec.from_mapping(settings)
    except StudioError as error:
        raise ConfigError(f"{name}: {error}") from None
    normal = spec.model_dump(mode="json", include=set(settings))
    try:
        return Preset.model_validate({**content, "settings": normal, "name": path.stem})
    except ValidationError as error:
        raise ConfigError(f"{name}: {first_complaint(error)}") from None
