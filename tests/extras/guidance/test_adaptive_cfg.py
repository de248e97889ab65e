"""Guidance that begins mildly."""

import pytest
import torch

from extras.guidance.adaptive_cfg import adaptive_guided


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 7.0), (0.25, 8.25), (1.0, 12.0)])
def test_a_strong_scale_begins_at_the_mild_one(progress, expected):
    positive, negative = torch.ones(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)
    out = adaptive_guided(
        positive, negative, scale=12.0, mimic_scale=7.0, progress=torch.tensor([progress])
    )
    torch.testing.assert_close(out, torch.full_like(out, expected))


@pytest.mark.parametrize("scale", [1.5, 4.0, 7.0])
def test_a_scale_below_is_plain_guidance(scale):
    positive, negative = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    out = adaptive_guided(
        positive, negative, scale=scale, mimic_scale=7.0, progress=torch.tensor([0.1, 0.9])
    )
    assert torch.equal(out, negative + (positive - negative) * scale)


def test_each_picture_has_its_own_progress():
    positive, negative = torch.ones(2, 4, 2, 2), torch.zeros(2, 4, 2, 2)
    out = adaptive_guided(
        positive, negative, scale=9.0, mimic_scale=7.0, progress=torch.tensor([0.0, 1.0])
    )
    assert [float(picture.mean()) for picture in out] == [7.0, 9.0]
