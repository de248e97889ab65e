"""Guidance on a clone of the UNet: sharpness, adaptive scale and rescaling in one function."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from extras.guidance.adaptive_cfg import adaptive_guided
from extras.guidance.anisotropic import sharpened
from ldm_patched.contrib.external_model_advanced import rescaled
from ldm_patched.modules.model_patcher import ModelPatcher
from ldm_patched.modules.model_sampling import sampling_progress


@dataclass(frozen=True)
class Guidance:
    """How the two predictions become one.

    sharpness: 0..30, 0 is off. mimic_scale: where the scale begins that ends at a larger one.
    rescale: 0..1, the share of guidance whose spread is pulled back to the positive prediction's.
    """

    sharpness: float = 0.0
    mimic_scale: float | None = None
    rescale: float = 0.0

    @property
    def is_plain(self) -> bool:
        """Whether it is nothing but the usual formula."""
        return not self.sharpness and self.mimic_scale is None and not self.rescale

    def attach(self, unet: ModelPatcher) -> None:
        """Make `unet`, a clone, follow this guidance."""
        if not self.is_plain:
            unet.set_model_sampler_cfg_function(guidance_function(self))


def guidance_function(guidance: Guidance) -> Callable[[Mapping[str, Any]], Tensor]:
    """What a sampler calls in the place of plain guidance; see GuidedDenoiser."""

    def guide(args: Mapping[str, Any]) -> Tensor:
        sigma, scale = args["sigma"], args["cond_scale"]
        positive, negative = args["cond"], args["uncond"]
        if scale == 1.0:  # as where the negative prompt is not evaluated
            return positive
        progress = sampling_progress(args["model"].model_sampling, sigma)
        if guidance.sharpness:
            positive = sharpened(
                positive, args["cond_denoised"], sharpness=guidance.sharpness, progress=progress
            )
        mimic = scale if guidance.mimic_scale is None else guidance.mimic_scale
        noise = adaptive_guided(
            positive, negative, scale=scale, mimic_scale=mimic, progress=progress
        )
        if not guidance.rescale:
            return noise
        return rescaled(noise, positive, sigma, args["input"], guidance.rescale)

    return guide
