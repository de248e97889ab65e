"""Noise is a function of the picture's seed: never of the batch, the order or the steps."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ldm_patched.k_diffusion.noise import BrownianNoise, PerImageNoise, seeded_normal, seeds_for

SHAPE = (1, 4, 16, 16)


def increment(path: BrownianNoise, low: float, high: float) -> torch.Tensor:
    """W(high) - W(low), the normalisation undone with the path's own times."""
    span = path._time(path._node(high)) - path._time(path._node(low))
    return path(high, low) * span**0.5


def test_seeds_count_up_from_a_single_one():
    assert seeds_for(3, 41) == (41, 42, 43)
    assert seeds_for(2, [9, 2]) == (9, 2)


def test_a_wrong_number_of_seeds_is_refused():
    with pytest.raises(ValueError, match="3 pictures but 2 seeds"):
        seeds_for(3, [1, 2])


def test_unknown_seeds_come_from_torch_so_that_manual_seed_governs_them():
    torch.manual_seed(5)
    first = seeds_for(2, None)
    torch.manual_seed(5)
    assert seeds_for(2, None) == first
    assert first[0] != first[1]


@pytest.mark.parametrize("seed", [0, 1, 2**32 + 1, 2**63 - 1])
def test_every_bit_of_a_seed_counts(seed):
    others = [s for s in (0, 1, 2**32 + 1, 2**63 - 1) if s != seed]
    assert all(
        not np.array_equal(seeded_normal((8,), seed, 0), seeded_normal((8,), o, 0)) for o in others
    )


def test_per_image_noise_does_not_depend_on_the_batch():
    alone = PerImageNoise(torch.zeros(SHAPE), [7])
    among = PerImageNoise(torch.zeros(3, *SHAPE[1:]), [3, 8, 7])
    for _ in range(3):
        assert torch.equal(alone()[0], among()[2])


def test_per_image_noise_is_new_at_each_call():
    noise = PerImageNoise(torch.zeros(SHAPE), [7])
    assert abs(torch.corrcoef(torch.stack([noise().flatten(), noise().flatten()]))[0, 1]) < 0.1


def test_brownian_noise_does_not_depend_on_the_batch_or_on_earlier_questions():
    alone = BrownianNoise(torch.zeros(SHAPE), [7], 0.03, 14.6)
    among = BrownianNoise(torch.zeros(2, *SHAPE[1:]), [1, 7], 0.03, 14.6)
    for pair in [(14.6, 9.0), (3.0, 2.5), (2.5, 0.03)]:
        among(*pair)
    assert torch.equal(alone(5.0, 1.0)[0], among(5.0, 1.0)[1])


def test_increments_of_adjacent_intervals_add_up():
    path = BrownianNoise(torch.zeros(SHAPE), [11], 0.03, 14.6)
    points = [0.03, 0.05, 0.4, 1.7, 6.0, 14.6]
    parts = sum(increment(path, a, b) for a, b in itertools.pairwise(points))
    torch.testing.assert_close(parts, increment(path, 0.03, 14.6), rtol=0, atol=2e-5)


def test_increments_have_unit_variance_and_disjoint_ones_are_independent():
    path = BrownianNoise(torch.zeros(1, 4, 64, 64), [3], 0.03, 14.6)
    points = [14.6, 12.0, 6.0, 2.0, 0.5, 0.1, 0.03]
    steps = torch.stack([path(a, b).flatten() for a, b in itertools.pairwise(points)])
    expected = torch.eye(len(steps))
    torch.testing.assert_close(torch.cov(steps), expected, rtol=0, atol=0.04)
    assert steps.mean(dim=1).abs().max() < 0.04


def test_overlapping_increments_share_what_they_overlap():
    path = BrownianNoise(torch.zeros(1, 4, 64, 64), [3], 0.03, 14.6)
    whole, half = path(8.0, 2.0).flatten(), path(8.0, 5.0).flatten()
    correlation = torch.corrcoef(torch.stack([whole, half]))[0, 1]
    assert abs(correlation - 0.5**0.5) < 0.02  # sqrt of 3 over 6


def test_an_interval_below_the_grid_still_gives_unit_noise():
    path = BrownianNoise(torch.zeros(1, 4, 64, 64), [3], 0.03, 14.6)
    for sigma in (14.6, 3.0, 0.03):
        assert abs(path(sigma, sigma * (1 - 1e-9)).std() - 1.0) < 0.03


def test_a_range_without_sense_is_refused():
    with pytest.raises(ValueError, match="0 < sigma_min"):
        BrownianNoise(torch.zeros(SHAPE), [3], 0.0, 1.0)


@pytest.mark.parametrize(
    ("device", "locks", "runs_ahead"),
    [("mps", True, False), ("cuda", True, True), ("cuda", False, True)],
)
def test_only_cuda_copies_by_itself_even_where_no_memory_can_be_locked(
    monkeypatch, device, locks, runs_ahead
):
    copies = []

    def to(tensor, target, non_blocking=False):
        if isinstance(target, torch.device):
            copies.append(non_blocking)
        return tensor

    def pin_memory(tensor):
        if not locks:
            raise RuntimeError("CUDA error: no more memory may be locked")
        return tensor

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    like = SimpleNamespace(shape=(1, 4), dtype=torch.float32, device=torch.device(device))
    assert PerImageNoise(like, [1])().shape == (1, 4)
    assert copies == [runs_ahead]
