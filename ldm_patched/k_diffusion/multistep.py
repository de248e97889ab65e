"""Multistep methods: one evaluation a step, the last ones remembered.

Of the derivative d = (x - denoised) / sigma: lms, ipndm, deis; of the prediction: res_multistep.
"""

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ldm_patched.k_diffusion.common import Run, mix, sampler, to_d


def _lagrange(nodes: Sequence[float], index: int) -> np.ndarray:
    """Coefficients, rising powers, of the polynomial that is 1 at nodes[index], 0 at the others."""
    polynomial = np.ones(1)
    for other, node in enumerate(nodes):
        if other != index:
            polynomial = np.convolve(polynomial, np.array([-node, 1.0]) / (nodes[index] - node))
    return polynomial


def _integral(polynomial: np.ndarray, start: float, end: float) -> float:
    """Of a polynomial in sigma, over sigma."""
    powers = np.arange(1, len(polynomial) + 1)
    return float(np.sum(polynomial * (end**powers - start**powers) / powers))


def _log_integral(polynomial: np.ndarray, start: float, end: float) -> float:
    """Of a polynomial in log sigma, over sigma: the integral of u^k e^u du, term by term."""

    def antiderivative(sigma: float) -> float:
        u = math.log(sigma)
        total = 0.0
        for power, coefficient in enumerate(polynomial):
            term = u**power
            for lower in range(power):
                factor = math.perm(power, lower + 1) * (-1) ** (lower + 1)
                term += factor * u ** (power - lower - 1)
            total += float(coefficient) * term
        return total * sigma

    return antiderivative(end) - antiderivative(start)


def lms_coefficients(levels: Sequence[float], step: int, order: int) -> list[float]:
    """Weights of the derivatives at levels[step], levels[step - 1], … for the step after `step`."""
    order = min(order, step + 1)
    nodes = [levels[step - k] for k in range(order)]
    scale = nodes[0]  # numbers near 1 keep the polynomials exact
    scaled, end = [node / scale for node in nodes], levels[step + 1] / scale
    return [scale * _integral(_lagrange(scaled, k), 1.0, end) for k in range(order)]


def deis_coefficients(levels: Sequence[float], step: int, order: int) -> list[float]:
    """As lms_coefficients, for derivatives that are polynomials in log sigma."""
    order = min(order, step + 1)
    scale = levels[step]
    scaled = [levels[step - k] / scale for k in range(order)]
    logs, end = [math.log(node) for node in scaled], levels[step + 1] / scale
    return [scale * _log_integral(_lagrange(logs, k), 1.0, end) for k in range(order)]


def _weighted(terms: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = terms[0] * weights[0]
    for term, weight in zip(terms[1:], weights[1:], strict=False):
        total = total + term * weight
    return total


@sampler
def sample_lms(
    run: Run,
    x: Tensor,
    order: int = 4,
) -> Tensor:
    """Linear multistep: the derivative as a polynomial in sigma through the last `order` steps."""
    slopes: list[Tensor] = []
    for i in range(run.steps):
        denoised = run.denoise(x, run.levels[i])
        run.report(i, x, denoised)
        slopes = [to_d(x, run.levels[i], denoised), *slopes][:order]
        x = x + _weighted(slopes, lms_coefficients(run.levels, i, order))
    return x


@sampler
def sample_deis(
    run: Run,
    x: Tensor,
    max_order: int = 3,
) -> Tensor:
    """DEIS (Zhang and Chen 2022, arXiv:2204.13902): polynomials in log sigma instead of sigma."""
    slopes: list[Tensor] = []
    for i in range(run.steps):
        sigma, following = run.levels[i], run.levels[i + 1]
        denoised = run.denoise(x, sigma)
        run.report(i, x, denoised)
        slopes = [to_d(x, sigma, denoised), *slopes][:max_order]
        if following == 0:
            x = denoised
        else:
            x = x + _weighted(slopes, deis_coefficients(run.levels, i, max_order))
    return x


# Adams and Bashforth's weights for even steps, of the latest derivative first.
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@sampler
def sample_ipndm(
    run: Run,
    x: Tensor,
    max_order: int = 4,
) -> Tensor:
    """Improved pseudo numerical method (arXiv:2204.13902, section on iPNDM; Liu et al. 2022).

    Linear multistep with the weights of even steps, whatever the steps are.
    """
    slopes: list[Tensor] = []
    for i in range(run.steps):
        sigma, following = run.levels[i], run.levels[i + 1]
        denoised = run.denoise(x, sigma)
        run.report(i, x, denoised)
        slopes = [to_d(x, sigma, denoised), *slopes][: min(max_order, len(ADAMS_BASHFORTH))]
        if following == 0:
            x = denoised
        else:
            slope = _weighted(slopes, ADAMS_BASHFORTH[len(slopes) - 1])
            x = x + slope * (following - sigma)
    return x


@sampler
def sample_res_multistep(run: Run, x: Tensor) -> Tensor:
    """Refined exponential solver, multistep (Zhang et al. 2023, arXiv:2308.02157), second order.

    The exact integral of a prediction that is linear in -log sigma.
    """
    earlier, last_h = None, 0.0
    for i in range(run.steps):
        sigma, following = run.levels[i], run.levels[i + 1]
        denoised = run.denoise(x, sigma)
        run.report(i, x, denoised)
        x = mix(x, denoised, following / sigma)
        if following > 0:
            h = math.log(sigma / following)
            if earlier is not None:  # the integral of e^(s - h) s over a step's s = 0 … h
                x = x + (denoised - earlier) * ((h + math.expm1(-h)) / last_h)
            earlier, last_h = denoised, h
    return x
