"""From a network to a sampling run: guidance, masked sampling, the tables of names.

`GuidedDenoiser` turns a model and two prompts into the `model(x, sigma) -> denoised` that samplers
take; `MaskedDenoiser` keeps a part of the picture while it does so; `SAMPLERS` and `SCHEDULERS`
(of schedulers.py) are what a request may name; `KSampler` runs one with the other.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ldm_patched.k_diffusion import sampling as k_diffusion
from ldm_patched.k_diffusion.noise import STREAM_MASK, PerImageNoise, seeds_for
from ldm_patched.modules.cond_batch import CondBatcher, Condition, prepare_conditions
from ldm_patched.modules.latent_formats import SDXL_Playground_2_5
from ldm_patched.modules.model_sampling import EDM
from ldm_patched.modules.schedulers import SCHEDULERS, model_sampling_of, sampling_in_force

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
        self.model_sampling = model.model_sampling

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
        self.model_sampling = inner.model_sampling
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


# --- tables ---------------------------------------------------------------------------------------

# Names that end in _gpu are of programs where they tell where noise is made. Here noise is the
# same on every device, so they are other names of the same samplers.
SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "euler": k_diffusion.sample_euler,
    "euler_ancestral": k_diffusion.sample_euler_ancestral,
    "heun": k_diffusion.sample_heun,
    "heunpp2": k_diffusion.sample_heunpp2,
    "dpm_2": k_diffusion.sample_dpm_2,
    "dpm_2_ancestral": k_diffusion.sample_dpm_2_ancestral,
    "lms": k_diffusion.sample_lms,
    "dpm_fast": k_diffusion.sample_dpm_fast,
    "dpm_adaptive": k_diffusion.sample_dpm_adaptive,
    "dpmpp_2s_ancestral": k_diffusion.sample_dpmpp_2s_ancestral,
    "dpmpp_sde": k_diffusion.sample_dpmpp_sde,
    "dpmpp_sde_gpu": k_diffusion.sample_dpmpp_sde,
    "dpmpp_2m": k_diffusion.sample_dpmpp_2m,
    "dpmpp_2m_sde": k_diffusion.sample_dpmpp_2m_sde,
    "dpmpp_2m_sde_gpu": k_diffusion.sample_dpmpp_2m_sde,
    "dpmpp_3m_sde": k_diffusion.sample_dpmpp_3m_sde,
    "dpmpp_3m_sde_gpu": k_diffusion.sample_dpmpp_3m_sde,
    "ddpm": k_diffusion.sample_ddpm,
    "lcm": k_diffusion.sample_lcm,
    "tcd": k_diffusion.sample_tcd,
    "restart": k_diffusion.sample_restart,
    "ddim": k_diffusion.sample_ddim,
    "uni_pc": k_diffusion.sample_uni_pc,
    "uni_pc_bh2": k_diffusion.sample_uni_pc_bh2,
    "deis": k_diffusion.sample_deis,
    "ipndm": k_diffusion.sample_ipndm,
    "res_multistep": k_diffusion.sample_res_multistep,
}

DROPS_PENULTIMATE = frozenset({"dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2"})
"""Samplers that do best when the last step starts from well above the smallest sigma."""


def _look_up(table: Mapping[str, Callable[..., Tensor]], kind: str, name: str) -> Any:
    if name not in table:
        raise ValueError(f"There is no {kind} {name!r}; choose one of {', '.join(table)}.")
    return table[name]


def calculate_sigmas_scheduler(model: Any, scheduler_name: str, steps: int) -> Tensor:
    """(steps + 1,) falling float32 sigmas on the CPU, the last one 0.

    model: a ModelPatcher or BaseModel. Raises ValueError for an unknown name or fewer than 1 step.
    """
    schedule = _look_up(SCHEDULERS, "scheduler", scheduler_name)
    if steps < 1:
        raise ValueError(f"Sampling needs at least 1 step, got {steps}.")
    return schedule(model, steps)


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
        0 or less leaves the latents alone, as do 0 steps.
        """
        self.model, self.device, self.steps = model, torch.device(device), steps
        self.base_model = getattr(model, "model", model)
        self.function = _look_up(SAMPLERS, "sampler", sampler)
        options = getattr(model, "model_options", {}) if model_options is None else model_options
        self.model_options = dict(options)
        self.free_bytes = free_bytes
        self.sigmas = self._sigmas(scheduler, denoise, drop=sampler in DROPS_PENULTIMATE)
        self._own_sampling = model_sampling_of(model)
        self.model_sampling = sampling_in_force(scheduler, self._own_sampling)
        self._replaced: list[Any] = []  # what stands back for it now, one or none
        if self.model_sampling is not self._own_sampling:  # which is where the model is
            self.model_sampling.to(self.device)

    def _sigmas(self, scheduler: str, denoise: float, *, drop: bool) -> Tensor:
        if denoise <= 0.0 or self.steps < 1:
            return torch.zeros(0)
        whole = self.steps if denoise > 0.9999 else int(self.steps / denoise)
        sigmas = calculate_sigmas_scheduler(self.model, scheduler, whole + drop)
        if drop:
            sigmas = torch.cat([sigmas[:-2], sigmas[-1:]])
        return sigmas[-(self.steps + 1) :]

    @property
    def latent_format(self) -> Any:
        """How latents are scaled for this run: the model's, or what the schedule brings along for
        a model whose file does not say it."""
        if hasattr(self.model, "get_model_object"):
            own = self.model.get_model_object("latent_format")
        else:
            own = self.model.latent_format
        brought = self.model_sampling is not self._own_sampling
        if not brought or not isinstance(self.model_sampling, EDM):
            return own
        return own if isinstance(own, SDXL_Playground_2_5) else SDXL_Playground_2_5()

    @contextmanager
    def sampling_in_place(self) -> Iterator[None]:
        """With this run's model sampling in the model, until `give_way` at the latest."""
        if self._replaced:
            yield
            return
        self._replaced.append(self.base_model.model_sampling)
        self.base_model.model_sampling = self.model_sampling
        try:
            yield
        finally:
            self.give_way()

    def give_way(self) -> None:
        """Take this run's model sampling out of the model, before another clone's patches go in:
        what was there belongs to the clone before, and must not come back after them."""
        if self._replaced:
            self.base_model.model_sampling = self._replaced.pop()

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
        wrap: Callable[[GuidedDenoiser], Any] | None = None,
    ) -> Tensor:
        """Latents (B, C, H, W) in the model's scale → latents in the model's scale.

        noise: standard normal, shaped like the latents; mask: (1 or B, 1, H, W), 1 where to paint;
        sigmas: in the place of the schedule's; seed: as `seeds_for`; sampler_options: more
        keywords for the sampler (eta, s_noise, noise_sampler, …). wrap: makes the denoiser that
        is asked of the model's own.
        """
        sigmas = (self.sigmas if sigmas is None else sigmas).float()
        noise, latent = noise.to(self.device), latent.to(self.device)
        if len(sigmas) < 2:
            return latent
        seeds = seeds_for(latent.shape[0], seed)
        sampling, first = self.model_sampling, float(sigmas[0])
        largest = float(sampling.sigma_max)
        from_nothing = first > largest or math.isclose(first, largest, rel_tol=1e-5)
        x = sampling.noise_scaling(first, noise, latent, from_nothing)
        with self.sampling_in_place():
            own = self.denoiser(positive, negative, cfg, latent, mask)
            denoiser: Callable[..., Tensor] = own if wrap is None else wrap(own)
            if mask is not None:
                denoiser = MaskedDenoiser(denoiser, latent, mask.to(latent), seeds, sigmas)
            x = self.function(
                denoiser,
                x,
                sigmas,
                extra_args={"seed": seeds},
                callback=callback,
                **(sampler_options or {}),
            )
        return sampling.inverse_noise_scaling(float(sigmas[-1]), x)

    def denoiser(
        self,
        positive: Conditions,
        negative: Conditions,
        cfg: float,
        latent: Tensor,
        mask: Tensor | None,
    ) -> GuidedDenoiser:
        """The model with guidance, as samplers take it; see `sample` for the arguments."""
        extra = {"latent_image": latent, "denoise_mask": mask, "guidance": cfg}
        wanted = prepare_conditions(self.base_model, positive, latent, "positive", **extra)
        # A network that is told the scale gives what is guided already, in one evaluation.
        is_told = any("guidance" in condition.inputs for condition in wanted)
        return GuidedDenoiser(
            self.base_model,
            wanted,
            prepare_conditions(self.base_model, negative, latent, "negative", **extra),
            1.0 if is_told else cfg,
            self.model_options,
            self.free_bytes,
        )
