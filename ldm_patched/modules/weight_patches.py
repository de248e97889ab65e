"""Changes to a weight, by kind. A new kind is one function and its row in WEIGHT_PATCHES.

A patch is a tuple: (kind, values), or just (tensor,), which is a difference.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

WeightPatch = Sequence[Any]


def diff_delta(values: Sequence[Any], weight: Tensor) -> Tensor:
    """values: (difference,), of the weight's shape."""
    (difference,) = values[:1]
    if difference.shape != weight.shape:
        raise ValueError(
            f"A difference of shape {tuple(difference.shape)} does not fit a weight of shape "
            f"{tuple(weight.shape)}."
        )
    return difference.to(device=weight.device, dtype=torch.float32)


def lora_delta(values: Sequence[Any], weight: Tensor) -> Tensor:
    """values: (up, down, alpha or None, middle or None), of low rank r (arXiv:2106.09685).

    up (out, r, …), down (r, in, …), middle (r, r, …) for a convolution in Tucker form. The
    product is scaled by alpha / r; without alpha by 1.
    """
    up, down, alpha, middle = (*values, None, None)[:4]
    up = up.to(device=weight.device, dtype=torch.float32)
    down = down.to(device=weight.device, dtype=torch.float32)
    scale = 1.0 if alpha is None else float(alpha) / down.shape[0]
    if middle is not None:
        middle = middle.to(device=weight.device, dtype=torch.float32)
        product = torch.einsum("or,rs...,si->oi...", up.flatten(1), middle, down.flatten(1))
    else:
        product = up.flatten(1) @ down.flatten(1)
    return scale * product.reshape(weight.shape)


WEIGHT_PATCHES: dict[str, Callable[[Sequence[Any], Tensor], Tensor]] = {
    "diff": diff_delta,
    "lora": lora_delta,
}


def delta_of(patch: WeightPatch, weight: Tensor) -> Tensor:
    """What the patch adds at strength 1: float32, in the weight's shape and on its device.

    Raises ValueError for an unknown kind or a shape that does not fit.
    """
    if len(patch) == 1:
        return diff_delta(patch, weight)
    kind, values = patch
    if kind not in WEIGHT_PATCHES:
        raise ValueError(f"There is no weight patch {kind!r}; known are {list(WEIGHT_PATCHES)}.")
    return WEIGHT_PATCHES[kind](values, weight)


def patched_weight(weight: Tensor, patches: Sequence[tuple[float, WeightPatch, float]]) -> Tensor:
    """A new tensor: the weight with every (strength, patch, strength of the weight) applied.

    Computed in float32 and cast back, in the memory format of `weight`, which is not written to.
    """
    result = weight.detach().to(torch.float32, copy=True)
    for strength, patch, weight_strength in patches:
        if weight_strength != 1.0:
            result.mul_(weight_strength)
        if strength != 0.0:
            result.add_(delta_of(patch, weight), alpha=strength)
    return result.to(weight.dtype)
