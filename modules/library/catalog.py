"""What model files there are. Names come from the listing; a name is never made into a path.

    models_path/checkpoints/a.safetensors        → "a.safetensors"
    models_path/checkpoints/sub/b.safetensors    → "sub/b.safetensors"
    models_path/checkpoints/d/model_index.json   → "d", a diffusers folder
    root/models/builtin/c.safetensors            → "builtin/c.safetensors", listed last

Links that the user put into the folders are followed: people keep big files elsewhere.
"""

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from modules.library.safetensors_head import head_of
from modules.settings.config import Settings
from modules.settings.presets import Download, ModelFolder, Preset, load_presets
from modules.spec.errors import ModelMissing
from modules.spec.file_scan import scan_files

MODEL_SUFFIXES = frozenset({".safetensors", ".ckpt", ".pt", ".pth", ".bin"})
CHECKPOINT_SUFFIXES = frozenset({".safetensors", ".ckpt", ".pt"})
BUILTIN_PREFIX = "builtin/"
BUILTIN_ENDINGS = {
    "-canny": ModelFolder.CONTROLNET,
    "-ip-adapter": ModelFolder.IPADAPTER,
    "-ip-negative": ModelFolder.IPADAPTER,
    "-clip-vision": ModelFolder.CLIP_VISION,
}
"""What the adapters of the built-in model are; its other ones are LoRAs."""
_NAME_CHARACTERS = 255
_INDEX = "model_index.json"  # of a model that diffusers wrote: a folder with one for each part
_NETWORK = b'"model.diffusion_model.'


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model file that exists. name: what requests say; path: for the worker alone."""

    name: str
    path: Path
    size: int
    kind: ModelFolder

    @property
    def is_builtin(self) -> bool:
        return self.name.startswith(BUILTIN_PREFIX)


class Catalog:
    """The model files of one start's folders. Every call looks at the disk again."""

    def __init__(self, settings: Settings, presets: Mapping[str, Preset] | None = None) -> None:
        self._models_path = settings.models_path
        self._builtin_path = settings.builtin_models_path
        self._presets = load_presets(settings.root) if presets is None else presets
        self._unseen: frozenset[str] = frozenset()

    def without(self, keys: Collection[str]) -> "Catalog":
        """The same, but for files of the user's that are called so, as in loras/x.safetensors."""
        other = copy.copy(self)
        other._unseen = frozenset(keys)
        return other

    def make_folders(self) -> None:
        """Make the folders that users put files into, where that is allowed."""
        for folder in ModelFolder:
            with suppress(OSError):
                (self._models_path / folder).mkdir(parents=True, exist_ok=True)

    def checkpoints(self) -> list[ModelFile]:
        """Checkpoints by name without regard to case; those that ship with Easel come last."""
        folder = ModelFolder.CHECKPOINTS
        own = self._own(folder, CHECKPOINT_SUFFIXES, _INDEX)
        files = {file.name: file for file in (*self._shipped(folder), *own)}.values()
        return sorted(files, key=lambda f: (f.is_builtin, f.name.casefold(), f.name))

    def files(self, folder: ModelFolder) -> list[ModelFile]:
        """The model files of a kind by name without regard to case, those of Easel's own last."""
        files = [*self._own(folder, MODEL_SUFFIXES), *self._shipped(folder)]
        return sorted(files, key=lambda f: (f.is_builtin, f.name.casefold(), f.name))

    def _own(
        self, folder: ModelFolder, suffixes: frozenset[str], index: str = ""
    ) -> list[ModelFile]:
        found = _scan(self._models_path / folder, suffixes, index)
        return [
            ModelFile(name, path, size, folder)
            for name, path, size in found
            if f"{folder}/{name}" not in self._unseen
        ]

    def _shipped(self, folder: ModelFolder) -> list[ModelFile]:
        """The files of a kind that ship with Easel; they lie together, and their names tell."""
        return [
            ModelFile(BUILTIN_PREFIX + name, path, size, folder)
            for name, path, size in _scan(self._builtin_path, frozenset({".safetensors"}))
            if _builtin_kind(PurePosixPath(name).stem) is folder
        ]

    def find(self, folder: ModelFolder, name: str) -> ModelFile:
        """The file of a kind called `name`. Raises ModelMissing."""
        for file in self.files(folder):
            if file.name == name:
                return file
        raise ModelMissing(
            f"The file {name[:80]!r} is not in {self._models_path.name}/{folder}. "
            "Put it there and press Refresh, or choose another one."
        )

    def find_checkpoint(self, name: str = "") -> ModelFile:
        """The checkpoint called `name`, or for '' the first that can paint. Raises ModelMissing.

        Where no file looks as if it could, '' gives the first one, whose loading says why not.
        """
        files = self.checkpoints()
        if not files:
            raise ModelMissing(self.describe_missing())
        if not name:
            return next((file for file in files if _may_paint(file.path)), files[0])
        for file in files:
            if file.name == name:
                return file
        raise ModelMissing(
            f"The checkpoint {name[:80]!r} is not in {self._folder_name()}. "
            "Put the file there and press Refresh, or choose another one."
        )

    def find_lora(self, names: Sequence[str]) -> ModelFile | None:
        """The first LoRA, in any folder, whose file is called one of `names`."""
        wanted = {name.casefold() for name in names}
        files = self.files(ModelFolder.LORAS)
        return next((f for f in files if PurePosixPath(f.name).name.casefold() in wanted), None)

    def downloads(self) -> dict[str, Download]:
        """Files that the presets know how to fetch, by key; the first preset's word counts."""
        found: dict[str, Download] = {}
        for preset in tuple(self._presets.values()):
            for download in preset.downloads:
                found.setdefault(download.key, download)
        return found

    def known_downloads(self) -> list[Download]:
        """Those of them that are not there yet."""
        known = self.downloads().values()
        return [each for each in known if not (self._models_path / each.key).is_file()]

    def describe_missing(self) -> str:
        """What to put where when there is no checkpoint at all."""
        sentence = (
            "There is no model to paint with yet: put an SDXL checkpoint (a .safetensors file) "
            f"into {self._folder_name()} and press Refresh."
        )
        for download in self.known_downloads():
            if download.folder is ModelFolder.CHECKPOINTS:
                size = f" ({download.size / 1e9:.1f} GB)" if download.size else ""
                source = f", from {download.link}" if download.link else ""
                sentence += f" {download.file}{size} is one{source}."
                break
        return sentence

    def _folder_name(self) -> str:
        return f"{self._models_path.name}/{ModelFolder.CHECKPOINTS}"


def _builtin_kind(stem: str) -> ModelFolder:
    """Of a file that ships with Easel: easel-mini-canny, easel-mini-ip-adapter, …"""
    for ending, folder in BUILTIN_ENDINGS.items():
        if stem.endswith(ending):
            return folder
    return ModelFolder.LORAS if stem.startswith("easel-mini-") else ModelFolder.CHECKPOINTS


def _scan(
    folder: Path, suffixes: frozenset[str], index: str = ""
) -> Iterator[tuple[str, Path, int]]:
    """The model files under `folder` that a request can name.

    index: a folder with a file of this name is one model.
    """
    found = scan_files(folder, suffixes, index)
    return (model for model in found if _may_be_named(model[0]))


def _may_paint(path: Path) -> bool:
    """False for a safetensors file without a diffusion network, such as a LoRA in the wrong place.

    Only the header is read; a file of another kind, which has none, gets the benefit of the doubt.
    """
    if path.suffix.lower() != ".safetensors":
        return True
    try:
        with path.open("rb") as file:
            return _NETWORK in head_of(file)
    except OSError:
        return False


def _may_be_named(name: str) -> bool:
    """False for names that no request could hold."""
    return (
        name.isprintable()
        and not set(name) & {"\\", ":"}
        and len(name) + len(BUILTIN_PREFIX) <= _NAME_CHARACTERS
    )
