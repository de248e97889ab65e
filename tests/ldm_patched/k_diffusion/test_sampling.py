"""Samplers against float64 formulas, statistics of known distributions, and their promises."""

import math

import numpy as np
import pytest
import torch

from ldm_patched.k_diffusion import sampling
from tests.support.engine_report import agree
from tests.support.mixture import Mixture

MIXTURE = Mixture()
ALL = [getattr(sampling, name) for name in sampling.__all__ if name.startswith("sample_")]


def starting_noise(seed: int, *shape: int, sigma: float = 14.6146) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * sigma


def reference_euler(x: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """dx/dsigma = (x - D(x, sigma)) / sigma, forward Euler."""
    for now, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = x + (following - now) * (x - MIXTURE.denoised(x, now)) / now
    return x


def reference_dpmpp_2m(x: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """Algorithm 2 of arXiv:2211.01095 for alpha = 1: x scaled by sigma ratio, e^-h - 1 weights."""
    lambdas = [-math.log(s) if s > 0 else math.inf for s in sigmas]
    buffer: list[np.ndarray] = []
    for i in range(1, len(sigmas)):
        buffer.append(MIXTURE.denoised(x, sigmas[i - 1]))
        h = lambdas[i] - lambdas[i - 1]
        if len(buffer) == 1 or sigmas[i] == 0:
            towards = buffer[-1]
        else:
            r = (lambdas[i - 1] - lambdas[i - 2]) / h
            towards = (1 + 1 / (2 * r)) * buffer[-1] - 1 / (2 * r) * buffer[-2]
        x = sigmas[i] / sigmas[i - 1] * x - (math.exp(-h) - 1) * towards
    return x


def reference_res_multistep(x: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """dx/dt = D - x over t = -log sigma, D linear through the last two, integrated numerically."""
    before = None
    for now, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        denoised = MIXTURE.denoised(x, now)
        if following == 0:
            return denoised
        h = math.log(now / following)
        nodes, weights = np.polynomial.legendre.leggauss(20)
        s, weights = 0.5 * h * (nodes + 1), 0.5 * h * weights * np.exp(0.5 * h * (nodes - 1))
        slope = 0.0 if before is None else (denoised - before[0]) / before[1]
        x = math.exp(-h) * x + weights.sum() * denoised + (weights * s).sum() * slope
        before = denoised, h
    return x


def reference_heunpp2(x: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """The mean of three slopes (of two before the end), weighed by sigma over the first sigma."""

    def slope(x: np.ndarray, sigma: float) -> np.ndarray:
        return (x - MIXTURE.denoised(x, sigma)) / sigma

    last = len(sigmas) - 2
    for i, (now, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        first = slope(x, now)
        if i == last:
            return x + (following - now) * first
        ahead = x + (following - now) * first
        second = slope(ahead, following)
        if i == last - 1:
            w = following / (2 * sigmas[0])
            mean = (1 - w) * first + w * second
        else:
            third = slope(ahead + (sigmas[i + 2] - following) * second, sigmas[i + 2])
            w, v = following / (3 * sigmas[0]), sigmas[i + 2] / (3 * sigmas[0])
            mean = (1 - w - v) * first + w * second + v * third
        x = x + (following - now) * mean
    return x


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize(
    ("sampler", "reference"),
    [
        (sampling.sample_euler, reference_euler),
        (sampling.sample_dpmpp_2m, reference_dpmpp_2m),
        (sampling.sample_res_multistep, reference_res_multistep),
        (sampling.sample_heunpp2, reference_heunpp2),
    ],
)
def test_trajectories_equal_the_formulas_in_float64(sampler, reference, steps):
    sigmas = sampling.get_sigmas_karras(steps, 0.0291672, 14.614641)
    x = starting_noise(1, 2, 4, 16, 16)
    seen: list[torch.Tensor] = []
    out = sampler(MIXTURE.model, x, sigmas, callback=lambda state: seen.append(state["x"]))
    doubles = sigmas.double().numpy()
    # heunpp2 looks ahead, so half of its schedule is another run
    for i in () if reference is reference_heunpp2 else (1, steps // 2, steps - 1):
        expected = reference(x.double().numpy(), doubles[: i + 1])
        assert np.abs(seen[i].numpy() - expected).max() <= 1e-4 * max(1.0, doubles[i])
    expected = torch.from_numpy(reference(x.double().numpy(), doubles))
    name = sampler.__name__.removeprefix("sample_")
    agree("sampler", name, "the formula in float64", out, expected, 1e-4)


def test_sde_pictures_settle_as_steps_grow():
    x = starting_noise(5, 1, 4, 16, 16)

    def picture(steps: int) -> torch.Tensor:
        sigmas = sampling.get_sigmas_karras(steps, 0.03, 14.6)
        return sampling.sample_dpmpp_2m_sde(MIXTURE.model, x, sigmas, extra_args={"seed": 5})

    last = picture(320)
    distances = [float((picture(n) - last).abs().mean()) for n in (20, 80, 160)]
    assert distances[0] > 1.5 * distances[1] > 1.5 * 1.2 * distances[2]


@pytest.mark.parametrize("sampler", ALL)
def test_the_same_seed_gives_the_same_picture_in_any_batch(sampler):
    sigmas = sampling.get_sigmas_karras(6, 0.03, 14.6)
    starts = {seed: starting_noise(seed, 1, 4, 16, 16) for seed in (1, 2, 3)}

    def run(*seeds: int) -> torch.Tensor:
        x = torch.cat([starts[s] for s in seeds])
        return sampler(MIXTURE.model, x, sigmas, extra_args={"seed": seeds})

    assert torch.equal(run(2)[0], run(1, 2)[1])
    assert torch.equal(run(2)[0], run(2, 3, 1)[0])


@pytest.mark.parametrize("sampler", ALL)
def test_callbacks_see_every_step_and_the_last_prediction_is_the_result(sampler):
    sigmas = sampling.get_sigmas_karras(5, 0.03, 14.6)
    states: list[dict] = []
    x = starting_noise(6, 2, 4, 8, 8)
    out = sampler(MIXTURE.model, x, sigmas, callback=states.append, disable=True)
    assert set(states[0]) == {"x", "i", "sigma", "sigma_hat", "denoised"}
    assert [float(s["sigma"]) for s in states] == sigmas[[s["i"] for s in states]].tolist()
    if sampler is not sampling.sample_dpm_adaptive:
        assert [s["i"] for s in states] == [0, 1, 2, 3, 4]
    if sampler is sampling.sample_lms:  # extrapolates its last step, too
        torch.testing.assert_close(states[-1]["denoised"], out, rtol=0, atol=0.02)
    else:
        assert torch.equal(states[-1]["denoised"], out)
    assert out.shape == x.shape


def test_progress_of_the_adaptive_solver_grows_from_the_first_step_to_the_last():
    sigmas = sampling.get_sigmas_karras(12, 0.03, 14.6)
    steps: list[int] = []
    x = starting_noise(6, 2, 4, 8, 8)
    sampling.sample_dpm_adaptive(
        MIXTURE.model, x, sigmas, callback=lambda state: steps.append(state["i"])
    )
    assert steps == sorted(steps)
    assert steps[0] == 0
    assert steps[-1] == 11
    assert len(set(steps)) >= 5
    assert 5 < len(steps) < 60


def test_the_adaptive_solver_ends_whatever_the_network_gives():
    sigmas = sampling.get_sigmas_karras(12, 0.03, 14.6)
    calls: list[int] = []

    def broken(x, sigma):
        calls.append(1)
        return torch.full_like(x, math.nan)

    def restless(x, sigma):
        return (x * 1e4).sin()

    x = starting_noise(6, 1, 4, 8, 8)
    assert sampling.sample_dpm_adaptive(broken, x, sigmas).isnan().all()
    assert len(calls) == 4
    assert sampling.sample_dpm_adaptive(restless, x, sigmas, longest=20).abs().max() <= 1
    with pytest.raises(ValueError, match="order must be 2 or 3"):
        sampling.sample_dpm_adaptive(restless, x, sigmas, order=4)


@pytest.mark.parametrize("sampler", ALL)
@pytest.mark.parametrize(
    "levels",
    [
        [3.0, 0.0],
        [14.6, 0.3, 0.0],
        [3.0, 1.0],
        [14.6, 3.0, 1.0],
        [5.0, 5.0, 1.0, 1.0, 0.0],  # a level twice is no step
        [1e-3, 0.0],
        [4519.0, 14.6, 1.0, 0.0],
    ],
)
def test_short_and_odd_schedules_are_walked_to_their_end(sampler, levels):
    x = starting_noise(8, 2, 4, 8, 8, sigma=levels[0])
    out = sampler(MIXTURE.model, x, torch.tensor(levels), extra_args={"seed": 1})
    assert out.shape == x.shape
    assert out.isfinite().all()
    spread = float(out.std())
    if levels[-1] == 0:
        assert spread < 2.0 + levels[0]  # some overshoot with so few steps
    else:  # the noise of the last level is still there
        assert 0.4 * levels[-1] < spread < 3.0


@pytest.mark.parametrize("sampler", ALL)
@pytest.mark.parametrize("levels", [[], [0.0], [3.0]])
def test_without_steps_x_comes_back(sampler, levels):
    x = starting_noise(8, 2, 4, 8, 8)
    assert sampler(MIXTURE.model, x, torch.tensor(levels)) is x


@pytest.mark.parametrize("sampler", ALL)
def test_the_caller_s_tensors_stay_as_they_are(sampler):
    sigmas = sampling.get_sigmas_karras(4, 0.03, 14.6)
    x = starting_noise(7, 1, 4, 8, 8)
    before = x.clone()
    sampler(MIXTURE.model, x, sigmas, extra_args={"seed": 1})
    assert torch.equal(x, before)


def test_a_noise_sampler_of_one_s_own_is_used():
    sigmas = torch.tensor([4.0, 2.0, 0.0])
    asked: list[tuple[float, float]] = []

    def noise(sigma: float, following: float) -> torch.Tensor:
        asked.append((sigma, following))
        return torch.zeros(1, 1, 2, 2)

    x = torch.ones(1, 1, 2, 2)
    out = sampling.sample_lcm(lambda x, sigma: x / 2, x, sigmas, noise_sampler=noise)
    assert asked == [(4.0, 2.0)]
    assert torch.equal(out, x / 4)


def test_an_unknown_solver_type_is_refused():
    with pytest.raises(ValueError, match="'midpoint' or 'heun'"):
        sampling.sample_dpmpp_2m_sde(
            MIXTURE.model, torch.ones(1, 1, 2, 2), torch.tensor([1.0, 0.0]), solver_type="rk4"
        )


def test_karras_schedule_gives_the_known_values():
    sigmas = sampling.get_sigmas_karras(30, 0.0291672, 14.614641)
    known = {0: 14.6146, 1: 12.6606, 14: 1.4080, 24: 0.1365, 29: 0.0292, 30: 0.0}
    assert {i: round(float(sigmas[i]), 4) for i in known} == known


def test_exponential_schedule_is_even_in_log_sigma():
    logs = sampling.get_sigmas_exponential(9, 0.03, 14.6)[:-1].log()
    torch.testing.assert_close(logs.diff(), torch.full((8,), float(logs[-1] - logs[0]) / 8))


def test_one_step_schedules_start_at_the_top():
    assert sampling.get_sigmas_karras(1, 0.03, 14.6).tolist() == pytest.approx([14.6, 0.0])
    assert sampling.get_sigmas_exponential(1, 0.03, 14.6).tolist() == pytest.approx([14.6, 0.0])


@pytest.mark.parametrize(("start", "end"), [(14.6, 8.0), (1.0, 0.5), (0.1, 0.0)])
def test_an_ancestral_step_keeps_the_total_noise(start, end):
    down, up = sampling.get_ancestral_step(start, end)
    assert down**2 + up**2 == pytest.approx(end**2)
    assert sampling.get_ancestral_step(start, end, eta=0.0) == (end, 0.0)


def test_to_d_takes_one_sigma_for_each_picture():
    x, clean = torch.full((2, 1, 1, 1), 6.0), torch.zeros(2, 1, 1, 1)
    assert sampling.to_d(x, torch.tensor([2.0, 3.0]), clean).flatten().tolist() == [3.0, 2.0]
    assert sampling.to_d(x, 2.0, clean).flatten().tolist() == [3.0, 3.0]
