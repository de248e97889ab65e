"""The start of the autoencoder's training: all hues come through before the first step."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from extras.training.builtin_model import MINI, TOY, make_vae
from extras.training.pages import PagePlan
from extras.training.stage_vae import VaeStage, to_network
from extras.training.vae_start import block_targets, fit_to_colours
from ldm_patched.modules.latent_formats import SDXL as LATENT_FORMAT
from ldm_patched.modules.latent_preview import SDXL_FACTORS

HUES = torch.tensor([[1.0, 1, 1], [1, 0, -1], [-1, 2, -1]])
"""Brightness, red against blue, green against purple: the last varies least in the book."""


@pytest.fixture(autouse=True)
def _fixed_random_state():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def pieces(number: int) -> torch.Tensor:
    plan = PagePlan(group=24, side=32, captions=0, sizes=((64, 64),), weights=(1.0,))
    return to_network(plan.draw_group(number).images)


def correlations(x: torch.Tensor, y: torch.Tensor) -> list[float]:
    """Of the mean colours of 8×8 pixels along each hue; y: pixels too, or such means."""
    means = [F.avg_pool2d(part, 8) if part.shape == x.shape else part for part in (x, y)]
    rows = [HUES @ part.transpose(0, 1).flatten(1) for part in means]
    pairs = zip(*rows, strict=True)
    return [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs]


def test_every_hue_comes_back_from_a_fitted_autoencoder_and_not_from_a_random_one():
    vae, held_out = make_vae(MINI), pieces(1)
    with torch.no_grad():
        assert min(correlations(held_out, vae.decode(vae.encode(held_out)))) < 0.5
        fit_to_colours(vae, pieces(0))
        latents = vae.encode(held_out)
        assert min(correlations(held_out, vae.decode(latents))) > 0.8
    assert 0.5 < float(latents.std()) < 1.5


def test_the_stage_begins_so_and_leaves_latents_like_sdxls(tmp_path):
    pages = PagePlan(group=8, captions=0, sizes=((64, 64),), weights=(1.0,))
    stage = VaeStage(TOY, pages, folder=tmp_path, device=torch.device("cpu"), bf16=False)
    x = torch.cat([to_network(pages.draw_group(number).images) for number in range(4)])
    with torch.no_grad():
        assert float(stage.model.encode(x).std()) > 0.5  # random ones are a hundredth of it
        (path,) = stage.finish()
        vae = make_vae(TOY)
        vae.load_state_dict(load_file(path))
        scaled = LATENT_FORMAT().process_in(vae.encode(x))
    rows = scaled.permute(0, 2, 3, 1).flatten(0, 2)
    assert float((rows.T.cov() - torch.eye(4)).abs().max()) < 0.5
    shown = (rows @ torch.tensor(SDXL_FACTORS)).unflatten(0, (32, 8, 8)).permute(0, 3, 1, 2)
    assert min(correlations(x, shown)) > 0.4


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
