"""How fast each sampler nears the exact solution, and that stochastic ones draw from the target."""

import inspect
import math
import os
import re
from pathlib import Path

import pytest
import torch

from ldm_patched.k_diffusion import sampling
from ldm_patched.modules.samplers import SAMPLERS
from tests.support.engine_report import record
from tests.support.mixture import Mixture

MIXTURE = Mixture()
START = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2)).double() * 14.6146

# the error's quotient when steps double: twice as good is first order, four times is second
ORDERS = {
    "euler": 1,
    "euler_ancestral": 1,
    "heun": 2,
    "heunpp2": 1,
    "dpm_2": 2,
    "dpm_2_ancestral": 2,
    "lms": 2,
    "dpm_fast": 2,
    "dpmpp_2s_ancestral": 2,
    "dpmpp_sde": 2,
    "dpmpp_2m": 2,
    "dpmpp_2m_sde": 2,
    "dpmpp_3m_sde": 2,
    "tcd": 1,
    "restart": 2,
    "ddim": 1,
    "uni_pc": 2,
    "uni_pc_bh2": 2,
    "deis": 2,
    "ipndm": 2,
    "res_multistep": 2,
}
# lcm and ddpm always add noise; dpm_adaptive takes no steps of a schedule
TIMELESS = {"lcm", "ddpm", "dpm_adaptive"}


def schedule(steps: int) -> torch.Tensor:
    """A schedule in float64 that stops above 0, where the error of the last step would hide."""
    low, high = 0.1 ** (1 / 7), 14.6146 ** (1 / 7)
    return torch.linspace(high, low, steps + 1, dtype=torch.float64) ** 7


def solve(name: str, steps: int, **options) -> torch.Tensor:
    if "eta" in inspect.signature(SAMPLERS[name]).parameters:
        options["eta"] = 0.0
    return SAMPLERS[name](MIXTURE.model, START, schedule(steps), **options)


def note(name: str, reference: str, difference: float, tolerance: float) -> None:
    record("sampler", name, os.environ["PYTEST_CURRENT_TEST"], reference, difference, tolerance)


@pytest.fixture(scope="module")
def truth() -> torch.Tensor:
    """Richardson's extrapolation of Heun's method: within 1e-7."""
    coarse, fine = solve("heun", 600), solve("heun", 1200)
    return fine + (fine - coarse) / 3


def test_every_sampler_is_measured():
    plain = {name for name in SAMPLERS if not name.endswith("_gpu")}
    assert plain == set(ORDERS) | TIMELESS
    for name in SAMPLERS.keys() - plain:
        assert SAMPLERS[name] is SAMPLERS[name.removesuffix("_gpu")]


@pytest.mark.parametrize("name", sorted(ORDERS))
def test_the_error_falls_with_the_method_s_order(name, truth):
    counts = (50, 101) if name == "dpm_fast" else (60, 120)  # 17 and 34 steps of up to three calls
    errors = [float((solve(name, n) - truth).abs().mean()) for n in counts]
    gain = errors[0] / errors[1]
    words = (
        f"exact solution, order {ORDERS[name]}, {counts[1]} steps: {gain:.1f} × nearer than half"
    )
    tolerance = 0.02 if ORDERS[name] == 1 else 1e-3
    note(name, words, errors[1], tolerance)
    assert errors[1] < tolerance
    if ORDERS[name] == 1:
        assert 1.8 <= gain <= 2.2
    else:
        assert gain >= 3.5


@pytest.mark.parametrize("order", [2, 3])
def test_the_adaptive_solver_is_as_exact_as_it_is_told_to_be(order, truth):
    calls = []

    def model(x, sigma):
        calls.append(float(sigma[0]))
        return MIXTURE.model(x, sigma)

    def error(tolerance: float) -> float:
        options = {"rtol": tolerance, "atol": tolerance / 6, "order": order}
        out = sampling.sample_dpm_adaptive(model, START, schedule(10), **options)
        return float((out - truth).abs().mean())

    loose, many = error(0.05), len(calls)
    tight = error(5e-4)
    note("dpm_adaptive", f"exact solution, order {order}, rtol 0.05", loose, 0.1)
    note("dpm_adaptive", f"exact solution, order {order}, rtol 5e-4", tight, 1e-3)
    assert loose < 0.1
    assert tight < 1e-3
    assert many < len(calls) - many  # exactness has its price


@pytest.mark.parametrize(
    ("sampler", "sibling", "tolerance"),
    [
        ("euler_ancestral", "euler", 1e-12),
        ("ddim", "euler", 1e-12),
        ("tcd", "euler", 1e-12),
        ("dpm_2_ancestral", "dpm_2", 1e-12),
        ("dpmpp_2m_sde", "dpmpp_2m", 1e-12),
        ("dpmpp_sde", "dpmpp_2s_ancestral", 1e-12),
        ("restart", "heun", 1e-12),  # without restarts
        ("dpmpp_3m_sde", "dpmpp_2m", 1e-2),  # another method, of the same equation
        ("res_multistep", "dpmpp_2m", 1e-2),
    ],
)
def test_without_noise_they_equal_their_deterministic_siblings(sampler, sibling, tolerance):
    options = {"restarts": 0} if sampler == "restart" else {}
    difference = float((solve(sampler, 30, **options) - solve(sibling, 30)).abs().max())
    note(sampler, f"{sibling}, without noise", difference, tolerance)
    assert difference <= tolerance


@pytest.mark.parametrize(
    ("name", "options", "steps"),  # those of first order need more steps to be as near
    [
        ("euler_ancestral", {}, 400),
        ("ddpm", {}, 400),
        ("ddim", {"eta": 1.0}, 400),
        ("euler", {"s_churn": 40.0}, 400),
        ("heun", {"s_churn": 40.0}, 100),
        ("dpm_2", {"s_churn": 40.0}, 100),
        ("dpm_2_ancestral", {}, 100),
        ("dpmpp_2s_ancestral", {}, 100),
        ("dpmpp_sde", {}, 60),
        ("dpmpp_2m_sde", {"solver_type": "midpoint"}, 60),
        ("dpmpp_2m_sde", {"solver_type": "heun"}, 60),
        ("dpmpp_3m_sde", {}, 60),
        ("restart", {}, 100),
        ("dpm_fast", {"eta": 1.0}, 150),
    ],
)
def test_stochastic_samplers_draw_from_the_distribution(name, options, steps):
    sigmas = sampling.get_sigmas_karras(steps, 0.02, 40.0)
    x = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(3)) * 40.0
    out = SAMPLERS[name](MIXTURE.model, x, sigmas, extra_args={"seed": 3}, **options)
    near_left = float((out < -0.6).float().mean())  # the left mode, and a little of the middle
    exact = sum(
        w * 0.5 * (1 + math.erf((-0.6 - m) / (MIXTURE.std * math.sqrt(2))))
        for m, w in zip(MIXTURE.means, MIXTURE.weights, strict=True)
    )
    differences = {
        abs(float(out.mean()) - MIXTURE.mean): 0.03,
        abs(float(out.var()) / MIXTURE.variance - 1): 0.05,
        abs(near_left - exact): 0.02,
    }
    words = f"known distribution (mean, variance, share of a mode), {steps} steps"
    note(name, words, max(differences), 0.05)
    for difference, tolerance in differences.items():
        assert difference < tolerance


@pytest.mark.parametrize("name", ["lcm", "tcd"])
def test_one_leap_after_the_other_draws_from_a_gaussian(name):
    """A consistency function of a Gaussian is exact, and noise put back keeps its spread."""
    mean, std = 0.5, 0.7
    options = {"eta": 1.0} if name == "tcd" else {}

    def consistency(x, sigma, seed):
        return mean + (x - mean) * std / math.sqrt(std**2 + float(sigma[0]) ** 2)

    x = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(3)) * 80.0
    sigmas = torch.tensor([80.0, 4.0, 1.0, 0.3, 0.0])
    out = SAMPLERS[name](consistency, x, sigmas, extra_args={"seed": 4}, **options)
    spread = abs(float(out.std()) / std - 1)
    tolerance = 0.05 if name == "tcd" else 0.02  # tcd leaps to timestep 0, which has sigma 0.03
    note(name, "spread of a Gaussian, 4 steps", spread, tolerance)
    assert spread < tolerance
    assert abs(float(out.mean()) - mean) < 0.02


def documented() -> dict[str, tuple[int, bool]]:
    """Sampler → (calls, noise) as docs/samplers.md has it."""
    text = (Path(__file__).parents[3] / "docs" / "samplers.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]*`) \| (\d) \| (yes|no) \|", text, re.MULTILINE)
    return {
        name: (int(calls), noise == "yes")
        for names, calls, noise in rows
        for name in re.findall("`(.*?)`", names)
    }


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_calls_and_noise_are_as_documented(name):
    steps, seen = 24, []
    sigmas = sampling.get_sigmas_karras(steps, 0.03, 14.6)
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 14.6

    def picture(seed: int) -> torch.Tensor:
        def model(x, sigma, seed):
            seen.append(1)
            return MIXTURE.model(x, sigma)

        return SAMPLERS[name](model, x, sigmas, extra_args={"seed": seed})

    calls, noise = documented()[name]
    assert torch.equal(picture(1), picture(2)) != noise
    if name == "dpm_adaptive":
        assert (len(seen) // 2 - 1) % calls == 0
    else:
        assert round(len(seen) / 2 / steps) == calls
