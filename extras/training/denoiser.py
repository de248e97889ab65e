"""The network as a denoiser: scaled input in, denoised latents out, at the noise level sigma.

The counterparts for sampling are in ldm_patched.modules.model_sampling; the names here are those
of Stability's `generative-models`, which trains with them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from extras.training.noise import Config, append_dims, make

Scales = tuple[Tensor, Tensor, Tensor, Tensor]
"""c_skip, c_out, c_in, c_noise, each (B,)."""

Network = Callable[..., Tensor]
"""network(scaled latents, c_noise (B,), cond) → prediction like the latents."""


class EpsScaling:
    """The network predicts the noise."""

    def __call__(self, sigma: Tensor) -> Scales:
        return torch.ones_like(sigma), -sigma, 1 / (sigma**2 + 1.0) ** 0.5, sigma.clone()


class VScaling:
    """The network predicts v."""

    def __call__(self, sigma: Tensor) -> Scales:
        total = sigma**2 + 1.0
        return 1.0 / total, -sigma / total**0.5, 1.0 / total**0.5, sigma.clone()


class VScalingWithEDMcNoise(VScaling):
    """The network predicts v, and is told log(sigma) / 4."""

    def __call__(self, sigma: Tensor) -> Scales:
        c_skip, c_out, c_in, _ = super().__call__(sigma)
        return c_skip, c_out, c_in, 0.25 * sigma.log()


class EDMScaling:
    """Karras et al. 2022, table 1."""

    def __init__(self, sigma_data: float = 0.5) -> None:
        self.sigma_data = sigma_data

    def __call__(self, sigma: Tensor) -> Scales:
        total = sigma**2 + self.sigma_data**2
        c_out = sigma * self.sigma_data / total**0.5
        return self.sigma_data**2 / total, c_out, 1 / total**0.5, 0.25 * sigma.log()


class Denoiser(nn.Module):
    """Any noise level."""

    def __init__(self, scaling_config: Config | Callable[..., Any]) -> None:
        super().__init__()
        self.scaling: Callable[[Tensor], Scales] = make(scaling_config)

    def possibly_quantize_sigma(self, sigma: Tensor) -> Tensor:
        return sigma

    def possibly_quantize_c_noise(self, c_noise: Tensor) -> Tensor:
        return c_noise

    def forward(
        self,
        network: Network,
        input: Tensor,
        sigma: Tensor,
        cond: Mapping[str, Tensor],
        **additional_model_inputs: Any,
    ) -> Tensor:
        """Noised latents (B, C, H, W) at sigma (B,) → denoised latents, float32."""
        sigma = self.possibly_quantize_sigma(sigma)
        c_skip, c_out, c_in, c_noise = self.scaling(sigma)
        c_noise = self.possibly_quantize_c_noise(c_noise.reshape(sigma.shape))
        c_skip, c_out, c_in = (append_dims(c, input.ndim) for c in (c_skip, c_out, c_in))
        output = network(input * c_in, c_noise, cond, **additional_model_inputs)
        return output.float() * c_out + input * c_skip


class DiscreteDenoiser(Denoiser):
    """The noise levels of a table; the network is told the index."""

    sigmas: Tensor

    def __init__(
        self,
        scaling_config: Config | Callable[..., Any],
        num_idx: int,
        discretization_config: Config | Callable[..., Any],
        do_append_zero: bool = False,
        quantize_c_noise: bool = True,
        flip: bool = True,
    ) -> None:
        super().__init__(scaling_config)
        discretization = make(discretization_config)
        sigmas = discretization(num_idx, do_append_zero=do_append_zero, flip=flip)
        self.register_buffer("sigmas", sigmas)
        self.num_idx = num_idx
        self.quantize_c_noise = quantize_c_noise

    def sigma_to_idx(self, sigma: Tensor) -> Tensor:
        """The index of the nearest sigma of the table, same shape."""
        distances = sigma - self.sigmas.reshape((-1,) + (1,) * sigma.ndim)
        return distances.abs().argmin(dim=0).view(sigma.shape)

    def idx_to_sigma(self, idx: Tensor | int) -> Tensor:
        return self.sigmas[idx]

    def possibly_quantize_sigma(self, sigma: Tensor) -> Tensor:
        return self.idx_to_sigma(self.sigma_to_idx(sigma))

    def possibly_quantize_c_noise(self, c_noise: Tensor) -> Tensor:
        return self.sigma_to_idx(c_noise) if self.quantize_c_noise else c_noise
