"""UniPC (Zhao et al. 2023, arXiv:2302.04867): a multistep predictor with a free corrector.

The corrector uses the evaluation that the next step needs anyway. Time is lambda = -log sigma;
`B(h)` is h ("bh1") or e^h - 1 ("bh2").
"""

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ldm_patched.k_diffusion.common import Run, sampler


class _Coefficients:
    """Of one step from `sigma` to `following`, for predictions at `sigma` and `earlier` levels."""

    def __init__(
        self, sigma: float, following: float, earlier: Sequence[float], variant: str
    ) -> None:
        h = math.log(sigma / following)
        self.ratio = following / sigma
        self.gain = -math.expm1(-h)  # share of the prediction in the next x
        self.nodes = [-math.log(level / sigma) / h for level in earlier]
        base = -h if variant == "bh1" else math.expm1(-h)
        points = np.array([*self.nodes, 1.0])
        rows, wanted, phi, factorial = [], [], math.expm1(-h) / -h - 1.0, 1.0
        for power in range(len(points)):
            rows.append(points**power)
            wanted.append(phi * factorial / base)
            factorial *= power + 2
            phi = phi / -h - 1.0 / factorial
        self._rows, self._wanted, self.base = np.array(rows), np.array(wanted), base

    def predictor(self) -> list[float]:
        """Weights of the differences to earlier predictions."""
        count = len(self.nodes)
        if count == 1:
            return [0.5]  # simpler than the equation's, and as exact
        return list(np.linalg.solve(self._rows[:count, :count], self._wanted[:count]))

    def corrector(self) -> list[float]:
        """The same, with the difference to the new prediction at the end."""
        if not self.nodes:
            return [0.5]
        return list(np.linalg.solve(self._rows, self._wanted))


def _advance(
    x: Tensor,
    c: _Coefficients,
    latest: Tensor,
    others: Sequence[Tensor],
    weights: Sequence[float],
) -> Tensor:
    """x at the next level. latest: the prediction here; others: those at the nodes of c."""
    result = x * c.ratio + latest * c.gain
    for other, node, weight in zip(others, (*c.nodes, 1.0), weights, strict=False):
        result = result - (other - latest) * (c.base * float(weight) / node)
    return result


def _uni_pc(run: Run, x: Tensor, max_order: int, variant: str) -> Tensor:
    known: list[tuple[float, Tensor]] = []  # (level, prediction), latest first
    start = x  # x at the level before
    last: _Coefficients | None = None
    for i in range(run.steps):
        sigma, following = run.levels[i], run.levels[i + 1]
        denoised = run.denoise(x, sigma)
        if last is not None:
            others = [prediction for _, prediction in known[1 : len(last.nodes) + 1]]
            x = _advance(start, last, known[0][1], [*others, denoised], last.corrector())
        run.report(i, x, denoised)
        known = [(sigma, denoised), *known][:max_order]
        if following == 0:
            return denoised
        order = min(len(known), max_order, run.steps - i)
        earlier = known[1:order]
        last = _Coefficients(sigma, following, [level for level, _ in earlier], variant)
        start = x
        weights = last.predictor() if earlier else []
        x = _advance(x, last, denoised, [prediction for _, prediction in earlier], weights)
    return x


@sampler
def sample_uni_pc(run: Run, x: Tensor, max_order: int = 3) -> Tensor:
    """UniPC with B(h) = h."""
    return _uni_pc(run, x, max_order, "bh1")


@sampler
def sample_uni_pc_bh2(run: Run, x: Tensor, max_order: int = 3) -> Tensor:
    """UniPC with B(h) = e^h - 1, the better one for few steps."""
    return _uni_pc(run, x, max_order, "bh2")
