"""Checkpoints: from one file to a diffusion model, text encoders and a VAE, ready to use."""

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm_patched.ldm.models.autoencoder import AutoencoderKL, detect_autoencoder_config
from ldm_patched.modules import clip_vision, model_detection, utils
from ldm_patched.modules.clip import CLIP, load_clip
from ldm_patched.modules.errors import NotFinite, UnsupportedModel
from ldm_patched.modules.file_kinds import IGNORED, likely_family, likely_kind
from ldm_patched.modules.lora import read_lora
from ldm_patched.modules.model_base import LoadReport
from ldm_patched.modules.model_management import DevicePolicy
from ldm_patched.modules.model_patcher import ModelPatcher
from ldm_patched.modules.model_source import VAE_PREFIX, JoinedWeights, open_model, vae_places
from ldm_patched.modules.supported_models import BASE, UNET_PREFIX
from ldm_patched.modules.vae import VAE
from ldm_patched.modules.weight_file import LazyWeights, WeightFile, open_weights

__all__ = [
    "CLIP",
    "VAE",
    "ModelMetadata",
    "load_checkpoint_guess_config",
    "load_lora_for_models",
    "load_vae",
    "read_model_metadata",
    "renew_blank_picture",
]

logger = logging.getLogger(__name__)

GREY_SIDE = 64
"""Pixels; an evenly grey picture has the same latents everywhere but at its edges."""
# --- Checkpoints ------------------------------------------------------------------------------


def load_checkpoint_guess_config(
    ckpt_path: str | Path,
    output_vae: bool = True,
    output_clip: bool = True,
    output_clipvision: bool = False,
    embedding_directory: str | Path | None = None,
    output_model: bool = True,
    *,
    policy: DevicePolicy | None = None,
    text_encoder_paths: Iterable[str | Path] = (),
    before_weights: Callable[[BASE, int], object] | None = None,
) -> tuple[ModelPatcher | None, CLIP | None, VAE | None, clip_vision.ClipVisionModel | None]:
    """(model, text encoders, VAE, image encoder) of a checkpoint whose family its weights tell.

    ckpt_path: a file, a diffusers folder, or a file with the UNet alone. text_encoder_paths: files
    with text encoders, for a model that has none of its own. before_weights: called with the
    family once the file is known to be of one, and with the bytes that the parts which are asked
    for will take, before any of their weights are read. A part is None if it is not asked for or
    not there. embedding_directory: of the learned words that prompts may name. policy: devices and
    precisions; None detects them. Weights whose precision fits stay in the file's memory; others
    are read and cast one by one. What the file holds besides is in each part's `load_report`, and
    logged.
    Raises CorruptModelFile, UnsafeModelFile, UnsupportedModel or OSError.
    """
    policy = policy or DevicePolicy.detect()
    file = open_model(ckpt_path, text_encoder_paths if output_clip else ())
    config = _require_family(file)
    if before_weights is not None:
        texts = config.text_encoder_prefixes.values()
        dtypes = {UNET_PREFIX: policy.unet_dtype} if output_model else {}
        dtypes |= dict.fromkeys(texts, policy.text_encoder_dtype) if output_clip else {}
        dtypes |= {config.vae_prefix: policy.vae_dtype} if output_vae else {}
        before_weights(config, _size_as(file, dtypes))
    model = _load_model(file, config, policy) if output_model else None
    clip = load_clip(file, config, policy, embedding_directory) if output_clip else None
    vae = _load_vae(file, config.vae_prefix, policy) if output_vae else None
    if model is not None and vae is not None:
        renew_blank_picture(model, vae, file.name)
    vision = _load_vision(file, config, policy) if output_clipvision else None
    return model, clip, vae, vision


def renew_blank_picture(model: ModelPatcher, vae: VAE, vae_file: str) -> None:
    """Let an inpainting network without a picture see grey as `vae` codes it; others see none.

    vae_file: the name of the file that the VAE is from. Raises CorruptModelFile.
    """
    if model.model.inpaint is None:
        return
    grey = torch.full((1, GREY_SIDE, GREY_SIDE, 3), 0.5)
    try:
        model.model.blank_picture = vae.encode(grey).mean(dim=(2, 3), keepdim=True)
    except NotFinite as error:
        raise utils.not_numbers(vae_file, "VAE") from error


def _size_as(file: WeightFile, dtypes: Mapping[str, torch.dtype]) -> int:
    """Bytes of the parts of `file` in other precisions. dtypes: those, by prefix."""
    return sum(
        file.outline(key).numel() * dtype.itemsize
        for prefix, dtype in dtypes.items()
        for key in file
        if key.startswith(prefix) and not IGNORED.search(key)
    )


def _require_family(file: WeightFile) -> BASE:
    """The family of a checkpoint. Raises UnsupportedModel that says what the file looks like."""
    has_unet = any(key.startswith(UNET_PREFIX) for key in file)
    if not has_unet and (kind := likely_kind(file)) is not None:
        words, remedy = kind
        raise UnsupportedModel(
            f"{file.name} looks like {words}, not like a checkpoint. "
            + (f"{remedy}, and choose a checkpoint." if remedy else "Choose another file.")
        )
    _require_floats(file)
    with utils.sound_shapes(file.name):
        config = model_detection.model_config_from_unet(file)
    if config is not None:
        return config
    family = likely_family(file)
    if family is not None:
        raise UnsupportedModel(
            f"{file.name} looks like {family}, which is not supported. Choose a checkpoint of "
            f"{model_detection.KNOWN}."
        )
    raise UnsupportedModel(
        f"{file.name} holds no diffusion model of a known family. Choose a checkpoint of "
        f"{model_detection.KNOWN}."
    )


def _require_floats(file: WeightFile) -> None:
    """Raises UnsupportedModel for weights stored as whole numbers: their scales mean nothing here.

    Buffers that are no weights (position_ids) may be whole numbers.
    """
    for key in file:
        tensor = file.outline(key)
        if tensor.ndim > 1 and not tensor.is_floating_point() and not IGNORED.search(key):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UnsupportedModel(
                f"{file.name} is quantised to whole numbers ({kind}), which is not supported. "
                "Choose an fp16, bf16 or fp8 version of the checkpoint."
            )


def _load_model(file: WeightFile, config: BASE, policy: DevicePolicy) -> ModelPatcher:
    config.set_inference_dtype(policy.unet_dtype, policy.unet_compute_dtype)
    with utils.sound_shapes(file.name):
        model = config.get_model(file, UNET_PREFIX, device="meta")
    # The model keeps norms and biases out of 8 bits, so it casts those files itself.
    dtype = policy.unet_dtype if policy.unet_dtype.itemsize > 1 else None
    weights = LazyWeights(file, prefix=UNET_PREFIX, dtype=dtype, memory_format=policy.memory_format)
    report = model.load_model_weights(weights, UNET_PREFIX, memory_format=policy.memory_format)
    utils.require_complete(report, file.name, "diffusion network")
    config.settle(model, file)
    own = tuple(UNET_PREFIX + name for name in report.unexpected)
    model.load_report = LoadReport(unexpected=own + _rest(file, config))
    model.eval().requires_grad_(False)
    return ModelPatcher(model, policy.device, policy.offload_device, budget=policy.budget)


def _load_vision(
    file: WeightFile, config: BASE, policy: DevicePolicy
) -> clip_vision.ClipVisionModel:
    """The image encoder of a family that has one. Raises UnsupportedModel."""
    prefix = config.vision_prefix
    places = {k[len(prefix) :]: (file, k) for k in file if prefix and k.startswith(prefix)}
    if not places:
        raise UnsupportedModel(f"{file.name} holds no image encoder. Choose another file.")
    return clip_vision.load_tower(JoinedWeights(file.name, places, {}), policy)


def _load_vae(file: WeightFile, prefix: str, policy: DevicePolicy) -> VAE | None:
    """The VAE under `prefix`; None if there is none. Raises UnsupportedModel, CorruptModelFile."""
    shapes = model_detection.shapes_under(file, prefix)
    with utils.sound_shapes(file.name):
        config = detect_autoencoder_config(shapes)
        with torch.device("meta"):
            model = None if config is None else AutoencoderKL(config)
    if model is None:
        if any(name.startswith(("encoder.", "decoder.")) for name in shapes):
            raise UnsupportedModel(f"{file.name} holds a VAE of an unknown kind. Choose another.")
        return None
    lazy = LazyWeights(
        file, prefix=prefix, dtype=policy.vae_dtype, memory_format=policy.memory_format
    )
    weights = {k[len(prefix) :]: lazy.pop(k) for k in list(lazy) if not IGNORED.search(k)}
    report = utils.load_weights(model, weights)
    utils.require_complete(report, file.name, "VAE")
    return VAE(
        model,
        device=policy.vae_device,
        budget=policy.budget,
        dtype=policy.vae_dtype,
        memory_format=policy.memory_format,
        load_report=report,
    )


def load_vae(path: str | Path, policy: DevicePolicy | None = None) -> VAE:
    """The VAE in a file, in the layout of checkpoints or that of diffusers.

    Raises CorruptModelFile, UnsafeModelFile, UnsupportedModel or OSError.
    """
    file = open_weights(path)
    joined = JoinedWeights(file.name, vae_places(file), file.metadata)
    vae = _load_vae(joined, VAE_PREFIX, policy or DevicePolicy.detect())
    if vae is None:
        kind = likely_kind(file)
        found = f" It looks like {kind[0]}." if kind else ""
        raise UnsupportedModel(f"{file.name} holds no VAE.{found} Choose another in the VAE list.")
    return vae


def _rest(file: WeightFile, config: BASE) -> tuple[str, ...]:
    """Names that belong to no part and are not known to be left out; they are logged."""
    parts = [UNET_PREFIX, config.vae_prefix, *config.text_encoder_prefixes.values()]
    parts += [config.vision_prefix] if config.vision_prefix else []
    rest = tuple(
        key for key in file if not key.startswith(tuple(parts)) and not IGNORED.search(key)
    )
    if rest:
        some = ", ".join(rest[:5])
        logger.warning("%s: %d unknown weights were left out: %s", file.name, len(rest), some)
    return rest


# --- Adapters ---------------------------------------------------------------------------------


def load_lora_for_models(
    model: ModelPatcher | None,
    clip: CLIP | None,
    lora: Mapping[str, Tensor],
    strength_model: float,
    strength_clip: float,
) -> tuple[ModelPatcher | None, CLIP | None]:
    """Clones of both with the adapter on them; the originals are untouched.

    lora: a WeightFile, or tensors by name. Strengths: 1 as trained, 0 not at all, below 0 the
    opposite. Raises UnsupportedModel or CorruptModelFile; see lora.read_lora.
    """
    found = read_lora(lora, model, clip)
    if model is not None:
        model = model.clone()
        model.add_patches(found.unet, strength_model)
    if clip is not None:
        clip = clip.clone()
        clip.add_patches(found.clip, strength_clip)
    return model, clip


# --- Metadata ---------------------------------------------------------------------------------

RATIO = re.compile(r"[1-9]\d{0,2}:[1-9]\d{0,2}")
AREA_RANGE = range(64 * 64, 4096 * 4096 + 1)


@dataclass(frozen=True)
class ModelMetadata:
    """What a checkpoint says of the pictures that it was trained on."""

    area: int | None = None
    """Pixels of one picture; None if the file does not say."""
    ratios: tuple[str, ...] = ()
    """Such as "3:2", the best first."""


def read_model_metadata(path: str | Path) -> ModelMetadata:
    """The `easel.area` and `easel.ratios` entries (JSON) of a safetensors file's header.

    An entry that is absent or makes no sense is left at its default.
    Raises CorruptModelFile or OSError.
    """
    entries = utils.load_metadata(path)
    area, ratios = (_json(entries.get(f"easel.{name}", "null")) for name in ("area", "ratios"))
    sound_area = area if type(area) is int and area in AREA_RANGE else None
    found = ratios if isinstance(ratios, list) else []
    sound = tuple(r for r in found[:64] if isinstance(r, str) and RATIO.fullmatch(r))
    return ModelMetadata(sound_area, sound)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
