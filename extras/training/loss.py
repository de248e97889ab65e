"""The diffusion loss: noise the latents, let the network denoise them, weigh the error."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from extras.training.denoiser import Denoiser, Network
from extras.training.noise import Config, append_dims, make
from ldm_patched.ldm.modules.diffusionmodules.util import mean_flat

LOSS_TYPES = ("l2", "l1")


class StandardDiffusionLoss(nn.Module):
    """Weighted error of the denoised latents.

    Random numbers come from PyTorch's global generators, which the trainer seeds at each step.
    Where a batch has "emphasis", (B, H, W), the errors of its places are multiplied by that.
    """

    def __init__(
        self,
        sigma_sampler_config: Config | Callable[..., Any],
        loss_weighting_config: Config | Callable[..., Any],
        loss_type: str = "l2",
        offset_noise_level: float = 0.0,
        batch2model_keys: str | Sequence[str] | None = None,
    ) -> None:
        """sigma_sampler_config, loss_weighting_config: see noise.py, a configuration or the object.

        offset_noise_level: standard deviation of one more noise value for each whole channel, so
        that the network also learns to change a picture's mean. batch2model_keys: entries of the
        batch that go to the network as keywords. Raises ValueError for an unknown loss type.
        """
        super().__init__()
        if loss_type not in LOSS_TYPES:
            raise ValueError(f"Unknown loss type {loss_type!r}; known are {', '.join(LOSS_TYPES)}.")
        self.sigma_sampler = make(sigma_sampler_config)
        self.loss_weighting = make(loss_weighting_config)
        self.loss_type = loss_type
        self.offset_noise_level = offset_noise_level
        keys = [batch2model_keys] if isinstance(batch2model_keys, str) else batch2model_keys or ()
        self.batch2model_keys = set(keys)

    def get_noised_input(self, sigmas_bc: Tensor, noise: Tensor, input: Tensor) -> Tensor:
        """input + sigma · noise; sigmas_bc broadcasts over the input."""
        return input + noise * sigmas_bc

    def make_noise(self, input: Tensor) -> Tensor:
        """Unit noise like `input`, with the channel-wide offset."""
        noise = torch.randn_like(input)
        if self.offset_noise_level > 0.0:
            offset = torch.randn(input.shape[:2], device=input.device, dtype=input.dtype)
            noise = noise + self.offset_noise_level * append_dims(offset, input.ndim)
        return noise

    def forward(
        self,
        network: Network,
        denoiser: Denoiser,
        conditioner: Callable[[dict[str, Any]], Mapping[str, Tensor]],
        input: Tensor,
        batch: dict[str, Any],
    ) -> Tensor:
        """The loss of each sample, (B,), for latents `input` (B, C, H, W)."""
        return self._forward(network, denoiser, conditioner(batch), input, batch)

    def _forward(
        self,
        network: Network,
        denoiser: Denoiser,
        cond: Mapping[str, Tensor],
        input: Tensor,
        batch: Mapping[str, Any],
    ) -> Tensor:
        extra = {key: batch[key] for key in self.batch2model_keys.intersection(batch)}
        sigmas = self.sigma_sampler(input.shape[0]).to(input)
        noise = self.make_noise(input)
        sigmas_bc = append_dims(sigmas, input.ndim)
        noised = self.get_noised_input(sigmas_bc, noise, input)
        output = denoiser(network, noised, sigmas, cond, **extra)
        weights = append_dims(self.loss_weighting(sigmas), input.ndim)
        if "emphasis" in batch:
            weights = weights * batch["emphasis"][:, None]
        return self.get_loss(output, input, weights)

    def get_loss(self, model_output: Tensor, target: Tensor, w: Tensor) -> Tensor:
        """The mean weighted error of each sample, (B,)."""
        error = model_output - target
        error = error**2 if self.loss_type == "l2" else error.abs()
        return mean_flat(w * error)
