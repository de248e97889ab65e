"""The precision patch: what it computes and whom it reaches."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from ldm_patched.ldm.modules.diffusionmodules import openaimodel
from ldm_patched.modules import model_sampling
from ldm_patched.modules.model_sampling import ModelSamplingDiscrete
from modules.patch import patch_all
from modules.patch_precision import (
    patch_all_precision,
    patched_register_schedule,
    patched_timestep_embedding,
)


@pytest.fixture(autouse=True)
def unpatched_afterwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(openaimodel, "timestep_embedding", openaimodel.timestep_embedding)
    schedule = model_sampling.ModelSamplingDiscrete._register_schedule
    monkeypatch.setattr(ModelSamplingDiscrete, "_register_schedule", schedule)
    yield


@pytest.mark.parametrize("apply", [patch_all, patch_all_precision])
def test_both_functions_are_put_in_force(apply: object) -> None:
    apply()
    apply()
    assert openaimodel.timestep_embedding is patched_timestep_embedding
    assert ModelSamplingDiscrete._register_schedule is patched_register_schedule
    calls = openaimodel.Timestep(8)(torch.tensor([3.0]))
    assert torch.equal(calls, patched_timestep_embedding(torch.tensor([3.0]), 8))


@pytest.mark.parametrize("dim", [4, 5, 320])
def test_the_embedding(dim: int) -> None:
    times = [0.0, 1.5, 999.0]
    found = patched_timestep_embedding(torch.tensor(times), dim)
    half = dim // 2
    assert found.shape == (3, dim)
    for row, t in zip(found, times, strict=True):
        angles = [t * 10000 ** (-i / half) for i in range(half)]
        wanted = [math.cos(a) for a in angles] + [math.sin(a) for a in angles] + [0.0] * (dim % 2)
        np.testing.assert_allclose(row.numpy(), wanted, atol=2e-4)
    assert torch.equal(found, openaimodel.timestep_embedding(torch.tensor(times), dim))
    again = patched_timestep_embedding(torch.tensor([7, 8]), 3, repeat_only=True)
    assert again.tolist() == [[7, 7, 7], [8, 8, 8]]


def test_the_schedule_is_that_of_float64() -> None:
    plain = ModelSamplingDiscrete()
    patch_all_precision()
    made = ModelSamplingDiscrete()
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    cumulative = np.cumprod(1.0 - betas)
    sigmas = torch.tensor(((1 - cumulative) / cumulative) ** 0.5, dtype=torch.float32)
    assert torch.equal(made.sigmas, sigmas)
    assert torch.equal(made.alphas_cumprod, torch.tensor(cumulative, dtype=torch.float32))
    assert torch.equal(made.log_sigmas, made.sigmas.log())  # of float32, as the trainer has them
    assert made.num_timesteps == 1000
    torch.testing.assert_close(made.sigmas, plain.sigmas, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", [list, np.asarray, torch.tensor])
def test_given_betas_are_used(kind: type) -> None:
    patch_all_precision()
    made = ModelSamplingDiscrete()
    made._register_schedule(kind([0.1, 0.2, 0.3]), linear_start=0.5, linear_end=0.7)
    np.testing.assert_allclose(made.alphas_cumprod.numpy(), [0.9, 0.72, 0.504], rtol=1e-6)
    assert (made.num_timesteps, made.linear_start, made.linear_end) == (3, 0.5, 0.7)
    np.testing.assert_allclose(made.sigmas[0].item(), math.sqrt(0.1 / 0.9), rtol=1e-6)
