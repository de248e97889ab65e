"""From a network to a sampling run: guidance, masked sampling, the tables of names.

`GuidedDenoiser` turns a model and two prompts into the `model(x, sigma) -> denoised` that samplers
take; `MaskedDenoiser` keeps a part of the picture while it does so; `SAMPLERS` and `SCHEDULERS`
are what a request may name; `KSampler` runs one with the other.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ldm_patched.k_diffusion import sampling as k_diffusion
from ldm_patched.k_diffusion.noise import STREAM_MASK, PerImageNoise, seeds_for
from ldm_patched.modules.cond_batch import CondBatcher, Condition, prepare_conditions

Conditions = Sequence[Sequence[Any]]  # [[context, options], …], see cond_batch


# --- guidance ------------------------------------------------------------------------------------


class GuidedDenoiser:
    """`(x, sigma) -> denoised` with classifier-free guidance (Ho and Salimans 2022).

    model_options may hold
      transformer_options           handed to the network, never written to; "interrupt" in it is
                                    called before each evaluation and may raise to stop the run
      model_function_wrapper        called in the place of the network
      sampler_cfg_function          args -> x - denoised, in the place of the plain formula
      sampler_post_cfg_function     list of args -> denoised, each called with the one before's
      disable_cfg1_optimization     evaluate the negative prompt even where cfg is 1
    """

    def __init__(
        self,
        model: Any,
        positive: Sequence[Condition],
        negative: Sequence[Condition],
        cfg: float,
        model_options: Mapping[str, Any] | None = None,
        free_bytes: int | None = None,
    ) -> None:
        """model: a BaseModel. free_bytes: memory for one evaluation; None means any amount."""
        self.model, self.cfg = model, float(cfg)
        self.model_options = dict(model_options or {})
        self._positive, self._negative = list(positive), list(negative)
        self._batcher = CondBatcher(model, free_bytes)
        self._interrupt = self.model_options.get("transformer_options", {}).get("interrupt")

    def __call__(self, x: Tensor, sigma: Tensor, seed: object = None) -> Tensor:  # noqa: ARG002
        """x: (B, C, H, W) with noise of level sigma (B,) → the prediction without noise.

        seed: what samplers carry along for their own noise; no matter here.
        """
        if callable(self._interrupt):
            self._interrupt()
        guided = self.cfg != 1.0 or self.model_options.get("disable_cfg1_optimization", False)
        groups = [self._positive, self._negative] if guided else [self._positive]
        cond, uncond = (*self._batcher.predict(groups, x, sigma, self.model_options), None)[:2]
        if cond is None:  # no positive condition counts at this sigma
            cond = x if uncond is None else uncond
        return self._post_process(self._combine(x, sigma, cond, uncond), x, sigma, cond, uncond)

    def _combine(self, x: Tensor, sigma: Tensor, cond: Tensor, uncond: Tensor | None) -> Tensor:
        """The guided prediction; the conditional one itself where there is no other."""
        if uncond is None:
            return cond
        function = self.model_options.get("sampler_cfg_function")
        if function is None:
            return uncond + (cond - uncond) * self.cfg
        arguments = {
            "cond": x - cond,
            "uncond": x - uncond,
            "cond_scale": self.cfg,
            **self._facts(x, sigma, cond, uncond),
        }
        return x - function(arguments)

    def _post_process(
        self, denoised: Tensor, x: Tensor, sigma: Tensor, cond: Tensor, uncond: Tensor | None
    ) -> Tensor:
        for function in self.model_options.get("sampler_post_cfg_function", ()):
            facts = self._facts(x, sigma, cond, uncond)
            arguments = {"denoised": denoised, "cond": cond, "uncond": uncond, **facts}
            denoised = function({**arguments, "cond_scale": self.cfg})
        return denoised

    def _facts(
        self, x: Tensor, sigma: Tensor, cond: Tensor, uncond: Tensor | None
    ) -> dict[str, Any]:
        """What both kinds of guidance functions are told."""
        return {
            "input": x,
            "sigma": sigma,
            "timestep": sigma,
            "cond_denoised": cond,
            "uncond_denoised": uncond,
            "model": self.model,
            "model_options": self.model_options,
        }


class MaskedDenoiser:
    """Samples where the mask is 1 and keeps the latents where it is 0.

    At each evaluation the kept part of x is the clean latents with fresh noise of the level, and
    the kept part of the prediction is the clean latents themselves; values between mix the two.
    """

    def __init__(
        self,
        inner: GuidedDenoiser,
        latent: Tensor,
        mask: Tensor,
        seeds: Sequence[int],
        sigmas: Tensor,
    ) -> None:
        """latent: (B, C, H, W) in the model's scale; mask: (1 or B, 1, H, W) in 0..1."""
        self.inner, self._latent, self._mask, self._sigmas = inner, latent, mask, sigmas
        self._noise = PerImageNoise(latent, seeds, STREAM_MASK)
        self._mask_function = inner.model_options.get("denoise_mask_function")

    def __call__(self, x: Tensor, sigma: Tensor, seed: object = None) -> Tensor:
        """As GuidedDenoiser."""
        mask = self._mask
        if self._mask_function is not None:
            facts = {"model": self.inner.model, "sigmas": self._sigmas}
            mask = self._mask_function(sigma, mask, extra_options=facts)
        kept = 1.0 - mask
        noisy = self._latent + self._noise() * sigma.reshape(-1, 1, 1, 1)
        denoised = self.inner(x * mask + noisy * kept, sigma, seed=seed)
        return denoised * mask + self._latent * kept


# --- schedules -----------------------------------------------------------------------------------


def _timesteps(model_sampling: Any, steps: int, *, stop_early: bool) -> Tensor:
    """`steps` timesteps from the noisiest on, evenly spaced; the last one is the cleanest,
    or with stop_early the one before it in a row of steps + 1."""
    start = float(model_sampling.timestep(model_sampling.sigma_max))
    end = float(model_sampling.timestep(model_sampling.sigma_min))
    if stop_early:
        return torch.linspace(start, end, steps + 1)[:-1]
    return torch.linspace(start, end, steps)


def _at_timesteps(model_sampling: Any, timesteps: Tensor) -> Tensor:
    return k_diffusion.append_zero(model_sampling.sigma(timesteps).float().cpu())


def normal_schedule(model_sampling: Any, steps: int) -> Tensor:
    """Even in timesteps, from the noisiest to the cleanest."""
    return _at_timesteps(model_sampling, _timesteps(model_sampling, steps, stop_early=False))


def sgm_uniform_schedule(model_sampling: Any, steps: int) -> Tensor:
    """Even in timesteps, the last one a whole step above the cleanest."""
    return _at_timesteps(model_sampling, _timesteps(model_sampling, steps, stop_early=True))


def simple_schedule(model_sampling: Any, steps: int) -> Tensor:
    """Every (n / steps)-th of the model's own n sigmas, from the noisiest down."""
    sigmas = model_sampling.sigmas.float().cpu()
    stride = len(sigmas) / steps
    picked = [sigmas[-(1 + int(i * stride))] for i in range(steps)]
    return k_diffusion.append_zero(torch.stack(picked))


def karras_schedule(model_sampling: Any, steps: int) -> Tensor:
    """Karras et al. (2022) with rho 7 between the model's smallest and largest sigma."""
    low, high = float(model_sampling.sigma_min), float(model_sampling.sigma_max)
    return k_diffusion.get_sigmas_karras(steps, low, high)


def exponential_schedule(model_sampling: Any, steps: int) -> Tensor:
    """Even in log sigma between the model's smallest and largest."""
    low, high = float(model_sampling.sigma_min), float(model_sampling.sigma_max)
    return k_diffusion.get_sigmas_exponential(steps, low, high)


SCHEDULERS: dict[str, Callable[[Any, int], Tensor]] = {
    "normal": normal_schedule,
    "karras": karras_schedule,
    "simple": simple_schedule,
    "sgm_uniform": sgm_uniform_schedule,
    "exponential": exponential_schedule,
}

SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "euler": k_diffusion.sample_euler,
    "euler_ancestral": k_diffusion.sample_euler_ancestral,
    "dpmpp_2m": k_diffusion.sample_dpmpp_2m,
    "dpmpp_2m_sde": k_diffusion.sample_dpmpp_2m_sde,
    "dpmpp_sde": k_diffusion.sample_dpmpp_sde,
    "lcm": k_diffusion.sample_lcm,
}


def _look_up(table: Mapping[str, Callable[..., Tensor]], kind: str, name: str) -> Any:
    if name not in table:
        raise ValueError(f"There is no {kind} {name!r}; choose one of {', '.join(table)}.")
    return table[name]


def model_sampling_of(model: Any) -> Any:
    """The model sampling in force: of a ModelPatcher (its object patches counted) or BaseModel."""
    if hasattr(model, "get_model_object"):
        return model.get_model_object("model_sampling")
    return model.model_sampling


def calculate_sigmas_scheduler(model: Any, scheduler_name: str, steps: int) -> Tensor:
    """(steps + 1,) falling float32 sigmas on the CPU, the last one 0.

    model: a ModelPatcher or BaseModel. Raises ValueError for an unknown name or fewer than 1 step.
    """
    schedule = _look_up(SCHEDULERS, "scheduler", scheduler_name)
    if steps < 1:
        raise ValueError(f"Sampling needs at least 1 step, got {steps}.")
    return schedule(model_sampling_of(model), steps)


# --- the run -------------------------------------------------------------------------------------


class KSampler:
    """A sampler, a schedule and a share of denoising, ready to run on latents."""

    def __init__(
        self,
        model: Any,
        steps: int,
        device: torch.device | str,
        sampler: str = "euler",
        scheduler: str = "normal",
        denoise: float = 1.0,
        model_options: Mapping[str, Any] | None = None,
        free_bytes: int | None = None,
    ) -> None:
        """model: a ModelPatcher or BaseModel. Raises ValueError for an unknown name.

        denoise: 1.0 paints anew; d < 1 takes the last `steps` steps of a schedule of steps / d;
        0 or less leaves the latents alone.
        """
        self.model, self.device, self.steps = model, torch.device(device), steps
        self.base_model = getattr(model, "model", model)
        self.function = _look_up(SAMPLERS, "sampler", sampler)
        options = getattr(model, "model_options", {}) if model_options is None else model_options
        self.model_options = dict(options)
        self.free_bytes = free_bytes
        self.sigmas = self._sigmas(scheduler, denoise)

    def _sigmas(self, scheduler: str, denoise: float) -> Tensor:
        if denoise <= 0.0:
            return torch.zeros(0)
        if denoise > 0.9999:
            return calculate_sigmas_scheduler(self.model, scheduler, self.steps)
        whole = calculate_sigmas_scheduler(self.model, scheduler, int(self.steps / denoise))
        return whole[-(self.steps + 1) :]

    def sample(
        self,
        noise: Tensor,
        positive: Conditions,
        negative: Conditions,
        cfg: float,
        latent: Tensor,
        sigmas: Tensor | None = None,
        mask: Tensor | None = None,
        callback: Callable[[dict[str, Any]], None] | None = None,
        seed: int | Sequence[int] | None = None,
        sampler_options: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Latents (B, C, H, W) in the model's scale → latents in the model's scale.

        noise: standard normal, shaped like the latents; mask: (1 or B, 1, H, W), 1 where to paint;
        sigmas: in the place of the schedule's; seed: as `seeds_for`; sampler_options: more
        keywords for the sampler (eta, s_noise, noise_sampler, …).
        """
        sigmas = (self.sigmas if sigmas is None else sigmas).float()
        noise, latent = noise.to(self.device), latent.to(self.device)
        if len(sigmas) < 2:
            return latent
        denoiser: Callable[..., Tensor] = self._denoiser(positive, negative, cfg, latent, mask)
        seeds = seeds_for(latent.shape[0], seed)
        if mask is not None:
            denoiser = MaskedDenoiser(denoiser, latent, mask.to(latent), seeds, sigmas)
        sampling, first = model_sampling_of(self.model), float(sigmas[0])
        largest = float(sampling.sigma_max)
        from_nothing = first > largest or math.isclose(first, largest, rel_tol=1e-5)
        x = sampling.noise_scaling(first, noise, latent, from_nothing)
        x = self.function(
            denoiser,
            x,
            sigmas,
            extra_args={"seed": seeds},
            callback=callback,
            **(sampler_options or {}),
        )
        return sampling.inverse_noise_scaling(float(sigmas[-1]), x)

    def _denoiser(
        self,
        positive: Conditions,
        negative: Conditions,
        cfg: float,
        latent: Tensor,
        mask: Tensor | None,
    ) -> GuidedDenoiser:
        extra = {"latent_image": latent, "denoise_mask": mask}
        return GuidedDenoiser(
            self.base_model,
            prepare_conditions(self.base_model, positive, latent, "positive", **extra),
            prepare_conditions(self.base_model, negative, latent, "negative", **extra),
            cfg,
            self.model_options,
            self.free_bytes,
        )
