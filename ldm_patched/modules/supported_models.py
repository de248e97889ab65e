"""The model families that can be loaded: how each is recognised and what it is made of.

`MODELS` is searched in order; a family is one class and one entry there.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ldm_patched.ldm.modules.diffusionmodules.unet_config import UNetConfig
from ldm_patched.modules import latent_formats, model_base
from ldm_patched.modules.latent_formats import LatentFormat
from ldm_patched.modules.model_base import BaseModel, ModelType

UNET_PREFIX = "model.diffusion_model."


class BASE:
    """A family and, as an instance, one model of it with its dimensions and precision."""

    name: ClassVar[str] = ""
    model_class: ClassVar[type[BaseModel]] = BaseModel
    latent_format_class: ClassVar[type[LatentFormat]] = LatentFormat
    sampling_settings: Mapping[str, Any] = {}
    vae_prefix: ClassVar[str] = "first_stage_model."
    text_encoder_prefixes: ClassVar[Mapping[str, str]] = {}
    """Where each text encoder's weights are in a checkpoint, by its short name."""

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


def is_sdxl_shaped(c: UNetConfig) -> bool:
    """Sizes in y, linear projections, text attention only below the full size."""
    return (
        c.num_classes == "sequential"
        and c.use_linear_in_transformer
        and c.context_dim is not None
        and c.transformer_depth[0] == 0
        and c.in_channels == 4
        and c.out_channels == 4
    )


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


class SDXL(BASE):
    """SDXL base and whatever has its shape, of any width and depth."""

    name = "SDXL"
    model_class = model_base.SDXL
    latent_format_class = latent_formats.SDXL
    text_encoder_prefixes = {
        "l": "conditioner.embedders.0.transformer.text_model.",
        "g": "conditioner.embedders.1.model.",
    }

    @classmethod
    def matches(cls, unet_config: UNetConfig) -> bool:
        c = unet_config
        pooled = c.adm_in_channels - 6 * 256
        return is_sdxl_shaped(c) and 0 < pooled < (c.context_dim or 0)

    def model_type(self, state_dict: Mapping[str, Tensor]) -> ModelType:
        if "edm_mean" in state_dict and "edm_std" in state_dict:  # Playground 2.5
            self.latent_format = latent_formats.SDXL_Playground_2_5()
            self.sampling_settings = {"sigma_data": 0.5, "sigma_max": 80.0, "sigma_min": 0.002}
            return ModelType.EDM
        if "edm_vpred.sigma_max" in state_dict:
            self.sampling_settings = {"sigma_max": float(state_dict["edm_vpred.sigma_max"])}
            if "edm_vpred.sigma_min" in state_dict:
                low = float(state_dict["edm_vpred.sigma_min"])
                self.sampling_settings = {**self.sampling_settings, "sigma_min": low}
            return ModelType.V_PREDICTION_EDM
        if "v_pred" in state_dict:
            self.sampling_settings = {"zsnr": "ztsnr" in state_dict}
            return ModelType.V_PREDICTION
        return ModelType.EPS


MODELS: tuple[type[BASE], ...] = (SDXLRefiner, SDXL)
