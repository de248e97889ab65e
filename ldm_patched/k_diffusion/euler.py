"""Methods in sigma itself, one or two evaluations a step: Euler, Heun, midpoint, and kin.

The derivative is d = (x - denoised) / sigma (Karras et al. 2022, arXiv:2206.00364).
"""

import math

from torch import Tensor

from ldm_patched.k_diffusion.common import Run, get_ancestral_step, mix, sampler, to_d
from ldm_patched.k_diffusion.noise import NoiseSampler


class Churn:
    """The noise that Algorithm 2 of Karras et al. (2022) adds before a step."""

    def __init__(
        self,
        run: Run,
        given: NoiseSampler | None,
        s_churn: float,
        s_tmin: float,
        s_tmax: float,
        s_noise: float,
    ) -> None:
        self.low, self.high, self.s_noise = s_tmin, s_tmax, s_noise
        self.most = min(s_churn / run.steps, math.sqrt(2.0) - 1.0)
        self.noise = run.noise(given) if s_churn > 0 else None

    def __call__(self, x: Tensor, sigma: float) -> tuple[Tensor, float]:
        """(x with more noise, its level)."""
        if self.noise is None or not self.low <= sigma <= self.high:
            return x, sigma
        hat = sigma * (1.0 + self.most)
        spread = self.s_noise * math.sqrt(hat**2 - sigma**2)
        return x + self.noise(sigma, hat) * spread, hat


@sampler
def sample_euler(
    run: Run,
    x: Tensor,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """Algorithm 2 of Karras et al. (2022) with Euler steps; plain Euler when s_churn is 0."""
    churn = Churn(run, noise_sampler, s_churn, s_tmin, s_tmax, s_noise)
    for i in range(run.steps):
        x, sigma = churn(x, run.levels[i])
        denoised = run.denoise(x, sigma)
        run.report(i, x, denoised, sigma)
        x = mix(x, denoised, run.levels[i + 1] / sigma)
    return x


def _ancestral(
    run: Run, x: Tensor, eta: float, s_noise: float, noise_sampler: NoiseSampler | None
) -> Tensor:
    noise = run.noise(noise_sampler)
    for i in range(run.steps):
        sigma, following = run.levels[i], run.levels[i + 1]
        denoised = run.denoise(x, sigma)
        run.report(i, x, denoised)
        down, up = get_ancestral_step(sigma, following, eta)
        x = mix(x, denoised, down / sigma)
        if up > 0:
            x = x + noise(sigma, following) * (s_noise * up)
    return x


@sampler
def sample_euler_ancestral(
    run: Run,
    x: Tensor,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """Euler steps to below the next level, with fresh noise up to it."""
    return _ancestral(run, x, eta, s_noise, noise_sampler)


@sampler
def sample_ddim(
    run: Run,
    x: Tensor,
    eta: float = 0.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """DDIM (Song et al. 2020, arXiv:2010.02502): an Euler step, with noise of share eta."""
    return _ancestral(run, x, eta, s_noise, noise_sampler)


@sampler
def sample_ddpm(run: Run, x: Tensor, noise_sampler: NoiseSampler | None = None) -> Tensor:
    """Ancestral sampling of DDPM (Ho et al. 2020, arXiv:2006.11239), with the smaller variance.

    The posterior of the next level's x, given this one and the prediction, has the mean
    denoised + (next / sigma)² (x - denoised) and the variance next² (1 - (next / sigma)²), for
    scaled and unscaled noise alike: the very step of euler_ancestral with eta 1.
    """
    return _ancestral(run, x, 1.0, 1.0, noise_sampler)


@sampler
def sample_heun(
    run: Run,
    x: Tensor,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """Algorithm 2 of Karras et al. (2022): Heun's method, of second order."""
    churn = Churn(run, noise_sampler, s_churn, s_tmin, s_tmax, s_noise)
    for i in range(run.steps):
        x, sigma = churn(x, run.levels[i])
        denoised = run.denoise(x, sigma)
        run.report(i, x, denoised, sigma)
        x = heun_step(run, x, denoised, sigma, run.levels[i + 1])
    return x


def heun_step(run: Run, x: Tensor, denoised: Tensor, sigma: float, following: float) -> Tensor:
    """From sigma to `following` with the mean of the slopes at both; to 0 the prediction."""
    end = mix(x, denoised, following / sigma)
    if following == 0:
        return end
    slope = to_d(x, sigma, denoised)
    slope_end = to_d(end, following, run.denoise(end, following))
    return x + (slope + slope_end) * (0.5 * (following - sigma))


@sampler
def sample_heunpp2(
    run: Run,
    x: Tensor,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """Heun++: the slopes at up to three levels, weighed by their sigmas over the first one.

    Smooth where a plain Heun step overshoots, though of first order only. The last step is
    Euler's, the one before looks ahead to one level.
    """
    churn = Churn(run, noise_sampler, s_churn, s_tmin, s_tmax, s_noise)
    for i in range(run.steps):
        x, sigma = churn(x, run.levels[i])
        denoised = run.denoise(x, sigma)
        run.report(i, x, denoised, sigma)
        ahead = run.levels[i + 1 : min(i + 3, run.steps)]
        if not ahead:
            x = mix(x, denoised, run.levels[i + 1] / sigma)
            continue
        slopes, levels, there = [to_d(x, sigma, denoised)], [sigma], x
        for level in ahead:
            there = there + slopes[-1] * (level - levels[-1])
            slopes.append(to_d(there, level, run.denoise(there, level)))
            levels.append(level)
        weights = [level / (len(slopes) * run.levels[0]) for level in ahead]
        slope = slopes[0] * (1.0 - sum(weights))
        for weight, later in zip(weights, slopes[1:], strict=True):
            slope = slope + later * weight
        x = x + slope * (run.levels[i + 1] - sigma)
    return x


@sampler
def sample_dpm_2(
    run: Run,
    x: Tensor,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """DPM-Solver-2 (arXiv:2206.00927): the slope at the mean of log sigma, of second order."""
    churn = Churn(run, noise_sampler, s_churn, s_tmin, s_tmax, s_noise)
    for i in range(run.steps):
        x, sigma = churn(x, run.levels[i])
        denoised = run.denoise(x, sigma)
        run.report(i, x, denoised, sigma)
        x = _midpoint_step(run, x, denoised, sigma, run.levels[i + 1])
    return x


def _midpoint_step(run: Run, x: Tensor, denoised: Tensor, sigma: float, following: float) -> Tensor:
    if following == 0:
        return denoised
    middle = math.sqrt(sigma * following)
    halfway = mix(x, denoised, middle / sigma)
    slope = to_d(halfway, middle, run.denoise(halfway, middle))
    return x + slope * (following - sigma)


@sampler
def sample_dpm_2_ancestral(
    run: Run,
    x: Tensor,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """As dpm_2, to below the next level, with fresh noise up to it."""
    noise = run.noise(noise_sampler)
    for i in range(run.steps):
        sigma, following = run.levels[i], run.levels[i + 1]
        denoised = run.denoise(x, sigma)
        run.report(i, x, denoised)
        down, up = get_ancestral_step(sigma, following, eta)
        x = _midpoint_step(run, x, denoised, sigma, down)
        if up > 0:
            x = x + noise(sigma, following) * (s_noise * up)
    return x
