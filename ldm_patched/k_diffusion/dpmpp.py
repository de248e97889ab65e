"""DPM-Solver++ and its stochastic forms: exponential integrators of the denoised prediction.

Lu et al. 2022 (arXiv:2211.01095); time is lambda = -log sigma, a step's length h, and the share
of the prediction in the next x is 1 - e^-h.
"""

import math

from torch import Tensor

from ldm_patched.k_diffusion.common import Run, get_ancestral_step, mix, sampler
from ldm_patched.k_diffusion.noise import NoiseSampler


@sampler
def sample_dpmpp_2m(
    run: Run,
    x: Tensor,
) -> Tensor:
    """DPM-Solver++(2M): second order from the last two predictions, one model call a step."""
    earlier, last_h = None, 0.0
    for i in range(run.steps):
        sigma, following = run.levels[i], run.levels[i + 1]
        denoised = run.denoise(x, sigma)
        run.report(i, x, denoised)
        h = math.log(sigma / following) if following > 0 else math.inf
        if earlier is None or following == 0:
            towards = denoised
        else:
            weight = h / (2.0 * last_h)
            towards = denoised * (1.0 + weight) - earlier * weight
        x = mix(x, towards, following / sigma)
        earlier, last_h = denoised, h
    return x


@sampler
def sample_dpmpp_2m_sde(
    run: Run,
    x: Tensor,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    solver_type: str = "midpoint",
) -> Tensor:
    """SDE-DPM-Solver++(2M), stochastic and of second order; one model call a step.

    solver_type: "midpoint" or "heun", how the difference of the last two predictions enters.
    Raises ValueError for any other.
    """
    if solver_type not in ("midpoint", "heun"):
        raise ValueError(f"solver_type must be 'midpoint' or 'heun', got {solver_type!r}.")
    noise = run.brownian(noise_sampler)
    earlier, last_h = None, 0.0
    for i in range(run.steps):
        sigma, following = run.levels[i], run.levels[i + 1]
        denoised = run.denoise(x, sigma)
        run.report(i, x, denoised)
        if following == 0:
            x = denoised
            continue
        h = math.log(sigma / following)
        gain = -math.expm1(-h * (1.0 + eta))  # the share of the prediction in the next x
        x = x * (1.0 - gain) + denoised * gain
        if earlier is not None:
            heun = 1.0 - gain / (h * (1.0 + eta))
            weight = (heun if solver_type == "heun" else 0.5 * gain) * h / last_h
            x = x + (denoised - earlier) * weight
        if eta > 0 and s_noise > 0:
            spread = following * math.sqrt(-math.expm1(-2.0 * h * eta))
            x = x + noise(sigma, following) * (s_noise * spread)
        earlier, last_h = denoised, h
    return x


@sampler
def sample_dpmpp_3m_sde(
    run: Run,
    x: Tensor,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """SDE-DPM-Solver++(3M), from the last three predictions; one model call a step.

    The weights are those that the method's authors published in code. Their last term is half of
    what a third-order expansion has, so the order is 2; pictures shall be the ones users know.
    """
    noise = run.brownian(noise_sampler)
    earlier: list[
        tuple[Tensor, float]
    ] = []  # (prediction, length of the step from it), latest first
    for i in range(run.steps):
        sigma, following = run.levels[i], run.levels[i + 1]
        denoised = run.denoise(x, sigma)
        run.report(i, x, denoised)
        if following == 0:
            x = denoised
            continue
        h = math.log(sigma / following)
        x = _third_order(x, denoised, earlier, h, h * (1.0 + eta))
        if eta > 0 and s_noise > 0:
            spread = following * math.sqrt(-math.expm1(-2.0 * h * eta))
            x = x + noise(sigma, following) * (s_noise * spread)
        earlier = [(denoised, h), *earlier][:2]
    return x


def _third_order(
    x: Tensor, denoised: Tensor, earlier: list[tuple[Tensor, float]], h: float, h_eta: float
) -> Tensor:
    """The deterministic part of a step of length h, from as many predictions as there are."""
    gain = -math.expm1(-h_eta)
    result = x * (1.0 - gain) + denoised * gain
    if not earlier:
        return result
    second = 1.0 - gain / h_eta
    (last, h_1), *rest = earlier
    slope = (denoised - last) * (h / h_1)
    if not rest:
        return result + slope * second
    ((before, h_2),) = rest
    r0, r1 = h_1 / h, h_2 / h
    bend = (slope - (last - before) / r1) / (r0 + r1)
    return result + (slope + bend * r0) * second - bend * (second / h_eta - 0.5)


@sampler
def sample_dpmpp_sde(
    run: Run,
    x: Tensor,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    r: float = 0.5,
) -> Tensor:
    """SDE-DPM-Solver++(2S): an intermediate point at share r of each step, two model calls."""
    noise = run.brownian(noise_sampler)
    weight = 1.0 / (2.0 * r)
    for i in range(run.steps):
        sigma, following = run.levels[i], run.levels[i + 1]
        denoised = run.denoise(x, sigma)
        run.report(i, x, denoised)
        if following == 0:
            x = denoised
            continue
        between = sigma ** (1.0 - r) * following**r  # lambda moves linearly, so sigma so
        down, up = get_ancestral_step(sigma, between, eta)
        x_between = mix(x, denoised, down / sigma)
        if up > 0:
            x_between = x_between + noise(sigma, between) * (s_noise * up)
        towards = denoised * (1.0 - weight) + run.denoise(x_between, between) * weight
        down, up = get_ancestral_step(sigma, following, eta)
        x = mix(x, towards, down / sigma)
        if up > 0:
            x = x + noise(sigma, following) * (s_noise * up)
    return x


@sampler
def sample_dpmpp_2s_ancestral(
    run: Run,
    x: Tensor,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """DPM-Solver++(2S) steps to below the next level, with fresh noise; two model calls a step."""
    noise = run.noise(noise_sampler)
    for i in range(run.steps):
        sigma, following = run.levels[i], run.levels[i + 1]
        denoised = run.denoise(x, sigma)
        run.report(i, x, denoised)
        down, up = get_ancestral_step(sigma, following, eta)
        if down > 0:
            between = math.sqrt(sigma * down)
            x_between = mix(x, denoised, between / sigma)
            denoised = run.denoise(x_between, between)
        x = mix(x, denoised, down / sigma)
        if up > 0:
            x = x + noise(sigma, following) * (s_noise * up)
    return x
