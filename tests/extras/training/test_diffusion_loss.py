"""Noise levels, denoisers and the loss: against the engine's own numbers and by hand."""

import math
from types import SimpleNamespace

import pytest
import torch

from extras.training.denoiser import (
    Denoiser,
    DiscreteDenoiser,
    EDMScaling,
    EpsScaling,
    VScaling,
    VScalingWithEDMcNoise,
)
from extras.training.loss import StandardDiffusionLoss
from extras.training.noise import (
    DiscreteSampling,
    EDMSampling,
    EDMWeighting,
    EpsWeighting,
    LegacyDDPMDiscretization,
    MinSNRWeighting,
    UnitWeighting,
    VWeighting,
    generate_roughly_equally_spaced_steps,
)
from extras.training.objectives import OBJECTIVES, make_loss
from ldm_patched.modules import model_sampling as ms

PACKAGE = "extras.training"


def engine(levels: type, prediction: type) -> torch.nn.Module:
    return type("Sampling", (levels, prediction), {})(None)


def test_the_levels_are_those_of_the_engine():
    own = LegacyDDPMDiscretization()(1000, do_append_zero=False, flip=True)
    torch.testing.assert_close(own, ms.ModelSamplingDiscrete().sigmas, rtol=1e-5, atol=0)


def test_fewer_levels_begin_at_the_highest_and_end_in_zero():
    few = LegacyDDPMDiscretization()(20)
    assert few.shape == (21,)
    assert few[0] == pytest.approx(14.6146, rel=1e-4)
    assert few[-1] == 0
    assert bool((few[:-1] > few[1:]).all())
    assert generate_roughly_equally_spaced_steps(4, 1000).tolist()[-1] == 999
    with pytest.raises(ValueError, match="1000 levels, not 1001"):
        LegacyDDPMDiscretization()(1001)


@pytest.mark.parametrize(
    ("scaling", "levels", "prediction", "discrete"),
    [
        (EpsScaling(), ms.ModelSamplingDiscrete, ms.EPS, True),
        (VScaling(), ms.ModelSamplingDiscrete, ms.V_PREDICTION, True),
        (VScalingWithEDMcNoise(), ms.ModelSamplingContinuousEDM, ms.V_PREDICTION, False),
        (EDMScaling(sigma_data=1.0), ms.ModelSamplingContinuousEDM, ms.EDM, False),
    ],
)
def test_training_and_sampling_denoise_alike(scaling, levels, prediction, discrete):
    """What is trained as a denoiser is sampled as the same denoiser."""
    theirs = engine(levels, prediction)
    seen = []

    def network(x, t, _cond=None):
        seen.append((x, t.float()))
        return torch.sin(x) * 0.7 + t.reshape(-1, 1, 1, 1).float() * 1e-3

    own = DiscreteDenoiser(scaling, 1000, LegacyDDPMDiscretization()) if discrete else None
    own = own or Denoiser(scaling)
    sigma = theirs.sigmas[torch.tensor([3, 500, 998])]
    x = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0)) * 3
    output = network(theirs.calculate_input(sigma, x), theirs.timestep(sigma))
    expected = theirs.calculate_denoised(sigma, output, x)
    torch.testing.assert_close(own(network, x, sigma, {}), expected, rtol=2e-4, atol=2e-4)
    for first, second in zip(*seen, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


def test_discrete_sampling_takes_every_level_alike():
    sampling = DiscreteSampling(
        {"target": f"{PACKAGE}.noise.LegacyDDPMDiscretization"}, num_idx=1000
    )
    torch.manual_seed(0)
    drawn = sampling(20_000)
    ranks = torch.searchsorted(sampling.sigmas, drawn)
    assert 0.48 < float((ranks < 500).float().mean()) < 0.52
    assert sampling(2, rand=torch.tensor([0, 999])).tolist() == pytest.approx(
        [0.02917, 14.6146], rel=1e-3
    )


def test_edm_sampling_is_log_normal():
    torch.manual_seed(0)
    logs = EDMSampling(p_mean=-1.2, p_std=1.2)(40_000).log()
    assert float(logs.mean()) == pytest.approx(-1.2, abs=0.03)
    assert float(logs.std()) == pytest.approx(1.2, abs=0.03)
    assert float(EDMSampling(0.5, 2.0)(1, rand=torch.tensor([1.0]))) == pytest.approx(math.e**2.5)


@pytest.mark.parametrize(
    ("weighting", "at_half", "at_two"),
    [
        (UnitWeighting(), 1.0, 1.0),
        (EpsWeighting(), 4.0, 0.25),
        (VWeighting(), 5.0, 1.25),
        (EDMWeighting(sigma_data=0.5), 8.0, 4.25),
        (MinSNRWeighting(gamma=3.0), 3.0, 0.25),
    ],
)
def test_weights(weighting, at_half, at_two):
    assert weighting(torch.tensor([0.5, 2.0])).tolist() == pytest.approx([at_half, at_two])


def test_the_offset_noise_asked_for_is_added():
    torch.manual_seed(0)
    latents = torch.zeros(4000, 4, 8, 8)
    for level in (0.0, 0.5):
        means = make_loss("eps", offset_noise=level).make_noise(latents).mean(dim=(2, 3))
        assert float(means.var()) == pytest.approx(1 / 64 + level**2, rel=0.05)


def _loss(**options) -> StandardDiffusionLoss:
    return StandardDiffusionLoss(
        {"target": f"{PACKAGE}.noise.EDMSampling", "params": {"p_mean": 0.3, "p_std": 0.0}},
        {"target": f"{PACKAGE}.noise.EpsWeighting"},
        **options,
    )


def test_loss_of_a_perfect_and_of_a_blind_denoiser():
    latents = torch.full((3, 4, 2, 2), 2.0)
    sigma = math.exp(0.3)
    perfect = _loss()(lambda *_: None, lambda *_: latents, lambda _: {}, latents, {})
    assert perfect.tolist() == [0.0, 0.0, 0.0]
    zero = torch.zeros_like(latents)
    l2 = _loss()(None, lambda *_: zero, lambda _: {}, latents, {})
    l1 = _loss(loss_type="l1")(None, lambda *_: zero, lambda _: {}, latents, {})
    assert l2.tolist() == pytest.approx([4.0 / sigma**2] * 3)
    assert l1.tolist() == pytest.approx([2.0 / sigma**2] * 3)


def test_the_error_counts_as_much_as_its_place():
    latents = torch.zeros(2, 3, 2, 2)
    wrong = torch.zeros_like(latents)
    wrong[:, :, 0, 1] = 1.0
    emphasis = torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[0.7, 1.9], [0.7, 0.7]]])
    plain, counted = (
        _loss()(None, lambda *_: wrong, lambda _: {}, latents, batch)
        for batch in ({}, {"emphasis": emphasis})
    )
    assert counted.tolist() == pytest.approx([float(plain[0]), 1.9 * float(plain[1])])


def test_the_network_sees_the_noised_latents_and_named_entries_of_the_batch():
    seen = {}

    def denoiser(_network, noised, sigmas, cond, **extra):
        seen.update(noised=noised, sigmas=sigmas, cond=cond, extra=extra)
        return noised

    torch.manual_seed(0)
    loss = _loss(batch2model_keys="depth")
    batch = {"depth": torch.ones(1), "other": 3}
    loss(None, denoiser, lambda b: {"seen": b["other"]}, torch.zeros(2000, 1, 2, 2), batch)
    assert seen["cond"] == {"seen": 3}
    assert set(seen["extra"]) == {"depth"}
    assert float(seen["noised"].std()) == pytest.approx(math.exp(0.3), rel=0.03)


def test_offset_noise_moves_whole_channels():
    torch.manual_seed(0)
    noise = _loss(offset_noise_level=0.5).make_noise(torch.zeros(4000, 2, 8, 8))
    means = noise.mean(dim=(2, 3))
    assert float(means.std()) == pytest.approx((0.5**2 + 1 / 64) ** 0.5, rel=0.05)
    assert abs(float((means[:, 0] * means[:, 1]).mean())) < 0.02  # channels are independent


@pytest.mark.parametrize(
    ("objective", "levels", "share"),
    [("v", "", 0.55), ("v", "middle", 0.78), ("edm", "", 0.42), ("edm", "middle", 0.78)],
)
def test_how_often_the_middle_of_the_levels_is_trained_on(objective, levels, share):
    torch.manual_seed(0)
    sigmas = make_loss(objective, levels=levels).sigma_sampler(20_000)
    if objective == "v":
        assert torch.isin(sigmas, LegacyDDPMDiscretization()(1000, do_append_zero=False)).all()
    between = ((sigmas > 0.7) & (sigmas < 5.0)).float().mean()
    assert float(between) == pytest.approx(share, abs=0.02)


def test_an_unknown_loss_type_is_refused():
    with pytest.raises(ValueError, match="known are l2, l1"):
        _loss(loss_type="lpips")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_gives_a_finite_loss_and_falling_sigmas(name):
    torch.manual_seed(0)
    denoiser = OBJECTIVES[name].denoiser()
    loss = make_loss(name)(
        lambda x, *_: x * 0.1, denoiser, lambda _: {}, torch.randn(64, 4, 4, 4), {}
    )
    assert loss.shape == (64,)
    assert bool(torch.isfinite(loss).all())
    sigmas = OBJECTIVES[name].sigmas(10)
    assert bool((sigmas[:-1] > sigmas[1:]).all())
    assert sigmas[-1] == 0


def test_the_markers_of_a_file_are_those_that_the_loader_reads():
    from extras.training.builtin_model import TOY
    from extras.training.objectives import key_tensors
    from ldm_patched.modules.model_base import ModelType
    from ldm_patched.modules.supported_models import SDXL

    types = {name: SDXL(TOY.unet_config()).model_type(key_tensors(name)) for name in OBJECTIVES}
    assert types == {
        "eps": ModelType.EPS,
        "v": ModelType.V_PREDICTION,
        "v_ztsnr": ModelType.V_PREDICTION,
        "edm": ModelType.V_PREDICTION_EDM,
    }
    assert SimpleNamespace(**types).edm.value[0] is ms.ModelSamplingContinuousEDM
