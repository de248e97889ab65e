"""The start of the autoencoder's training: all hues come through before the first step."""

import pytest
import torch
from torch.nn import functional as F

from extras.training.builtin_model import MINI, make_vae
from extras.training.pages import PagePlan
from extras.training.stage_vae import to_network
from extras.training.vae_start import block_targets, fit_to_colours

HUES = torch.tensor([[1.0, 1, 1], [1, 0, -1], [-1, 2, -1]])
"""Brightness, red against blue, green against purple: the last varies least in the book."""


def pieces(number: int) -> torch.Tensor:
    plan = PagePlan(group=24, side=32, captions=0, sizes=((64, 64),), weights=(1.0,))
    return to_network(plan.draw_group(number).images)


@pytest.fixture(scope="module")
def vae():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make_vae(MINI)


def correlations(x: torch.Tensor, y: torch.Tensor) -> list[float]:
    """Of the blocks' mean colours along each hue."""
    rows = [(HUES @ F.avg_pool2d(part, 8).transpose(0, 1).flatten(1)) for part in (x, y)]
    pairs = zip(*rows, strict=True)
    return [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs]


def test_every_hue_comes_back_from_a_fitted_autoencoder_and_not_from_a_random_one(vae):
    held_out = pieces(1)
    with torch.no_grad():
        assert min(correlations(held_out, vae.decode(vae.encode(held_out)))) < 0.5
        fit_to_colours(vae, pieces(0))
        latents = vae.encode(held_out)
        assert min(correlations(held_out, vae.decode(latents))) > 0.8
    assert 0.5 < float(latents.std()) < 1.5


def test_three_targets_are_a_turn_of_the_mean_colours_and_all_are_alike_in_spread():
    x = pieces(2)
    targets = block_targets(x, 8)
    assert targets.shape == (24, 4, 4, 4)
    rows = targets.transpose(0, 1).flatten(1)
    torch.testing.assert_close(rows.std(dim=1), torch.ones(4), rtol=1e-4, atol=1e-4)
    assert float((torch.corrcoef(rows[:3]) - torch.eye(3)).abs().max()) < 1e-3
    means = F.avg_pool2d(x, 8).transpose(0, 1).flatten(1)
    means = torch.cat([means, torch.ones_like(means[:1])])
    solved = torch.linalg.lstsq(means.T, rows[:3].T).solution
    torch.testing.assert_close(means.T @ solved, rows[:3].T, rtol=1e-3, atol=1e-3)
