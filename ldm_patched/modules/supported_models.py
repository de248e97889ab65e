"""The model families that can be loaded: how each is recognised and what it is made of.

`MODELS` is searched in order; a family is one class and one entry there.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ldm_patched.ldm.modules.diffusionmodules.unet_config import UNetConfig
from ldm_patched.modules import latent_formats, model_base
from ldm_patched.modules.latent_formats import LatentFormat
from ldm_patched.modules.model_base import BaseModel, ModelType
from ldm_patched.modules.prediction_type import predicts_velocity, said_prediction
from ldm_patched.modules.sd1_clip import ClipTextModel, SD1ClipModel, SingleTokenizer
from ldm_patched.modules.sd2_clip import H_PAD, SD2ClipModel
from ldm_patched.modules.sdxl_clip import (
    G_PAD,
    SDXLClipModel,
    SDXLRefinerClipModel,
    SDXLTokenizer,
)

UNET_PREFIX = "model.diffusion_model."


class BASE:
    """A family and, as an instance, one model of it with its dimensions and precision."""

    name: ClassVar[str] = ""
    model_class: ClassVar[type[BaseModel]] = BaseModel
    latent_format_class: ClassVar[type[LatentFormat]] = LatentFormat
    sampling_settings: Mapping[str, Any] = {}
    vae_prefix: ClassVar[str] = "first_stage_model."
    text_encoder_prefixes: ClassVar[Mapping[str, str]] = {}
    """Where each text encoder's weights are in a checkpoint, by its short name.

    Below it are either OpenCLIP's names or those of transformers, `text_model.` and so on.
    """

    purpose: ClassVar[str] = ""
    """What it does, in words, if it does not paint pictures from text."""
    vision_prefix: ClassVar[str] = ""
    """Where the image encoder's weights are, for a family that has one."""

    unet_dtype: torch.dtype | None = None
    """Precision in which the weights are stored; None is float32."""
    manual_cast_dtype: torch.dtype | None = None
    """Precision in which is computed, if it is another."""

    def __init__(self, unet_config: UNetConfig) -> None:
        self.unet_config = unet_config
        self.latent_format = self.latent_format_class()

    @classmethod
    def matches(cls, unet_config: UNetConfig) -> bool:
        """Whether a network of these dimensions is of this family."""
        raise NotImplementedError

    def model_type(self, state_dict: Mapping[str, Tensor]) -> ModelType:  # noqa: ARG002
        """What the network predicts; some files say so by a key of their own."""
        return ModelType.EPS

    @classmethod
    def text_widths(cls, unet_config: UNetConfig) -> dict[str, int]:
        """How wide each text encoder is that such a network reads, by short name."""
        return {name: unet_config.context_dim or 0 for name in cls.text_encoder_prefixes}

    def settle(self, model: BaseModel, state_dict: Mapping[str, Tensor]) -> None:
        """Decide what only the loaded weights tell; called once they are in their place."""

    def clip_model(self, encoders: Mapping[str, ClipTextModel], cut: int = 0) -> nn.Module:
        """The text encoders, by short name, as one module with `encode_token_weights`.

        cut: how many layers the file leaves out at their end.
        """
        raise NotImplementedError

    def tokenizer(self) -> Any:
        """Prompts to chunks for each encoder: an object with `tokenize_with_weights`."""
        raise NotImplementedError

    def set_inference_dtype(
        self, dtype: torch.dtype, compute_dtype: torch.dtype | None = None
    ) -> None:
        """Store weights as `dtype`; compute in `compute_dtype` if that is another."""
        self.unet_dtype = dtype
        self.manual_cast_dtype = None if compute_dtype in (None, dtype) else compute_dtype

    def get_model(
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str = UNET_PREFIX,  # noqa: ARG002 - for families that look into the weights
        device: torch.device | str | None = None,
    ) -> BaseModel:
        """The model, its weights still to be loaded by `load_model_weights`.

        device: where weights are made; "meta" makes none, which is the way to load a file.
        """
        return self.model_class(self, self.model_type(state_dict), device=device)


IMAGE_CHANNELS = (4, 9)
"""Of a network's input: latents; or latents, a mask and the masked picture's latents."""


def is_sdxl_shaped(c: UNetConfig) -> bool:
    """Sizes in y, linear projections, text attention only below the full size."""
    return (
        c.num_classes == "sequential"
        and not c.video
        and c.use_linear_in_transformer
        and c.context_dim is not None
        and c.transformer_depth[0] == 0
        and c.in_channels in IMAGE_CHANNELS
        and c.out_channels == 4
    )


def is_sd_shaped(c: UNetConfig) -> bool:
    """Text attention and nothing but time besides: Stable Diffusion 1 and 2."""
    return (
        c.num_classes is None
        and not c.video
        and c.context_dim is not None
        and c.in_channels in IMAGE_CHANNELS
        and c.out_channels == 4
    )


class SD15(BASE):
    """Stable Diffusion 1: eight heads at every width, projections that are 1×1 convolutions."""

    name = "Stable Diffusion 1"
    latent_format_class = latent_formats.SD15
    text_encoder_prefixes = {"l": "cond_stage_model.transformer."}

    @classmethod
    def matches(cls, unet_config: UNetConfig) -> bool:
        return is_sd_shaped(unet_config) and not unet_config.use_linear_in_transformer

    def model_type(self, state_dict: Mapping[str, Tensor]) -> ModelType:
        said = said_prediction(state_dict)
        self.sampling_settings = {"zsnr": said.zero_snr}
        return ModelType.V_PREDICTION if said.kind == "v" else ModelType.EPS

    def clip_model(self, encoders: Mapping[str, ClipTextModel], cut: int = 0) -> nn.Module:
        return SD1ClipModel(encoders["l"], cut)

    def tokenizer(self) -> SingleTokenizer:
        return SingleTokenizer()


class SD20(SD15):
    """Stable Diffusion 2: heads of 64, linear projections; 512 predicts noise, 768 velocity."""

    name = "Stable Diffusion 2"
    text_encoder_prefixes = {"h": "cond_stage_model.model."}

    @classmethod
    def matches(cls, unet_config: UNetConfig) -> bool:
        return is_sd_shaped(unet_config) and unet_config.use_linear_in_transformer

    def settle(self, model: BaseModel, state_dict: Mapping[str, Tensor]) -> None:
        """Names and shapes of both kinds are the same, so the network itself is asked."""
        if said_prediction(state_dict).kind is None and predicts_velocity(model):
            model.set_model_type(ModelType.V_PREDICTION)

    def clip_model(self, encoders: Mapping[str, ClipTextModel], cut: int = 0) -> nn.Module:
        return SD2ClipModel(encoders["h"], cut)

    def tokenizer(self) -> SingleTokenizer:
        return SingleTokenizer("h", H_PAD)


class SDXLRefiner(BASE):
    """The SDXL refiner: one text encoder, whose pooled output is as wide as its hidden states."""

    name = "SDXL refiner"
    model_class = model_base.SDXLRefiner
    latent_format_class = latent_formats.SDXL
    text_encoder_prefixes = {"g": "conditioner.embedders.0.model."}

    @classmethod
    def matches(cls, unet_config: UNetConfig) -> bool:
        c = unet_config
        return is_sdxl_shaped(c) and c.adm_in_channels == (c.context_dim or 0) + 5 * 256

    def clip_model(self, encoders: Mapping[str, ClipTextModel], cut: int = 0) -> nn.Module:
        return SDXLRefinerClipModel(encoders["g"], cut)

    def tokenizer(self) -> SingleTokenizer:
        return SingleTokenizer("g", G_PAD)


class SDXL(BASE):
    """SDXL base and whatever has its shape, of any width and depth."""

    name = "SDXL"
    model_class = model_base.SDXL
    latent_format_class = latent_formats.SDXL
    text_encoder_prefixes = {
        "l": "conditioner.embedders.0.transformer.",
        "g": "conditioner.embedders.1.model.",
    }

    @classmethod
    def matches(cls, unet_config: UNetConfig) -> bool:
        c = unet_config
        pooled = c.adm_in_channels - 6 * 256
        return is_sdxl_shaped(c) and 0 < pooled < (c.context_dim or 0)

    @classmethod
    def text_widths(cls, unet_config: UNetConfig) -> dict[str, int]:
        pooled = unet_config.adm_in_channels - 6 * 256
        return {"l": (unet_config.context_dim or 0) - pooled, "g": pooled}

    def model_type(self, state_dict: Mapping[str, Tensor]) -> ModelType:
        said = said_prediction(state_dict)
        if said.kind == "edm":  # Playground 2.5
            self.latent_format = latent_formats.SDXL_Playground_2_5(said.mean, said.std)
            self.sampling_settings = {"sigma_data": 0.5, "sigma_max": 80.0, "sigma_min": 0.002}
            return ModelType.EDM
        if said.kind == "edm-v":
            self.sampling_settings = said.sigmas
            return ModelType.V_PREDICTION_EDM
        self.sampling_settings = {"zsnr": said.zero_snr}
        return ModelType.V_PREDICTION if said.kind == "v" else ModelType.EPS

    def clip_model(
        self,
        encoders: Mapping[str, ClipTextModel],
        cut: int = 0,  # noqa: ARG002 - nobody cuts these
    ) -> nn.Module:
        return SDXLClipModel(encoders["l"], encoders["g"])

    def tokenizer(self) -> SDXLTokenizer:
        return SDXLTokenizer()


class SD_X4Upscaler(SD20):  # noqa: N801 - the field's name
    """Stable Diffusion 2's upscaler: four times the sides of a picture that it is shown."""

    name = "Stable Diffusion ×4 upscaler"
    purpose = "enlarges pictures"
    model_class = model_base.SD_X4Upscaler
    latent_format_class = latent_formats.SD_X4
    sampling_settings = {"linear_start": 1e-4, "linear_end": 0.02}

    @classmethod
    def matches(cls, unet_config: UNetConfig) -> bool:
        return isinstance(unet_config.num_classes, int) and unet_config.in_channels == 7

    def model_type(self, state_dict: Mapping[str, Tensor]) -> ModelType:
        said = said_prediction(state_dict)
        return ModelType.EPS if said.kind == "eps" else ModelType.V_PREDICTION

    def settle(self, model: BaseModel, state_dict: Mapping[str, Tensor]) -> None:
        """It predicts velocity unless its file says otherwise."""


class SVD(BASE):
    """Stable Video Diffusion: a picture in, the frames after it out; no text."""

    name = "Stable Video Diffusion"
    purpose = "makes videos"
    model_class = model_base.SVD
    latent_format_class = latent_formats.SD15
    sampling_settings = {"sigma_min": 0.002, "sigma_max": 700.0}
    vision_prefix = "conditioner.embedders.0.open_clip.model."

    @classmethod
    def matches(cls, unet_config: UNetConfig) -> bool:
        return unet_config.video and unet_config.num_classes == "sequential"

    def model_type(self, state_dict: Mapping[str, Tensor]) -> ModelType:  # noqa: ARG002
        return ModelType.V_PREDICTION_EDM


MODELS: tuple[type[BASE], ...] = (SVD, SD_X4Upscaler, SDXLRefiner, SDXL, SD15, SD20)
