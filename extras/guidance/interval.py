"""Guidance interval: the negative prompt counts in a part of the sampling only.

Kynkäänniemi et al. 2024 (arXiv:2404.07724): guidance harms at the highest noise levels and is
needless at the lowest ones. Outside of the interval the network is not asked for the negative
prompt at all, so a shorter one also saves time.
"""

from collections.abc import Sequence
from typing import Any


def within(negative: Sequence[Sequence[Any]], start: float, end: float) -> list[list[Any]]:
    """The negative conditions `[[context, options], …]`, limited to the share start..end (0..1).

    Raises ValueError unless 0 <= start < end <= 1.
    """
    if not 0.0 <= start < end <= 1.0:
        raise ValueError(f"A guidance interval needs 0 <= start < end <= 1, got {start} and {end}.")
    if (start, end) == (0.0, 1.0):
        return [list(condition) for condition in negative]
    window = {"start_percent": start, "end_percent": end}
    return [[context, {**options, **window}] for context, options in negative]
