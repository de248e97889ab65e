"""Noise that belongs to a picture: a function of its seed, never of the batch it rides in.

Every picture draws from its own counter-based generator (Philox, keyed by seed and draw), on the
CPU in float32, so that the same seed gives the same noise for any batch size, any position in
the batch and any device. A noise sampler is `f(sigma, sigma_next) -> noise` of unit variance;
both sigmas are floats.

`PerImageNoise`   independent draws, one a call: ancestral samplers, LCM, masked sampling.
`BrownianNoise`   increments of one Brownian path a picture: SDE samplers, whose overlapping
                  intervals must agree and whose picture must settle as steps grow.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ldm_patched.modules.weight_stream import pinned

NoiseSampler = Callable[[float, float], Tensor]

# Draws of different kinds must never meet on one key; each kind numbers its draws from its base.
STREAM_STEP = 1 << 32
STREAM_PATH = 2 << 32
STREAM_MASK = 3 << 32

_SEED_MASK = (1 << 64) - 1


def seeded_normal(shape: Sequence[int], seed: int, draw: int) -> np.ndarray:
    """Standard normal float32 numbers of `shape`: a pure function of (seed, draw)."""
    bits = np.random.Philox(key=np.array([seed & _SEED_MASK, draw], dtype=np.uint64))
    return np.random.Generator(bits).standard_normal(tuple(shape), dtype=np.float32)


def seeds_for(batch: int, seed: int | Sequence[int] | None) -> tuple[int, ...]:
    """One seed for each of `batch` pictures.

    An int is the seed of the first, the next one of the second, and so on; None draws them from
    torch's own generator. Raises ValueError when a sequence has another length than the batch.
    """
    if seed is None:
        return tuple(int(s) for s in torch.randint(0, 2**62, (batch,)))
    if isinstance(seed, int):
        return tuple(seed + i for i in range(batch))
    if len(seed) != batch:
        raise ValueError(f"There are {batch} pictures but {len(seed)} seeds; give one seed each.")
    return tuple(int(s) for s in seed)


def _like(noise: np.ndarray, like: Tensor) -> Tensor:
    """The numbers in the dtype and on the device of `like`; the host does not wait for CUDA."""
    made = torch.from_numpy(noise).to(like.dtype)
    if like.device.type != "cuda":  # others may read the memory when it is another's already
        return made.to(like.device)
    # from ordinary memory even a copy of its own accord waits
    return pinned(made).to(like.device, non_blocking=True)


class PerImageNoise:
    """Fresh noise at each call; picture i's n-th draw depends on seeds[i] and n alone."""

    def __init__(self, like: Tensor, seeds: Sequence[int], stream: int = STREAM_STEP) -> None:
        """`like` gives shape (B, ...), dtype and device of the noise; `seeds` has B entries."""
        self._like, self._seeds, self._draw = like, tuple(seeds), stream

    def __call__(self, _sigma: float = 0.0, _sigma_next: float = 0.0) -> Tensor:
        """The next noise, shaped like the batch. The sigmas do not matter."""
        noise = np.stack([seeded_normal(self._like.shape[1:], s, self._draw) for s in self._seeds])
        self._draw += 1
        return _like(noise, self._like)


class BrownianNoise:
    """Normalised increments of a Brownian path over sigma, one path a picture.

    The path is a virtual tree: its value at a grid point is a Brownian bridge between the two
    grid points above it in a binary tree, drawn with a key made of the seed and the point's
    number. So a value depends on (seed, sigma) and the range alone, not on what was asked before,
    and increments over adjacent intervals add up to the increment over their union.
    The grid has 2**depth equal steps of log sigma; sigmas are moved to the nearest grid point,
    and two that share one are taken as neighbours, so the noise never degenerates.
    """

    def __init__(
        self,
        like: Tensor,
        seeds: Sequence[int],
        sigma_min: float,
        sigma_max: float,
        depth: int = 14,
    ) -> None:
        """`like` gives shape (B, ...), dtype and device; 0 < sigma_min <= sigma_max.

        Raises ValueError for a range that is not so.
        """
        if not 0 < sigma_min <= sigma_max:
            raise ValueError(
                f"A Brownian path needs 0 < sigma_min <= sigma_max, got {sigma_min}, {sigma_max}."
            )
        self._like = like
        self._log_min = math.log(sigma_min)
        self._log_span = max(math.log(sigma_max) - self._log_min, 1e-6)
        self._last = 1 << depth
        self._paths = [_Path(like.shape[1:], s, self._last, self._time) for s in seeds]

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:
        """(W(high) - W(low)) / sqrt(high - low), shaped like the batch."""
        low, high = sorted((self._node(float(sigma)), self._node(float(sigma_next))))
        if low == high:
            low, high = (low, high + 1) if high < self._last else (low - 1, high)
        scale = 1.0 / math.sqrt(self._time(high) - self._time(low))
        noise = np.stack([(p.value(high) - p.value(low)) * np.float32(scale) for p in self._paths])
        return _like(noise, self._like)

    def _node(self, sigma: float) -> int:
        """The grid point nearest to `sigma`."""
        place = (math.log(max(sigma, 1e-30)) - self._log_min) / self._log_span
        return round(min(max(place, 0.0), 1.0) * self._last)

    def _time(self, node: int) -> float:
        """The sigma of a grid point: the path's time, in which its variance grows linearly."""
        return math.exp(self._log_min + self._log_span * node / self._last)


class _Path:
    """One picture's Brownian path, W = 0 at grid point 0, with its latest values kept."""

    _KEEP = 64  # about twice the tree's depth: the ancestors of the last two points asked for

    def __init__(
        self, shape: Sequence[int], seed: int, last: int, time: Callable[[int], float]
    ) -> None:
        self._shape, self._seed, self._last, self._time = tuple(shape), seed, last, time
        self._zero = np.zeros(self._shape, dtype=np.float32)
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()

    def value(self, node: int) -> np.ndarray:
        """W at grid point `node` (0..last). Do not write into it."""
        if node == 0:
            return self._zero
        if node in self._kept:
            self._kept.move_to_end(node)
            return self._kept[node]
        noise = seeded_normal(self._shape, self._seed, STREAM_PATH + node)
        if node == self._last:
            value = noise * np.float32(math.sqrt(self._time(node) - self._time(0)))
        else:
            step = node & -node  # the lowest set bit: half the interval that this point splits
            value = self._bridge(node - step, node, node + step, noise)
        self._kept[node] = value
        while len(self._kept) > self._KEEP:
            self._kept.popitem(last=False)
        return value

    def _bridge(self, left: int, middle: int, right: int, noise: np.ndarray) -> np.ndarray:
        """W(middle) given W(left) and W(right)."""
        a, m, b = self._time(left), self._time(middle), self._time(right)
        weight = np.float32((m - a) / (b - a))
        spread = np.float32(math.sqrt((m - a) * (b - m) / (b - a)))
        return self.value(left) * (1 - weight) + self.value(right) * weight + noise * spread
