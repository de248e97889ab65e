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

# rows: latent channels; columns: R, G, B in 0..255
SDXL_FACTORS = ((60.0, 60.0, 60.0), (-60.0, -5.0, 10.0), (25.0, 15.0, -5.0), (-70.0, -50.0, -35.0))
_SDXL_BIAS = (150.0, 140.0, 130.0)


class LatentPreviewer:
    """Previews of one latent space."""

    def __init__(self, latent_format: Any, max_side: int = 256) -> None:
        """latent_format: may have latent_rgb_factors (C rows of R, G, B) and latent_rgb_bias.

        Both are for values -1..1, as the field writes them. max_side: pixels of the longer side
        that a preview may have; latents larger than that are scaled down, never up.
        """
        self.max_side = max_side
        factors = getattr(latent_format, "latent_rgb_factors", None)
        if factors is None:
            self._factors, self._bias = torch.tensor(SDXL_FACTORS), torch.tensor(_SDXL_BIAS)
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
