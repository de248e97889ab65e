"""A network's steps with sharpness, adaptive guidance and told sizes together, in float64."""

import copy
import math
import os

import numpy as np
import pytest
import torch

from extras.guidance.adm import with_adm
from extras.guidance.attach import Guidance, guidance_function
from ldm_patched.modules.cond_batch import prepare_conditions
from ldm_patched.modules.model_base import AdmGuidance
from ldm_patched.modules.samplers import GuidedDenoiser, calculate_sigmas_scheduler
from tests.extras.guidance.test_attach import expected, timestep_of
from tests.ldm_patched.modules.test_model_base import embedded, make
from tests.support.engine_report import record

HEIGHT, WIDTH = 80, 128  # pixels; of the next multiples of 64 the network is told in the end
TOLERANCE = 1e-5


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sizes_told(timestep: int, factor: float) -> list[float]:
    """In force at a timestep: the emphasised sizes while t > 999 · (1 - 0.3)."""
    target = [round(side / 64) * 64 for side in (HEIGHT, WIDTH)]
    early = [int(HEIGHT * factor), int(WIDTH * factor)]
    numbers = [*(early if timestep > 999 * 0.7 else target), 0, 0, *target]
    return [value for number in numbers for value in embedded(number)]


def apart(found: np.ndarray, right: np.ndarray) -> float:
    """The largest difference as a share of the largest number."""
    return float(np.abs(found - right).max() / np.abs(right).max())


def test_every_step_of_a_network_is_the_formulas() -> None:
    """Both predictions, then what guidance makes of them; each relative to its largest number."""
    model = make()
    exact = copy.deepcopy(model.diffusion_model).double()
    knobs = {"scale": 9.0, "sharpness": 30.0, "mimic": 7.0, "rescale": 0.0}
    options = {"sampler_cfg_function": guidance_function(Guidance(30.0, 7.0))}
    kinds = (("positive", 1.5, 1), ("negative", 0.8, 2))
    prompts = {kind: (draw(seed, 1, 77, 48), draw(seed + 10, 1, 64)) for kind, _, seed in kinds}
    worst, halves = 0.0, set()
    for level in calculate_sigmas_scheduler(model, "karras", 8)[:-1].tolist():
        x = draw(5, 1, 4, HEIGHT // 8, WIDTH // 8) * math.sqrt(1 + level**2)
        groups, noises = [], []
        t = timestep_of(level)
        for kind, factor, _ in kinds:
            context, pooled = prompts[kind]
            given = with_adm([[context, {"pooled_output": pooled}]], AdmGuidance(1.5, 0.8, 0.3))
            groups.append(prepare_conditions(model, given, x, kind))
            told = torch.tensor([sizes_told(t, factor)], dtype=torch.float64)
            with torch.no_grad():
                eps = exact(
                    x.double() / math.sqrt(1 + level**2),
                    torch.tensor([float(t)], dtype=torch.float64),
                    context.double(),
                    torch.cat([pooled.double(), told], dim=1),
                )
            denoised = GuidedDenoiser(model, groups[-1], [], 1.0)(x, torch.tensor([level]))
            noises.append((x - denoised).double().numpy()[0])
            worst = max(worst, apart(noises[-1], (eps * level).numpy()[0]))
        found = GuidedDenoiser(model, *groups, knobs["scale"], options)(x, torch.tensor([level]))
        right = expected(x.double().numpy()[0], *noises, level, **knobs)
        worst = max(worst, apart(found[0].numpy(), right))
        halves.add(t > 999 * 0.7)
    assert halves == {True, False}
    name = "sharpness, adaptive CFG and told sizes"
    test = os.environ["PYTEST_CURRENT_TEST"]
    record("guidance", name, test, "float64 formulas, each step", worst, TOLERANCE)
    assert worst <= TOLERANCE


@pytest.mark.parametrize("change", [{"sharpness": 0.0}, {"mimic": 9.0}])
def test_each_of_them_counts_in_the_comparison(change) -> None:
    """Without one of them the difference is far above what the steps are allowed."""
    x, positive, negative = (draw(seed, 4, 8, 8).double().numpy() * 5 for seed in (1, 2, 3))
    whole = {"scale": 9.0, "sharpness": 30.0, "mimic": 7.0, "rescale": 0.0}
    right = expected(x, positive, negative, 3.0, **whole)
    other = expected(x, positive, negative, 3.0, **(whole | change))
    assert np.abs(right - other).max() > 100 * TOLERANCE
