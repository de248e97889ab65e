"""Conditions as they are handed to a network: how each is shaped for a batch and joined."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F


class CONDRegular:
    """A tensor (1 or B, …), repeated to the batch and joined along it."""

    def __init__(self, cond: Any) -> None:
        self.cond = cond

    def _copy_with(self, cond: Any) -> Self:
        return type(self)(cond)

    def process_cond(
        self,
        batch_size: int,
        device: torch.device | str,
        area: Sequence[int] | None = None,  # noqa: ARG002 - others crop to it
        **_: Any,
    ) -> Self:
        """The condition on `device` for `batch_size` samples.

        area: (height, width, top, left) in latent pixels; None is the whole picture.
        """
        return self._copy_with(repeat_to_batch_size(self.cond, batch_size).to(device))

    def can_concat(self, other: Self) -> bool:
        """Whether `concat` may join it with `other` in one forward pass."""
        return self.cond.shape == other.cond.shape

    def concat(self, others: Sequence[Self]) -> Tensor:
        """One tensor for a batch: this, then the others."""
        return torch.cat([self.cond, *(o.cond for o in others)])


class CONDNoiseShape(CONDRegular):
    """A tensor of the noise's height and width; cropped to the area that is being computed."""

    def process_cond(
        self,
        batch_size: int,
        device: torch.device | str,
        area: Sequence[int] | None = None,
        **_: Any,
    ) -> Self:
        data = self.cond
        if area is not None:
            height, width, top, left = area
            data = data[:, :, top : top + height, left : left + width]
        return self._copy_with(repeat_to_batch_size(data, batch_size).to(device))


class CONDCrossAttn(CONDRegular):
    """Text embeddings (B, tokens, C). Unequal lengths are joined by repeating both."""

    max_repeats = 4
    """Above this many repeats, two passes cost less than the padding."""

    def can_concat(self, other: Self) -> bool:
        mine, theirs = self.cond.shape, other.cond.shape
        if mine == theirs:
            return True
        if mine[0] != theirs[0] or mine[2] != theirs[2]:
            return False
        longest = math.lcm(mine[1], theirs[1])
        return longest // min(mine[1], theirs[1]) <= self.max_repeats

    def concat(self, others: Sequence[Self]) -> Tensor:
        conds = [self.cond, *(o.cond for o in others)]
        longest = math.lcm(*(c.shape[1] for c in conds))
        # Repeated tokens leave the softmax-weighted mean of a text as it was. What stands beside it
        # in the same softmax is outweighed: it has to make up for the repeats (see CondBatcher).
        return torch.cat([c.repeat(1, longest // c.shape[1], 1) for c in conds])


class CONDConstant(CONDRegular):
    """Any value that is one for all samples."""

    def process_cond(self, *_: Any, **__: Any) -> Self:
        return self._copy_with(self.cond)

    def can_concat(self, other: Self) -> bool:
        return self.cond == other.cond

    def concat(self, others: Sequence[Self]) -> Any:  # noqa: ARG002 - they are equal
        return self.cond


@dataclass(frozen=True, eq=False)
class TimedInput:
    """Two inputs of a batch (B, C), each with the share of the sampling where the first ends."""

    early: Tensor
    late: Tensor
    end: Tensor  # (B, 1)

    def at(self, progress: Tensor) -> Tensor:
        """(B, C): the one that counts at progress (B,). Never waits for the device."""
        return torch.where(progress.view(-1, 1) < self.end, self.early, self.late)


class CONDTimed(CONDRegular):
    """A tensor (1 or B, 2·C): its first half counts up to the share `end` of the sampling."""

    def __init__(self, cond: Any, end: float) -> None:
        super().__init__(cond)
        self.end = end

    def _copy_with(self, cond: Any) -> Self:
        return type(self)(cond, self.end)

    def can_concat(self, other: Self) -> bool:
        return isinstance(other, CONDTimed) and super().can_concat(other)

    def concat(self, others: Sequence[Self]) -> Any:
        """A TimedInput for a batch: this, then the others."""
        conds = [self, *others]
        # Made where the texts are: a copy from the host would wait for the device.
        ends = [torch.full((len(c.cond), 1), c.end, device=c.cond.device) for c in conds]
        early, late = torch.cat([c.cond for c in conds]).chunk(2, dim=1)
        return TimedInput(early, late, torch.cat(ends))


def repeat_to_batch_size(tensor: Tensor, batch_size: int) -> Tensor:
    """The samples of `tensor` repeated in turn, or cut, to `batch_size`; a view if it fits."""
    if tensor.shape[0] == batch_size:
        return tensor
    if tensor.shape[0] == 1:
        return tensor.expand(batch_size, *tensor.shape[1:])
    times = math.ceil(batch_size / tensor.shape[0])
    return tensor.repeat(times, *((1,) * (tensor.ndim - 1)))[:batch_size]


def guidance_embedding(scale: float, dim: int) -> Tensor:
    """(1, dim) of the guidance scale that a network is told, as LCM has it (arXiv:2310.04378).

    Sines, then cosines, of 1,000 · (scale - 1) at dim / 2 frequencies from 1 down to 1 / 10,000.
    """
    half = dim // 2
    # In this order: angles go up to thousands, where each rounding that training had shows.
    fall = torch.log(torch.tensor(10000.0)) / max(1, half - 1)
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -fall)
    angles = torch.tensor(scale - 1.0) * 1000.0 * frequencies
    embedding = torch.cat([angles.sin(), angles.cos()])[None]
    return F.pad(embedding, (0, dim % 2))
