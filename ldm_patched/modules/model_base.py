"""A diffusion model as samplers see it: noised latents and a sigma in, denoised latents out."""

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm_patched.ldm.modules.diffusionmodules.openaimodel import Timestep, UNetModel
from ldm_patched.ldm.modules.diffusionmodules.upscaling import ImageConcatWithNoiseAugmentation
from ldm_patched.ldm.modules.diffusionmodules.util import HybridConditioner
from ldm_patched.modules import model_sampling as ms
from ldm_patched.modules import ops
from ldm_patched.modules.conds import (
    CONDCrossAttn,
    CONDNoiseShape,
    CONDRegular,
    CONDTimed,
    guidance_embedding,
)


class ModelType(Enum):
    """What the network predicts, with its (noise levels, prediction) classes."""

    EPS = (ms.ModelSamplingDiscrete, ms.EPS)
    V_PREDICTION = (ms.ModelSamplingDiscrete, ms.V_PREDICTION)
    V_PREDICTION_EDM = (ms.ModelSamplingContinuousEDM, ms.V_PREDICTION)
    EDM = (ms.ModelSamplingContinuousEDM, ms.EDM)
    STABLE_CASCADE = (ms.StableCascadeSampling, ms.EPS)


def model_sampling(model_config: Any, model_type: ModelType) -> nn.Module:
    """The noise levels and the prediction of a model type, in one module."""
    levels, prediction = model_type.value

    class ModelSampling(levels, prediction):
        pass

    return ModelSampling(model_config)


@dataclass(frozen=True)
class AdmGuidance:
    """Size conditioning that leads towards the look of large pictures; a part of a condition.

    positive, negative: factors on the original size that each prompt is told; end: the share of
    the sampling (0..1) in which they count. Afterwards both are told the size that is painted.
    """

    positive: float = 1.5
    negative: float = 0.8
    end: float = 0.3


@dataclass(frozen=True)
class LoadReport:
    """What a state dict lacked, and what it held that the network has no place for."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    wrong_shape: tuple[str, ...] = ()


class MaskedPicture(nn.Module):
    """What an inpainting network sees beside the noise, (B, 1 + C, H, W).

    The mask comes first: 1 where is painted, 0 where the picture stays, nothing between.
    """

    def forward(self, c_concat: Tensor) -> Tensor:
        return torch.cat([c_concat[:, :1].round(), c_concat[:, 1:]], dim=1)


class BaseModel(nn.Module):
    """A network with its noise levels and latent format. Families say how y is made."""

    def __init__(
        self,
        model_config: Any,
        model_type: ModelType = ModelType.EPS,
        device: torch.device | str | None = None,
    ) -> None:
        """model_config: see supported_models. device: where the network's weights are made;
        "meta" makes none, for weights that come from a file."""
        super().__init__()
        self.model_config = model_config
        self.model_type = model_type
        self.latent_format = model_config.latent_format
        self.manual_cast_dtype: torch.dtype | None = model_config.manual_cast_dtype
        self.diffusion_model = UNetModel(
            model_config.unet_config,
            dtype=model_config.unet_dtype,
            device=device,
            operations=ops.disable_weight_init if not self.manual_cast_dtype else ops.manual_cast,
        )
        self.model_sampling = model_sampling(model_config, model_type)
        self.inpaint: HybridConditioner | None = None
        if model_config.unet_config.in_channels == 2 * self.latent_format.channels + 1:
            self.inpaint = HybridConditioner(
                {"target": f"{__name__}.{MaskedPicture.__name__}"}, {"target": "torch.nn.Identity"}
            )
        self.blank_picture = torch.zeros(1, self.latent_format.channels, 1, 1)
        """Latents of an empty picture in the VAE's scale, for an inpainting network without one."""
        takes_y = model_config.unet_config.num_classes is not None
        self.adm_channels = model_config.unet_config.adm_in_channels if takes_y else 0

    def get_dtype(self) -> torch.dtype:
        """The precision in which the weights are stored."""
        return self.diffusion_model.dtype or torch.float32

    def set_model_type(self, model_type: ModelType) -> None:
        """Take what the network gives as another kind of prediction, with its noise levels."""
        self.model_type = model_type
        self.model_sampling = model_sampling(self.model_config, model_type)

    def apply_model(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Mapping[str, list[Tensor | None]] | None = None,
        transformer_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The denoised latents, (B, C, H, W) in float32.

        x: noised latents, unscaled. t: sigma, (B,). c_concat: (B, …, H, W), joined to the input.
        c_crossattn: (B, tokens, context_dim). The other keywords go to the network.
        """
        dtype = self.manual_cast_dtype or self.get_dtype()
        scaled = self.model_sampling.calculate_input(t, x)
        if c_concat is not None:
            scaled = torch.cat([scaled, c_concat], dim=1)
        timestep = self.model_sampling.timestep(t).float()
        keywords = {
            name: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v
            for name, v in kwargs.items()
        }
        output = self.diffusion_model(
            scaled.to(dtype),
            timestep,
            context=None if c_crossattn is None else c_crossattn.to(dtype),
            control=control,
            transformer_options={
                **(transformer_options or {}),
                "progress": partial(ms.sampling_progress, self.model_sampling, t[:1]),
            },
            **keywords,
        ).float()
        return self.model_sampling.calculate_denoised(t, output, x)

    def encode_adm(self, **_: Any) -> Tensor | None:
        """y for the network, (B, adm_channels); None for a family without it."""
        return None

    def extra_conds(self, **kwargs: Any) -> dict[str, CONDRegular]:
        """The network's inputs that a condition implies, by keyword of `apply_model`.

        kwargs: `cross_attn`, (1, tokens, C), and whatever `encode_adm` takes. An inpainting network
        takes `concat_latent_image`, (B, C, h, w), the picture in the VAE's scale with grey where is
        painted, and `concat_mask`, (B, 1, H, W) in 0..1 at any size, 1 where is painted; without
        them it paints everything. `noise`, (B, C, h, w), tells it the size. `guidance`: the scale,
        for a network that is told it.
        """
        conds: dict[str, CONDRegular] = {}
        adm = self.encode_adm(**kwargs)
        if adm is not None and adm.shape[1] == 2 * self.adm_channels:
            conds["y"] = CONDTimed(adm, kwargs["adm_guidance"].end)
        elif adm is not None:
            conds["y"] = CONDRegular(adm)
        guidance_dim = self.diffusion_model.config.guidance_dim
        if guidance_dim and "guidance" in kwargs:
            conds["guidance"] = CONDRegular(guidance_embedding(kwargs["guidance"], guidance_dim))
        context = kwargs.get("cross_attn")
        if self.inpaint is not None:
            made = self.inpaint(self._mask_and_picture(**kwargs), context)
            conds["c_concat"] = CONDNoiseShape(*made["c_concat"])
            (context,) = made["c_crossattn"]
        if context is not None:
            conds["c_crossattn"] = CONDCrossAttn(context)
        return conds

    def _mask_and_picture(
        self,
        noise: Tensor,
        concat_latent_image: Tensor | None = None,
        concat_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        size = noise.shape[-2:]
        picture, mask = concat_latent_image, concat_mask
        if picture is None:
            picture = self.blank_picture.expand(1, -1, *size)
        if mask is None or concat_latent_image is None:
            mask = torch.ones(1, 1, 1, 1)
        mask = F.interpolate(mask.float(), size=size).to(picture.device)
        picture = self.process_latent_in(picture.float())
        count = max(len(mask), len(picture))
        return torch.cat([mask.expand(count, -1, *size), picture.expand(count, -1, *size)], dim=1)

    def process_latent_in(self, latent: Tensor) -> Tensor:
        """See LatentFormat.process_in."""
        return self.latent_format.process_in(latent)

    def process_latent_out(self, latent: Tensor) -> Tensor:
        """See LatentFormat.process_out."""
        return self.latent_format.process_out(latent)

    def memory_required(self, input_shape: Sequence[int]) -> int:
        """Bytes that a forward pass takes besides the weights, an estimate on the safe side.

        input_shape: (B, C, H, W) of the latents.
        """
        config = self.diffusion_model.config
        width = config.model_channels
        skips = sum(
            config.channel_mult[level] * width / 4**level for level in config.level_of_input_block
        )
        # Work space: a residual block at full size holds about 8 maps of its width, a GEGLU one
        # level down as much.
        per_pixel = skips + 16 * width
        dtype = self.manual_cast_dtype or self.get_dtype()
        batch, _, height, columns = input_shape
        return int(batch * height * columns * per_pixel * max(dtype.itemsize, 2) * 1.2)

    def load_model_weights(
        self,
        state_dict: MutableMapping[str, Tensor],
        prefix: str = "model.diffusion_model.",
        memory_format: torch.memory_format | None = None,
    ) -> LoadReport:
        """Move the network's weights out of `state_dict`, so that no second copy lives long.

        Each is cast to the network's precision; a tensor that needs no cast is used as it is.
        memory_format: of the convolutions' weights. What is missing stays as it was.
        """
        own = dict(self.diffusion_model.named_parameters())
        missing, unexpected, wrong = [], [], []
        dtype = self.get_dtype()
        for key in [k for k in state_dict if k.startswith(prefix)]:
            name = key[len(prefix) :]
            weight = state_dict.pop(key)
            if name not in own:
                unexpected.append(name)
                continue
            if own.pop(name).shape != weight.shape:
                wrong.append(name)
                continue
            with torch.inference_mode(False):
                # In 8 bits norms and biases would lose more than they save.
                small = dtype.itemsize == 1 and weight.ndim < 2
                eight_bits = dtype.itemsize == 1 and not small
                weight = weight.to(self.manual_cast_dtype if small or eight_bits else dtype)
                if weight.is_inference():
                    weight = weight.clone()  # what is made in inference mode counts no changes
                if memory_format is not None and weight.ndim == 4:
                    weight = weight.contiguous(memory_format=memory_format)
                weight = ops.compressed(weight, dtype) if eight_bits else weight
                set_weight(self.diffusion_model, name, weight)
        missing = list(own)
        return LoadReport(tuple(missing), tuple(unexpected), tuple(wrong))


def set_weight(module: nn.Module, name: str, weight: Tensor) -> None:
    """Put `weight` in the place of the parameter or buffer with the dotted `name`.

    The old tensor object is left as it is, so whoever holds it can put it back.
    Raises AttributeError if there is no such place.
    """
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._buffers:
        owner._buffers[leaf] = weight
        return
    if leaf not in owner._parameters:
        raise AttributeError(f"There is no weight named {name}.")
    if not isinstance(weight, nn.Parameter):
        scale = getattr(weight, "stored_scale", None)
        weight = nn.Parameter(weight, requires_grad=False)
        if scale is not None:
            weight.stored_scale = scale
    owner._parameters[leaf] = weight


class SDXL(BaseModel):
    """Stable Diffusion XL base: y is the pooled text and six sizes."""

    size_embedding = 256

    def __init__(
        self,
        model_config: Any,
        model_type: ModelType = ModelType.EPS,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(model_config, model_type, device)
        self.embedder = Timestep(self.size_embedding)

    def encode_adm(
        self,
        pooled_output: Tensor | None = None,
        width: int = 1024,
        height: int = 1024,
        crop_w: int = 0,
        crop_h: int = 0,
        target_width: int | None = None,
        target_height: int | None = None,
        adm_guidance: AdmGuidance | None = None,
        prompt_type: str = "positive",
        **_: Any,
    ) -> Tensor:
        """(B, pooled width + 1536), or twice as wide with adm_guidance.

        pooled_output: (B, P) of the second text encoder; None is zeros. width, height: the
        picture's size before cropping, in pixels; crop_w, crop_h: what was cropped at the left
        and the top; target_*: the size to paint, by default width and height.
        adm_guidance: the y of its first part, then that of the rest; the crop is not told.
        """
        if adm_guidance is not None:
            factor = getattr(adm_guidance, prompt_type)
            target = _whole_64(target_height or height), _whole_64(target_width or width)
            early = (int(height * factor), int(width * factor), 0, 0, *target)
            late = (*target, 0, 0, *target)
            halves = [self._with_sizes(pooled_output, sizes) for sizes in (early, late)]
            return torch.cat(halves, dim=1)
        sizes = (
            height,
            width,
            crop_h,
            crop_w,
            height if target_height is None else target_height,
            width if target_width is None else target_width,
        )
        return self._with_sizes(pooled_output, sizes)

    def _with_sizes(self, pooled: Tensor | None, sizes: Sequence[float]) -> Tensor:
        if pooled is None:
            pooled = torch.zeros(1, self.adm_channels - len(sizes) * self.size_embedding)
        numbers = torch.tensor([float(s) for s in sizes], device=pooled.device)
        flat = self.embedder(numbers).flatten()[None]
        return torch.cat([pooled.float(), flat.repeat(pooled.shape[0], 1)], dim=1)


def _whole_64(side: float) -> int:
    """The multiple of 64 nearest to `side`, 64 at least."""
    return max(64, round(side / 64) * 64)


class SD_X4Upscaler(BaseModel):  # noqa: N801 - the field's name
    """Stable Diffusion 2's upscaler: it sees the small picture, with a little noise, and y says
    how much."""

    def __init__(
        self,
        model_config: Any,
        model_type: ModelType = ModelType.V_PREDICTION,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(model_config, model_type, device)
        schedule = {"linear_start": 1e-4, "linear_end": 2e-2}
        self.low_scale = ImageConcatWithNoiseAugmentation(schedule, max_noise_level=350)

    def extra_conds(self, **kwargs: Any) -> dict[str, CONDRegular]:
        """As BaseModel's. kwargs: `concat_image`, (1, 3, h, w) in -1..1 at the latents' size, the
        picture to enlarge, or None for grey; `noise_level`, 0..349; `seed` of its noise."""
        conds = super().extra_conds(**kwargs)
        noise, picture = kwargs["noise"], kwargs.get("concat_image")
        if picture is None:
            picture = torch.zeros(1, 3, *noise.shape[-2:])
        picture = F.interpolate(picture.float(), size=noise.shape[-2:], mode="bilinear")
        level = torch.tensor([min(int(kwargs.get("noise_level", 20)), 349)])
        picture, level = self.low_scale(picture, level, kwargs.get("seed", 0))
        return conds | {"c_concat": CONDNoiseShape(picture), "y": CONDRegular(level)}


class SVD(SDXL):
    """Stable Video Diffusion: y is frame rate, amount of motion, and noise on the first picture."""

    def encode_adm(
        self,
        fps: int = 6,
        motion_bucket_id: int = 127,
        augmentation_level: float = 0.0,
        **_: Any,
    ) -> Tensor:
        """(1, 768). fps: 1 or more; the network counts from 0. motion_bucket_id: 0..255."""
        numbers = (fps - 1, motion_bucket_id, augmentation_level)
        return self._with_sizes(torch.zeros(1, 0), numbers)


class SDXLRefiner(SDXL):
    """Stable Diffusion XL refiner: y is the pooled text, four sizes and an aesthetic score."""

    def encode_adm(
        self,
        pooled_output: Tensor | None = None,
        width: int = 1024,
        height: int = 1024,
        crop_w: int = 0,
        crop_h: int = 0,
        aesthetic_score: float | None = None,
        prompt_type: str = "positive",
        **_: Any,
    ) -> Tensor:
        """(B, pooled width + 1280). aesthetic_score: 6 by default, 2.5 for a negative prompt."""
        if aesthetic_score is None:
            aesthetic_score = 2.5 if prompt_type == "negative" else 6.0
        return self._with_sizes(pooled_output, (height, width, crop_h, crop_w, aesthetic_score))
