"""Where a model's weights come from: one file, a diffusers folder, or a file for each part.

All come out as one `WeightFile` under the names of the checkpoint layout, so that a single loader
serves them. Nothing is read here but headers and small JSON files.

    folder/model_index.json
    folder/unet/diffusion_pytorch_model[.fp16][-00001-of-00002].safetensors (or .bin)
    folder/vae/…  folder/text_encoder/model.safetensors  folder/text_encoder_2/…
    folder/scheduler/scheduler_config.json   what the network predicts
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm_patched.ldm.modules.diffusionmodules.unet_config import UNetConfig
from ldm_patched.modules.diffusers_names import (
    is_diffusers_unet,
    is_diffusers_vae,
    unet_names,
    vae_names,
)
from ldm_patched.modules.errors import CorruptModelFile, ModelFileError, UnsupportedModel
from ldm_patched.modules.file_kinds import IGNORED
from ldm_patched.modules.model_detection import detect_unet_config, has_text_encoders
from ldm_patched.modules.supported_models import BASE, MODELS, UNET_PREFIX
from ldm_patched.modules.utils import sound_shapes
from ldm_patched.modules.weight_file import WeightFile, open_weights
from ldm_patched.modules.weight_header import DOWNLOAD_AGAIN

logger = logging.getLogger(__name__)

INDEX = "model_index.json"
JSON_BYTES = 1024 * 1024
VAE_PREFIX = "first_stage_model."
TOKENS = "token_embedding.weight"
# The first that is there is taken; several files are the shards of one.
PATTERNS = tuple(
    re.compile(rf"(diffusion_pytorch_model|pytorch_model|model){variant}(-\d+-of-\d+)?\.{ending}")
    for ending in ("safetensors", "bin")
    for variant in ("", r"\.fp16", r"\.bf16")
)
Places = dict[str, tuple[WeightFile, str]]
"""For each name of the checkpoint layout the file that has it, and the name there."""


class JoinedWeights(WeightFile):
    """Weights of several files under names of one layout."""

    def __init__(self, name: str, places: Places, metadata: Mapping[str, str]) -> None:
        self.name = name
        self.metadata = metadata
        self.keyed = self._places = places

    def mapped(self, key: str) -> Tensor:
        file, theirs = self._places[key]
        return file.mapped(theirs)

    def load(
        self,
        key: str,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        file, theirs = self._places[key]
        return file.load(theirs, dtype, memory_format)

    def outline(self, key: str) -> Tensor:
        file, theirs = self._places[key]
        return file.outline(theirs)

    def source_of(self, key: str) -> str:
        file, theirs = self._places[key]
        return file.source_of(theirs)


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder in a file: what its names begin with, and how wide it is."""

    file: WeightFile
    root: str
    width: int


def open_model(path: str | Path, text_encoders: Iterable[str | Path] = ()) -> WeightFile:
    """The weights of a checkpoint, a diffusers folder, or a file with the UNet alone.

    text_encoders: files to look in for the encoders that the model lacks; those that do not fit
    are left out. Raises CorruptModelFile, UnsafeModelFile, UnsupportedModel or OSError.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    file = open_weights(path)
    places = _unet_places(file)
    if places is None:
        return file
    text_encoders = tuple(text_encoders)
    if text_encoders:
        with sound_shapes(file.name):
            if _has_text(places):
                text_encoders = ()  # none would be taken, so none is opened
    encoders = [found for other in text_encoders for found in find_text_encoders(_try(other))]
    if not encoders and all(key == place[1] for key, place in places.items()):
        return file
    return JoinedWeights(file.name, _with_text(places, encoders), file.metadata)


def _try(path: str | Path) -> WeightFile:
    """The file, or an empty one for what cannot be read: another may hold the encoder."""
    try:
        return open_weights(path)
    except (ModelFileError, OSError) as error:
        # In words: an error that a record keeps would keep the file that it was raised from, too.
        logger.warning("no text encoder is taken from %s: %s", Path(path).name, str(error))
        return JoinedWeights(Path(path).name, {}, {})


def _unet_places(file: WeightFile) -> Places | None:
    """Every weight of a file that has a UNet, as a checkpoint has it; None without one."""
    if any(key.startswith(UNET_PREFIX) for key in file):
        told = "time_embed.cond_proj."  # some files have diffusers' name for this part alone
        return {key.replace("time_embedding.cond_proj.", told): (file, key) for key in file}
    for root in ("", "unet."):
        under = [key for key in file if key.startswith(root) and not IGNORED.match(key)]
        below = [key[len(root) :] for key in under]
        if is_diffusers_unet(below):
            names = unet_names(below)
        elif "input_blocks.0.0.weight" in below:
            names = {key: key for key in below}
        else:
            continue
        unet = {UNET_PREFIX + ours: (file, root + key) for key, ours in names.items()}
        return unet | {key: (file, key) for key in file if IGNORED.match(key)}
    return None


def vae_places(file: WeightFile) -> Places:
    """The weights of a VAE file, in either layout, as a checkpoint has them."""
    root = next((r for r in (VAE_PREFIX, "vae.") if any(k.startswith(r) for k in file)), "")
    keys = [key[len(root) :] for key in file if key.startswith(root)]
    names = vae_names(keys) if is_diffusers_vae(keys) else {key: key for key in keys}
    return {VAE_PREFIX + ours: (file, root + key) for key, ours in names.items()}


# --- Text encoders ----------------------------------------------------------------------------


def find_text_encoders(file: WeightFile) -> list[TextEncoder]:
    """The CLIP text encoders in a file, whatever stands before their names."""
    found = []
    for key in file:
        shape = file.outline(key).shape if key.endswith(TOKENS) else ()
        if len(shape) == 2:
            root = key.removesuffix(TOKENS).removesuffix("embeddings.").removesuffix("text_model.")
            found.append(TextEncoder(file, root, shape[1]))
    return found


def _families(places: Places) -> tuple[UNetConfig | None, list[type[BASE]]]:
    """(the dimensions of the UNet, the families with texts that have such)."""
    unet = {key: place for key, place in places.items() if UNET_PREFIX in key}
    config = detect_unet_config({key: file.outline(theirs) for key, (file, theirs) in unet.items()})
    if config is None:
        return None, []
    return config, [f for f in MODELS if f.matches(config) and f.text_encoder_prefixes]


def _has_text(places: Places) -> bool:
    """Whether all text encoders of one of the UNet's families are there already."""
    return any(has_text_encoders(places, family) for family in _families(places)[1])


def _with_text(places: Places, encoders: Sequence[TextEncoder]) -> Places:
    """`places` with those encoders that its UNet reads and that it lacks."""
    config, families = _families(places)
    if config is None or not families:
        return places
    fits = [_fitting(encoders, family.text_widths(config)) for family in families]
    shares = [len(fit) / len(f.text_widths(config)) for fit, f in zip(fits, families, strict=True)]
    best = shares.index(max(shares))
    joined = dict(places)
    for name, encoder in fits[best].items():
        prefix = families[best].text_encoder_prefixes[name]
        if any(key.startswith(prefix) for key in places):
            continue
        for key in encoder.file:
            if key.startswith(encoder.root):
                joined[prefix + key[len(encoder.root) :]] = encoder.file, key
    return joined


def _fitting(encoders: Sequence[TextEncoder], widths: Mapping[str, int]) -> dict[str, TextEncoder]:
    """An encoder of the right width for each name, as far as there is one."""
    left, found = list(encoders), {}
    for name, width in widths.items():
        encoder = next((e for e in left if e.width == width), None)
        if encoder is not None:
            left.remove(encoder)
            found[name] = encoder
    return found


# --- Folders ----------------------------------------------------------------------------------


def _open_folder(path: Path) -> WeightFile:
    """Raises UnsupportedModel for a folder of another kind."""
    if not (path / INDEX).is_file():
        raise UnsupportedModel(
            f"{path.name} is a folder, but not one of a diffusers model: it holds no {INDEX}. "
            "Choose a checkpoint file, or a folder as it was downloaded."
        )
    index = _read_json(path, INDEX)
    unet = _part(path, "unet")
    if unet is None:
        kind = str(index.get("_class_name", "unknown"))[:60]
        raise UnsupportedModel(
            f"{path.name} is a folder of the kind {kind} without a UNet, which is not supported. "
            "Choose a checkpoint of Stable Diffusion 1, 2 or SDXL."
        )
    names = unet_names(list(unet)) if is_diffusers_unet(unet) else {key: key for key in unet}
    places: Places = {UNET_PREFIX + ours: (unet, key) for key, ours in names.items()}
    parts = [_part(path, name) for name in ("text_encoder", "text_encoder_2")]
    encoders = [found for part in parts if part is not None for found in find_text_encoders(part)]
    places = _with_text(places, encoders)
    vae = _part(path, "vae")
    if vae is not None:
        places |= vae_places(vae)
    return JoinedWeights(path.name, places, _folder_metadata(path))


def _part(path: Path, name: str) -> WeightFile | None:
    """The weights of a sub-folder, its shards joined; None if there are none."""
    folder = path / name
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    for pattern in PATTERNS:
        shards = [open_weights(file) for file in files if pattern.fullmatch(file.name)]
        if shards:
            _require_every_shard(path, name, [shard.name for shard in shards])
            places = {key: (shard, key) for shard in shards for key in shard}
            return JoinedWeights(f"{path.name}/{name}", places, {})
    return None


def _require_every_shard(path: Path, name: str, shards: Sequence[str]) -> None:
    counts = [int(match[1]) for shard in shards if (match := re.search(r"-of-(\d+)\.", shard))]
    if counts and len(shards) != counts[0]:
        raise CorruptModelFile(
            f"{path.name} is incomplete: its {name} has {len(shards)} of {counts[0]} files. "
            f"{DOWNLOAD_AGAIN}"
        )


def _read_json(path: Path, name: str) -> dict[str, Any]:
    """A small JSON object of a folder; empty if there is none. Raises CorruptModelFile."""
    file = path / name
    if not file.is_file():
        return {}
    try:
        if file.stat().st_size > JSON_BYTES:
            raise ValueError("too large")
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptModelFile(
            f"{path.name} is damaged: its {name} cannot be read. {DOWNLOAD_AGAIN}"
        ) from error
    return content if isinstance(content, dict) else {}


PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}


def _folder_metadata(path: Path) -> dict[str, str]:
    """What the network predicts, as entries that `said_prediction` knows."""
    scheduler = _read_json(path, "scheduler/scheduler_config.json")
    found: dict[str, str] = {}
    kind = PREDICTIONS.get(str(scheduler.get("prediction_type")))
    if str(scheduler.get("_class_name", "")).startswith("EDM"):
        kind = "edm"
        vae = _read_json(path, "vae/config.json")
        found |= {f"easel.{n}": json.dumps(vae.get(n)) for n in ("latents_mean", "latents_std")}
    if kind is not None:
        found["modelspec.prediction_type"] = kind
    if scheduler.get("rescale_betas_zero_snr") is True:
        found["easel.zero_snr"] = "true"
    return found
