"""The plan of restart sampling: the way down, and which part of it is walked again."""

import itertools

import pytest
import torch

from ldm_patched.k_diffusion import sampling
from ldm_patched.k_diffusion.restart import restart_levels


def levels_of(steps: int) -> list[float]:
    return sampling.get_sigmas_karras(steps, 0.0291672, 14.614641).tolist()


@pytest.mark.parametrize("steps", [1, 2, 5, 19, 20, 35, 36, 60, 200])
def test_restarts_count_as_steps(steps):
    plan = restart_levels(levels_of(steps))
    assert len(plan) == steps
    assert plan[0][0] == pytest.approx(14.614641)
    assert plan[-1][1] == 0.0
    assert all(start > end for start, end in plan)
    ups = [(b, a) for (_, b), (a, _) in itertools.pairwise(plan) if a != b]
    assert len(ups) == (0 if steps < 20 else 1 if steps < 36 else 2)
    for low, high in ups:
        assert high == pytest.approx(2.0)
        assert 0.05 < low < 0.2


def test_few_steps_follow_the_schedule_itself():
    levels = levels_of(19)
    assert restart_levels(levels) == list(itertools.pairwise(levels))


def test_a_schedule_that_does_not_reach_so_far_is_left_alone():
    high = [14.0, 7.0, 3.0, 1.0, 0.5] + [0.4 - 0.01 * k for k in range(25)]
    assert restart_levels(high, restarts=1, restart_steps=5) == list(itertools.pairwise(high))
    low = [k / 20 for k in range(30, -1, -1)]  # part of a picture: starts at 1.5
    assert restart_levels(low, restarts=1, restart_steps=5) == list(itertools.pairwise(low))


def test_the_noise_that_is_added_brings_x_up_to_the_level():
    sigmas = sampling.get_sigmas_karras(40, 0.0291672, 14.614641)
    asked: list[tuple[float, float]] = []

    def noise(low: float, high: float) -> torch.Tensor:
        asked.append((low, high))
        return torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(len(asked)))

    spreads = {}

    def empty(x, sigma):  # a model of a black picture: x is nothing but noise
        spreads[float(sigma[0])] = float(x.std())
        return torch.zeros_like(x)

    x = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0)) * 14.614641
    assert not sampling.sample_restart(empty, x, sigmas, noise_sampler=noise).any()
    assert len(asked) == 2
    assert all(abs(spread / sigma - 1) < 0.02 for sigma, spread in spreads.items())
