"""Other noise levels and predictions for a model, as object patches on a clone.

`ModelSamplingDiscrete.patch(model, sampling, zsnr)` and its sisters return a tuple with one
clone, the way nodes of a graph do; the original is not touched.
"""

from typing import Any

import torch
from torch import Tensor

from ldm_patched.modules import model_sampling
from ldm_patched.modules.latent_formats import SDXL_Playground_2_5
from ldm_patched.modules.model_patcher import ModelPatcher
from ldm_patched.modules.model_sampling import rescale_zero_terminal_snr_sigmas

__all__ = [
    "LCM",
    "ModelSamplingContinuousEDM",
    "ModelSamplingDiscrete",
    "ModelSamplingDiscreteDistilled",
    "ModelSamplingStableCascade",
    "RescaleCFG",
    "rescale_zero_terminal_snr_sigmas",
]


class LCM(model_sampling.EPS):
    """The consistency function of latent consistency models (arXiv:2310.04378).

    Needs ModelSamplingDiscrete's or its heirs' `timestep`.
    """

    timestep_scaling = 10.0
    lcm_sigma_data = 0.5

    def calculate_denoised(
        self, sigma: Tensor, model_output: Tensor, model_input: Tensor
    ) -> Tensor:
        timestep = self.timestep(sigma).view(sigma.shape[:1] + (1,) * (model_output.ndim - 1))
        x0 = super().calculate_denoised(sigma, model_output, model_input)
        scaled = timestep * self.timestep_scaling
        data = self.lcm_sigma_data
        c_skip = data**2 / (scaled**2 + data**2)
        c_out = scaled / (scaled**2 + data**2) ** 0.5
        return c_out * x0 + c_skip * model_input


class X0(model_sampling.EPS):
    """The network predicts the picture itself."""

    def calculate_denoised(
        self,
        sigma: Tensor,  # noqa: ARG002
        model_output: Tensor,
        model_input: Tensor,  # noqa: ARG002
    ) -> Tensor:
        return model_output


class ModelSamplingDiscreteDistilled(model_sampling.ModelSamplingDiscrete):
    """The levels of a model distilled to `original_timesteps` of the 1,000."""

    original_timesteps = 50

    def __init__(self, model_config: Any = None) -> None:
        super().__init__(model_config)
        self.skip_steps = self.num_timesteps // self.original_timesteps
        last = self.num_timesteps - 1
        steps = range(last, last - self.original_timesteps * self.skip_steps, -self.skip_steps)
        self.set_sigmas(self.sigmas[torch.tensor(sorted(steps))])

    def timestep(self, sigma: Tensor) -> Tensor:
        """The timestep, of the 1,000, of the nearest of the kept levels."""
        index = super().timestep(sigma)
        return index * self.skip_steps + (self.skip_steps - 1)

    def sigma(self, timestep: Tensor) -> Tensor:
        """The sigma at one of the 1,000 timesteps, between the kept ones interpolated."""
        return super().sigma((timestep.float() - (self.skip_steps - 1)) / self.skip_steps)


def _combined(levels: type, prediction: type, model: ModelPatcher) -> Any:
    """An instance of both classes, with the settings of the model's family."""

    class ModelSamplingAdvanced(levels, prediction):
        pass

    return ModelSamplingAdvanced(getattr(model.model, "model_config", None))


def _patched(model: ModelPatcher, sampling: Any) -> tuple[ModelPatcher]:
    clone = model.clone()
    clone.add_object_patch("model_sampling", sampling)
    return (clone,)


def _pick(table: dict[str, Any], name: str) -> Any:
    if name not in table:
        raise ValueError(f"There is no sampling {name!r}; choose one of {', '.join(table)}.")
    return table[name]


class ModelSamplingDiscrete:
    """Table of timesteps with a prediction by name."""

    SAMPLINGS = {
        "eps": (model_sampling.ModelSamplingDiscrete, model_sampling.EPS),
        "v_prediction": (model_sampling.ModelSamplingDiscrete, model_sampling.V_PREDICTION),
        "lcm": (ModelSamplingDiscreteDistilled, LCM),
        "x0": (model_sampling.ModelSamplingDiscrete, X0),
    }

    def patch(self, model: ModelPatcher, sampling: str, zsnr: bool = False) -> tuple[ModelPatcher]:
        """zsnr: stretch the levels to end in pure noise. Raises ValueError for another name."""
        made = _combined(*_pick(self.SAMPLINGS, sampling), model)
        if zsnr:
            made.set_sigmas(rescale_zero_terminal_snr_sigmas(made.sigmas))
        return _patched(model, made)


class ModelSamplingContinuousEDM:
    """Levels between two sigmas with a prediction by name."""

    SAMPLINGS = {
        "v_prediction": (model_sampling.V_PREDICTION, 1.0),
        "edm_playground_v2.5": (model_sampling.EDM, 0.5),
        "eps": (model_sampling.EPS, 1.0),
    }

    def patch(
        self, model: ModelPatcher, sampling: str, sigma_max: float, sigma_min: float
    ) -> tuple[ModelPatcher]:
        """Raises ValueError for another name, or unless 0 < sigma_min < sigma_max."""
        prediction, sigma_data = _pick(self.SAMPLINGS, sampling)
        if not 0 < sigma_min < sigma_max:
            raise ValueError("The lowest sigma must be above 0 and below the highest.")
        made = _combined(model_sampling.ModelSamplingContinuousEDM, prediction, model)
        made.set_parameters(sigma_min, sigma_max, sigma_data)
        (clone,) = _patched(model, made)
        if sampling == "edm_playground_v2.5":
            # Its latents are centred and scaled channel by channel, too.
            clone.add_object_patch("latent_format", SDXL_Playground_2_5())
        return (clone,)


class ModelSamplingStableCascade:
    """The cosine levels of Stable Cascade."""

    def patch(self, model: ModelPatcher, shift: float) -> tuple[ModelPatcher]:
        """shift: above 1 for larger pictures. Raises ValueError unless above 0."""
        if shift <= 0:
            raise ValueError("The shift must be above 0.")
        made = _combined(model_sampling.StableCascadeSampling, model_sampling.EPS, model)
        made.set_parameters(shift)
        return _patched(model, made)


class RescaleCFG:
    """Guidance whose spread is pulled back to the conditional prediction's (arXiv:2305.08891)."""

    def patch(self, model: ModelPatcher, multiplier: float) -> tuple[ModelPatcher]:
        """multiplier: 0 is plain guidance, 1 rescales fully."""

        def rescale_cfg(args: dict[str, Any]) -> Tensor:
            return rescaled_guidance(multiplier=multiplier, **{k: args[k] for k in _NEEDED})

        clone = model.clone()
        clone.set_model_sampler_cfg_function(rescale_cfg)
        return (clone,)


_NEEDED = ("cond", "uncond", "cond_scale", "sigma", "input")


def rescaled_guidance(
    cond: Tensor,
    uncond: Tensor,
    cond_scale: float,
    sigma: Tensor,
    input: Tensor,  # noqa: A002 - the name that samplers hand it over by
    multiplier: float,
) -> Tensor:
    """x - denoised of rescaled guidance; cond, uncond: x - denoised, (B, C, H, W); input: x."""
    return rescaled(uncond + cond_scale * (cond - uncond), cond, sigma, input, multiplier)


def rescaled(guided: Tensor, cond: Tensor, sigma: Tensor, x: Tensor, multiplier: float) -> Tensor:
    """`guided`, a share `multiplier` of it with the spread of `cond`.

    guided, cond: x - denoised, (B, C, H, W). sigma: (B,). The rescaling is done on
    v = (x / (sigma² + 1) - denoised) · sqrt(sigma² + 1) / sigma, as the paper has it.
    """
    sigma = sigma.view(sigma.shape[:1] + (1,) * (cond.ndim - 1))
    scaled_x = x / (sigma**2 + 1.0)
    factor = sigma / (sigma**2 + 1.0) ** 0.5
    v_cond = (scaled_x - (x - cond)) / factor
    v_guided = (scaled_x - (x - guided)) / factor
    axes = tuple(range(1, cond.ndim))
    spread = v_cond.std(dim=axes, keepdim=True) / v_guided.std(dim=axes, keepdim=True)
    v = multiplier * (v_guided * spread) + (1.0 - multiplier) * v_guided
    return x - (scaled_x - v * factor)
