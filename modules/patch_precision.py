"""Timestep embedding and noise schedule as the kohya trainer computes them.

Most SDXL models and LoRAs are trained with kohya's scripts; the same roundings at inference keep
training and use alike. `patch_all_precision` puts both functions in force.
"""

import math
from typing import Any

import numpy as np
import torch
from einops import repeat
from torch import Tensor

import ldm_patched.ldm.modules.diffusionmodules.openaimodel
import ldm_patched.modules.model_sampling
from ldm_patched.ldm.modules.diffusionmodules.util import make_beta_schedule


def patched_timestep_embedding(
    timesteps: Tensor, dim: int, max_period: float = 10000, repeat_only: bool = False
) -> Tensor:
    """Sinusoidal embeddings: (N,) timesteps to (N, dim), cosines first, zero-padded if odd.

    The frequencies are made on the CPU and moved, so that every device has the same ones. With
    `repeat_only` each timestep is just repeated.
    """
    if repeat_only:
        return repeat(timesteps, "b -> b d", d=dim)
    half = dim // 2
    freqs = torch.exp(
        -math.log(max_period) * torch.arange(start=0, end=half, dtype=torch.float32) / half
    ).to(device=timesteps.device)
    args = timesteps[:, None].float() * freqs[None]
    embedding = torch.cat([torch.cos(args), torch.sin(args)], dim=-1)
    if dim % 2:
        embedding = torch.cat([embedding, torch.zeros_like(embedding[:, :1])], dim=-1)
    return embedding


def patched_register_schedule(
    self: Any,
    given_betas: Any = None,
    beta_schedule: str = "linear",
    timesteps: int = 1000,
    linear_start: float = 1e-4,
    linear_end: float = 2e-2,
    cosine_s: float = 8e-3,
) -> None:
    """ModelSamplingDiscrete._register_schedule, all in NumPy and float64 until the end.

    given_betas: used as they are, if there are any; else `make_beta_schedule` makes them.
    """
    if given_betas is not None:
        betas = np.asarray(given_betas)
    else:
        betas = make_beta_schedule(
            beta_schedule,
            timesteps,
            linear_start=linear_start,
            linear_end=linear_end,
            cosine_s=cosine_s,
        )
    alphas = 1.0 - betas
    alphas_cumprod = np.cumprod(alphas, axis=0)
    (steps,) = betas.shape
    self.num_timesteps = int(steps)
    self.linear_start = linear_start
    self.linear_end = linear_end
    sigmas = ((1 - alphas_cumprod) / alphas_cumprod) ** 0.5
    self.set_sigmas(torch.tensor(sigmas, dtype=torch.float32))
    self.set_alphas_cumprod(torch.tensor(alphas_cumprod, dtype=torch.float32))


def patch_all_precision() -> None:
    """Put both functions in force for all networks and schedules made from now on. Idempotent."""
    openaimodel = ldm_patched.ldm.modules.diffusionmodules.openaimodel
    openaimodel.timestep_embedding = patched_timestep_embedding
    sampling = ldm_patched.modules.model_sampling
    sampling.ModelSamplingDiscrete._register_schedule = patched_register_schedule
