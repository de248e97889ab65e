"""Sharpness: the noise prediction is smoothed where the picture is flat, and only there.

A joint bilateral filter (Petschnigg et al. 2004; Eisemann and Durand 2004): the average over a
window in which a neighbour counts by its distance and by how alike the two are in a guide. What
is smooth in the noise stays out of the picture's edges, so these come out crisper.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

RADIUS = 6  # a window of 13 × 13
SIGMA_SPACE = 3.0
SIGMA_GUIDE = 3.0
_SHARE_PER_UNIT = 0.001


def sharpened(noise: Tensor, denoised: Tensor, *, sharpness: float, progress: Tensor) -> Tensor:
    """`noise` with a share of 0.001 · sharpness · progress of its filtered self.

    noise: x - denoised of the positive prompt, denoised: its prediction, both (B, C, H, W);
    sharpness: 0..30; progress: (B,), 0 where sampling begins, 1 where it ends.
    """
    share = (_SHARE_PER_UNIT * sharpness) * progress.to(noise).view(-1, 1, 1, 1)
    filtered = adaptive_anisotropic_filter(noise, denoised)
    return filtered * share + noise * (1.0 - share)


def adaptive_anisotropic_filter(x: Tensor, g: Tensor | None = None) -> Tensor:
    """x (B, C, H, W) smoothed where the guide g, by default x itself, is flat; the same shape.

    g: like x, of any scale, for each picture is brought to mean 0 and deviation 1.
    """
    g = x if g is None else g
    deviation, mean = torch.std_mean(g, dim=(1, 2, 3), keepdim=True)
    return joint_bilateral(x, (g - mean) / (deviation + 1e-5))


def joint_bilateral(x: Tensor, guide: Tensor) -> Tensor:
    """Weighted mean over a 13 × 13 window, (B, C, H, W) like x.

    Weight of a neighbour: exp(-d² / (2 · 3²)), where d is the sum over channels of the guide's
    absolute difference, times a Gaussian of deviation 3 pixels over the distance. Beyond the
    edges the picture is reflected; one that is smaller than the window repeats its edge.
    """
    height, width = x.shape[-2:]
    mode = "reflect" if min(height, width) > RADIUS else "replicate"
    padded = F.pad(x, (RADIUS,) * 4, mode=mode)
    padded_guide = F.pad(guide, (RADIUS,) * 4, mode=mode)
    reach = 2 * RADIUS + 1
    by_step = [math.exp(-0.5 * step * step / SIGMA_SPACE**2) for step in range(-RADIUS, RADIUS + 1)]
    across = x.new_tensor(by_step).view(-1, 1, 1, 1, 1)
    total, weights = torch.zeros_like(x), torch.zeros_like(x[:, :1])
    for top, down in enumerate(by_step):  # a row of the window at a time
        near = torch.stack([_shifted(padded, top, left, x) for left in range(reach)])
        near_guide = torch.stack([_shifted(padded_guide, top, left, x) for left in range(reach)])
        distance = (near_guide - guide).abs_().sum(2, keepdim=True)
        weight = distance.square_().mul_(-0.5 / SIGMA_GUIDE**2).exp_().mul_(across * down)
        total += near.mul_(weight).sum(0)
        weights += weight.sum(0)
    return total.div_(weights)


def _shifted(padded: Tensor, top: int, left: int, like: Tensor) -> Tensor:
    height, width = like.shape[-2:]
    return padded[..., top : top + height, left : left + width]
