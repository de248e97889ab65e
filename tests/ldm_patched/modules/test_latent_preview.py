"""Previews: right colours, bounded size, next to no time."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ldm_patched.modules.latent_formats import SDXL, SDXL_Playground_2_5
from ldm_patched.modules.latent_preview import LatentPreviewer


def test_a_zero_latent_is_the_published_bias():
    rgb = LatentPreviewer(None).to_jpeg_ready(torch.zeros(1, 4, 2, 3))
    assert rgb.shape == (2, 3, 3)
    assert rgb.dtype == np.uint8
    assert rgb.reshape(-1, 3).tolist() == [[150, 140, 130]] * 6


def test_channels_move_colours_as_published():
    latent = torch.zeros(1, 4, 1, 1)
    latent[0, 1] = 1.0  # less red, a little more blue
    assert LatentPreviewer(None).to_jpeg_ready(latent).tolist() == [[[90, 135, 140]]]


def test_a_latent_format_brings_its_own_factors():
    own = SimpleNamespace(latent_rgb_factors=[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    latent = torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1)
    assert LatentPreviewer(own).to_jpeg_ready(latent).tolist() == [[[255, 0, 127]]]


def test_playground_s_latents_are_brought_to_the_scale_of_the_fit():
    latents = torch.randn(1, 4, 6, 7, generator=torch.Generator().manual_seed(3)) * 0.5
    playground = SDXL_Playground_2_5((1.0, -2.0, 3.0, -4.0), (8.0, 6.0, 7.0, 5.0))
    same = SDXL().process_in(playground.process_out(latents))
    found = LatentPreviewer(playground).to_jpeg_ready(latents)
    wanted = LatentPreviewer(SDXL()).to_jpeg_ready(same)
    assert np.abs(found.astype(int) - wanted).max() <= 1  # by rounding
    assert LatentPreviewer(playground).to_jpeg_ready(torch.zeros(1, 4, 1, 1)).tolist() == [
        [[219, 181, 151]]
    ]


def test_numbers_out_of_range_are_clipped_and_nan_is_black():
    rgb = LatentPreviewer(None).to_jpeg_ready(torch.full((1, 4, 1, 1), 1e9))
    assert set(rgb.flatten().tolist()) <= {0, 255}
    nan = LatentPreviewer(None).to_jpeg_ready(torch.full((1, 4, 1, 1), float("nan")))
    assert nan.tolist() == [[[0, 0, 0]]]


@pytest.mark.parametrize(
    ("size", "expected"), [((128, 128), (64, 64)), ((96, 192), (32, 64)), ((32, 48), (32, 48))]
)
def test_the_longer_side_is_bounded(size, expected):
    rgb = LatentPreviewer(None, max_side=64).to_jpeg_ready(torch.zeros(2, 4, *size))
    assert rgb.shape == (*expected, 3)


def test_a_preview_costs_a_few_milliseconds_at_most():
    previewer, latent = LatentPreviewer(None), torch.randn(1, 4, 128, 128)
    previewer.to_jpeg_ready(latent)
    times = []
    for _ in range(10):
        start = time.process_time()
        previewer.to_jpeg_ready(latent)
        times.append(time.process_time() - start)
    assert min(times) < 0.02  # a step at this size takes seconds on a CPU
