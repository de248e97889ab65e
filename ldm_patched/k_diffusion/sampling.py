"""Samplers and noise schedules: a denoiser in, a picture's latents out.

A sampler is `sample_<name>(model, x, sigmas, extra_args=None, callback=None, disable=None, ...)`:
`model(x, sigma, **extra_args)` gives the denoised x, where sigma has one entry a picture;
x: (B, ...), noise of level sigmas[0] included; sigmas: (steps + 1,), falling, the last one usually
0. `callback` gets {"x", "i", "sigma", "sigma_hat", "denoised"} before the i-th update. `disable`
is the field's switch for a progress bar; there is none here.

Letters follow the papers: Karras et al. 2022 (arXiv:2206.00364) for schedules, Euler and churn;
DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095), whose time is lambda = -log sigma; latent
consistency models (Luo et al. 2023, arXiv:2310.04378). All coefficients of a step are Python
floats worked out from sigmas that were read once, so no step waits for the device.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ldm_patched.k_diffusion.noise import BrownianNoise, NoiseSampler, PerImageNoise, seeds_for

Denoiser = Callable[..., Tensor]
Callback = Callable[[dict[str, Any]], None]


# --- schedules and small helpers -----------------------------------------------------------------


def append_zero(x: Tensor) -> Tensor:
    """x (n,) with a 0 behind it: (n + 1,)."""
    return torch.cat([x, x.new_zeros(1)])


def get_sigmas_karras(
    n: int,
    sigma_min: float,
    sigma_max: float,
    rho: float = 7.0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """n falling sigmas of Karras et al. (2022), equation 5, and a 0: (n + 1,) float32."""
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    low, high = float(sigma_min) ** (1 / rho), float(sigma_max) ** (1 / rho)
    return append_zero((high + ramp * (low - high)) ** rho).float().to(device)


def get_sigmas_exponential(
    n: int, sigma_min: float, sigma_max: float, device: torch.device | str = "cpu"
) -> Tensor:
    """n falling sigmas, evenly spaced in log sigma, and a 0: (n + 1,) float32."""
    low, high = math.log(sigma_min), math.log(sigma_max)
    return append_zero(torch.linspace(high, low, n, dtype=torch.float64).exp()).float().to(device)


def to_d(x: Tensor, sigma: Tensor | float, denoised: Tensor) -> Tensor:
    """The derivative dx/dsigma that a denoised prediction stands for.

    sigma: a number, or one entry for each picture of x.
    """
    if isinstance(sigma, Tensor) and sigma.ndim:
        sigma = sigma.reshape(-1, *[1] * (x.ndim - 1))
    return (x - denoised) / sigma


def get_ancestral_step(sigma_from: float, sigma_to: float, eta: float = 1.0) -> tuple[float, float]:
    """(sigma_down, sigma_up): step down to sigma_down, then add noise of sigma_up.

    Their squares sum to sigma_to squared; eta scales the noise that is put back.
    """
    if not eta:
        return sigma_to, 0.0
    variance = sigma_to**2 * max(sigma_from**2 - sigma_to**2, 0.0) / sigma_from**2
    sigma_up = min(sigma_to, eta * math.sqrt(variance))
    return math.sqrt(max(sigma_to**2 - sigma_up**2, 0.0)), sigma_up


class _Run:
    """What every sampler needs: sigmas as floats, the model call, the callback."""

    def __init__(
        self,
        model: Denoiser,
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None,
        callback: Callback | None,
    ) -> None:
        self.model, self.sigmas, self.callback = model, sigmas, callback
        self.extra_args = dict(extra_args or {})
        self.levels: list[float] = sigmas.tolist()
        self.steps = len(self.levels) - 1
        # sigma in at least float32, however short the latents' numbers are
        self._ones = x.new_ones(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32))

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        return self.model(x, self._ones * sigma, **self.extra_args)

    def report(self, i: int, x: Tensor, denoised: Tensor, sigma_hat: float | None = None) -> None:
        """Tell the callback that step i knows its denoised prediction."""
        if self.callback is None:
            return
        sigma = self.sigmas[i]
        hat = sigma if sigma_hat in (None, self.levels[i]) else torch.full_like(sigma, sigma_hat)
        self.callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": hat, "denoised": denoised})

    def noise(self, x: Tensor, given: NoiseSampler | None) -> NoiseSampler:
        """`given`, or independent noise: from extra_args["seed"], else torch's own generator."""
        if given is not None:
            return given
        return PerImageNoise(x, seeds_for(x.shape[0], self.extra_args.get("seed")))

    def brownian(self, x: Tensor, given: NoiseSampler | None) -> NoiseSampler:
        """`given`, or the increments of a seeded Brownian path over these sigmas."""
        positive = [s for s in self.levels if s > 0]
        if given is not None or not positive:
            return given or (lambda _a, _b: torch.zeros_like(x))
        seeds = seeds_for(x.shape[0], self.extra_args.get("seed"))
        return BrownianNoise(x, seeds, min(positive), max(positive))


def _mix(x: Tensor, denoised: Tensor, ratio: float) -> Tensor:
    """ratio * x + (1 - ratio) * denoised: an exact step from sigma to ratio * sigma.

    At ratio 0 the prediction itself, bit for bit.
    """
    return denoised if ratio == 0.0 else x * ratio + denoised * (1.0 - ratio)


# --- samplers ------------------------------------------------------------------------------------


@torch.no_grad()
def sample_euler(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,  # noqa: ARG001 - the field's signature
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """Algorithm 2 of Karras et al. (2022) with Euler steps; plain Euler when s_churn is 0."""
    run = _Run(model, x, sigmas, extra_args, callback)
    noise = run.noise(x, noise_sampler) if s_churn > 0 else None
    most = min(s_churn / max(run.steps, 1), math.sqrt(2.0) - 1.0)
    for i in range(run.steps):
        sigma, following = run.levels[i], run.levels[i + 1]
        sigma_hat = sigma * (1.0 + (most if s_tmin <= sigma <= s_tmax else 0.0))
        if noise is not None and sigma_hat > sigma:
            x = x + noise(sigma, sigma_hat) * (s_noise * math.sqrt(sigma_hat**2 - sigma**2))
        denoised = run.denoise(x, sigma_hat)
        run.report(i, x, denoised, sigma_hat)
        x = _mix(x, denoised, following / sigma_hat)
    return x


@torch.no_grad()
def sample_euler_ancestral(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,  # noqa: ARG001 - the field's signature
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """Euler steps to below the next level, with fresh noise up to it."""
    run = _Run(model, x, sigmas, extra_args, callback)
    noise = run.noise(x, noise_sampler)
    for i in range(run.steps):
        sigma, following = run.levels[i], run.levels[i + 1]
        denoised = run.denoise(x, sigma)
        run.report(i, x, denoised)
        down, up = get_ancestral_step(sigma, following, eta)
        x = _mix(x, denoised, down / sigma)
        if up > 0:
            x = x + noise(sigma, following) * (s_noise * up)
    return x


@torch.no_grad()
def sample_dpmpp_2m(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,  # noqa: ARG001 - the field's signature
) -> Tensor:
    """DPM-Solver++(2M): second order from the last two predictions, one model call a step."""
    run = _Run(model, x, sigmas, extra_args, callback)
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
        x = _mix(x, towards, following / sigma)
        earlier, last_h = denoised, h
    return x


@torch.no_grad()
def sample_dpmpp_2m_sde(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,  # noqa: ARG001 - the field's signature
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
    run = _Run(model, x, sigmas, extra_args, callback)
    noise = run.brownian(x, noise_sampler)
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


@torch.no_grad()
def sample_dpmpp_sde(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,  # noqa: ARG001 - the field's signature
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    r: float = 0.5,
) -> Tensor:
    """SDE-DPM-Solver++(2S): an intermediate point at share r of each step, two model calls."""
    run = _Run(model, x, sigmas, extra_args, callback)
    noise = run.brownian(x, noise_sampler)
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
        x_between = _mix(x, denoised, down / sigma)
        if up > 0:
            x_between = x_between + noise(sigma, between) * (s_noise * up)
        towards = denoised * (1.0 - weight) + run.denoise(x_between, between) * weight
        down, up = get_ancestral_step(sigma, following, eta)
        x = _mix(x, towards, down / sigma)
        if up > 0:
            x = x + noise(sigma, following) * (s_noise * up)
    return x


@torch.no_grad()
def sample_lcm(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,  # noqa: ARG001 - the field's signature
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """Multistep consistency sampling: jump to the prediction, add noise of the next level."""
    run = _Run(model, x, sigmas, extra_args, callback)
    noise = run.noise(x, noise_sampler)
    for i in range(run.steps):
        sigma, following = run.levels[i], run.levels[i + 1]
        denoised = run.denoise(x, sigma)
        run.report(i, x, denoised)
        x = denoised + noise(sigma, following) * following if following > 0 else denoised
    return x
