"""Noise schedules by name: which sigmas a run of so many steps goes through.

Each schedule takes a model (a ModelPatcher or BaseModel) and a number of steps, at least 1, and
gives (steps + 1,) falling float32 sigmas on the CPU, the last one 0. Those that need no model are
in k_diffusion/schedules.py.

Some belong to models that were made for other levels than the file says; `sampling_in_force` is
the model sampling that such a schedule brings along for the run.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ldm_patched.contrib.external_model_advanced import LCM, ModelSamplingDiscreteDistilled
from ldm_patched.k_diffusion import schedules
from ldm_patched.k_diffusion.schedules import append_zero
from ldm_patched.ldm.modules.diffusionmodules.util import make_ddim_timesteps
from ldm_patched.modules import latent_formats
from ldm_patched.modules import model_sampling as ms

Schedule = Callable[[Any, int], Tensor]


def model_sampling_of(model: Any) -> Any:
    """The model sampling in force: of a ModelPatcher (its object patches counted) or BaseModel."""
    if hasattr(model, "get_model_object"):
        return model.get_model_object("model_sampling")
    return model.model_sampling


def _range(model: Any) -> tuple[float, float]:
    """(smallest, largest) sigma."""
    sampling = model_sampling_of(model)
    return float(sampling.sigma_min), float(sampling.sigma_max)


def _even(sampling: Any, steps: int, *, stop_early: bool) -> Tensor:
    """`steps` timesteps from the noisiest on, evenly spaced; the last one is the cleanest,
    or with stop_early the one before it in a row of steps + 1."""
    start = float(sampling.timestep(sampling.sigma_max))
    end = float(sampling.timestep(sampling.sigma_min))
    if stop_early:
        return torch.linspace(start, end, steps + 1)[:-1]
    return torch.linspace(start, end, steps)


def _at(sampling: Any, timesteps: Tensor) -> Tensor:
    return append_zero(sampling.sigma(timesteps).float().cpu())


def _in_table(model: Any, places: Tensor) -> Tensor:
    """The sigmas at places (n,), counted from the smallest, of the model's own table.

    They are rounded down to whole ones, but where two would then be the same sigma.
    """
    log_sigmas = model_sampling_of(model).sigmas.float().cpu().log()
    whole = places.floor()
    places = (whole if len(whole.unique()) == len(whole) else places).clamp(0, len(log_sigmas) - 1)
    low, share = places.long(), places.frac().float()
    high = (low + 1).clamp(max=len(log_sigmas) - 1)
    mixed = log_sigmas[low] * (1 - share) + log_sigmas[high] * share
    return append_zero(mixed.exp())


def _table_size(model: Any) -> int:
    return len(model_sampling_of(model).sigmas)


def normal_schedule(model: Any, steps: int) -> Tensor:
    """Even in timesteps, from the noisiest to the cleanest."""
    sampling = model_sampling_of(model)
    return _at(sampling, _even(sampling, steps, stop_early=False))


def sgm_uniform_schedule(model: Any, steps: int) -> Tensor:
    """Even in timesteps, the last one a whole step above the cleanest."""
    sampling = model_sampling_of(model)
    return _at(sampling, _even(sampling, steps, stop_early=True))


def simple_schedule(model: Any, steps: int) -> Tensor:
    """Every (n / steps)-th of the model's own n sigmas, from the noisiest down.

    What is between two is the noisier one: timesteps 999, 966, 933, 899, … for 30 steps.
    """
    size = _table_size(model)
    places = size - 1 - torch.arange(steps, dtype=torch.float64) * size / steps
    return _in_table(model, places.ceil() if steps <= size else places)


def ddim_uniform_schedule(model: Any, steps: int) -> Tensor:
    """DDIM's own: timesteps 1, 1 + c, 1 + 2c, … for the whole number c = n / steps.

    It starts below the noisiest level, far below with few steps.
    """
    size = _table_size(model)
    if steps <= size // 2:
        rising = make_ddim_timesteps("uniform", steps, size, verbose=False)[:steps]
        places = torch.from_numpy(rising).double()
    else:  # levels between those of the table
        places = 1 + torch.arange(steps, dtype=torch.float64) * ((size - 2) / (steps - 1))
    return _in_table(model, places.flip(0))


def turbo_schedule(model: Any, steps: int) -> Tensor:
    """The first of timesteps 999, 899, … 99; where more than ten are asked for, between them."""
    tenth = _table_size(model) / 10
    stride = min(1.0, 9 / max(steps - 1, 1))
    return _in_table(model, (10 - torch.arange(steps, dtype=torch.float64) * stride) * tenth - 1)


def beta_schedule(model: Any, steps: int) -> Tensor:
    """Timesteps at quantiles of the beta distribution (0.6, 0.6): dense at both ends.

    Lee et al. 2024, arXiv:2407.12173.
    """
    shares = 1 - torch.arange(steps, dtype=torch.float64) / steps
    places = schedules.beta_quantiles(shares) * (_table_size(model) - 1)
    whole = (places + 1e-6).round()  # the middle one lies between two levels: the noisier
    return _in_table(model, whole if len(whole.unique()) == steps else places)


def karras_schedule(model: Any, steps: int) -> Tensor:
    """Karras et al. (2022) with rho 7 between the model's smallest and largest sigma."""
    return schedules.get_sigmas_karras(steps, *_range(model))


def exponential_schedule(model: Any, steps: int) -> Tensor:
    """Even in log sigma between the model's smallest and largest."""
    return schedules.get_sigmas_exponential(steps, *_range(model))


def kl_optimal_schedule(model: Any, steps: int) -> Tensor:
    """Even in arctan sigma between the model's smallest and largest."""
    return schedules.get_sigmas_kl_optimal(steps, *_range(model))


def linear_quadratic_schedule(model: Any, steps: int) -> Tensor:
    """Half of the steps close to the largest sigma, then faster and faster."""
    return schedules.get_sigmas_linear_quadratic(steps, _range(model)[1])


def align_your_steps_schedule(model: Any, steps: int) -> Tensor:
    """The tables of Sabour et al. (2024) for SD 1.x and SDXL, log sigma between their entries."""
    base = getattr(model, "model", model)
    old = isinstance(getattr(base, "latent_format", None), latent_formats.SD15)
    return schedules.get_sigmas_align_your_steps(steps, "SD1" if old else "SDXL")


# --- schedules that bring a model sampling along --------------------------------------------------


def distilled(sampling: Any, noise_prediction: type = ms.EPS) -> Any:
    """The 50 levels that a consistency model was distilled to, of a model's 1,000.

    noise_prediction: what a network that predicts noise is taken for. A sampling without a table
    of 1,000 timesteps comes back as it is.
    """
    if not (isinstance(sampling, ms.ModelSamplingDiscrete) and len(sampling.sigmas) == 1000):
        return sampling
    prediction = type(sampling).__bases__[-1]  # the second of the classes that it is made of
    bases = (
        ModelSamplingDiscreteDistilled,
        noise_prediction if prediction is ms.EPS else prediction,
    )
    made = type("Distilled", bases, {})()
    made.set_sigmas(sampling.sigmas[made.skip_steps - 1 :: made.skip_steps])
    made.sigma_data = sampling.sigma_data
    return made


def playground(sampling: Any) -> Any:
    """Playground 2.5's prediction, on the levels that the schedule of its name goes through: from
    120, though its own files end at 80."""
    made = type("Playground", (ms.ModelSamplingContinuousEDM, ms.EDM), {})()
    made.set_parameters(sigma_min=0.002, sigma_max=120.0, sigma_data=0.5)
    return made.to(sampling.sigmas.device)


BRINGS: Mapping[str, Callable[[Any], Any]] = {
    "lcm": functools.partial(distilled, noise_prediction=LCM),
    "tcd": distilled,
    "edm_playground_v2.5": playground,
}


def sampling_in_force(scheduler_name: str, sampling: Any) -> Any:
    """The model sampling of a run with this schedule: `sampling` itself for most of them."""
    return BRINGS[scheduler_name](sampling) if scheduler_name in BRINGS else sampling


class _With:
    """A model as schedules see it, with another model sampling."""

    def __init__(self, model: Any, sampling: Any) -> None:
        self.model, self.model_sampling = model, sampling


def _brought(schedule: Schedule, name: str) -> Schedule:
    """`schedule` over the levels that the schedule `name` brings along."""

    def brought(model: Any, steps: int) -> Tensor:
        return schedule(_With(model, sampling_in_force(name, model_sampling_of(model))), steps)

    return brought


SCHEDULERS: dict[str, Schedule] = {
    "normal": normal_schedule,
    "karras": karras_schedule,
    "exponential": exponential_schedule,
    "sgm_uniform": sgm_uniform_schedule,
    "simple": simple_schedule,
    "ddim_uniform": ddim_uniform_schedule,
    "lcm": _brought(sgm_uniform_schedule, "lcm"),
    "turbo": turbo_schedule,
    "align_your_steps": align_your_steps_schedule,
    "tcd": _brought(sgm_uniform_schedule, "tcd"),
    "edm_playground_v2.5": _brought(karras_schedule, "edm_playground_v2.5"),
    "beta": beta_schedule,
    "kl_optimal": kl_optimal_schedule,
    "linear_quadratic": linear_quadratic_schedule,
}
