"""What a network predicts, and which noise levels it knows.

Two kinds of classes that are combined by inheritance, `class S(ModelSamplingDiscrete, EPS)`:

* EPS, V_PREDICTION, EDM: how the input is scaled and a denoised picture comes out;
* ModelSamplingDiscrete, ModelSamplingContinuousEDM, StableCascadeSampling: noise levels and
  the timesteps that the network is told for them.

sigma is the noise's standard deviation over the data's, as in Karras et al. 2022
(arXiv:2206.00364); timestep is what the network takes.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm_patched.ldm.modules.diffusionmodules.util import make_beta_schedule

ALL_NOISE_SIGMA = 999999999.9
"""What percent_to_sigma(0) gives: more than any schedule's sigma, so "from the very start"."""


def _like(sigma: Tensor, x: Tensor) -> Tensor:
    """sigma (B,) as (B, 1, …), to broadcast over x (B, …)."""
    return sigma.view(sigma.shape[:1] + (1,) * (x.ndim - 1))


def _settings(model_config: Any) -> Mapping[str, Any]:
    return {} if model_config is None else model_config.sampling_settings


class EPS:
    """The network predicts the noise."""

    sigma_data: float

    def calculate_input(self, sigma: Tensor, noise: Tensor) -> Tensor:
        """The noised latents, (B, …), scaled to unit variance for the network."""
        sigma = _like(sigma, noise)
        return noise / (sigma**2 + self.sigma_data**2) ** 0.5

    def calculate_denoised(
        self, sigma: Tensor, model_output: Tensor, model_input: Tensor
    ) -> Tensor:
        """The denoised latents from the prediction and the unscaled input, all (B, …)."""
        return model_input - model_output * _like(sigma, model_output)

    def noise_scaling(
        self, sigma: Any, noise: Tensor, latent_image: Tensor, max_denoise: bool = False
    ) -> Tensor:
        """Where sampling starts: unit noise at level sigma on top of `latent_image`.

        max_denoise: the start is the schedule's end; then the noise also stands in for the
        picture that the training had under it.
        """
        scale = (1.0 + sigma**2.0) ** 0.5 if max_denoise else sigma
        return noise * scale + latent_image

    def inverse_noise_scaling(self, sigma: Any, latent: Tensor) -> Tensor:  # noqa: ARG002
        """The latents at sampling's end: as they are."""
        return latent


class V_PREDICTION(EPS):  # noqa: N801 - the field's name
    """The network predicts v = alpha · noise - sigma · picture (arXiv:2202.00512)."""

    def calculate_denoised(
        self, sigma: Tensor, model_output: Tensor, model_input: Tensor
    ) -> Tensor:
        sigma, data = _like(sigma, model_output), self.sigma_data
        total = sigma**2 + data**2
        return model_input * data**2 / total - model_output * sigma * data / total**0.5


class EDM(V_PREDICTION):
    """The network predicts as in Karras et al. 2022, table 1: v with the other sign."""

    def calculate_denoised(
        self, sigma: Tensor, model_output: Tensor, model_input: Tensor
    ) -> Tensor:
        sigma, data = _like(sigma, model_output), self.sigma_data
        total = sigma**2 + data**2
        return model_input * data**2 / total + model_output * sigma * data / total**0.5


def rescale_zero_terminal_snr_sigmas(sigmas: Tensor) -> Tensor:
    """The schedule stretched so that its last level is (nearly) pure noise (arXiv:2305.08891).

    sigmas: (T,), rising. A sigma must stay finite, so the last cumulative alpha is 4.897e-08
    rather than 0; that is sigma 4,519.
    """
    signal = (1 / (sigmas * sigmas + 1)).sqrt()
    first, last = signal[0].clone(), signal[-1].clone()
    signal = (signal - last) * (first / (first - last))
    cumulative = signal**2
    cumulative[-1] = 4.8973451890853435e-08
    return ((1 - cumulative) / cumulative) ** 0.5


class ModelSamplingDiscrete(nn.Module):
    """The noise levels of a network trained on a table of timesteps, by default 1,000."""

    sigmas: Tensor
    log_sigmas: Tensor
    alphas_cumprod: Tensor

    def __init__(self, model_config: Any = None) -> None:
        super().__init__()
        settings = _settings(model_config)
        self._register_schedule(
            given_betas=None,
            beta_schedule=settings.get("beta_schedule", "linear"),
            timesteps=settings.get("timesteps", 1000),
            linear_start=settings.get("linear_start", 0.00085),
            linear_end=settings.get("linear_end", 0.012),
            cosine_s=8e-3,
        )
        if settings.get("zsnr", False):
            self.set_sigmas(rescale_zero_terminal_snr_sigmas(self.sigmas))
        self.sigma_data = 1.0

    def _register_schedule(
        self,
        given_betas: Any = None,
        beta_schedule: str = "linear",
        timesteps: int = 1000,
        linear_start: float = 1e-4,
        linear_end: float = 2e-2,
        cosine_s: float = 8e-3,
    ) -> None:
        """Set sigmas and alphas_cumprod from `given_betas`, or from a named beta schedule."""
        betas = given_betas
        if betas is None:
            betas = make_beta_schedule(beta_schedule, timesteps, linear_start, linear_end, cosine_s)
        alphas = 1.0 - torch.as_tensor(betas, dtype=torch.float64)
        alphas_cumprod = torch.cumprod(alphas, dim=0)
        self.num_timesteps = int(alphas.shape[0])
        self.linear_start = linear_start
        self.linear_end = linear_end
        self.set_sigmas(((1 - alphas_cumprod) / alphas_cumprod) ** 0.5)
        self.set_alphas_cumprod(alphas_cumprod.float())

    def set_sigmas(self, sigmas: Tensor) -> None:
        """Set the noise levels, (T,), rising."""
        self.register_buffer("sigmas", sigmas.float())
        self.register_buffer("log_sigmas", sigmas.log().float())

    def set_alphas_cumprod(self, alphas_cumprod: Tensor) -> None:
        """Set the cumulative products of the alphas, (T,)."""
        self.register_buffer("alphas_cumprod", alphas_cumprod.float())

    @property
    def sigma_min(self) -> Tensor:
        return self.sigmas[0]

    @property
    def sigma_max(self) -> Tensor:
        return self.sigmas[-1]

    def timestep(self, sigma: Tensor) -> Tensor:
        """The timestep whose sigma is nearest on a log scale; same shape, on sigma's device."""
        log_sigma = sigma.log()
        distances = log_sigma.to(self.log_sigmas.device) - self.log_sigmas[:, None]
        return distances.abs().argmin(dim=0).view(sigma.shape).to(sigma.device)

    def sigma(self, timestep: Tensor) -> Tensor:
        """The sigma at a timestep; fractions interpolate log sigma, others clamp to the table."""
        t = timestep.float().to(self.log_sigmas.device).clamp(0, len(self.sigmas) - 1)
        low, high, w = t.floor().long(), t.ceil().long(), t.frac()
        log_sigma = (1 - w) * self.log_sigmas[low] + w * self.log_sigmas[high]
        return log_sigma.exp().to(timestep.device)

    def percent_to_sigma(self, percent: float) -> float:
        """The sigma when `percent` (0..1) of the schedule is behind; 1 is the end, sigma 0."""
        if percent <= 0.0:
            return ALL_NOISE_SIGMA
        if percent >= 1.0:
            return 0.0
        return self.sigma(torch.tensor((1.0 - percent) * 999.0)).item()


class ModelSamplingContinuousEDM(nn.Module):
    """Noise levels of a network that takes log(sigma) / 4, as Karras et al. 2022 have it."""

    sigmas: Tensor
    log_sigmas: Tensor

    def __init__(self, model_config: Any = None) -> None:
        super().__init__()
        settings = _settings(model_config)
        self.set_parameters(
            settings.get("sigma_min", 0.002),
            settings.get("sigma_max", 120.0),
            settings.get("sigma_data", 1.0),
        )

    def set_parameters(self, sigma_min: float, sigma_max: float, sigma_data: float) -> None:
        """Set the range and the data's standard deviation; both sigmas above 0."""
        self.sigma_data = sigma_data
        sigmas = torch.linspace(math.log(sigma_min), math.log(sigma_max), 1000).exp()
        # Schedulers that pick from a table take it from these; the network does not need them.
        self.register_buffer("sigmas", sigmas)
        self.register_buffer("log_sigmas", sigmas.log())

    @property
    def sigma_min(self) -> Tensor:
        return self.sigmas[0]

    @property
    def sigma_max(self) -> Tensor:
        return self.sigmas[-1]

    def timestep(self, sigma: Tensor) -> Tensor:
        """log(sigma) / 4."""
        return 0.25 * sigma.log()

    def sigma(self, timestep: Tensor) -> Tensor:
        """exp(4 · timestep)."""
        return (timestep / 0.25).exp()

    def percent_to_sigma(self, percent: float) -> float:
        """The sigma when `percent` (0..1) of the way from sigma_max, on a log scale, is behind."""
        if percent <= 0.0:
            return ALL_NOISE_SIGMA
        if percent >= 1.0:
            return 0.0
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return math.exp((high - low) * (1.0 - percent) + low)


class StableCascadeSampling(ModelSamplingDiscrete):
    """The cosine schedule of Stable Cascade: timesteps 0..1, `shift` for larger pictures."""

    def __init__(self, model_config: Any = None) -> None:
        super().__init__(model_config)
        self.set_parameters(_settings(model_config).get("shift", 1.0))

    def set_parameters(self, shift: float = 1.0, cosine_s: float = 8e-3) -> None:
        """Set the shift of the log signal-to-noise ratio and the cosine's offset."""
        self.shift = shift
        self.cosine_s = torch.tensor(cosine_s)
        self._init_alpha_cumprod = (
            torch.cos(self.cosine_s / (1 + self.cosine_s) * torch.pi * 0.5) ** 2
        )
        self.num_timesteps = 10000
        t = torch.arange(1, self.num_timesteps + 1, dtype=torch.float64) / self.num_timesteps
        self.set_sigmas(self.sigma(t.float()))

    def sigma(self, timestep: Tensor) -> Tensor:
        s = self.cosine_s.to(timestep.device)
        start = self._init_alpha_cumprod.to(timestep.device)
        alpha_cumprod = torch.cos((timestep + s) / (1 + s) * torch.pi * 0.5) ** 2 / start
        if self.shift != 1.0:
            log_snr = (alpha_cumprod / (1 - alpha_cumprod)).log()
            alpha_cumprod = (log_snr + 2 * math.log(1.0 / self.shift)).sigmoid()
        alpha_cumprod = alpha_cumprod.clamp(0.0001, 0.9999)
        return ((1 - alpha_cumprod) / alpha_cumprod) ** 0.5

    def timestep(self, sigma: Tensor) -> Tensor:
        variance = (1 / (sigma * sigma + 1)).clamp(0, 1.0)
        s = self.cosine_s.to(variance.device)
        start = self._init_alpha_cumprod.to(variance.device)
        return (variance * start).sqrt().acos() / (torch.pi * 0.5) * (1 + s) - s

    def percent_to_sigma(self, percent: float) -> float:
        if percent <= 0.0:
            return ALL_NOISE_SIGMA
        if percent >= 1.0:
            return 0.0
        return float(self.sigma(torch.tensor(1.0 - percent)))


def counts_timesteps(model_sampling: Any) -> bool:
    """Whether its timesteps are places in a table, as those of Stable Diffusion: 0 to 999."""
    discrete = isinstance(model_sampling, ModelSamplingDiscrete)
    return discrete and not isinstance(model_sampling, StableCascadeSampling)  # whose are 0..1


def sampling_progress(model_sampling: Any, sigma: Tensor) -> Tensor:
    """How much of the sampling lies behind at sigma (B,): 0 at sigma_max, 1 at sigma_min.

    Linear in the timesteps that the network is told: 1 - t / 999 for a table of 1,000, also where
    only some of its levels are used. Never waits for the device.
    """
    if counts_timesteps(model_sampling):
        last = model_sampling.num_timesteps - 1
        return (1.0 - model_sampling.timestep(sigma) / last).clamp(0.0, 1.0)
    low, high = model_sampling.sigma_min.to(sigma), model_sampling.sigma_max.to(sigma)
    timesteps = model_sampling.timestep(torch.cat([low.view(1), high.view(1), sigma])).float()
    first, last = timesteps[1], timesteps[0]
    return ((first - timesteps[2:]) / (first - last)).clamp(0.0, 1.0)
