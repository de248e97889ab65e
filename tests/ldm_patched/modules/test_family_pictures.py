"""Whole pictures of the families that only a mark, or the user, tells from SDXL.

Playground v2.5 is marked by the statistics in its file; Turbo and Lightning by nothing.
"""

import os

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from ldm_patched.modules import latent_formats
from ldm_patched.modules.model_base import ModelType
from ldm_patched.modules.sample import sample
from ldm_patched.modules.samplers import KSampler, calculate_sigmas_scheduler
from ldm_patched.modules.schedulers import sampling_in_force
from modules.spec.performance import MODES
from tests.ldm_patched.modules.test_families import added, inputs, largest_difference, load
from tests.support.engine_report import record
from tests.support.tiny_checkpoint import tiny_sdxl_state_dict, write_tiny_sdxl
from tests.support.unet_oracle import diffusers_unet, randomise

# --- Playground v2.5 --------------------------------------------------------------------------

STATISTICS = {"edm_mean": [-1.0, 2.0, -3.0, 4.0], "edm_std": [8.0, 6.0, 7.0, 5.0]}


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    """(the patcher of a small one, its statistics)."""
    weights = tiny_sdxl_state_dict(3, torch.float32)
    own = {name: torch.tensor(given).view(1, 4, 1, 1) for name, given in STATISTICS.items()}
    path = tmp_path_factory.mktemp("playground") / "playground.safetensors"
    save_file(weights | own, str(path))
    patcher = load(path)[0]
    randomise(patcher.model.diffusion_model, seed=5)
    return patcher, own["edm_mean"], own["edm_std"]


def test_playground_takes_the_statistics_of_its_file(playground):
    patcher, mean, std = playground
    model = patcher.model
    assert model.model_type is ModelType.EDM
    assert isinstance(model.latent_format, latent_formats.SDXL_Playground_2_5)
    latents = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(2))
    wanted = (latents - mean) * 0.5 / std
    torch.testing.assert_close(model.process_latent_in(latents), wanted)
    torch.testing.assert_close(model.process_latent_out(wanted), latents)
    assert model.model_sampling.sigma_max.item() == pytest.approx(80.0)


TAKE_NOISE = (diffusers.EulerAncestralDiscreteScheduler, diffusers.LCMScheduler)


def paint_by_diffusers(scheduler, model, latents, context, pooled):
    """Steps from `latents` in the scheduler's own scale, one picture without guidance."""
    unet, told = diffusers_unet(model.diffusion_model), added(model, pooled)
    told["time_ids"] = told["time_ids"][:1]
    generator = torch.Generator().manual_seed(6)
    more = {"generator": generator} if isinstance(scheduler, TAKE_NOISE) else {}
    with torch.no_grad():
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(latents, t)
            out = unet(scaled, t, context, added_cond_kwargs=told, return_dict=False)[0]
            latents = scheduler.step(out, t, latents, return_dict=False, **more)[0]
    return latents


def paint_by_ours(patcher, noise, context, pooled, steps, sampler, scheduler, **options):
    told = {"pooled_output": pooled, "width": 128, "height": 128}
    prompt, start = [[context, told]], torch.zeros_like(noise)
    return sample(
        patcher, noise, steps, 1.0, sampler, scheduler, prompt, prompt, start, seed=1, **options
    )


@pytest.mark.parametrize(
    ("sampler", "kind"),
    [("euler", "EDMEulerScheduler"), ("dpmpp_2m", "EDMDPMSolverMultistepScheduler")],
)
def test_playground_paints_as_diffusers_paints(playground, sampler, kind):
    """Preconditioning, levels, steps and the way to the VAE's scale together."""
    patcher, mean, std = playground
    x, context, pooled = (part[:1] for part in inputs(patcher.model))
    library, steps = getattr(diffusers, kind)(), 6
    library.set_timesteps(steps)
    start = x * library.init_noise_sigma
    theirs = paint_by_diffusers(library, patcher.model, start, context, pooled) * std / 0.5 + mean
    ours = paint_by_ours(patcher, x, context, pooled, steps, sampler, "karras")
    difference = largest_difference(ours, theirs)
    where = os.environ["PYTEST_CURRENT_TEST"]
    record("family", f"Playground v2.5, {sampler}", where, f"diffusers {kind}", difference, 1e-4)
    assert difference <= 1e-4


def test_its_schedule_keeps_the_statistics_of_its_file(playground):
    patcher, _, _ = playground
    runner = KSampler(patcher, 4, "cpu", "dpmpp_2m", "edm_playground_v2.5")
    assert runner.latent_format is patcher.model.latent_format
    assert float(runner.sigmas[0]) == pytest.approx(120.0)


# --- Distilled checkpoints --------------------------------------------------------------------


def on_levels(kind, sigmas, times):
    """A scheduler of diffusers that goes through our levels, and how much noise it starts with."""
    library = getattr(diffusers, kind)(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    library.set_timesteps(len(times))
    if kind == "LCMScheduler":  # its latents have unit variance
        library.timesteps = times.long()
        library.alphas_cumprod[library.timesteps] = 1 / (1 + sigmas[:-1] ** 2)
        return library, 1.0
    library.sigmas, library.timesteps = sigmas, times.float()
    return library, (1 + sigmas[0] ** 2) ** 0.5


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("turbo", "EulerAncestralDiscreteScheduler"),
        ("lightning", "EulerDiscreteScheduler"),
        ("extreme_speed", "LCMScheduler"),
    ],
)
def test_distilled_checkpoints_paint_in_few_steps(name, kind, tmp_path):
    """SDXL Turbo, Lightning and LCM files are SDXL's in every name and shape, so nothing tells them
    but the mode that the user chooses; theirs is given the same levels."""
    path = write_tiny_sdxl(tmp_path / f"{name}.safetensors", dtype=torch.float32)
    patcher = load(path)[0]
    model, mode = patcher.model, next(mode for mode in MODES if mode.name == name)
    assert model.model_type is ModelType.EPS
    randomise(model.diffusion_model, seed=5)
    x, context, pooled = (part[:1] for part in inputs(model))
    sampler, levels = mode.forced["sampler"].value, mode.forced["scheduler"].value
    sigmas = calculate_sigmas_scheduler(model, levels, mode.steps)
    times = sampling_in_force(levels, model.model_sampling).timestep(sigmas[:-1])
    library, start = on_levels(kind, sigmas, times)
    theirs = paint_by_diffusers(library, model, x * start, context, pooled) / 0.13025
    generator = torch.Generator().manual_seed(6)
    noises = {"noise_sampler": lambda *_: torch.randn(x.shape, generator=generator)}
    options = {"sampler_options": noises} if isinstance(library, TAKE_NOISE) else {}
    ours = paint_by_ours(patcher, x, context, pooled, mode.steps, sampler, levels, **options)
    difference = largest_difference(ours, theirs)
    where, title = os.environ["PYTEST_CURRENT_TEST"], f"SDXL {mode.title}, {mode.steps} steps"
    record("family", title, where, f"diffusers {kind}", difference, 1e-4)
    assert difference <= 1e-4
