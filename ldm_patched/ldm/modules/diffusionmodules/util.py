"""Small parts that the diffusion networks share: schedules, checkpointing, embeddings, blending.

The schedules are NumPy in float64, because errors in a cumulative product of 1,000 factors
show; everything else is PyTorch. Names and formulas follow the latent diffusion code base
(Rombach et al. 2022, arXiv:2112.10752) and DDIM (Song et al. 2021, arXiv:2010.02502).
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from ldm_patched.ldm.modules.diffusionmodules.checkpointing import CheckpointFunction, checkpoint
from ldm_patched.ldm.util import instantiate_from_config

__all__ = [
    "AlphaBlender",
    "CheckpointFunction",
    "HybridConditioner",
    "avg_pool_nd",
    "betas_for_alpha_bar",
    "checkpoint",
    "conv_nd",
    "extract_into_tensor",
    "instantiate_from_config",
    "make_beta_schedule",
    "make_ddim_sampling_parameters",
    "make_ddim_timesteps",
    "mean_flat",
    "noise_like",
    "scale_module",
    "timestep_embedding",
    "zero_module",
]

log = logging.getLogger(__name__)


class AlphaBlender(nn.Module):
    """`alpha * x_spatial + (1 - alpha) * x_temporal`, with alpha fixed, learned, or 1 for images.

    "fixed" uses `alpha` as it is; "learned" the sigmoid of a trained number; with
    "learned_with_images" the frames that are single images (`image_only_indicator` true) take
    the spatial side alone.
    """

    strategies = ("learned", "fixed", "learned_with_images")

    def __init__(
        self,
        alpha: float,
        merge_strategy: str = "learned_with_images",
        rearrange_pattern: str = "b t -> (b t) 1 1",
    ) -> None:
        """Raises AssertionError if `merge_strategy` is none of `strategies`."""
        super().__init__()
        if merge_strategy not in self.strategies:
            raise AssertionError(f"merge_strategy needs to be in {self.strategies}")
        self.merge_strategy = merge_strategy
        self.rearrange_pattern = rearrange_pattern
        factor = torch.tensor([float(alpha)])
        if merge_strategy == "fixed":
            self.register_buffer("mix_factor", factor)
        else:
            self.register_parameter("mix_factor", nn.Parameter(factor))

    def get_alpha(self, image_only_indicator: Tensor | None = None) -> Tensor:
        """The share of the spatial side: one number, or one per frame in the rearranged shape.

        image_only_indicator: (B, T), true where a frame is a single image.
        Raises AssertionError if it is needed and missing, NotImplementedError for an unknown
        strategy.
        """
        factor = self.mix_factor
        if image_only_indicator is not None:
            factor = factor.to(image_only_indicator.device)
        if self.merge_strategy == "fixed":
            return factor
        if self.merge_strategy == "learned":
            return torch.sigmoid(factor)
        if self.merge_strategy == "learned_with_images":
            if image_only_indicator is None:
                raise AssertionError("learned_with_images needs an image_only_indicator")
            ones = torch.ones(1, 1, device=factor.device)
            alpha = torch.where(
                image_only_indicator.bool(), ones, rearrange(torch.sigmoid(factor), "... -> ... 1")
            )
            return rearrange(alpha, self.rearrange_pattern)
        raise NotImplementedError(f"Unknown merge strategy {self.merge_strategy!r}.")

    def forward(
        self, x_spatial: Tensor, x_temporal: Tensor, image_only_indicator: Tensor | None = None
    ) -> Tensor:
        """Both inputs of one shape; the blend in the same shape and in x_spatial's dtype."""
        alpha = self.get_alpha(image_only_indicator).to(x_spatial)
        return alpha * x_spatial + (1.0 - alpha) * x_temporal


def make_beta_schedule(
    schedule: str,
    n_timestep: int,
    linear_start: float = 1e-4,
    linear_end: float = 2e-2,
    cosine_s: float = 8e-3,
) -> np.ndarray:
    """The noise variance of each step: (n_timestep,) float64 in 0..0.999, rising.

    Raises ValueError for an unknown schedule.
    """
    if schedule == "linear":  # linear in the standard deviation, as Stable Diffusion has it
        return np.linspace(linear_start**0.5, linear_end**0.5, n_timestep) ** 2
    if schedule == "cosine":
        t = np.arange(n_timestep + 1, dtype=np.float64) / n_timestep + cosine_s
        alphas = np.cos(t / (1 + cosine_s) * np.pi / 2) ** 2
        alphas = alphas / alphas[0]
        return np.clip(1 - alphas[1:] / alphas[:-1], 0.0, 0.999)
    if schedule == "squaredcos_cap_v2":
        return betas_for_alpha_bar(
            n_timestep, lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        )
    if schedule == "sqrt_linear":
        return np.linspace(linear_start, linear_end, n_timestep)
    if schedule == "sqrt":
        return np.linspace(linear_start, linear_end, n_timestep) ** 0.5
    raise ValueError(f"schedule '{schedule}' unknown.")


def make_ddim_timesteps(
    ddim_discr_method: str, num_ddim_timesteps: int, num_ddpm_timesteps: int, verbose: bool = True
) -> np.ndarray:
    """The training timesteps that DDIM visits, rising from 1.

    "uniform" takes every c-th step, c = num_ddpm // num_ddim; "quad" is denser near 0 and ends
    at 80 %. Raises NotImplementedError for another method.
    """
    if ddim_discr_method == "uniform":
        step = num_ddpm_timesteps // num_ddim_timesteps
        steps = np.arange(0, num_ddpm_timesteps, step)
    elif ddim_discr_method == "quad":
        steps = np.linspace(0, np.sqrt(num_ddpm_timesteps * 0.8), num_ddim_timesteps) ** 2
        steps = steps.astype(int)
    else:
        raise NotImplementedError(
            f'There is no ddim discretization method called "{ddim_discr_method}"'
        )
    steps_out = steps + 1  # one up, so that the last alpha of sampling is the right one
    if verbose:
        log.info("Selected timesteps for ddim sampler: %s", steps_out)
    return steps_out


def make_ddim_sampling_parameters(
    alphacums: Any, ddim_timesteps: np.ndarray, eta: float, verbose: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(sigmas, alphas, alphas_prev) at `ddim_timesteps`, formula 16 of arXiv:2010.02502.

    alphacums: cumulative alphas, (T,), an array, a list or a tensor. eta: 0 is deterministic
    DDIM, 1 is DDPM.
    """
    cumulative = np.asarray(alphacums)
    alphas = cumulative[ddim_timesteps]
    alphas_prev = np.asarray([cumulative[0], *cumulative[ddim_timesteps[:-1]].tolist()])
    sigmas = eta * np.sqrt((1 - alphas_prev) / (1 - alphas) * (1 - alphas / alphas_prev))
    if verbose:
        log.info("Selected alphas for ddim sampler: a_t: %s; a_(t-1): %s", alphas, alphas_prev)
        log.info("With eta = %s the sigma_t schedule for ddim sampler is %s", eta, sigmas)
    return sigmas, alphas, alphas_prev


def betas_for_alpha_bar(
    num_diffusion_timesteps: int, alpha_bar: Callable[[float], float], max_beta: float = 0.999
) -> np.ndarray:
    """Betas whose cumulative product of (1 - beta) follows `alpha_bar(t)`, t from 0 to 1."""
    n = num_diffusion_timesteps
    return np.array(
        [min(1 - alpha_bar((i + 1) / n) / alpha_bar(i / n), max_beta) for i in range(n)]
    )


def extract_into_tensor(a: Tensor, t: Tensor, x_shape: Sequence[int]) -> Tensor:
    """`a[..., t]` shaped (B, 1, 1, …) so that it broadcasts over a tensor of `x_shape`."""
    return a.gather(-1, t).reshape(t.shape[0], *((1,) * (len(x_shape) - 1)))


def timestep_embedding(
    timesteps: Tensor, dim: int, max_period: float = 10000, repeat_only: bool = False
) -> Tensor:
    """Sinusoidal embeddings: (N,) timesteps, fractions allowed, to (N, dim), cosines first.

    max_period sets the lowest frequency. With `repeat_only` each timestep is just repeated.
    """
    if repeat_only:
        return repeat(timesteps, "b -> b d", d=dim)
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    freqs = torch.exp(-math.log(max_period) * steps / half)
    args = timesteps[:, None].float() * freqs[None]
    embedding = torch.cat([torch.cos(args), torch.sin(args)], dim=-1)
    if dim % 2:
        embedding = torch.cat([embedding, torch.zeros_like(embedding[:, :1])], dim=-1)
    return embedding


def zero_module(module: nn.Module) -> nn.Module:
    """The same module with every parameter set to 0."""
    for parameter in module.parameters():
        parameter.detach().zero_()
    return module


def scale_module(module: nn.Module, scale: float) -> nn.Module:
    """The same module with every parameter multiplied by `scale`."""
    for parameter in module.parameters():
        parameter.detach().mul_(scale)
    return module


def mean_flat(tensor: Tensor) -> Tensor:
    """The mean over all axes but the first: (B, …) to (B,)."""
    return tensor.mean(dim=list(range(1, tensor.ndim)))


def _nd(dims: int, classes: Iterable[type[nn.Module]]) -> type[nn.Module]:
    table = dict(enumerate(classes, start=1))
    if dims not in table:
        raise ValueError(f"unsupported dimensions: {dims}")
    return table[dims]


def avg_pool_nd(dims: int, *args: Any, **kwargs: Any) -> nn.Module:
    """Average pooling over `dims` (1, 2 or 3) axes. Raises ValueError for another number."""
    return _nd(dims, (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d))(*args, **kwargs)


def conv_nd(dims: int, *args: Any, operations: Any = nn, **kwargs: Any) -> nn.Module:
    """A convolution over `dims` (1, 2 or 3) axes, taken from `operations` where it has one."""
    name = _nd(dims, (nn.Conv1d, nn.Conv2d, nn.Conv3d)).__name__
    return getattr(operations, name, getattr(nn, name))(*args, **kwargs)


class HybridConditioner(nn.Module):
    """One conditioner for what is concatenated to the input, one for cross-attention."""

    def __init__(
        self, c_concat_config: Mapping[str, Any], c_crossattn_config: Mapping[str, Any]
    ) -> None:
        """Both configurations need a "target"; raises KeyError without one."""
        super().__init__()
        self.concat_conditioner = instantiate_from_config(c_concat_config)
        self.crossattn_conditioner = instantiate_from_config(c_crossattn_config)

    def forward(self, c_concat: Tensor, c_crossattn: Tensor) -> dict[str, list[Tensor]]:
        """Each input through its conditioner, as one-element lists under their names."""
        return {
            "c_concat": [self.concat_conditioner(c_concat)],
            "c_crossattn": [self.crossattn_conditioner(c_crossattn)],
        }


def noise_like(shape: Sequence[int], device: torch.device | str, repeat: bool = False) -> Tensor:
    """Normal noise of `shape`; with `repeat` every sample of the batch gets the same."""
    if repeat:
        return torch.randn((1, *shape[1:]), device=device).repeat(
            shape[0], *((1,) * (len(shape) - 1))
        )
    return torch.randn(tuple(shape), device=device)
