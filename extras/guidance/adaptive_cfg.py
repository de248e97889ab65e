"""Adaptive guidance: strong scales begin as mild ones, so that colours do not burn out.

With a scale above `mimic_scale` the guided noise runs from that of the mild scale, where sampling
begins, to that of the wanted one, where it ends.
"""

from torch import Tensor


def guided(positive: Tensor, negative: Tensor, *, scale: float) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598) of noise (B, C, H, W)."""
    return negative + (positive - negative) * scale


def adaptive_guided(
    positive: Tensor, negative: Tensor, *, scale: float, mimic_scale: float, progress: Tensor
) -> Tensor:
    """Guidance that grows from `mimic_scale` to `scale`; plain guidance if that is not larger.

    positive, negative: (B, C, H, W); progress: (B,), 0 where sampling begins, 1 where it ends.
    """
    strong = guided(positive, negative, scale=scale)
    if scale <= mimic_scale:
        return strong
    mild = guided(positive, negative, scale=mimic_scale)
    progress = progress.to(strong).view(-1, 1, 1, 1)
    return strong * progress + mild * (1.0 - progress)  # torch.lerp differs in the last bits
