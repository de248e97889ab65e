"""Checkpoints: from one file to a diffusion model, text encoders and a VAE, ready to use."""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ldm_patched.ldm.models.autoencoder import AutoencoderKL, detect_autoencoder_config
from ldm_patched.modules import model_detection, utils
from ldm_patched.modules.errors import UnsupportedModel
from ldm_patched.modules.file_kinds import likely_family, likely_kind
from ldm_patched.modules.lora import read_lora
from ldm_patched.modules.model_base import LoadReport
from ldm_patched.modules.model_management import DevicePolicy
from ldm_patched.modules.model_patcher import ModelPatcher
from ldm_patched.modules.sd1_clip import (
    PENULTIMATE,
    ClipTextModel,
    detect_clip_config,
    from_openclip,
)
from ldm_patched.modules.sdxl_clip import SDXLClipModel, SDXLTokenizer, Tokens
from ldm_patched.modules.supported_models import BASE, UNET_PREFIX
from ldm_patched.modules.vae import VAE
from ldm_patched.modules.weight_file import LazyWeights, WeightFile, open_weights
from ldm_patched.modules.weight_patches import WeightPatch

__all__ = [
    "CLIP",
    "VAE",
    "ModelMetadata",
    "load_checkpoint_guess_config",
    "load_lora_for_models",
    "read_model_metadata",
]

logger = logging.getLogger(__name__)

# What real files carry besides the weights that are used: averages and optimiser state of the
# training, buffers that are computed here, heads that only training or image towers need.
IGNORED = re.compile(
    r"^model_ema\.|^(first_stage_model\.)?(model_ema|loss)\.|^optimizer|^lr_scheduler"
    r"|^(betas|alphas_cumprod(_prev)?|sqrt_\w+|log_one_minus_\w+|posterior_\w+|lvlb_weights|logvar"
    r"|scale_factor|global_step|v_pred|ztsnr|edm_mean|edm_std|edm_vpred\.\w+)$"
    r"|^denoiser\.(sigmas|log_sigmas)$|^embedding_manager\."
    r"|(^|\.)(position_ids|logit_scale|attn_mask)$"
    r"|^conditioner\.embedders\.\d\.(model\.visual\.|transformer\.(text_projection|vision_model)\.)"
)


class CLIP:
    """Text encoders with their tokenizer. Clones share the weights, and differ in patches."""

    def __init__(
        self,
        cond_stage_model: SDXLClipModel,
        tokenizer: SDXLTokenizer,
        *,
        load_device: torch.device | str = "cpu",
        offload_device: torch.device | str = "cpu",
        load_report: LoadReport | None = None,
    ) -> None:
        self.cond_stage_model = cond_stage_model
        self.tokenizer = tokenizer
        self.patcher = ModelPatcher(cond_stage_model, load_device, offload_device)
        self.layer_idx = PENULTIMATE
        self.load_report = load_report or LoadReport()

    def clone(self) -> Self:
        """Another with the same weights, patches and layer; patches added to it are its own."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.patcher = self.patcher.clone()
        return other

    def add_patches(
        self,
        patches: dict[str, WeightPatch],
        strength_patch: float = 1.0,
        strength_model: float = 1.0,
    ) -> list[str]:
        """See ModelPatcher.add_patches; names begin with `clip_l.` or `clip_g.`."""
        return self.patcher.add_patches(patches, strength_patch, strength_model)

    def clip_layer(self, layer_idx: int) -> None:
        """Take hidden states of this layer: -1 the last, -2 (as loaded) the one before it."""
        self.layer_idx = layer_idx

    def tokenize(self, text: str) -> Tokens:
        """Chunks of 77 (id, weight) pairs for each encoder. Raises VocabularyMissing."""
        return self.tokenizer.tokenize_with_weights(text)

    def encode_from_tokens(
        self, tokens: Tokens, return_pooled: bool = True
    ) -> tuple[Tensor, Tensor] | Tensor:
        """(cond (1, 77·n, C), pooled (1, P)), or cond alone; float32, on the encoders' device."""
        self.patcher.patch_model(self.patcher.load_device)
        cond, pooled = self.cond_stage_model.encode_token_weights(tokens, self.layer_idx)
        return (cond, pooled) if return_pooled else cond

    def encode(self, text: str) -> Tensor:
        """The conditioning of a prompt, (1, 77·n, C)."""
        cond, _ = self.encode_from_tokens(self.tokenize(text))
        return cond

    def get_sd(self) -> dict[str, Tensor]:
        """The encoders' weights by name."""
        return self.cond_stage_model.state_dict()


# --- Checkpoints ------------------------------------------------------------------------------


def load_checkpoint_guess_config(
    ckpt_path: str | Path,
    output_vae: bool = True,
    output_clip: bool = True,
    output_clipvision: bool = False,
    embedding_directory: str | Path | None = None,  # noqa: ARG001 - the field's signature
    output_model: bool = True,
    *,
    policy: DevicePolicy | None = None,
) -> tuple[ModelPatcher | None, CLIP | None, VAE | None, None]:
    """(model, text encoders, VAE, None) of a checkpoint file whose family its weights tell.

    A part is None if it is not asked for or not in the file. policy: devices and precisions; None
    detects them. Weights whose precision fits stay in the file's memory; others are read and cast
    one by one. What the file holds besides is in each part's `load_report`, and logged.
    Raises CorruptModelFile, UnsafeModelFile, UnsupportedModel or OSError.
    """
    if output_clipvision:
        raise UnsupportedModel("Checkpoints of the known families hold no image encoder.")
    policy = policy or DevicePolicy.detect()
    file = open_weights(ckpt_path)
    config = _require_family(file)
    model = _load_model(file, config, policy) if output_model else None
    clip = _load_clip(file, config, policy) if output_clip else None
    vae = _load_vae(file, config.vae_prefix, policy) if output_vae else None
    return model, clip, vae, None


def _require_family(file: WeightFile) -> BASE:
    """The family of a checkpoint. Raises UnsupportedModel that says what the file looks like."""
    has_unet = any(key.startswith(UNET_PREFIX) for key in file)
    if not has_unet and (kind := likely_kind(file)) is not None:
        words, remedy = kind
        raise UnsupportedModel(
            f"{file.name} looks like {words}, not like a checkpoint. "
            + (f"{remedy}, and choose an SDXL checkpoint." if remedy else "Choose another file.")
        )
    _require_floats(file)
    config = model_detection.model_config_from_unet(file)
    if config is not None:
        return config
    family = likely_family(file)
    if family is not None:
        raise UnsupportedModel(
            f"{file.name} looks like {family}, which is not supported. Choose an SDXL checkpoint."
        )
    raise UnsupportedModel(
        f"{file.name} holds no diffusion model of a known family. Choose an SDXL checkpoint."
    )


def _require_floats(file: WeightFile) -> None:
    """Raises UnsupportedModel for weights stored as whole numbers: their scales mean nothing here.

    Buffers that are no weights (position_ids) may be whole numbers.
    """
    for key, tensor in file.items():
        if tensor.ndim > 1 and not tensor.is_floating_point() and not IGNORED.search(key):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UnsupportedModel(
                f"{file.name} is quantised to whole numbers ({kind}), which is not supported. "
                "Choose an fp16, bf16 or fp8 version of the checkpoint."
            )


def _load_model(file: WeightFile, config: BASE, policy: DevicePolicy) -> ModelPatcher:
    config.set_inference_dtype(policy.unet_dtype, policy.unet_compute_dtype)
    model = config.get_model(file, UNET_PREFIX, device="meta")
    # The model keeps norms and biases out of 8 bits, so it casts those files itself.
    dtype = policy.unet_dtype if policy.unet_dtype.itemsize > 1 else None
    weights = LazyWeights(file, prefix=UNET_PREFIX, dtype=dtype, memory_format=policy.memory_format)
    report = model.load_model_weights(weights, UNET_PREFIX, memory_format=policy.memory_format)
    utils.require_complete(report, file.name, "diffusion network")
    own = tuple(UNET_PREFIX + name for name in report.unexpected)
    model.load_report = LoadReport(unexpected=own + _rest(file, config))
    model.eval().requires_grad_(False)
    return ModelPatcher(model, policy.device, policy.offload_device)


def _load_clip(file: WeightFile, config: BASE, policy: DevicePolicy) -> CLIP | None:
    """Both text encoders; None if the file lacks one of them altogether."""
    prefixes = config.text_encoder_prefixes
    if set(prefixes) != {"l", "g"}:
        return None
    encoders: dict[str, ClipTextModel] = {}
    reports: dict[str, LoadReport] = {}
    for name, prefix in prefixes.items():
        found = _load_text_encoder(file, prefix, policy)
        if found is None:
            return None
        encoders[name], reports[name] = found
    unexpected = tuple(
        prefixes[name] + key for name, report in reports.items() for key in report.unexpected
    )
    return CLIP(
        SDXLClipModel(encoders["l"], encoders["g"]).eval().requires_grad_(False),
        SDXLTokenizer(),
        load_device=policy.text_encoder_device,
        offload_device=policy.text_encoder_device,
        load_report=LoadReport(unexpected=unexpected),
    )


def _load_text_encoder(
    file: WeightFile, prefix: str, policy: DevicePolicy
) -> tuple[ClipTextModel, LoadReport] | None:
    is_openclip = not prefix.endswith("text_model.")
    root = prefix if is_openclip else prefix.removesuffix("text_model.")
    every = model_detection.shapes_under(file, root)
    shapes = {name: shape for name, shape in every.items() if not IGNORED.search(root + name)}
    config = detect_clip_config(shapes, "gelu" if is_openclip else "quick_gelu")
    if config is None:
        return None
    with torch.device("meta"):
        model = ClipTextModel(config)
    lazy = LazyWeights(file, prefix=root, dtype=policy.text_encoder_dtype)
    weights = {k[len(root) :]: lazy.pop(k) for k in list(lazy) if not IGNORED.search(k)}
    report = utils.load_weights(model, from_openclip(weights) if is_openclip else weights)
    utils.require_complete(report, file.name, "text encoders")
    return model, report


def _load_vae(file: WeightFile, prefix: str, policy: DevicePolicy) -> VAE | None:
    """The VAE under `prefix`; None if there is none. Raises UnsupportedModel, CorruptModelFile."""
    shapes = model_detection.shapes_under(file, prefix)
    config = detect_autoencoder_config(shapes)
    if config is None:
        if any(name.startswith(("encoder.", "decoder.")) for name in shapes):
            raise UnsupportedModel(f"{file.name} holds a VAE of an unknown kind. Choose another.")
        return None
    with torch.device("meta"):
        model = AutoencoderKL(config)
    lazy = LazyWeights(
        file, prefix=prefix, dtype=policy.vae_dtype, memory_format=policy.memory_format
    )
    weights = {k[len(prefix) :]: lazy.pop(k) for k in list(lazy) if not IGNORED.search(k)}
    report = utils.load_weights(model, weights)
    utils.require_complete(report, file.name, "VAE")
    return VAE(
        model,
        device=policy.vae_device,
        dtype=policy.vae_dtype,
        memory_format=policy.memory_format,
        load_report=report,
    )


def _rest(file: WeightFile, config: BASE) -> tuple[str, ...]:
    """Names that belong to no part and are not known to be left out; they are logged."""
    parts = (UNET_PREFIX, config.vae_prefix, *config.text_encoder_prefixes.values())
    rest = tuple(key for key in file if not key.startswith(parts) and not IGNORED.search(key))
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
