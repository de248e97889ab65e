"""Schedules against diffusers' tables, the formulas they stand for, and their promises."""

import math
import os

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule
from diffusers.schedulers import AysSchedules

from ldm_patched.k_diffusion import schedules
from ldm_patched.modules.latent_formats import SD15
from ldm_patched.modules.model_sampling import (
    EDM,
    EPS,
    V_PREDICTION,
    ModelSamplingContinuousEDM,
    ModelSamplingDiscrete,
)
from ldm_patched.modules.samplers import SCHEDULERS, calculate_sigmas_scheduler
from ldm_patched.modules.schedulers import sampling_in_force
from tests.support.engine_report import record
from tests.support.fake_model import FakeModel

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def check(name: str, words: str, ours: torch.Tensor, theirs, tolerance: float) -> None:
    """The largest relative difference of the sigmas above 0; the 0 is one in both."""
    theirs = torch.as_tensor(np.asarray(theirs), dtype=torch.float32)
    assert ours.shape == theirs.shape
    assert float(ours[-1]) == float(theirs[-1]) == 0.0
    measured = float((ours[:-1] / theirs[:-1] - 1).abs().max())
    record("scheduler", name, os.environ["PYTEST_CURRENT_TEST"], words, measured, tolerance)
    assert measured <= tolerance


def with_sampling(*classes: type) -> FakeModel:
    model = FakeModel()
    model.model_sampling = type("Sampling", classes, {})()
    return model


# --- promises -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 11, 30, 200, 1000, 1300])
def test_schedules_fall_from_the_top_to_zero(scheduler, steps):
    sigmas = calculate_sigmas_scheduler(FakeModel(), scheduler, steps)
    assert sigmas.shape == (steps + 1,)
    assert sigmas.dtype == torch.float32
    if scheduler == "ddim_uniform":
        assert 0.03 < float(sigmas[0]) < 14.614641  # by its definition
    else:
        top = 120.0 if scheduler == "edm_playground_v2.5" else 14.614641
        assert float(sigmas[0]) == pytest.approx(top, rel=1e-5)
    assert float(sigmas[-1]) == 0.0
    assert (sigmas.diff() < 0).all()


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
@pytest.mark.parametrize(
    "classes",
    [
        (ModelSamplingDiscrete, V_PREDICTION),
        (ModelSamplingContinuousEDM, EDM),
        (ModelSamplingContinuousEDM, V_PREDICTION),
    ],
)
def test_they_fall_for_other_levels_and_predictions_too(scheduler, classes):
    model = with_sampling(*classes)
    sigmas = calculate_sigmas_scheduler(model, scheduler, 12)
    assert sigmas.shape == (13,)
    assert sigmas.isfinite().all()
    assert (sigmas.diff() < 0).all()
    assert float(sigmas[-1]) == 0.0


def test_a_schedule_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no scheduler 'cosy'.*karras"):
        calculate_sigmas_scheduler(FakeModel(), "cosy", 4)
    with pytest.raises(ValueError, match="at least 1 step"):
        calculate_sigmas_scheduler(FakeModel(), "karras", 0)


# --- against diffusers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheduler", "options", "steps"),
    [
        ("karras", {"use_karras_sigmas": True}, [10, 30]),
        ("exponential", {"use_exponential_sigmas": True}, [10, 30]),
        # the other two agree where diffusers' timesteps are whole numbers: it interpolates
        # sigma between them, the field log sigma
        ("normal", {"timestep_spacing": "linspace"}, [4, 10, 28, 38]),
        ("simple", {"timestep_spacing": "trailing"}, [4, 10, 20, 25, 40]),
        ("ddim_uniform", {"timestep_spacing": "leading", "steps_offset": 1}, [10, 20, 30, 60]),
    ],
)
def test_schedules_equal_diffusers(scheduler, options, steps):
    for count in steps:
        theirs = diffusers.EulerDiscreteScheduler(**BETAS, **options)
        theirs.set_timesteps(count)
        ours = calculate_sigmas_scheduler(FakeModel(), scheduler, count)
        check(
            scheduler,
            "diffusers, " + ", ".join(f"{k} {v}" for k, v in options.items()),
            ours,
            theirs.sigmas,
            2e-5,
        )


@pytest.mark.parametrize(
    ("steps", "first"),
    [
        (18, [999, 944, 888, 833, 777]),
        (30, [999, 966, 933, 899, 866]),
        (36, [999, 972, 944, 916, 888]),
        (60, [999, 983, 966, 949, 933]),
    ],
)
def test_simple_counts_down_in_whole_timesteps(steps, first):
    sampling = FakeModel().model_sampling
    ours = calculate_sigmas_scheduler(FakeModel(), "simple", steps)
    times = sampling.timestep(ours[:-1])
    assert times[:5].tolist() == first
    assert times.tolist() == [999 - x * 1000 // steps for x in range(steps)]
    torch.testing.assert_close(ours[:-1], sampling.sigmas[times], rtol=1e-6, atol=0)
    theirs = diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing")
    theirs.set_timesteps(steps)
    assert float((times - theirs.timesteps).abs().max()) <= 1


@pytest.mark.parametrize("steps", [4, 8, 25])
def test_sgm_uniform_is_nearly_the_trailing_spacing(steps):
    """Trailing counts down from 1,000 and takes 1 off; this counts down from 999 to 0."""
    theirs = diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing")
    theirs.set_timesteps(steps)
    ours = calculate_sigmas_scheduler(FakeModel(), "sgm_uniform", steps)
    words = "diffusers, trailing timesteps (up to one timestep off)"
    check("sgm_uniform", words, ours, theirs.sigmas, 0.02)
    exact = FakeModel().model_sampling.sigma(torch.linspace(999, 0, steps + 1)[:-1])
    torch.testing.assert_close(ours[:-1], exact)


@pytest.mark.parametrize("steps", [5, 10, 30])
def test_quantiles_of_the_beta_schedule(steps):
    """diffusers takes them as shares of sigma, the paper and the field as shares of time."""
    theirs = diffusers.EulerDiscreteScheduler(**BETAS, use_beta_sigmas=True)
    theirs.set_timesteps(steps)
    shares = schedules.beta_quantiles(1 - torch.linspace(0, 1, steps, dtype=torch.float64))
    low, high = theirs.sigmas[-2], theirs.sigmas[0]
    ours = torch.cat([low + shares.float() * (high - low), torch.zeros(1)])
    words = "diffusers' beta sigmas, from our quantiles"
    check("beta", words, ours, theirs.sigmas, 1e-5)

    from scipy import stats

    shares = 1 - np.linspace(0, 1, steps, endpoint=False)
    places = np.rint(stats.beta.ppf(shares, 0.6, 0.6) * 999).astype(int)
    exact = [*FakeModel().model_sampling.sigmas[places].tolist(), 0.0]
    ours = calculate_sigmas_scheduler(FakeModel(), "beta", steps)
    words = "levels at SciPy's beta quantiles"
    check("beta", words, ours, exact, 1e-6)


@pytest.mark.parametrize("steps", [2, 10, 25])
def test_linear_quadratic_equals_mochi_s(steps):
    theirs = np.array([*linear_quadratic_schedule(steps, 0.025), 0.0]) * 14.614641
    ours = calculate_sigmas_scheduler(FakeModel(), "linear_quadratic", steps)
    check("linear_quadratic", "diffusers' Mochi schedule", ours, theirs, 1e-5)


def test_align_your_steps_has_the_published_numbers():
    ours = calculate_sigmas_scheduler(FakeModel(), "align_your_steps", 10)
    theirs = [*AysSchedules["StableDiffusionXLSigmas"][:-1], 0.0]
    words = "diffusers' table (rounded to three digits) for SDXL"
    check("align_your_steps", words, ours, theirs, 0.02)
    published = [14.6146, 6.3184, 3.7681, 2.1811, 1.3405, 0.8620, 0.5550, 0.3798, 0.2332, 0.1114]
    assert ours.tolist() == torch.tensor([*published, 0.0]).tolist()
    between = calculate_sigmas_scheduler(FakeModel(), "align_your_steps", 20)[19]
    assert float(between) == pytest.approx(math.sqrt(0.1114 * 0.0292), rel=1e-6)

    old = FakeModel()
    old.latent_format = SD15()
    ours = calculate_sigmas_scheduler(old, "align_your_steps", 10)
    times = torch.tensor(AysSchedules["StableDiffusionTimesteps"])
    theirs = [*old.model_sampling.sigma(times).tolist(), 0.0]
    words = "levels at diffusers' timesteps for SD 1.x (whole numbers)"
    check("align_your_steps", words, ours, theirs, 0.05)


def test_align_your_steps_keeps_its_table_s_ends_for_other_counts():
    sigmas = calculate_sigmas_scheduler(FakeModel(), "align_your_steps", 20)
    ten = calculate_sigmas_scheduler(FakeModel(), "align_your_steps", 10)
    torch.testing.assert_close(sigmas[::2], ten)
    torch.testing.assert_close(sigmas[1:-1:2].log()[:9], (ten[:-2].log() + ten[1:-1].log()) / 2)


# --- against formulas -----------------------------------------------------------------------------


def test_the_karras_schedule_of_a_model_has_the_known_values():
    sigmas = calculate_sigmas_scheduler(FakeModel(), "karras", 30)
    known = {0: 14.6146, 1: 12.6606, 14: 1.4080, 24: 0.1365, 29: 0.0292}
    assert {i: round(float(sigmas[i]), 4) for i in known} == known


def test_kl_optimal_is_even_in_the_angle():
    ours = calculate_sigmas_scheduler(FakeModel(), "kl_optimal", 9)
    angles = np.linspace(np.arctan(14.614641), np.arctan(0.0291672), 9)
    check("kl_optimal", "the formula in float64", ours, [*np.tan(angles), 0.0], 1e-5)


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_turbo_takes_the_first_of_ten_timesteps(steps):
    sampling = FakeModel().model_sampling
    exact = [*sampling.sigmas[[999 - 100 * k for k in range(steps)]].tolist(), 0.0]
    ours = calculate_sigmas_scheduler(FakeModel(), "turbo", steps)
    check("turbo", "timesteps 999, 899, …", ours, exact, 1e-6)


def test_turbo_walks_the_same_way_in_more_steps():
    ours = calculate_sigmas_scheduler(FakeModel(), "turbo", 30)
    sampling = FakeModel().model_sampling
    assert float(ours[0]) == pytest.approx(float(sampling.sigmas[999]))
    assert float(ours[-2]) == pytest.approx(float(sampling.sigmas[99]))


@pytest.mark.parametrize("name", ["lcm", "tcd"])
def test_distilled_levels_are_every_twentieth(name):
    model = FakeModel()
    made = sampling_in_force(name, model.model_sampling)
    assert torch.equal(made.sigmas, model.model_sampling.sigmas[19::20])
    kept = model.model_sampling.sigmas[19::20]
    # sgm_uniform on them: from 999 down to 19, log sigma between the kept levels
    places = (np.linspace(999, 19, 9)[:-1] - 19) / 20
    exact = np.exp(np.interp(places, np.arange(50), kept.double().log().numpy()))
    ours = calculate_sigmas_scheduler(model, name, 8)
    check(name, "sgm_uniform on the 50 distilled levels", ours, [*exact, 0.0], 1e-5)


def test_a_distilled_model_keeps_its_prediction():
    sigma, out, x = torch.tensor([2.0]), torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 3.0)
    for classes in [(ModelSamplingDiscrete, EPS), (ModelSamplingDiscrete, V_PREDICTION)]:
        own = with_sampling(*classes).model_sampling
        made = sampling_in_force("tcd", own)
        expected = own.calculate_denoised(sigma, out, x)
        torch.testing.assert_close(made.calculate_denoised(sigma, out, x), expected)
        assert sampling_in_force("tcd", made) is made  # distilled already


@pytest.mark.parametrize("has_its_own", [False, True])
def test_playground_s_schedule_brings_its_levels_along(has_its_own):
    model = FakeModel()
    if has_its_own:  # as a file of Playground 2.5 says them
        model = with_sampling(ModelSamplingContinuousEDM, EDM)
        model.model_sampling.set_parameters(0.002, 80.0, 0.5)
    own = model.model_sampling
    made = sampling_in_force("edm_playground_v2.5", own)
    assert isinstance(made, EDM)
    assert (float(made.sigma_min), float(made.sigma_max)) == pytest.approx((0.002, 120.0))
    assert made.sigma_data == 0.5
    assert sampling_in_force("karras", own) is own
    ours = calculate_sigmas_scheduler(model, "edm_playground_v2.5", 20)
    ramp = np.linspace(120 ** (1 / 7), 0.002 ** (1 / 7), 20) ** 7
    words = "Karras' formula from 120 to 0.002"
    check("edm_playground_v2.5", words, ours, [*ramp, 0.0], 1e-4)
