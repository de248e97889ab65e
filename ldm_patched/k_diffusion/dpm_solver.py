"""DPM-Solver (Lu et al. 2022, arXiv:2206.00927): of up to third order, singlestep.

Exponential integrators of the noise eps = (x - denoised) / sigma over t = -log sigma. Both
samplers choose their own levels between the schedule's ends. Where the schedule ends in 0, the
last evaluation takes away what noise is left.
"""

import math

import torch
from torch import Tensor

from ldm_patched.k_diffusion.common import Run, get_ancestral_step, sampler
from ldm_patched.k_diffusion.noise import NoiseSampler


class _Solver:
    """Steps in t, where each picture may be at a time of its own: times are (B,) float64."""

    def __init__(self, run: Run, x: Tensor) -> None:
        self.run = run
        self._shape = (-1, *[1] * (x.ndim - 1))
        self.dtype = torch.promote_types(x.dtype, torch.float32)
        self.device = x.device

    def wide(self, values: Tensor) -> Tensor:
        """(B,) ready to multiply x; made short before it is moved, for devices without float64."""
        return values.to(self.dtype).to(self.device).reshape(self._shape)

    def eps(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(noise, prediction) at time t."""
        sigma = torch.exp(-t).to(self.dtype).to(self.device)
        denoised = self.run.model(x, sigma, **self.run.extra_args)
        return (x - denoised) / sigma.reshape(self._shape), denoised

    def first(self, x: Tensor, t: Tensor, h: Tensor, eps: Tensor) -> Tensor:
        """One step of DPM-Solver-1."""
        return x - self.wide(torch.exp(-t - h) * torch.expm1(h)) * eps

    def second(
        self, x: Tensor, t: Tensor, h: Tensor, eps: Tensor, other: Tensor, r: float
    ) -> Tensor:
        """Of DPM-Solver-2. other: the noise at share r of the step."""
        growth = torch.exp(-t - h) * torch.expm1(h)
        return x - self.wide(growth) * eps - self.wide(growth / (2 * r)) * (other - eps)

    def middle(self, x: Tensor, t: Tensor, h: Tensor, eps: Tensor, other: Tensor) -> Tensor:
        """x at 2/3 of a step of DPM-Solver-3. other: the noise at 1/3."""
        part = h * (2 / 3)
        bend = torch.exp(-t - part) * 2.0 * (torch.expm1(part) / part - 1.0)
        return self.first(x, t, part, eps) - self.wide(bend) * (other - eps)

    def third(self, x: Tensor, t: Tensor, h: Tensor, eps: Tensor, other: Tensor) -> Tensor:
        """Of DPM-Solver-3. other: the noise at 2/3 of the step."""
        bend = torch.exp(-t - h) * 1.5 * (torch.expm1(h) / h - 1.0)
        return self.first(x, t, h, eps) - self.wide(bend) * (other - eps)


def _ends(run: Run) -> tuple[float, float]:
    """(t of the first level, t of the last one above 0)."""
    lowest = min(level for level in run.levels if level > 0)
    return -math.log(run.levels[0]), -math.log(lowest)


@sampler
def sample_dpm_fast(
    run: Run,
    x: Tensor,
    eta: float = 0.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """DPM-Solver-Fast: `steps` evaluations in even steps of t, of third order but for the last.

    eta: 0 to 1, the share of noise that is taken anew.
    """
    solver, noise = _Solver(run, x), run.noise(noise_sampler)
    clean = run.levels[-1] == 0
    budget = run.steps - clean
    start, end = _ends(run)
    used = 0
    for order, t, t_next in _fast_plan(budget, start, end):
        sigma, following = math.exp(-t), math.exp(-t_next)
        down, up = get_ancestral_step(sigma, following, eta)
        times = torch.full((x.shape[0],), t, dtype=torch.float64)
        h = torch.full_like(times, -math.log(down) - t)
        eps, denoised = solver.eps(x, times)
        run.report(used, x, denoised, sigma)
        if order == 1:
            x = solver.first(x, times, h, eps)
        else:
            r = 1 / 3 if order == 3 else 1 / 2
            ahead = solver.first(x, times, h * r, eps)
            other, denoised = solver.eps(ahead, times + h * r)
            run.report(used + 1, ahead, denoised, sigma)
            if order == 3:
                ahead = solver.middle(x, times, h, eps, other)
                other, denoised = solver.eps(ahead, times + h * (2 / 3))
                run.report(used + 2, ahead, denoised, sigma)
                x = solver.third(x, times, h, eps, other)
            else:
                x = solver.second(x, times, h, eps, other, r)
        used += order
        if up > 0:
            x = x + noise(sigma, following) * (s_noise * up)
    return _rest(run, solver, x, torch.full((x.shape[0],), end)) if clean else x


def _fast_plan(budget: int, start: float, end: float) -> list[tuple[int, float, float]]:
    """(order, t, next t) of each step, with `budget` evaluations in all."""
    if budget < 1 or start == end:
        return []
    whole, rest = divmod(budget, 3)
    orders = [3] * (whole - 1) + [2, 1] if rest == 0 else [3] * whole + [rest]
    width = (end - start) / len(orders)
    return [(order, start + k * width, start + (k + 1) * width) for k, order in enumerate(orders)]


def _rest(run: Run, solver: _Solver, x: Tensor, times: Tensor) -> Tensor:
    """The prediction at these times, which is a run's last."""
    _, denoised = solver.eps(x, times)
    run.report(run.steps - 1, x, denoised)
    return denoised


@sampler
def sample_dpm_adaptive(
    run: Run,
    x: Tensor,
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    accept_safety: float = 0.81,
    longest: int = 400,
) -> Tensor:
    """DPM-Solver-12 or -23: steps as long as the error of each picture allows, its own for each.

    The schedule gives the ends and how progress is counted, not the number of evaluations: the
    callback hears of every round, its "i" is the share of -log sigma that is behind, in steps of
    the schedule, and so may come more than once or pass some over.
    Pictures of one batch are at different levels, but what acts for a part of the time alone
    (a control, a timed prompt, the refiner) begins and ends for all by the first one's: sample
    one by one where that matters, as the worker does.
    order: 2 or 3. rtol, atol: error that is let pass. longest: rounds after which what is left is
    taken in one leap. Raises ValueError for another order.
    """
    if order not in (2, 3):
        raise ValueError(f"order must be 2 or 3, got {order}.")
    clean = run.levels[-1] == 0
    start, end = _ends(run)
    solver, whole = _Solver(run, x), run.steps - clean
    t = torch.full((x.shape[0],), start, dtype=torch.float64)
    h, before = torch.full_like(t, h_init), x
    for _ in range(longest):
        left = end - t
        if not bool((left > 1e-5).any()):
            break
        step = torch.minimum(h, left).clamp(min=1e-9)  # pictures that are done stand still
        low, high, denoised = _embedded(solver, x, t, step, order)
        behind = float((t - start).min()) / (end - start)
        run.report(min(int(behind * whole), whole - 1), x, denoised)
        scale = torch.maximum(low.abs(), before.abs()).mul_(rtol).clamp_(min=atol)
        error = ((low - high) / scale).flatten(1).cpu().double().pow(2).mean(1).sqrt()
        if not bool(error.isfinite().all()):
            break  # a broken network: what comes of it tells whoever looks
        factor = 1.0 + torch.atan((1e-8 + error) ** (-1.0 / order) - 1.0)
        passed = (factor >= accept_safety) & (left > 1e-5)
        moved = solver.wide(passed) > 0
        before = torch.where(moved, low, before)
        x = torch.where(moved, high, x)
        t = torch.where(passed, t + step, t)
        h = torch.where(left > 1e-5, step * factor, h)
    if clean:
        return _rest(run, solver, x, t)
    if not bool((end - t > 1e-5).any()):
        return x
    eps, _ = solver.eps(x, t)
    return solver.first(x, t, end - t, eps)


def _embedded(
    solver: _Solver, x: Tensor, t: Tensor, h: Tensor, order: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(result of the lower order, of the higher one, the prediction at t)."""
    eps, denoised = solver.eps(x, t)
    r = 1 / 3 if order == 3 else 1 / 2
    other, _ = solver.eps(solver.first(x, t, h * r, eps), t + h * r)
    if order == 2:
        low = solver.first(x, t, h, eps)
        return low, solver.second(x, t, h, eps, other, r), denoised
    low = solver.second(x, t, h, eps, other, r)
    last, _ = solver.eps(solver.middle(x, t, h, eps, other), t + h * (2 / 3))
    return low, solver.third(x, t, h, eps, last), denoised
