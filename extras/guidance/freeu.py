"""FreeU, version 2 (Si et al., arXiv:2309.11497): stronger backbone, calmer skips, no training.

On the way up, where features are four and two times as wide as at the full size, half of the
network's own channels are amplified where the features are strong, and the slow part of the skip
is scaled.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ldm_patched.modules.model_patcher import ModelPatcher


@dataclass(frozen=True)
class FreeU:
    """b1, b2: of the backbone at four and at two times the width, 1 is off; s1, s2: of the skips'
    slow part there."""

    b1: float = 1.01
    b2: float = 1.02
    s1: float = 0.99
    s2: float = 0.95

    def attach(self, unet: ModelPatcher) -> None:
        """Let `unet`, a clone, paint with it."""
        base = unet.model.diffusion_model.config.model_channels
        by_width = {4 * base: (self.b1, self.s1), 2 * base: (self.b2, self.s2)}

        def patch(h: Tensor, skip: Tensor, _options: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
            found = by_width.get(h.shape[1])
            if found is None:
                return h, skip
            return amplified(h, found[0]), scaled_slow_part(skip, found[1])

        unet.set_model_output_block_patch(patch)


def amplified(h: Tensor, b: float) -> Tensor:
    """h (B, C, H, W) with the first half of its channels times 1 + (b - 1) m.

    m: the mean over all channels, stretched to 0..1 over each picture; 0 where it is even.
    """
    mean = h.float().mean(1, keepdim=True)
    low, high = mean.amin((2, 3), keepdim=True), mean.amax((2, 3), keepdim=True)
    share = (mean - low) / (high - low).clamp_min(1e-12)
    half = h.shape[1] // 2
    factor = (1.0 + (b - 1.0) * share).to(h.dtype)
    return torch.cat([h[:, :half] * factor, h[:, half:]], dim=1)


def scaled_slow_part(x: Tensor, s: float) -> Tensor:
    """x (B, C, H, W) with its two slowest frequencies along each side scaled by s.

    The box of 2 × 2 around the centre of the shifted spectrum, frequencies 0 and -1; without a
    Fourier transform of the whole, since four waves are all that it takes.
    """
    height, width = x.shape[-2:]
    waves = _waves(height, width, x.device)
    flat = x.float().flatten(2)
    slow = (flat @ waves.T / (height * width)) @ waves
    return (x.float() + (s - 1.0) * slow.unflatten(2, (height, width))).to(x.dtype)


@lru_cache(maxsize=16)  # two sizes a run, asked for in each block and step
def _waves(height: int, width: int, device: torch.device) -> Tensor:
    """(waves, H·W): cosine and sine of each frequency in the box; the sines of the mean are left
    out. A wave times its own share of a picture is what the inverse transform adds for it."""
    with torch.inference_mode(False):
        return _make_waves(height, width, device)


def _make_waves(height: int, width: int, device: torch.device) -> Tensor:
    y = torch.arange(height, device=device) * (2.0 * math.pi / height)
    x = torch.arange(width, device=device) * (2.0 * math.pi / width)
    rows = (0, 1) if height > 1 else (0,)
    columns = (0, 1) if width > 1 else (0,)
    waves = []
    for row in rows:
        for column in columns:
            angle = (row * y[:, None] + column * x[None]).flatten()
            waves.append(torch.cos(angle))
            if row or column:
                waves.append(torch.sin(angle))
    return torch.stack(waves)
