"""Changes to a weight, by kind. A new kind is one function and its row in WEIGHT_PATCHES.

A patch is a tuple: (kind, values), or just (tensor,), which is a difference.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ldm_patched.modules.model_management import cpu_has_bf16

WeightPatch = Sequence[Any]


def diff_delta(values: Sequence[Any], weight: Tensor) -> Tensor:
    """values: (difference,), of the weight's shape but for axes of length 1."""
    (difference,) = values[:1]
    if difference.squeeze().shape != weight.squeeze().shape:
        raise ValueError(
            f"A difference of shape {tuple(difference.shape)} does not fit a weight of shape "
            f"{tuple(weight.shape)}."
        )
    return difference.to(device=weight.device, dtype=torch.float32).reshape(weight.shape)


def lora_delta(values: Sequence[Any], weight: Tensor) -> Tensor:
    """values: (up, down, alpha or None, middle or None), of low rank r (arXiv:2106.09685).

    up (out, r, …), down (r, in, …), middle (r, r, …) for a convolution in Tucker form. The
    product is scaled by alpha / r; without alpha by 1.
    """
    up, down, alpha, middle = (*values, None, None)[:4]
    up = up.to(device=weight.device, dtype=torch.float32)
    down = down.to(device=weight.device, dtype=torch.float32)
    scale = _scale(alpha, down.shape[0])
    if middle is not None:
        middle = middle.to(device=weight.device, dtype=torch.float32)
        product = torch.einsum("or,rs...,si->oi...", up.flatten(1), middle, down.flatten(1))
    else:
        product = up.flatten(1) @ down.flatten(1)
    return scale * product.reshape(weight.shape)


def _float32(tensor: Tensor | None, weight: Tensor) -> Tensor | None:
    return None if tensor is None else tensor.to(device=weight.device, dtype=torch.float32)


def _scale(alpha: float | None, rank: int) -> float:
    if not rank:
        raise ValueError("A factor is empty.")
    return 1.0 if alpha is None else float(alpha) / rank


def _tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """core (r, s, …), a (r, out), b (s, in) → (out, in, …)."""
    return torch.einsum("rs...,ro,si->oi...", core, a, b)


def loha_delta(values: Sequence[Any], weight: Tensor) -> Tensor:
    """values: (w1_a, w1_b, w2_a, w2_b, alpha or None, t1 or None, t2 or None).

    The entrywise product of two products of low rank (FedPara, arXiv:2108.06098): w1_a (out, r),
    w1_b (r, in ·…). With cores t (r, r, …) of a convolution, w1_a is (r, out), w1_b (r, in).
    """
    *tensors, alpha, t1, t2 = (*values, None, None, None)[:7]
    w1_a, w1_b, w2_a, w2_b = (_float32(t, weight) for t in tensors)
    if t1 is not None and t2 is not None:
        first = _tucker(_float32(t1, weight), w1_a, w1_b)
        second = _tucker(_float32(t2, weight), w2_a, w2_b)
    else:
        first, second = w1_a @ w1_b.flatten(1), w2_a @ w2_b.flatten(1)
    return (_scale(alpha, w1_b.shape[0]) * first * second).reshape(weight.shape)


def lokr_delta(values: Sequence[Any], weight: Tensor) -> Tensor:
    """values: (w1, w1_a, w1_b, w2, w2_a, w2_b, t2, alpha), each None where the file has it not.

    The Kronecker product of w1 and w2 (arXiv:2212.10650), either of them whole or as a product
    of low rank; t2 is the core of a convolution. Two whole factors are not scaled.
    """
    w1, w1_a, w1_b, w2, w2_a, w2_b, t2 = (_float32(t, weight) for t in values[:7])
    alpha, rank = values[7], None
    if w1 is None:
        w1, rank = w1_a @ w1_b, w1_b.shape[0]
    if w2 is None:
        rank = w2_b.shape[0]
        w2 = w2_a @ w2_b.flatten(1) if t2 is None else _tucker(t2, w2_a, w2_b)
    if w2.ndim > 2:
        w1 = w1.reshape(*w1.shape, *[1] * (w2.ndim - 2))
    product = torch.kron(w1.contiguous(), w2.contiguous())
    return (product if rank is None else _scale(alpha, rank) * product).reshape(weight.shape)


def glora_delta(values: Sequence[Any], weight: Tensor) -> Tensor:
    """values: (a1, a2, b1, b2, alpha or None): W·A + B, both of low rank (arXiv:2306.07967).

    Of the two layouts that files have, b1 tells: (out, r) with a1 (in, r), a2 (r, in), b2 (r, in);
    or (r, in) with a1 (r, in), a2 (in, r), b2 (out, r).
    """
    a1, a2, b1, b2 = (_float32(t, weight).flatten(1) for t in values[:4])
    if b2.shape[0] == weight.shape[0] and b2.shape[1] == b1.shape[0]:
        a1, a2, b1, b2 = a2, a1, b2, b1
    wide = weight.to(torch.float32)
    if a1.shape[0] != weight.shape[1]:  # over the kernel's positions, too
        through = wide.flatten(1) @ a1 @ a2
    else:
        through = torch.einsum("oi...,ir,rj->oj...", wide, a1, a2)
    delta = through.reshape(weight.shape) + (b1 @ b2).reshape(weight.shape)
    return _scale(values[4], b1.shape[1]) * delta


def dora_delta(values: Sequence[Any], weight: Tensor) -> Tensor:
    """values: (patch, magnitude): a change of direction, and the lengths anew (arXiv:2402.09353).

    magnitude: (out, 1, …), lengths over each output's weights, or (1, in, 1, …), over each
    input's. For strengths other than 1 the whole difference is scaled.
    """
    patch, magnitude = values
    wide = weight.to(torch.float32)
    moved = wide + delta_of(patch, weight)
    axis = 0 if magnitude.shape[0] == weight.shape[0] else 1
    lengths = moved.transpose(0, axis).flatten(1).norm(dim=1)
    shape = [1] * weight.ndim
    shape[axis] = weight.shape[axis]
    factor = _float32(magnitude, weight).reshape(shape) / (lengths.reshape(shape) + _TINY)
    return moved * factor - wide


_TINY = 1.2e-7  # float32's epsilon: a row of zeros stays one


WEIGHT_PATCHES: dict[str, Callable[[Sequence[Any], Tensor], Tensor]] = {
    "diff": diff_delta,
    "lora": lora_delta,
    "loha": loha_delta,
    "lokr": lokr_delta,
    "glora": glora_delta,
    "dora": dora_delta,
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


def require_fit(patch: WeightPatch, shape: Sequence[int]) -> None:
    """Raises ValueError, RuntimeError or IndexError for a patch that fits no weight of `shape`."""
    if _is_plain_product(patch):  # thousands of them in a file: counted, not computed
        up, down = patch[1][:2]
        if up.ndim < 2 or down.ndim < 2 or not down.numel():
            raise ValueError("A factor is no matrix, or is empty.")
        rank = down.shape[0]
        fits = up.shape[0] == shape[0] and up.numel() == shape[0] * rank
        if not fits or down.numel() * shape[0] != rank * math.prod(shape):
            raise ValueError("The product of the two factors has another shape than the weight.")
        return
    delta_of(patch, torch.empty(tuple(shape), device="meta"))


def patched_weight(weight: Tensor, patches: Sequence[tuple[float, WeightPatch, float]]) -> Tensor:
    """A new tensor: the weight with every (strength, patch, strength of the weight) applied.

    Computed in float32 and cast back, in the memory format of `weight`, which is not written to;
    products for bfloat16 weights of a processor with units for them as _by_bf16_units says.
    """
    are_rows = weight.ndim > 1 and weight.is_contiguous()
    products = [_product(patch, weight) for _, patch, _ in patches] if are_rows else [None]
    if all(products):
        terms = [
            (up, down, strength * scale, own)
            for (strength, _, own), (up, down, scale) in zip(patches, products, strict=True)
        ]
        return _with_products(weight.detach(), terms)
    result = weight.detach().to(torch.float32, copy=True)
    for strength, patch, weight_strength in patches:
        if weight_strength != 1.0:
            result.mul_(weight_strength)
        if strength != 0.0:
            result.add_(delta_of(patch, weight), alpha=strength)
    return result.to(weight.dtype)


def _is_plain_product(patch: WeightPatch) -> bool:
    """Whether it is a "lora" without a middle."""
    return len(patch) == 2 and patch[0] == "lora" and (*patch[1], None)[3] is None


def _product(patch: WeightPatch, weight: Tensor) -> tuple[Tensor, Tensor, float] | None:
    """(up (out, r), down (r, in ·…), scale) in float32, or None for a patch of another kind."""
    if not _is_plain_product(patch):
        return None
    up, down, alpha = patch[1][:3]
    factors = (_float32(factor, weight).flatten(1) for factor in (up, down))
    return (*factors, _scale(alpha, down.shape[0]))


AT_A_TIME = 2**18
"""Numbers; what a processor adds to them meanwhile stays in its cache."""


def _with_products(weight: Tensor, terms: list[tuple[Tensor, Tensor, float, float]]) -> Tensor:
    """weight · own + factor · up · down, one term (up, down, factor, own) after the other."""
    is_cpu = weight.device.type == "cpu"
    if is_cpu and weight.dtype == torch.bfloat16 and cpu_has_bf16():
        return _by_bf16_units(weight, terms)
    result = torch.empty_like(weight)
    source, target = weight.flatten(1), result.view(len(result), -1)
    step = max(1, AT_A_TIME // max(1, source.shape[1])) if is_cpu else len(source)
    for start in range(0, len(source), step):
        part = slice(start, start + step)
        rows = source[part].to(torch.float32, copy=True)
        for up, down, factor, own in terms:
            rows.addmm_(up[part], down, beta=own, alpha=factor)
        target[part] = rows
    return result


def _by_bf16_units(weight: Tensor, terms: list[tuple[Tensor, Tensor, float, float]]) -> Tensor:
    """The same in one product with no float32 copy of the weight, summed in float32, rounded once.

    The factors are rounded to bfloat16 before: each product of two numbers in what is added is off
    by 2⁻⁷ of itself at most, where the rounding of the result is off by 2⁻⁸ of the whole.
    """
    ups, downs, kept = [], [], 1.0
    for up, down, factor, own in reversed(terms):  # what comes later scales this term, too
        ups.append((up * (factor * kept)).to(torch.bfloat16))
        downs.append(down.to(torch.bfloat16))
        kept *= own
    product = torch.addmm(weight.flatten(1), torch.cat(ups, 1), torch.cat(downs), beta=kept)
    return product.view(weight.shape)
