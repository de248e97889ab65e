"""The part of the sampling in which the negative prompt counts."""

import pytest
import torch

from extras.guidance.interval import within
from ldm_patched.modules.cond_batch import prepare_conditions
from ldm_patched.modules.samplers import GuidedDenoiser
from tests.support.fake_model import FakeModel, prompt

X = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def kinds_at(sigma: float, negative) -> list[int]:
    model = FakeModel()
    groups = [
        prepare_conditions(model, conditions, X, kind)
        for conditions, kind in ((prompt(1), "positive"), (negative, "negative"))
    ]
    GuidedDenoiser(model, *groups, 4.0)(X, torch.tensor([sigma]))
    return [kind for call in model.calls for kind in call["cond_or_uncond"]]


def test_outside_of_the_interval_the_network_is_not_asked():
    sampling = FakeModel().model_sampling
    negative = within(prompt(2), 0.2, 0.8)
    at = {p: float(sampling.percent_to_sigma(p)) for p in (0.1, 0.21, 0.5, 0.79, 0.9)}
    assert {p: kinds_at(sigma, negative) for p, sigma in at.items()} == {
        0.1: [0],
        0.21: [0, 1],
        0.5: [0, 1],
        0.79: [0, 1],
        0.9: [0],
    }


def test_the_whole_interval_changes_nothing():
    negative = prompt(2)
    assert within(negative, 0.0, 1.0) == [list(c) for c in negative]


def test_the_conditions_given_stay_as_they_are():
    negative = prompt(2)
    within(negative, 0.1, 0.5)
    assert "start_percent" not in negative[0][1]


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.6, 0.4), (-0.1, 1.0), (0.0, 1.1)])
def test_an_interval_of_nothing_is_refused(interval):
    with pytest.raises(ValueError, match="interval"):
        within(prompt(2), *interval)
