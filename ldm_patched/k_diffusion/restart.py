"""Restart sampling (Xu et al. 2023, arXiv:2306.14878): some levels are gone through again.

Heun steps down; near the picture's end the noise of a higher level is added back and the way from
there is walked anew, which corrects errors that have piled up.
"""

import math

from torch import Tensor

from ldm_patched.k_diffusion.common import Run, sampler
from ldm_patched.k_diffusion.euler import heun_step
from ldm_patched.k_diffusion.noise import NoiseSampler
from ldm_patched.k_diffusion.schedules import get_sigmas_karras

LOW, HIGH = 0.1, 2.0


@sampler
def sample_restart(
    run: Run,
    x: Tensor,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    restarts: int | None = None,
    restart_steps: int | None = None,
) -> Tensor:
    """As many Heun steps as the schedule has, restarts included.

    restarts: how often the way from sigma 2 to 0.1 is walked again, in restart_steps each; by
    default never below 20 steps, once with 9 from there on, twice with a quarter from 36 on.
    """
    levels = restart_levels(run.levels, restarts, restart_steps)
    run.levels = [start for start, _ in levels] + [run.levels[-1]]
    run.sigmas = run.sigmas.new_tensor(run.levels)
    noise, reached = run.noise(noise_sampler), run.levels[0]
    for i, (sigma, following) in enumerate(levels):
        if sigma > reached:  # up again
            x = x + noise(reached, sigma) * (s_noise * math.sqrt(sigma**2 - reached**2))
        denoised = run.denoise(x, sigma)
        run.report(i, x, denoised)
        x = heun_step(run, x, denoised, sigma, following)
        reached = following
    return x


def restart_levels(
    levels: list[float], restarts: int | None = None, restart_steps: int | None = None
) -> list[tuple[float, float]]:
    """(from, to) of every step; as many as `levels` has steps.

    The first way down is the schedule, thinned out by what the restarts take.
    """
    steps = len(levels) - 1
    if restarts is None:
        restarts = 0 if steps < 20 else 1 if steps < 36 else 2
    each = (9 if steps < 36 else steps // 4) if restart_steps is None else restart_steps
    rest = steps - restarts * each
    if restarts < 1 or each < 1 or rest < 2 or not levels[-2] < LOW < HIGH < levels[0]:
        return list(zip(levels[:-1], levels[1:], strict=True))
    down = [*_thinned(levels[:-1], rest), levels[-1]]
    turn = max(range(len(down) - 1), key=lambda k: -abs(math.log(down[k] / LOW)))
    again = get_sigmas_karras(each + 1, down[turn], HIGH)[:-1].tolist()
    again[-1] = down[turn]
    walked = list(zip(down[:-1], down[1:], strict=True))
    extra = list(zip(again[:-1], again[1:], strict=True)) * restarts
    return walked[:turn] + extra + walked[turn:]


def _thinned(levels: list[float], count: int) -> list[float]:
    """`count` of the levels, evenly, ends included; log sigma between them where need be."""
    found = []
    for k in range(count):
        place = k * (len(levels) - 1) / (count - 1)
        low = min(int(place), len(levels) - 2)
        share = place - low
        found.append(levels[low] ** (1 - share) * levels[low + 1] ** share)
    return found
