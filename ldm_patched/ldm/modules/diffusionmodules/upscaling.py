"""Noise on the small picture that an upscaling network is shown, so that it invents detail.

As in cascaded diffusion (Ho et al. 2021, arXiv:2106.15282): the network is told how much noise
there is.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ldm_patched.ldm.modules.diffusionmodules.util import extract_into_tensor, make_beta_schedule


class AbstractLowScaleModel(nn.Module):
    """A noise schedule for a low-resolution picture; subclasses say how it is used.

    noise_schedule_config: arguments of `register_schedule`; None: no schedule.
    """

    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor

    def __init__(self, noise_schedule_config: dict[str, Any] | None = None) -> None:
        super().__init__()
        if noise_schedule_config is not None:
            self.register_schedule(**noise_schedule_config)

    def register_schedule(
        self,
        beta_schedule: str = "linear",
        timesteps: int = 1000,
        linear_start: float = 1e-4,
        linear_end: float = 2e-2,
        cosine_s: float = 8e-3,
    ) -> None:
        """See make_beta_schedule."""
        betas = make_beta_schedule(beta_schedule, timesteps, linear_start, linear_end, cosine_s)
        cumulative = torch.as_tensor(1.0 - betas).cumprod(dim=0)
        self.num_timesteps = timesteps
        self.register_buffer("sqrt_alphas_cumprod", cumulative.sqrt().float(), persistent=False)
        noise = (1.0 - cumulative).sqrt().float()
        self.register_buffer("sqrt_one_minus_alphas_cumprod", noise, persistent=False)

    def q_sample(
        self, x_start: Tensor, t: Tensor, noise: Tensor | None = None, seed: int | None = None
    ) -> Tensor:
        """x_start (B, …) with the noise of timesteps t (B,): signal and noise sum to variance 1.

        noise: like x_start; None draws it, from `seed` if that is given.
        """
        if noise is None:
            generator = None if seed is None else torch.Generator().manual_seed(seed)
            noise = torch.randn(x_start.shape, generator=generator).to(x_start)
        signal = extract_into_tensor(self.sqrt_alphas_cumprod.to(x_start), t, x_start.shape)
        share = extract_into_tensor(
            self.sqrt_one_minus_alphas_cumprod.to(x_start), t, x_start.shape
        )
        return signal * x_start + share * noise

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(x, no noise level)."""
        return x, None


class ImageConcatWithNoiseAugmentation(AbstractLowScaleModel):
    """The picture with noise, to be joined to the network's input, and how much noise it has."""

    def __init__(self, noise_schedule_config: dict[str, Any], max_noise_level: int = 1000) -> None:
        """max_noise_level: levels are below it."""
        super().__init__(noise_schedule_config)
        self.max_noise_level = max_noise_level

    def forward(
        self, x: Tensor, noise_level: Tensor | None = None, seed: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """x (B, C, H, W) and levels (B,), drawn if None → (noised x, levels)."""
        if noise_level is None:
            noise_level = torch.randint(0, self.max_noise_level, (len(x),), device=x.device)
        return self.q_sample(x, noise_level, seed=seed), noise_level
