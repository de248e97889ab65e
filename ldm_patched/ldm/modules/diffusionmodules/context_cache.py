"""Keys and values of the texts that a UNet saw last, so that each step need not make them anew.

Exact: a text is known again only if it is equal in every number, and each layer checks that its
weights are unchanged. The store is bounded by tokens, since 1,024 of them cost 340 MB in SDXL.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from ldm_patched.modules.conds import CONDCrossAttn

MAX_ENTRIES = 4
MAX_TOKENS = 1024


def bytes_per_token(network: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of the keys and values that a UNet computing in `dtype` makes of a token."""
    widths = (
        weight.shape[0]
        for name, weight in network.named_parameters()
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
    )
    return sum(widths) * dtype.itemsize


@dataclass(slots=True)
class _Entry:
    source: Tensor
    """The tensor that was handed in, to recognise it without reading it."""
    version: int
    copy: Tensor
    """Its numbers at that time, for callers that build an equal tensor at each step."""
    store: dict[Any, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return self.copy.shape[0] * self.copy.shape[1]

    def is_of(self, texts: Sequence[Tensor]) -> bool:
        """Whether all of it is made of these, (1, tokens, C), which may be repeated."""
        return all(any(_begins_with(row, text) for text in texts) for row in self.copy)


class ContextCache:
    """The latest texts, most recent last."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []

    def __deepcopy__(self, _: dict[int, Any]) -> Self:
        return type(self)()

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()

    def tokens_to_come(self, texts: Sequence[Tensor], batch: int) -> int:
        """How many more tokens are kept after a run of `batch` pictures with these texts.

        texts: (1, tokens, C). Of evaluating them in one call and apart, what keeps more counts.
        """
        if not texts:
            return 0
        lengths = [text.shape[1] for text in texts]
        longest = math.lcm(*lengths)  # as CONDCrossAttn joins them
        together = batch * longest * len(lengths)
        if together > MAX_TOKENS or longest > CONDCrossAttn.max_repeats * min(lengths):
            together = 0
        apart = sum(batch * n for n in lengths if batch * n <= MAX_TOKENS)
        known = sum(entry.tokens for entry in self._entries if entry.is_of(texts))
        room = MAX_TOKENS - sum(entry.tokens for entry in self._entries)
        return max(0, min(max(together, apart) - known, room))

    def store_for(self, context: Tensor | None) -> dict[Any, Any] | None:
        """The store of this context, (B, tokens, C); None where keeping one would not be exact.

        That is while gradients are recorded, under autocast, and for texts beyond the bound.
        """
        if context is None or context.shape[0] * context.shape[1] > MAX_TOKENS:
            return None
        if torch.is_grad_enabled() or torch.is_autocast_enabled(context.device.type):
            return None
        for index, entry in enumerate(self._entries):
            if _is_same(entry, context):
                self._entries.append(self._entries.pop(index))
                return entry.store
        entry = _Entry(context, _version(context), context.clone())
        self._entries.append(entry)
        while len(self._entries) > MAX_ENTRIES or sum(e.tokens for e in self._entries) > MAX_TOKENS:
            self._entries.pop(0)
        return entry.store


def _version(tensor: Tensor) -> int:
    """Counts changes in place; -1 where PyTorch does not count them."""
    return -1 if tensor.is_inference() else tensor._version


def _begins_with(row: Tensor, text: Tensor) -> bool:
    length = text.shape[1]
    return len(row) % length == 0 and torch.equal(row[:length], text[0].to(row))


def _is_same(entry: _Entry, context: Tensor) -> bool:
    if entry.source is context and entry.version == _version(context) != -1:
        return True
    old = entry.copy
    if old.shape != context.shape or old.dtype != context.dtype or old.device != context.device:
        return False
    return torch.equal(old, context)
