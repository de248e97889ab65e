"""Schedules, embeddings and blending against the formulas written out."""

import logging
import math

import numpy as np
import pytest
import torch
from torch import nn

from ldm_patched.ldm.modules.diffusionmodules import util


def betas_by_hand(name: str, n: int, start: float, end: float, s: float) -> list[float]:
    """Each schedule by its definition, one number at a time, in Python's floats."""

    def line(a: float, b: float) -> list[float]:
        return [a + (b - a) * i / (n - 1) for i in range(n)]

    def bars(t: float, offset: float) -> float:
        return math.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2

    def from_bars(offset: float, cap: float) -> list[float]:
        return [min(1 - bars((i + 1) / n, offset) / bars(i / n, offset), cap) for i in range(n)]

    if name == "linear":
        return [x * x for x in line(math.sqrt(start), math.sqrt(end))]
    if name == "sqrt_linear":
        return line(start, end)
    if name == "sqrt":
        return [math.sqrt(x) for x in line(start, end)]
    if name == "squaredcos_cap_v2":
        return from_bars(0.008, 0.999)
    # The cosine schedule adds the offset before it normalises: t / n + s.
    values = [math.cos((i / n + s) / (1 + s) * math.pi / 2) ** 2 for i in range(n + 1)]
    return [min(max(1 - values[i + 1] / values[i], 0.0), 0.999) for i in range(n)]


@pytest.mark.parametrize("name", ["linear", "cosine", "squaredcos_cap_v2", "sqrt_linear", "sqrt"])
@pytest.mark.parametrize("n", [10, 1000])
def test_beta_schedules(name: str, n: int) -> None:
    betas = util.make_beta_schedule(name, n, 0.00085, 0.012, 0.01)
    assert isinstance(betas, np.ndarray)
    assert betas.dtype == np.float64
    wanted = betas_by_hand(name, n, 0.00085, 0.012, 0.01)
    np.testing.assert_allclose(betas, wanted, rtol=1e-9, atol=1e-12)
    assert np.all(np.diff(betas) > 0)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="'cubic' unknown"):
        util.make_beta_schedule("cubic", 10)


def test_betas_follow_alpha_bar_and_are_capped() -> None:
    betas = util.betas_for_alpha_bar(50, lambda t: 1 - t, max_beta=0.9)
    np.testing.assert_allclose(np.cumprod(1 - betas[:-1]), 1 - np.arange(1, 50) / 50, rtol=1e-12)
    assert betas[-1] == 0.9


def test_ddim_timesteps() -> None:
    uniform = util.make_ddim_timesteps("uniform", 10, 100, verbose=False)
    assert uniform.tolist() == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91]
    quad = util.make_ddim_timesteps("quad", 5, 1000, verbose=False)
    root = math.sqrt(800)
    assert quad.tolist() == [int((root * i / 4) ** 2) + 1 for i in range(5)]
    with pytest.raises(NotImplementedError, match='"cubic"'):
        util.make_ddim_timesteps("cubic", 5, 1000, verbose=False)


@pytest.mark.parametrize("kind", [np.asarray, list, torch.tensor])
def test_ddim_parameters(kind: type) -> None:
    alphas = np.cumprod(1 - np.linspace(0.001, 0.02, 100)).tolist()
    steps = np.array([1, 26, 51, 76])
    sigmas, now, before = util.make_ddim_sampling_parameters(kind(alphas), steps, 0.5, False)
    for i, step in enumerate(steps):
        previous = alphas[steps[i - 1]] if i else alphas[0]
        inside = (1 - previous) / (1 - alphas[step]) * (1 - alphas[step] / previous)
        assert now[i] == pytest.approx(alphas[step], rel=1e-6)
        assert before[i] == pytest.approx(previous, rel=1e-6)
        # Lists of tensors come in float32, where 1 - a / b loses most digits.
        assert sigmas[i] == pytest.approx(0.5 * math.sqrt(inside), rel=1e-3)
    assert not util.make_ddim_sampling_parameters(alphas, steps, 0.0, False)[0].any()


def test_ddim_choices_are_logged_when_asked(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        steps = util.make_ddim_timesteps("uniform", 2, 10, verbose=False)
        assert not caplog.records
        util.make_ddim_timesteps("uniform", 2, 10)
        util.make_ddim_sampling_parameters(np.linspace(0.9, 0.1, 10), steps, 1.0)
    assert len(caplog.records) == 3


@pytest.mark.parametrize("dim", [2, 7, 320])
@pytest.mark.parametrize("period", [10000, 100])
def test_timestep_embedding(dim: int, period: int) -> None:
    times = [0.0, 0.5, 37.0, 999.0]
    found = util.timestep_embedding(torch.tensor(times), dim, period)
    assert found.shape == (4, dim)
    half = dim // 2
    for row, t in zip(found, times, strict=True):
        for i in range(half):
            angle = t * period ** (-i / half)
            assert row[i].item() == pytest.approx(math.cos(angle), abs=2e-4)
            assert row[half + i].item() == pytest.approx(math.sin(angle), abs=2e-4)
        if dim % 2:
            assert row[-1] == 0


def test_timesteps_can_be_repeated_as_they_are() -> None:
    times = torch.tensor([3, 5])
    assert util.timestep_embedding(times, 3, repeat_only=True).tolist() == [[3] * 3, [5] * 3]


def test_extract_into_tensor() -> None:
    table, t = torch.arange(10.0) * 2, torch.tensor([4, 0])
    found = util.extract_into_tensor(table, t, (2, 3, 8, 8))
    assert found.shape == (2, 1, 1, 1)
    assert found.flatten().tolist() == [8.0, 0.0]


def test_modules_are_zeroed_and_scaled_in_place() -> None:
    layer = nn.Linear(3, 2)
    before = layer.weight.detach().clone()
    assert util.scale_module(layer, 2) is layer
    assert torch.equal(layer.weight, before * 2)
    assert util.zero_module(layer) is layer
    assert not any(p.any() for p in layer.parameters())


def test_mean_flat() -> None:
    x = torch.arange(24.0).reshape(2, 3, 4)
    assert util.mean_flat(x).tolist() == [5.5, 17.5]


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_layers_for_each_number_of_axes(dims: int) -> None:
    x = torch.randn(1, 2, *[4] * dims)
    pool = util.avg_pool_nd(dims, kernel_size=2, stride=2)
    assert pool(x).shape == (1, 2, *[2] * dims)
    assert util.conv_nd(dims, 2, 5, 3, padding=1)(x).shape == (1, 5, *[4] * dims)
    for make in (util.avg_pool_nd, util.conv_nd):
        with pytest.raises(ValueError, match="unsupported dimensions: 4"):
            make(4, 2)


def test_noise() -> None:
    shape = (3, 2, 4, 4)
    apart = util.noise_like(shape, "cpu")
    assert apart.shape == shape
    assert not torch.equal(apart[0], apart[1])
    same = util.noise_like(shape, "cpu", repeat=True)
    assert same.shape == shape
    assert torch.equal(same[0], same[2])


def test_hybrid_conditioner() -> None:
    flatten = {"target": "torch.nn.Flatten", "params": {"start_dim": 2}}
    conditioner = util.HybridConditioner(flatten, {"target": "torch.nn.Identity"})
    found = conditioner(torch.zeros(1, 2, 3, 4), torch.ones(1, 5))
    assert [v.shape for v in found["c_concat"]] == [(1, 2, 12)]
    assert torch.equal(found["c_crossattn"][0], torch.ones(1, 5))
    with pytest.raises(KeyError, match="target"):
        util.HybridConditioner({}, flatten)


# --- AlphaBlender ------------------------------------------------------------------------------


def test_a_fixed_blend_is_a_buffer() -> None:
    blender = util.AlphaBlender(0.25, "fixed")
    assert [n for n, _ in blender.named_buffers()] == ["mix_factor"]
    x, y = torch.ones(2, 3, 4), torch.full((2, 3, 4), 5.0)
    assert torch.equal(blender(x, y), torch.full((2, 3, 4), 4.0))
    assert blender(x.double(), y.double()).dtype == torch.float64


def test_a_learned_blend_is_the_sigmoid_of_a_parameter() -> None:
    blender = util.AlphaBlender(1.5, "learned")
    assert [n for n, _ in blender.named_parameters()] == ["mix_factor"]
    share = 1 / (1 + math.exp(-1.5))
    found = blender(torch.ones(2, 3), torch.zeros(2, 3))
    torch.testing.assert_close(found, torch.full((2, 3), share))
    found.sum().backward()
    assert blender.mix_factor.grad.item() != 0


def test_frames_that_are_images_take_the_spatial_side() -> None:
    blender = util.AlphaBlender(0.0)  # learned_with_images; the sigmoid of 0 is one half
    images = torch.tensor([[True, False], [False, True]])
    found = blender(torch.ones(4, 3, 2), torch.zeros(4, 3, 2), images)
    assert found[:, 0, 0].tolist() == [1.0, 0.5, 0.5, 1.0]
    five = util.AlphaBlender(0.0, rearrange_pattern="b t -> b 1 t 1 1")
    assert five.get_alpha(images).shape == (2, 1, 2, 1, 1)
    with pytest.raises(AssertionError, match="image_only_indicator"):
        blender.get_alpha(None)


def test_unknown_blends_are_refused() -> None:
    with pytest.raises(AssertionError, match="merge_strategy"):
        util.AlphaBlender(0.5, "mixed")
    blender = util.AlphaBlender(0.5, "fixed")
    blender.merge_strategy = "mixed"
    with pytest.raises(NotImplementedError):
        blender.get_alpha(None)
