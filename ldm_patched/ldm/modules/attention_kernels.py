"""Three ways to the same attention, in less and less memory.

"pytorch" lets PyTorch choose a fused kernel (flash, cuDNN, …); where it has none for a device or
a mask, that holds all scores, (N × M) a head. "split" takes the queries slice by slice. "quad"
also takes the keys slice by slice and keeps a running softmax (arXiv:2112.05682): its memory does
not grow with N × M at all. When the first runs out of memory, the other two follow by themselves.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.nn import functional as F

SCORE_BYTES = 256 * 2**20
"""What the float32 scores of one slice may take."""

FEW_SCORES = 128 * 128
"""Of one head: so many are kept for the way back without the fused kernel."""

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], Tensor]


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """softmax(q·kᵀ / √d)·v in the way in force: q (B, H, N, d), k and v (B, H, M, d) → like q.

    mask: bool (true is seen) or float (added), that broadcasts to (B, H, N, M). causal: a query
    sees the keys up to its own place; without a mask. A compiled network has the first way alone,
    with no other when memory runs out.
    """
    if torch.compiler.is_compiling():  # the choice cannot be traced
        return fused(q, k, v, mask, causal)
    names = list(ATTENTION_WAYS)
    for name in names[names.index(_way_in_force()) : -1]:
        try:
            return ATTENTION_WAYS[name](q, k, v, mask, causal)
        except torch.OutOfMemoryError:
            continue
    return ATTENTION_WAYS[names[-1]](q, k, v, mask, causal)


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """As PyTorch does it; learning from few tokens on a processor, see `plain`."""
    learns = q.device.type == "cpu" and any(part.requires_grad for part in (q, k, v))
    if learns and mask is None and not causal and q.shape[2] * k.shape[2] <= FEW_SCORES:
        return plain(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The definition itself, scores in float32 as in the fused kernels.

    On a processor those go backward slowly; `bench attention_learnt` has the ratio.
    """
    with torch.autocast(q.device.type, enabled=False):
        scores = (q.float() / math.sqrt(q.shape[-1])) @ k.float().transpose(-1, -2)
        return scores.softmax(dim=-1).to(v.dtype) @ v


def split(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Slices of queries, each over all keys."""
    tokens, rows = q.shape[2], _rows(q, k.shape[2])
    out = torch.empty_like(q)
    for start in range(0, tokens, rows):
        part = slice(start, min(start + rows, tokens))
        seen = _mask_of(mask, causal, part, slice(0, k.shape[2]), q.device)
        out[:, :, part] = F.scaled_dot_product_attention(q[:, :, part], k, v, attn_mask=seen)
    return out


def quad(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Slices of queries and keys with a running softmax in float32."""
    tokens, keys = q.shape[2], k.shape[2]
    # As many queries as keys in a slice: then both are about the root of what is allowed.
    side = max(16, int(math.sqrt(SCORE_BYTES / 4 / (q.shape[0] * q.shape[1]))))
    out = torch.empty_like(q)
    for start in range(0, tokens, side):
        rows = slice(start, min(start + side, tokens))
        query = q[:, :, rows].float() / math.sqrt(q.shape[-1])
        top = query.new_full((*query.shape[:3], 1), -math.inf)
        total, result = torch.zeros_like(top), torch.zeros_like(query)
        for first in range(0, rows.stop if causal else keys, side):
            part = slice(first, min(first + side, keys))
            scores = query @ k[:, :, part].float().transpose(-1, -2)
            seen = _mask_of(mask, causal, rows, part, q.device)
            if seen is not None and seen.dtype is torch.bool:
                scores.masked_fill_(~seen, -math.inf)
            elif seen is not None:
                scores += seen
            higher = torch.maximum(top, scores.amax(dim=-1, keepdim=True))
            base = higher.masked_fill(higher == -math.inf, 0.0)  # nothing seen so far
            scores.sub_(base).exp_()
            fade = (top - base).exp()
            total = total * fade + scores.sum(dim=-1, keepdim=True)
            result = result * fade + scores @ v[:, :, part].float()
            top = higher
        out[:, :, rows] = (result / total).to(out.dtype)
    return out


def _rows(q: Tensor, keys: int) -> int:
    """Queries in a slice."""
    return max(1, SCORE_BYTES // (4 * q.shape[0] * q.shape[1] * keys))


def _mask_of(
    mask: Tensor | None, causal: bool, rows: slice, part: slice, device: torch.device
) -> Tensor | None:
    """The mask of these queries and keys."""
    if causal:
        places = torch.arange(rows.start, rows.stop, device=device)
        return torch.arange(part.start, part.stop, device=device) <= places[:, None]
    if mask is None:
        return None
    mask = mask if mask.shape[-2] == 1 else mask[..., rows, :]
    return mask if mask.shape[-1] == 1 else mask[..., part]


ATTENTION_WAYS: dict[str, Attend] = {"pytorch": fused, "split": split, "quad": quad}
"""Each for when the one before it runs out of memory."""

_process = {"way": "pytorch"}
"""What holds in every thread."""
_way: ContextVar[str | None] = ContextVar("attention_way", default=None)
"""What holds inside `attention_way`."""


def _way_in_force() -> str:
    return _way.get() or _process["way"]


def set_attention_way(name: str) -> None:
    """Put one of ATTENTION_WAYS in force in this process. Raises ValueError for any other."""
    if name not in ATTENTION_WAYS:
        raise ValueError(f"There is no attention {name!r}; known are {', '.join(ATTENTION_WAYS)}.")
    _process["way"] = name


@contextmanager
def attention_way(name: str) -> Iterator[None]:
    """One of ATTENTION_WAYS, or a later one that is in force already, inside."""
    names = list(ATTENTION_WAYS)
    token = _way.set(max(name, _way_in_force(), key=names.index))
    try:
        yield
    finally:
        _way.reset(token)
