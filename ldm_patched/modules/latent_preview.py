"""A look at latents without the VAE: one small matrix from latent channels to RGB.

It costs a fraction of a millisecond, so a live view does not slow sampling down. The matrix of
the SDXL latent space is the published linear fit of T. A. Vass, "Explaining the SDXL latent
space"; another latent space brings its own as `latent_rgb_factors` of its latent format.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldm_patched.modules.latent_formats import SDXL, LatentFormat

# rows: latent channels; columns: R, G, B in 0..255
SDXL_FACTORS = ((60.0, 60.0, 60.0), (-60.0, -5.0, 10.0), (25.0, 15.0, -5.0), (-70.0, -50.0, -35.0))
_SDXL_BIAS = (150.0, 140.0, 130.0)


class LatentPreviewer:
    """Previews of one latent space."""

    def __init__(self, latent_format: Any, max_side: int = 256) -> None:
        """latent_format: may have latent_rgb_factors (C rows of R, G, B) and latent_rgb_bias.

        Both are for values -1..1, as the field writes them; without them its latents are taken for
        those of SDXL's VAE, in the format's own scale. None: SDXL's. max_side: pixels of the longer
        side that a preview may have; latents larger than that are scaled down, never up.
        """
        self.max_side = max_side
        factors = getattr(latent_format, "latent_rgb_factors", None)
        if factors is None:
            self._factors, self._bias = _sdxl_fit(latent_format or SDXL())
        else:
            bias = getattr(latent_format, "latent_rgb_bias", None) or (0.0, 0.0, 0.0)
            self._factors = torch.tensor(factors, dtype=torch.float32) * 127.5
            self._bias = (torch.tensor(bias, dtype=torch.float32) + 1.0) * 127.5

    @torch.no_grad()
    def to_jpeg_ready(self, denoised: Tensor) -> np.ndarray:
        """denoised (B, C, H, W) in the model's scale → the first picture, uint8 (H', W', 3)."""
        latent = denoised[:1].float()
        longest = max(latent.shape[-2:])
        if longest > self.max_side:
            size = [max(1, round(s * self.max_side / longest)) for s in latent.shape[-2:]]
            latent = F.interpolate(latent, size=size, mode="area")
        pixels = latent[0].permute(1, 2, 0)  # (H', W', C)
        rgb = pixels @ self._factors.to(latent.device) + self._bias.to(latent.device)
        return rgb.nan_to_num(0.0).clamp(0.0, 255.0).to(torch.uint8).cpu().numpy()


def _sdxl_fit(latent_format: LatentFormat) -> tuple[Tensor, Tensor]:
    """(factors (4, 3), bias (3,)) for SDXL's latents in the scale of `latent_format`."""
    probes = torch.cat([torch.zeros(1, 4), torch.eye(4)]).double().view(5, 4, 1, 1)
    scaled = SDXL().process_in(latent_format.process_out(probes)).view(5, 4)
    factors = torch.tensor(SDXL_FACTORS, dtype=torch.float64)
    bias = torch.tensor(_SDXL_BIAS, dtype=torch.float64) + scaled[0] @ factors
    return ((scaled[1:] - scaled[0]) @ factors).float(), bias.float()
