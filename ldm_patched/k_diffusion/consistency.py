"""Samplers for distilled models, which leap to the prediction and take noise again."""

import math

import torch
from torch import Tensor

from ldm_patched.k_diffusion.common import Denoiser, Run, mix, sampler
from ldm_patched.k_diffusion.noise import NoiseSampler
from ldm_patched.modules.model_sampling import ModelSamplingDiscrete, counts_timesteps


@sampler
def sample_lcm(
    run: Run,
    x: Tensor,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """Multistep consistency sampling: jump to the prediction, add noise of the next level."""
    noise = run.noise(noise_sampler)
    for i in range(run.steps):
        sigma, following = run.levels[i], run.levels[i + 1]
        denoised = run.denoise(x, sigma)
        run.report(i, x, denoised)
        x = denoised + noise(sigma, following) * following if following > 0 else denoised
    return x


@sampler
def sample_tcd(
    run: Run,
    x: Tensor,
    eta: float = 0.3,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """Trajectory consistency distillation (Zheng et al. 2024, arXiv:2402.19159).

    Each step goes along the trajectory to the level at (1 - eta) of the next timestep, then takes
    noise up to the next level. eta: 0 takes none, 1 is the multistep consistency sampler.
    """
    noise, landings = run.noise(noise_sampler), _landings(run, eta)
    for i in range(run.steps):
        sigma, following = run.levels[i], run.levels[i + 1]
        denoised = run.denoise(x, sigma)
        run.report(i, x, denoised)
        below = landings[i]
        x = mix(x, denoised, below / sigma)
        if below < following:
            x = x + noise(sigma, following) * math.sqrt(following**2 - below**2)
    return x


def _landings(run: Run, eta: float) -> list[float]:
    """The level at (1 - eta) of each step's next timestep, before a step waits for it."""
    following = run.levels[1 : run.steps + 1]
    if eta <= 0:
        return following
    levels = _timesteps_of(run.model)
    timesteps = levels.timestep(torch.tensor(following)).float()
    below = levels.sigma(torch.floor((1.0 - eta) * timesteps)).tolist()
    return [min(b, f) if f > 0 else f for b, f in zip(below, following, strict=True)]


def _timesteps_of(model: Denoiser) -> ModelSamplingDiscrete:
    """The model's own timesteps if they are counted 0 to 999, else Stable Diffusion's."""
    own = getattr(model, "model_sampling", None)
    return own if counts_timesteps(own) else ModelSamplingDiscrete()
