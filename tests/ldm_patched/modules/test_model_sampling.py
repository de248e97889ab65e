"""Noise levels and predictions against the formulas in float64."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ldm_patched.modules import model_sampling as ms
from ldm_patched.modules.model_base import ModelType, model_sampling
from ldm_patched.modules.schedulers import sampling_in_force


def sigmas_by_hand() -> np.ndarray:
    """Stable Diffusion's 1,000 sigmas, by their definition."""
    betas = np.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000) ** 2
    cumulative = np.cumprod(1 - betas)
    return np.sqrt((1 - cumulative) / cumulative)


def with_settings(**settings: object) -> SimpleNamespace:
    return SimpleNamespace(sampling_settings=settings)


@pytest.fixture
def discrete() -> ms.ModelSamplingDiscrete:
    return ms.ModelSamplingDiscrete()


def test_the_default_schedule_is_stable_diffusions(discrete: ms.ModelSamplingDiscrete) -> None:
    assert discrete.sigma_min.item() == pytest.approx(0.0291672, rel=1e-5)
    assert discrete.sigma_max.item() == pytest.approx(14.614641, rel=1e-6)
    np.testing.assert_allclose(discrete.sigmas.numpy(), sigmas_by_hand(), rtol=1e-6)
    np.testing.assert_allclose(
        discrete.alphas_cumprod.numpy(), 1 / (1 + sigmas_by_hand() ** 2), rtol=1e-6
    )
    assert set(discrete.state_dict()) == {"sigmas", "log_sigmas", "alphas_cumprod"}
    assert (discrete.num_timesteps, discrete.linear_start, discrete.linear_end) == (
        1000,
        0.00085,
        0.012,
    )


def test_timesteps_and_sigmas_go_round(discrete: ms.ModelSamplingDiscrete) -> None:
    steps = torch.arange(1000)
    assert torch.equal(discrete.timestep(discrete.sigmas), steps)
    torch.testing.assert_close(discrete.sigma(steps), discrete.sigmas)
    between = discrete.sigma(torch.tensor([10.25]))
    wanted = discrete.sigmas[10] ** 0.75 * discrete.sigmas[11] ** 0.25
    torch.testing.assert_close(between, wanted[None])
    outside = discrete.sigma(torch.tensor([-5.0, 5000.0]))
    torch.testing.assert_close(outside, torch.stack([discrete.sigma_min, discrete.sigma_max]))
    assert discrete.timestep(torch.tensor([[1e-9, 1e9]])).tolist() == [[0, 999]]


def test_percent_of_the_discrete_schedule(discrete: ms.ModelSamplingDiscrete) -> None:
    assert discrete.percent_to_sigma(0.0) == 999999999.9
    assert discrete.percent_to_sigma(1.0) == 0.0
    s = sigmas_by_hand()
    assert discrete.percent_to_sigma(0.5) == pytest.approx(math.sqrt(s[499] * s[500]), rel=1e-5)
    assert isinstance(discrete.percent_to_sigma(0.2), float)


def test_the_schedule_comes_from_the_settings() -> None:
    made = ms.ModelSamplingDiscrete(
        with_settings(beta_schedule="sqrt_linear", linear_start=0.001, linear_end=0.02)
    )
    cumulative = np.cumprod(1 - np.linspace(0.001, 0.02, 1000))
    np.testing.assert_allclose(made.alphas_cumprod.numpy(), cumulative, rtol=1e-5)


def test_given_betas_are_used(discrete: ms.ModelSamplingDiscrete) -> None:
    betas = torch.linspace(0.1, 0.3, 5, dtype=torch.float64)
    discrete._register_schedule(given_betas=betas)
    assert discrete.num_timesteps == 5
    np.testing.assert_allclose(
        discrete.alphas_cumprod.numpy(), np.cumprod(1 - betas.numpy()), rtol=1e-6
    )


def test_zero_terminal_snr() -> None:
    plain = ms.ModelSamplingDiscrete()
    made = ms.ModelSamplingDiscrete(with_settings(zsnr=True))
    assert made.sigma_max.item() == pytest.approx(4518.76, rel=1e-4)
    torch.testing.assert_close(made.sigma_min, plain.sigma_min, rtol=1e-3, atol=0)
    signal = 1 / np.sqrt(1 + sigmas_by_hand() ** 2)
    signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    wanted = np.sqrt(1 / signal[:-1] ** 2 - 1)
    np.testing.assert_allclose(made.sigmas[:-1].numpy(), wanted, rtol=2e-3)
    assert torch.all(made.sigmas.diff() > 0)


# --- predictions -------------------------------------------------------------------------------

DATA = torch.Generator().manual_seed(0)
PICTURE, NOISE = torch.randn(2, 2, 4, 3, 3, generator=DATA, dtype=torch.float64)
SIGMA = torch.tensor([0.3, 7.0], dtype=torch.float64)


def made(prediction: type, data: float) -> ms.EPS:
    found = prediction()
    found.sigma_data = data
    return found


@pytest.mark.parametrize("data", [1.0, 0.5])
def test_a_perfect_prediction_gives_the_picture(data: float) -> None:
    s = SIGMA[:, None, None, None]
    noised = PICTURE + s * NOISE
    total = torch.sqrt(s**2 + data**2)
    v = (data**2 * noised / total**2 - PICTURE) * total / (s * data)
    outputs = {ms.EPS: NOISE, ms.V_PREDICTION: v, ms.EDM: -v}
    for prediction, output in outputs.items():
        sampling = made(prediction, data)
        torch.testing.assert_close(sampling.calculate_denoised(SIGMA, output, noised), PICTURE)
        torch.testing.assert_close(sampling.calculate_input(SIGMA, noised), noised / total)
    if data == 1.0:  # v as it is defined: alpha · noise - sigma · picture, alpha = 1 / total
        torch.testing.assert_close(v, NOISE / total - PICTURE * s / total)


def test_where_sampling_starts() -> None:
    sampling = made(ms.EPS, 1.0)
    found = sampling.noise_scaling(0.2, torch.tensor([0.1]), torch.tensor([0.5]))
    assert found.item() == pytest.approx(0.52)
    most = sampling.noise_scaling(3.0, torch.tensor([2.0]), torch.tensor([0.0]), max_denoise=True)
    assert most.item() == pytest.approx(2 * math.sqrt(10))
    assert sampling.inverse_noise_scaling(0.2, PICTURE) is PICTURE


# --- continuous and cascade --------------------------------------------------------------------


def test_continuous_levels() -> None:
    sampling = ms.ModelSamplingContinuousEDM()
    assert sampling.sigma_min.item() == pytest.approx(0.002, rel=1e-5)
    assert sampling.sigma_max.item() == pytest.approx(120.0, rel=1e-5)
    assert sampling.sigma_data == 1.0
    assert len(sampling.sigmas) == 1000
    torch.testing.assert_close(sampling.timestep(torch.tensor(4.0)).item(), 0.25 * math.log(4))
    assert sampling.sigma(torch.tensor(0.5)).item() == pytest.approx(math.exp(2), rel=1e-6)
    assert sampling.percent_to_sigma(0.0) == 999999999.9
    assert sampling.percent_to_sigma(1.0) == 0.0
    wanted = math.exp(math.log(0.002) + 0.75 * (math.log(120) - math.log(0.002)))
    assert sampling.percent_to_sigma(0.25) == pytest.approx(wanted, rel=1e-5)
    narrow = ms.ModelSamplingContinuousEDM(
        with_settings(sigma_min=0.1, sigma_max=10.0, sigma_data=0.5)
    )
    assert (round(narrow.sigma_min.item(), 5), narrow.sigma_data) == (0.1, 0.5)


@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_cascade_levels(shift: float) -> None:
    sampling = ms.StableCascadeSampling(with_settings(shift=shift))
    assert len(sampling.sigmas) == sampling.num_timesteps == 10000

    def by_hand(t: float) -> float:
        s = 0.008
        alpha = math.cos((t + s) / (1 + s) * math.pi / 2) ** 2
        alpha /= math.cos(s / (1 + s) * math.pi / 2) ** 2
        if shift != 1.0:
            snr = alpha / (1 - alpha) / shift**2
            alpha = snr / (1 + snr)
        alpha = min(max(alpha, 0.0001), 0.9999)
        return math.sqrt((1 - alpha) / alpha)

    for t in (0.1, 0.5, 0.9):
        assert sampling.sigma(torch.tensor(t)).item() == pytest.approx(by_hand(t), rel=1e-4)
    assert sampling.sigmas[4999].item() == pytest.approx(by_hand(0.5), rel=1e-4)
    assert sampling.percent_to_sigma(0.25) == pytest.approx(by_hand(0.75), rel=1e-4)
    assert sampling.percent_to_sigma(-1) == 999999999.9
    assert sampling.percent_to_sigma(1.5) == 0.0


def test_cascade_timesteps_undo_sigmas() -> None:
    sampling = ms.StableCascadeSampling()
    for t in (0.1, 0.5, 0.9):
        found = sampling.timestep(sampling.sigma(torch.tensor(t)))
        assert found.item() == pytest.approx(t, abs=1e-4)


@pytest.mark.parametrize("kind", list(ModelType))
def test_every_model_type_has_levels_and_a_prediction(kind: ModelType) -> None:
    sampling = model_sampling(with_settings(), kind)
    x = torch.ones(2, 4, 2, 2)
    sigma = torch.full((2,), 2.0)
    assert sampling.calculate_denoised(sigma, x, x).shape == x.shape
    assert float(sampling.sigma_min) < float(sampling.sigma_max)
    assert isinstance(sampling, kind.value)


def test_progress_is_linear_in_the_timesteps() -> None:
    sampling = ms.ModelSamplingDiscrete()
    timesteps = torch.tensor([999, 750, 300, 0])
    found = ms.sampling_progress(sampling, sampling.sigma(timesteps))
    torch.testing.assert_close(found, 1 - timesteps / 999)
    assert ms.sampling_progress(sampling, torch.tensor([1e5, 1e-5])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("scheduler", ["lcm", "tcd"])
def test_progress_counts_all_timesteps_where_only_some_levels_are_used(scheduler: str) -> None:
    whole = type("Sampling", (ms.ModelSamplingDiscrete, ms.EPS), {})()
    distilled = sampling_in_force(scheduler, whole)
    timesteps = torch.tensor([999, 759, 259, 19])
    found = ms.sampling_progress(distilled, whole.sigma(timesteps))
    torch.testing.assert_close(found, 1 - timesteps / 999)


def test_progress_of_cascade_s_levels_is_linear_in_its_timesteps() -> None:
    sampling = ms.StableCascadeSampling()
    sigma = sampling.sigma(torch.tensor([1.0, 0.75, 0.25]))
    found = ms.sampling_progress(sampling, sigma)
    assert found.tolist() == pytest.approx([0.0, 0.25, 0.75], abs=0.01)


@pytest.mark.parametrize("percent", [0.1, 0.5, 0.9])
def test_progress_undoes_percent_to_sigma_for_continuous_levels(percent: float) -> None:
    sampling = ms.ModelSamplingContinuousEDM()
    sigma = torch.tensor([sampling.percent_to_sigma(percent)])
    assert ms.sampling_progress(sampling, sigma).item() == pytest.approx(percent, abs=1e-5)


def test_a_list_of_betas_keeps_every_digit(discrete: ms.ModelSamplingDiscrete) -> None:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    cumulative = torch.cumprod(1.0 - betas, dim=0)
    made = ms.ModelSamplingDiscrete()
    made._register_schedule(given_betas=betas.tolist())
    wanted = ((1 - cumulative) / cumulative).sqrt()
    torch.testing.assert_close(made.sigmas.double(), wanted, rtol=1e-7, atol=0)
