"""Size conditioning that differs between the prompts for a part of the sampling."""

import numpy as np
import pytest
import torch
from torch import Tensor

from extras.guidance.adm import with_adm
from ldm_patched.ldm.modules.diffusionmodules.unet_config import UNetConfig
from ldm_patched.modules import model_base
from ldm_patched.modules.cond_batch import CondBatcher, prepare_conditions
from ldm_patched.modules.model_base import AdmGuidance, BaseModel
from tests.ldm_patched.modules.test_model_base import CONFIG, embedded, family, make

GUIDANCE = AdmGuidance(1.5, 0.8, 0.3)


@pytest.fixture(scope="module")
def model() -> BaseModel:
    return make()


def test_adm_guidance_is_two_size_conditionings(model: BaseModel) -> None:
    pooled = torch.randn(1, 64)
    for kind, factor in (("positive", 1.5), ("negative", 0.8)):
        y = model.encode_adm(
            pooled_output=pooled, width=1100, height=845, adm_guidance=GUIDANCE, prompt_type=kind
        )
        early, late = y.chunk(2, dim=1)
        height, width = 832, 1088  # the multiples of 64 next to 845 and 1,100
        sizes = (int(845 * factor), int(1100 * factor), 0, 0, height, width)
        for half, numbers in ((early, sizes), (late, (height, width, 0, 0, height, width))):
            assert torch.equal(half[:, :64], pooled)
            wanted = [value for number in numbers for value in embedded(number)]
            np.testing.assert_allclose(half[0, 64:].numpy(), wanted, atol=1e-3)


def test_the_first_half_counts_until_its_end(model: BaseModel) -> None:
    """At timestep t the emphasised half is in force while t > 999 · (1 - end)."""
    pooled = torch.randn(1, 64)
    options = {"pooled_output": pooled, "adm_guidance": GUIDANCE}
    x = torch.randn(1, 4, 8, 8)
    context = torch.randn(1, 77, 48)
    (positive,) = prepare_conditions(model, [[context, options]], x, "positive")
    (negative,) = prepare_conditions(model, [[context, options]], x, "negative")
    seen = []

    def watch(_apply: object, call: dict) -> Tensor:
        seen.append(call["c"]["y"])
        return call["input"]

    batcher = CondBatcher(model)
    for t in (999, 700, 699, 0):
        sigma = model.model_sampling.sigma(torch.tensor([t]))
        batcher.predict([[positive], [negative]], x, sigma, {"model_function_wrapper": watch})
    halves = {
        kind: model.encode_adm(**options, width=64, height=64, prompt_type=kind).chunk(2, dim=1)
        for kind in ("positive", "negative")
    }
    for y, half in zip(seen, (0, 0, 1, 1), strict=True):  # both prompts in one call
        assert torch.equal(y, torch.cat([halves[kind][half] for kind in halves]))


def test_a_model_without_those_sizes_takes_no_notice() -> None:
    config = UNetConfig(**{**CONFIG.__dict__, "adm_in_channels": 64 + 5 * 256})
    refiner = model_base.SDXLRefiner(family(unet_config=config))
    conds = refiner.extra_conds(pooled_output=torch.randn(1, 64), adm_guidance=GUIDANCE)
    assert conds["y"].cond.shape == (1, 64 + 5 * 256)


def test_conditions_carry_it_and_stay_as_they_are() -> None:
    given = [[torch.zeros(1, 77, 48), {"pooled_output": torch.zeros(1, 64)}]]
    ((context, options),) = with_adm(given, GUIDANCE)
    assert context is given[0][0]
    assert options["adm_guidance"] is GUIDANCE
    assert "adm_guidance" not in given[0][1]
    assert with_adm(given, None) == [list(condition) for condition in given]
