"""Guidance, masked sampling and schedules, against formulas, diffusers and promises."""

import pytest
import torch

from ldm_patched.modules.cond_batch import prepare_conditions
from ldm_patched.modules.samplers import (
    SAMPLERS,
    SCHEDULERS,
    GuidedDenoiser,
    KSampler,
    calculate_sigmas_scheduler,
)
from modules.spec.flags import Sampler, Scheduler
from tests.support.fake_model import FakeModel, prompt

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * 3
SIGMA = torch.full((2,), 3.0)


def guided(model, cfg, options=None):
    positive = prepare_conditions(model, prompt(1), X, "positive")
    negative = prepare_conditions(model, prompt(2), X, "negative")
    return GuidedDenoiser(model, positive, negative, cfg, options)


def halves():
    """The conditional and the unconditional prediction at X, SIGMA."""
    model = FakeModel()
    cond = guided(model, 1.0)(X, SIGMA)
    uncond = guided(model, 0.0)(X, SIGMA)
    return cond, uncond


def test_guidance_is_the_formula():
    cond, uncond = halves()
    out = guided(FakeModel(), 4.0)(X, SIGMA)
    torch.testing.assert_close(out, uncond + 4.0 * (cond - uncond), rtol=0, atol=1e-5)


def test_at_scale_1_the_negative_prompt_is_not_evaluated():
    model = FakeModel()
    guided(model, 1.0)(X, SIGMA)
    assert [c["cond_or_uncond"] for c in model.calls] == [[0]]
    guided(model, 1.0, {"disable_cfg1_optimization": True})(X, SIGMA)
    assert model.calls[-1]["cond_or_uncond"] == [0, 1]


def test_a_cfg_function_replaces_the_formula_and_works_on_noise():
    cond, uncond = halves()

    def function(args):
        assert args["cond_scale"] == 4.0
        assert torch.equal(args["input"], X)
        assert torch.equal(args["sigma"], SIGMA)
        torch.testing.assert_close(args["cond"], X - cond, rtol=0, atol=1e-5)
        torch.testing.assert_close(args["uncond_denoised"], uncond, rtol=0, atol=1e-5)
        return args["uncond"]

    out = guided(FakeModel(), 4.0, {"sampler_cfg_function": function})(X, SIGMA)
    torch.testing.assert_close(out, uncond, rtol=0, atol=1e-5)


def test_at_scale_1_a_cfg_function_is_left_out():
    cond, _ = halves()
    options = {"sampler_cfg_function": lambda args: args["cond"] * 0}
    assert torch.equal(guided(FakeModel(), 1.0, options)(X, SIGMA), cond)


def test_post_cfg_functions_run_one_after_the_other():
    cond, _ = halves()
    options = {
        "sampler_post_cfg_function": [
            lambda args: args["denoised"] + 1,
            lambda args: args["denoised"] * 2,
        ]
    }
    out = guided(FakeModel(), 1.0, options)(X, SIGMA)
    torch.testing.assert_close(out, (cond + 1) * 2)


def test_without_a_negative_prompt_guidance_does_nothing():
    model = FakeModel()
    positive = prepare_conditions(model, prompt(1), X, "positive")
    out = GuidedDenoiser(model, positive, [], 7.0)(X, SIGMA)
    assert torch.equal(out, halves()[0])


def test_every_name_a_request_may_use_has_a_function():
    assert list(SAMPLERS) == [s.value for s in Sampler]
    assert list(SCHEDULERS) == [s.value for s in Scheduler]


def test_part_of_the_denoising_takes_the_end_of_a_longer_schedule():
    model = FakeModel()
    sampler = KSampler(model, 10, "cpu", "euler", "karras", denoise=0.4)
    whole = calculate_sigmas_scheduler(model, "karras", 25)
    assert torch.equal(sampler.sigmas, whole[-11:])


@pytest.mark.parametrize("sampler", ["dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2"])
@pytest.mark.parametrize(("denoise", "whole"), [(0.3, 100), (0.5, 60), (0.618, 48), (1.0, 30)])
def test_the_penultimate_level_is_dropped_from_the_longer_schedule(sampler, denoise, whole):
    found = KSampler(FakeModel(), 30, "cpu", sampler, "karras", denoise=denoise).sigmas
    one_more = calculate_sigmas_scheduler(FakeModel(), "karras", whole + 1).tolist()
    del one_more[-2]
    assert found.tolist() == one_more[-31:]


def test_no_denoising_leaves_the_latents_alone():
    latent = torch.randn(1, 4, 8, 8)
    sampler = KSampler(FakeModel(), 10, "cpu", denoise=0.0)
    out = sampler.sample(torch.randn_like(latent), prompt(1), prompt(2), 4.0, latent)
    assert torch.equal(out, latent)


def test_unknown_names_and_too_few_steps_are_refused_in_words():
    with pytest.raises(ValueError, match="no sampler 'eular'.*euler_ancestral"):
        KSampler(FakeModel(), 4, "cpu", "eular")
    with pytest.raises(ValueError, match="no scheduler 'cosy'.*karras"):
        calculate_sigmas_scheduler(FakeModel(), "cosy", 4)
    with pytest.raises(ValueError, match="at least 1 step"):
        calculate_sigmas_scheduler(FakeModel(), "karras", 0)


@pytest.mark.parametrize("scheduler", ["lcm", "tcd", "edm_playground_v2.5"])
def test_levels_that_a_schedule_brings_are_where_the_model_computes(scheduler):
    """Else each step would wait for the device. "meta" stands for one."""
    model = FakeModel()
    runner = KSampler(model, 4, "meta", "euler", scheduler)
    assert runner.model_sampling.log_sigmas.is_meta
    assert not model.model_sampling.log_sigmas.is_meta
