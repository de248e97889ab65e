"""Noise levels for training: discretization, how levels are drawn, how their losses weigh.

The names and signatures are those of Stability's `generative-models`, as the SDXL notes describe
them; sigma is the noise's standard deviation over the data's.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ldm_patched.ldm.modules.diffusionmodules.util import make_beta_schedule
from ldm_patched.ldm.util import instantiate_from_config
from ldm_patched.modules.model_sampling import rescale_zero_terminal_snr_sigmas

Config = Mapping[str, Any]
"""`{"target": "package.Class", "params": {...}}`."""


def make(config: Config | Callable[..., Any]) -> Any:
    """What a configuration describes; anything else is taken to be the object itself."""
    return instantiate_from_config(config) if isinstance(config, Mapping) else config


def append_dims(x: Tensor, target_dims: int) -> Tensor:
    """x (B,) with axes of length 1 appended until it has `target_dims` axes."""
    return x.reshape(x.shape + (1,) * (target_dims - x.ndim))


# --- Discretization ---------------------------------------------------------------------------


def generate_roughly_equally_spaced_steps(num_substeps: int, max_step: int) -> Tensor:
    """`num_substeps` whole numbers up to max_step - 1, the last one included, rising."""
    return torch.linspace(max_step - 1, 0, num_substeps + 1)[:-1].long().flip(0)


class LegacyDDPMDiscretization:
    """The noise levels of SD and SDXL: 1,000 betas whose square roots rise linearly."""

    def __init__(
        self, linear_start: float = 0.00085, linear_end: float = 0.0120, num_timesteps: int = 1000
    ) -> None:
        self.num_timesteps = num_timesteps
        betas = make_beta_schedule("linear", num_timesteps, linear_start, linear_end)
        self.alphas_cumprod = torch.cumprod(1.0 - torch.as_tensor(betas).double(), dim=0)

    def get_sigmas(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        """n falling sigmas. Raises ValueError if n is more than the table has."""
        if not 0 < n <= self.num_timesteps:
            raise ValueError(f"The schedule has {self.num_timesteps} levels, not {n}.")
        alphas = self.alphas_cumprod
        if n < self.num_timesteps:
            alphas = alphas[generate_roughly_equally_spaced_steps(n, self.num_timesteps)]
        sigmas = ((1 - alphas) / alphas) ** 0.5
        return sigmas.flip(0).to(device=device, dtype=torch.float32)

    def __call__(
        self,
        n: int,
        do_append_zero: bool = True,
        device: torch.device | str = "cpu",
        flip: bool = False,
    ) -> Tensor:
        """n sigmas, falling (rising with `flip`), a zero at the end of the fall if asked for."""
        sigmas = self.get_sigmas(n, device)
        if do_append_zero:
            sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])
        return sigmas.flip(0) if flip else sigmas


class ZeroSNRDiscretization(LegacyDDPMDiscretization):
    """The same levels stretched to end in (nearly) pure noise, as the engine does it."""

    def __init__(self) -> None:
        super().__init__()
        rising = self.get_sigmas(self.num_timesteps).flip(0)
        stretched = rescale_zero_terminal_snr_sigmas(rising).double()
        self.alphas_cumprod = 1.0 / (stretched**2 + 1.0)


# --- Drawing ----------------------------------------------------------------------------------


class DiscreteSampling:
    """Sigmas of a table, every entry equally often."""

    def __init__(
        self,
        discretization_config: Config | Callable[..., Any],
        num_idx: int,
        do_append_zero: bool = False,
        flip: bool = True,
    ) -> None:
        self.num_idx = num_idx
        self.sigmas = make(discretization_config)(num_idx, do_append_zero=do_append_zero, flip=flip)

    def idx_to_sigma(self, idx: Tensor) -> Tensor:
        return self.sigmas[idx]

    def __call__(self, n_samples: int, rand: Tensor | None = None) -> Tensor:
        """(n_samples,) sigmas; rand: indices to use instead of drawn ones."""
        idx = torch.randint(0, self.num_idx, (n_samples,)) if rand is None else rand
        return self.idx_to_sigma(idx)


class EDMSampling:
    """Log-normal sigmas, as Karras et al. 2022 train (arXiv:2206.00364)."""

    def __init__(self, p_mean: float = -1.2, p_std: float = 1.2) -> None:
        self.p_mean, self.p_std = p_mean, p_std

    def __call__(self, n_samples: int, rand: Tensor | None = None) -> Tensor:
        """(n_samples,) sigmas; rand: unit normal numbers to use instead of drawn ones."""
        normal = torch.randn((n_samples,)) if rand is None else rand
        return (self.p_mean + self.p_std * normal).exp()


class NearestSampling:
    """Of a table the sigmas nearest, by their logarithm, to those that another sampling draws."""

    def __init__(
        self,
        discretization_config: Config | Callable[..., Any],
        num_idx: int,
        sampling: Callable[[int], Tensor],
    ) -> None:
        table = make(discretization_config)(num_idx, do_append_zero=False)
        self.sigmas, self.sampling = table, sampling

    def __call__(self, n_samples: int) -> Tensor:
        """(n_samples,) sigmas."""
        drawn = self.sampling(n_samples).to(self.sigmas)
        return self.sigmas[(drawn.log()[:, None] - self.sigmas.log()).abs().argmin(dim=1)]


# --- Weighting: of the squared error of the denoised latents ------------------------------------


class UnitWeighting:
    """Every level alike."""

    def __call__(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)


class EpsWeighting:
    """The error of the predicted noise: sigma^-2."""

    def __call__(self, sigma: Tensor) -> Tensor:
        return sigma**-2.0


class EDMWeighting:
    """The error of the network's own output in Karras' preconditioning."""

    def __init__(self, sigma_data: float = 0.5) -> None:
        self.sigma_data = sigma_data

    def __call__(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


class VWeighting(EDMWeighting):
    """The error of the predicted v, for data of unit variance."""

    def __init__(self) -> None:
        super().__init__(sigma_data=1.0)


class MinSNRWeighting:
    """sigma^-2, but never more than gamma: low noise does not drown the rest
    (arXiv:2303.09556)."""

    def __init__(self, gamma: float = 5.0) -> None:
        self.gamma = gamma

    def __call__(self, sigma: Tensor) -> Tensor:
        return (sigma**-2.0).clamp(max=self.gamma)
