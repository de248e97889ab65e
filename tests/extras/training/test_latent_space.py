"""The latents of a new autoencoder take SDXL's spread and, as far as can be, its colours."""

import pytest
import torch

from extras.training import builtin_model as builtin
from extras.training.latent_space import normalise_latents, preview_turn, whitener
from ldm_patched.modules.latent_formats import SDXL as LATENT_FORMAT
from ldm_patched.modules.latent_preview import SDXL_FACTORS


@pytest.fixture(autouse=True)
def _fixed_random_state():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        yield


def rows_of(latents: torch.Tensor) -> torch.Tensor:
    return latents.permute(0, 2, 3, 1).flatten(0, 2)


def rotation() -> torch.Tensor:
    return torch.linalg.qr(torch.randn(4, 4)).Q


@pytest.mark.parametrize("turned", [False, True])
def test_normalised_latents_have_sdxls_spread_and_the_same_pictures(turned):
    vae = builtin.make_vae(builtin.TOY)
    pixels = torch.rand(4, 3, 64, 64) * 2 - 1
    turn = rotation() if turned else None
    with torch.no_grad():
        before = vae.encode(pixels)
        picture = vae.decode(before)
        rows = rows_of(before)
        covariance = rows.T.cov()
        normalise_latents(vae, rows.mean(dim=0), covariance, turn)
        after = vae.encode(pixels)
        torch.testing.assert_close(vae.decode(after), picture, rtol=1e-3, atol=1e-3)
    scaled = rows_of(LATENT_FORMAT().process_in(after))
    torch.testing.assert_close(scaled.mean(dim=0), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(scaled.T.cov(), torch.eye(4), atol=2e-3, rtol=0)
    white = (rows - rows.mean(dim=0)) @ whitener(covariance)
    wanted = white if turn is None else white @ turn.T
    torch.testing.assert_close(scaled, wanted, atol=5e-3, rtol=0)


def test_the_turn_finds_back_the_latents_of_sdxl():
    sdxl = torch.randn(5_000, 4)
    colours = sdxl @ torch.tensor(SDXL_FACTORS) + 100.0
    for _ in range(4):  # some of them are mirrored
        hidden = rotation()
        found = preview_turn(sdxl @ hidden, colours)
        torch.testing.assert_close(found @ found.T, torch.eye(4), atol=1e-5, rtol=0)
        assert float(torch.linalg.det(found)) > 0
        shown = sdxl @ hidden @ found.T @ torch.tensor(SDXL_FACTORS)
        assert float((shown + 100.0 - colours).abs().max()) < 0.1 * float(colours.std())
