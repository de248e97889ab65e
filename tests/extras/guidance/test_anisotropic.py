"""The sharpness filter against its formula, written out pixel by pixel in float64."""

import math

import numpy as np
import pytest
import torch

from extras.guidance.anisotropic import adaptive_anisotropic_filter, sharpened


def reflected(index: int, size: int) -> int:
    """Where a place beyond the edge looks to; the edge itself is not repeated."""
    if index < 0:
        return -index
    return 2 * (size - 1) - index if index >= size else index


def by_the_formula(x: np.ndarray, g: np.ndarray) -> np.ndarray:
    """One picture (C, H, W), guide likewise."""
    g = (g - g.mean()) / (g.std(ddof=1) + 1e-5)
    _, height, width = x.shape
    out = np.zeros_like(x)
    for top in range(height):
        for left in range(width):
            total, weights = np.zeros(len(x)), 0.0
            for dy in range(-6, 7):
                for dx in range(-6, 7):
                    row, column = reflected(top + dy, height), reflected(left + dx, width)
                    distance = np.abs(g[:, row, column] - g[:, top, left]).sum()
                    weight = math.exp(-0.5 * distance**2 / 9) * math.exp(-0.5 * dy**2 / 9)
                    weight *= math.exp(-0.5 * dx**2 / 9)
                    total += weight * x[:, row, column]
                    weights += weight
            out[:, top, left] = total / weights
    return out


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3 + 0.5


def test_it_is_the_formula():
    x, g = draw(1, 2, 4, 9, 8), draw(2, 2, 4, 9, 8)
    expected = np.stack(
        [by_the_formula(*pair) for pair in zip(x.double().numpy(), g.double().numpy(), strict=True)]
    )
    found = adaptive_anisotropic_filter(x, g)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)


def test_without_a_guide_the_picture_guides_itself():
    x = draw(3, 1, 4, 10, 10)
    assert torch.equal(adaptive_anisotropic_filter(x), adaptive_anisotropic_filter(x, x))


def test_it_smooths_flat_parts_and_keeps_an_edge():
    side = torch.cat([torch.full((16, 8), -4.0), torch.full((16, 8), 4.0)], dim=1)
    guide = side.expand(1, 4, 16, 16)
    found = adaptive_anisotropic_filter(guide + draw(4, 1, 4, 16, 16) * 0.1, guide)
    noise = (found - guide).mean(dim=(2, 3), keepdim=True)
    assert (found - guide - noise).std() < 0.1  # the noise had a deviation of 0.3
    assert (found[..., 8] - found[..., 7]).min() > 7  # of 8


@pytest.mark.parametrize("size", [(4, 5), (6, 20), (1, 1), (7, 7)])
def test_pictures_smaller_than_the_window_work(size):
    x = draw(5, 1, 4, *size)
    found = adaptive_anisotropic_filter(x, draw(6, 1, 4, *size))
    assert found.shape == x.shape
    assert found.abs().max() <= x.abs().max() + 1e-5


def test_the_input_stays_as_it_is():
    x, g = draw(7, 1, 4, 8, 8), draw(8, 1, 4, 8, 8)
    before = x.clone(), g.clone()
    sharpened(x, g, sharpness=5.0, progress=torch.ones(1))
    assert torch.equal(x, before[0])
    assert torch.equal(g, before[1])


@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
def test_the_share_grows_with_sharpness_and_progress(progress):
    x, x0 = draw(9, 2, 4, 8, 8), draw(10, 2, 4, 8, 8)
    found = sharpened(x, x0, sharpness=30.0, progress=torch.full((2,), progress))
    share = 0.001 * 30 * progress
    filtered = adaptive_anisotropic_filter(x, x0).double()
    expected = (1 - share) * x.double() + share * filtered
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
