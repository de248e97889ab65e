"""Noise schedules that need a model's range alone: numbers in, falling sigmas and a 0 out.

Those that need a model's own table are in ldm_patched.modules.schedulers.
"""

import math

import numpy as np
import torch
from torch import Tensor


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


def get_sigmas_kl_optimal(n: int, sigma_min: float, sigma_max: float) -> Tensor:
    """n falling sigmas even in arctan sigma, and a 0 (Sabour et al. 2024, arXiv:2404.14507)."""
    share = torch.linspace(0, 1, n, dtype=torch.float64)
    angles = share * math.atan(sigma_min) + (1 - share) * math.atan(sigma_max)
    return append_zero(angles.tan()).float()


def get_sigmas_linear_quadratic(n: int, sigma_max: float, threshold: float = 0.025) -> Tensor:
    """n falling sigmas, a 0: half of the steps slowly and evenly, then faster and faster.

    threshold: the share of sigma_max that the even half takes.
    """
    if n == 1:
        return torch.tensor([sigma_max, 0.0])
    even = n // 2
    rest = n - even
    excess = even - threshold * n
    square = excess / (even * rest**2)
    slope = threshold / even - 2 * excess / rest**2
    taken = [k * threshold / even for k in range(even)]
    taken += [square * k**2 + slope * k + square * even**2 for k in range(even, n)]
    shares = torch.tensor([*taken, 1.0], dtype=torch.float64)
    return ((1 - shares) * sigma_max).float()


# Sabour et al. 2024, "Align Your Steps", for 10 steps.
ALIGN_YOUR_STEPS = {
    "SD1": "14.6146 6.4745 3.8636 2.6946 1.8841 1.3943 0.9642 0.6523 0.3977 0.1515 0.0292",
    "SDXL": "14.6146 6.3184 3.7681 2.1811 1.3405 0.8620 0.5550 0.3798 0.2332 0.1114 0.0292",
}


def get_sigmas_align_your_steps(n: int, table: str = "SDXL") -> Tensor:
    """n falling sigmas and a 0, log sigma between the entries of ALIGN_YOUR_STEPS[table]."""
    known = [float(sigma) for sigma in ALIGN_YOUR_STEPS[table].split()]
    places = np.linspace(0, 1, n + 1)
    logs = np.interp(places, np.linspace(0, 1, len(known)), np.log(known))
    return append_zero(torch.from_numpy(np.exp(logs))[:-1]).float()


def beta_quantiles(shares: Tensor, shape: float = 0.6) -> Tensor:
    """The x in 0..1 below which each share (n,) of the beta distribution (shape, shape) lies.

    Below 1/2 the density's integral is that of (1 - u^(1 / shape))^(shape - 1) over u = x^shape,
    which is smooth; above, the distribution is the mirror image. Float64, within 1e-7.
    """
    u = torch.linspace(0, 0.5**shape, 20001, dtype=torch.float64)
    areas = torch.cumulative_trapezoid((1 - u ** (1 / shape)) ** (shape - 1), u)
    below = torch.cat([areas.new_zeros(1), areas / areas[-1] * 0.5])
    lesser = torch.minimum(shares, 1 - shares).double()
    x = torch.from_numpy(np.interp(lesser, below, u)) ** (1 / shape)
    return torch.where(shares > 0.5, 1 - x, x)
