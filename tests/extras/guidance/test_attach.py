"""All of guidance together, step by step, against the formulas in float64."""

import math

import numpy as np
import pytest
import torch

from extras.guidance.attach import Guidance, guidance_function
from ldm_patched.modules.cond_batch import prepare_conditions
from ldm_patched.modules.model_patcher import ModelPatcher
from ldm_patched.modules.sample import sample
from ldm_patched.modules.samplers import GuidedDenoiser, calculate_sigmas_scheduler
from tests.extras.guidance.test_anisotropic import by_the_formula
from tests.support.fake_model import FakeModel, prompt

X = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def predictions(model: FakeModel, x: torch.Tensor, sigma: torch.Tensor) -> list[np.ndarray]:
    """The positive and the negative x - denoised, in float64."""
    found = []
    for seed, kind in ((1, "positive"), (2, "negative")):
        conditions = prepare_conditions(model, prompt(seed), x, kind)
        denoised = GuidedDenoiser(model, conditions, [], 1.0)(x, sigma)
        found.append((x.double() - denoised.double()).numpy()[0])
    return found


def timestep_of(sigma: float) -> int:
    """Of the 1,000 of Stable Diffusion the one with the nearest log sigma."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas = np.cumprod(1 - betas)
    return int(np.abs(np.log(np.sqrt((1 - alphas) / alphas)) - math.log(sigma)).argmin())


def expected(x, positive, negative, sigma, *, scale, sharpness, mimic, rescale):
    """x0 by the formulas."""
    p = 1 - timestep_of(sigma) / 999
    share = 0.001 * sharpness * p
    positive = (1 - share) * positive + share * by_the_formula(positive, x - positive)
    noise = negative + scale * (positive - negative)
    if scale > mimic:
        noise = p * noise + (1 - p) * (negative + mimic * (positive - negative))
    if rescale:
        alpha, spread = 1 / math.sqrt(sigma**2 + 1), sigma / math.sqrt(sigma**2 + 1)

        def velocity(e):  # of a picture and noise that are scaled to unit variance
            return alpha * (e / sigma) - spread * (x - e)

        v, v_positive = velocity(noise), velocity(positive)
        v = v * (rescale * v_positive.std(ddof=1) / v.std(ddof=1) + 1 - rescale)
        return alpha * (alpha * x) - spread * v
    return x - noise


@pytest.mark.parametrize(
    "knobs",
    [
        {"scale": 4.0, "sharpness": 2.0, "mimic": 7.0, "rescale": 0.0},
        {"scale": 12.0, "sharpness": 30.0, "mimic": 7.0, "rescale": 0.0},
        {"scale": 7.5, "sharpness": 10.0, "mimic": 5.0, "rescale": 0.7},
    ],
    ids=str,
)
def test_every_step_is_the_formulas(knobs):
    guidance = Guidance(knobs["sharpness"], knobs["mimic"], knobs["rescale"])
    options = {"sampler_cfg_function": guidance_function(guidance)}
    model = FakeModel()
    for level in calculate_sigmas_scheduler(model, "karras", 6)[:-1].tolist():
        sigma = torch.tensor([level])
        x = X * math.sqrt(1 + level**2)
        groups = [
            prepare_conditions(model, prompt(seed), x, kind)
            for seed, kind in ((1, "positive"), (2, "negative"))
        ]
        found = GuidedDenoiser(model, *groups, knobs["scale"], options)(x, sigma)
        right = expected(x.double().numpy()[0], *predictions(model, x, sigma), level, **knobs)
        np.testing.assert_allclose(found[0].numpy(), right, rtol=1e-5, atol=1e-5 * (1 + level))


def test_at_scale_1_the_positive_prediction_comes_back_unfiltered():
    positive = torch.randn(1, 4, 8, 8)
    function = guidance_function(Guidance(sharpness=30.0))
    args = {"cond": positive, "uncond": positive * 2, "cond_scale": 1.0, "sigma": torch.ones(1)}
    assert function(args) is positive


def paint(patcher: ModelPatcher) -> torch.Tensor:
    latents = torch.zeros(1, 4, 8, 8)
    return sample(patcher, None, 4, 9.0, "euler", "karras", prompt(1), prompt(2), latents, seed=3)


def test_it_lives_on_a_clone_and_goes_with_it():
    patcher = ModelPatcher(FakeModel())
    before = paint(patcher)
    clone = patcher.clone()
    Guidance(sharpness=20.0, mimic_scale=7.0).attach(clone)
    assert not torch.equal(paint(clone), before)
    assert torch.equal(paint(patcher), before)


def test_nothing_to_do_is_the_usual_formula():
    patcher = ModelPatcher(FakeModel())
    Guidance().attach(patcher)
    assert "sampler_cfg_function" not in patcher.model_options
