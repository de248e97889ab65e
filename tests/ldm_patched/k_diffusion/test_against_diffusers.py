"""Each sampler against the scheduler of diffusers that has the same method, step by step.

The reference walks its own schedule; ours is given the same sigmas and, where the method adds
noise, the same noise. Both ask a denoiser that is known exactly. Latents are compared before every
step, divided by sqrt(1 + sigma²), which is the scale that the reference works in.
"""

import math
import os
from collections.abc import Callable

import diffusers
import pytest
import torch
from torch import Tensor

from ldm_patched.modules.samplers import SAMPLERS
from tests.support.engine_report import record
from tests.support.mixture import Mixture

MIXTURE = Mixture()
SHAPE = (1, 4, 8, 8)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TOLERANCE = 1e-4  # the references compute in float32


def start(sigma: float) -> Tensor:
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return noise * math.sqrt(1 + sigma**2)


def same_noise(seed: int, dtype: torch.dtype = torch.float64) -> Callable[..., Tensor]:
    """The draws that the reference makes with a generator of this seed."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *_: torch.randn(SHAPE, generator=generator, dtype=dtype)


def states_of(
    name: str, sigmas: Tensor, model: Callable = MIXTURE.model, calls: int = 1, **options
) -> list[Tensor]:
    """Our latents before each step, which has so many calls, and the result at the end."""
    seen: list[Tensor] = []

    def watched(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(x)
        return model(x, sigma)

    out = SAMPLERS[name](watched, start(float(sigmas[0])), sigmas.double(), **options)
    return [*seen[::calls], out]


def difference(ours: list[Tensor], theirs: list[Tensor], sigmas: Tensor) -> float:
    """The largest one; `theirs` may end earlier."""
    pairs = zip(ours, theirs, sigmas.double().tolist(), strict=False)
    return max(float((a - b).abs().max()) / math.sqrt(1 + s**2) for a, b, s in pairs)


def check(name: str, words: str, measured: float) -> None:
    record("sampler", name, os.environ["PYTEST_CURRENT_TEST"], words, measured, TOLERANCE)
    assert measured <= TOLERANCE


def words_for(kind: str, **options) -> str:
    """`diffusers Kind (solver_order 2, …)`"""
    return f"diffusers {kind} ({', '.join(f'{k} {v}' for k, v in options.items())})"


# --- schedulers that work in sigma ----------------------------------------------------------------


def walk_in_sigma(scheduler, steps: int, seed: int, calls: int) -> tuple[list[Tensor], Tensor]:
    """Their latents before each step; the sigmas. calls: evaluations a step, but for the last."""
    scheduler.set_timesteps(steps)
    levels = torch.cat([scheduler.sigmas, getattr(scheduler, "sigmas_interpol", torch.ones(0))])
    levels = levels[levels > 0]
    sigmas = scheduler.sigmas.unique().flip(0)
    x = start(float(sigmas[0]))
    generator = torch.Generator().manual_seed(seed)
    noise = (
        {} if "generator" not in scheduler.step.__code__.co_varnames else {"generator": generator}
    )
    seen = []
    for i, t in enumerate(scheduler.timesteps):
        if i % calls == 0:
            seen.append(x)
        scaled = scheduler.scale_model_input(x, t)
        rough = float(((x / scaled) ** 2).median() - 1) ** 0.5
        sigma = levels[(levels - rough).abs().argmin()].double()
        eps = (x - MIXTURE.model(x, sigma[None])) / sigma
        x = scheduler.step(eps, t, x, **noise).prev_sample.double()
    return [*seen, x], sigmas


@pytest.mark.parametrize(
    ("name", "kind", "calls"),
    [
        ("euler", "EulerDiscreteScheduler", 1),
        ("euler_ancestral", "EulerAncestralDiscreteScheduler", 1),
        ("heun", "HeunDiscreteScheduler", 2),
        ("dpm_2", "KDPM2DiscreteScheduler", 2),
        ("dpm_2_ancestral", "KDPM2AncestralDiscreteScheduler", 2),
        ("lms", "LMSDiscreteScheduler", 1),
    ],
)
@pytest.mark.parametrize("steps", [7, 20])
def test_in_sigma(name, kind, calls, steps):
    scheduler = getattr(diffusers, kind)(**BETAS)
    theirs, sigmas = walk_in_sigma(scheduler, steps, 4, calls)
    assert len(sigmas) == steps + 1
    options = {"noise_sampler": same_noise(4)} if "ancestral" in name else {}
    measured = difference(states_of(name, sigmas, calls=calls, **options), theirs, sigmas)
    check(name, f"diffusers {kind}", measured)


# --- schedulers that work in alpha and sigma ------------------------------------------------------


def walk_in_alpha(scheduler, sigmas: Tensor, model=MIXTURE.model, **options) -> list[Tensor]:
    """Their latents before each step and at the end, brought to our scale."""
    levels = sigmas.double().tolist()
    x = start(levels[0]) / math.sqrt(1 + levels[0] ** 2)
    seen = []
    for t, sigma in zip(scheduler.timesteps, levels, strict=False):
        wide = x * math.sqrt(1 + sigma**2)
        seen.append(wide)
        eps = (wide - model(wide, torch.tensor([sigma]).double())) / sigma
        x = scheduler.step(eps, t, x, **options).prev_sample.double()
    return [*seen, x * math.sqrt(1 + levels[-1] ** 2)]


def multistep(kind: str, steps: int, **options):
    """A scheduler with `sigmas` of its own, and these."""
    scheduler = getattr(diffusers, kind)(**BETAS, use_karras_sigmas=True, **options)
    scheduler.set_timesteps(steps)
    return scheduler, scheduler.sigmas


@pytest.mark.parametrize(
    ("name", "ours", "kind", "options"),
    [
        ("dpmpp_2m", {}, "DPMSolverMultistepScheduler", {"solver_order": 2}),
        ("dpmpp_2m_sde", {"eta": 0.0}, "DPMSolverMultistepScheduler", {"solver_order": 2}),
        ("dpmpp_3m_sde", {"eta": 0.0}, "DPMSolverMultistepScheduler", {"solver_order": 3}),
        ("uni_pc", {}, "UniPCMultistepScheduler", {"solver_order": 3, "solver_type": "bh1"}),
        ("uni_pc_bh2", {}, "UniPCMultistepScheduler", {"solver_order": 3, "solver_type": "bh2"}),
        (
            "uni_pc_bh2",
            {"max_order": 2},
            "UniPCMultistepScheduler",
            {"solver_order": 2, "solver_type": "bh2"},
        ),
        ("deis", {}, "DEISMultistepScheduler", {"solver_order": 3}),
    ],
)
def test_multistep(name, ours, kind, options):
    scheduler, sigmas = multistep(kind, 20, **options)
    theirs = walk_in_alpha(scheduler, sigmas)
    if name == "deis":  # theirs ends at the smallest sigma
        sigmas = torch.cat([sigmas[:-1], torch.zeros(1)])
        theirs = theirs[:-1]
    measured = difference(states_of(name, sigmas, **ours), theirs, sigmas)
    check(name, words_for(kind, **options), measured)


@pytest.mark.parametrize(
    ("name", "ours", "options"),
    [
        ("dpmpp_2m_sde", {"solver_type": "midpoint"}, {"solver_order": 2}),
        ("dpmpp_2m_sde", {"solver_type": "heun"}, {"solver_order": 2, "solver_type": "heun"}),
        # not of order 3: the last weight there is -1/2 where the expansion has +1/2
    ],
)
def test_multistep_with_noise(name, ours, options):
    kind = "DPMSolverMultistepScheduler"
    scheduler, sigmas = multistep(kind, 20, algorithm_type="sde-dpmsolver++", **options)
    theirs = walk_in_alpha(scheduler, sigmas, generator=torch.Generator().manual_seed(6))
    measured = difference(
        states_of(name, sigmas, noise_sampler=same_noise(6, torch.float32), **ours), theirs, sigmas
    )
    words = words_for(kind, noise=1, **options)
    check(name, words, measured)


@pytest.mark.parametrize("name", ["dpmpp_2s_ancestral", "dpmpp_sde"])
def test_singlestep(name):
    """Two of their steps are one of ours; log sigma must be even for the middle to be the same."""
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        **BETAS, solver_order=2, use_exponential_sigmas=True, final_sigmas_type="sigma_min"
    )
    scheduler.set_timesteps(20)
    sigmas = scheduler.sigmas
    theirs = walk_in_alpha(scheduler, sigmas)[:-1:2]
    pairs = sigmas[:-1:2]
    measured = difference(states_of(name, pairs, calls=2, eta=0.0), theirs, pairs)
    check(name, "diffusers DPMSolverSinglestepScheduler", measured)


# --- schedulers that go by timesteps --------------------------------------------------------------


def sigmas_of(scheduler) -> Tensor:
    """Of its timesteps, and a 0."""
    alphas = scheduler.alphas_cumprod[scheduler.timesteps.long()].double()
    return torch.cat([((1 - alphas) / alphas).sqrt(), torch.zeros(1).double()])


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim(eta):
    scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(20)
    sigmas = sigmas_of(scheduler)
    theirs = walk_in_alpha(scheduler, sigmas, eta=eta, generator=torch.Generator().manual_seed(6))
    ours = states_of("ddim", sigmas, eta=eta, noise_sampler=same_noise(6))
    check(
        "ddim",
        f"diffusers DDIMScheduler, eta {eta}",
        difference(ours, theirs, sigmas),
    )


def test_ddpm():
    scheduler = diffusers.DDPMScheduler(**BETAS, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(20)
    sigmas = sigmas_of(scheduler)
    theirs = walk_in_alpha(scheduler, sigmas, generator=torch.Generator().manual_seed(6))
    ours = states_of("ddpm", sigmas, noise_sampler=same_noise(6))
    check("ddpm", "diffusers DDPMScheduler", difference(ours, theirs, sigmas))


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_lcm(steps):
    scheduler = diffusers.LCMScheduler(**BETAS)
    scheduler.set_timesteps(steps)
    sigmas = sigmas_of(scheduler)
    theirs = walk_in_alpha(scheduler, sigmas, generator=torch.Generator().manual_seed(6))
    times = dict(zip(sigmas.tolist(), scheduler.timesteps.tolist(), strict=False))

    def with_boundary(x, sigma):
        scaled = times[float(sigma)] * 10.0
        skip, out = 0.25 / (scaled**2 + 0.25), scaled / math.sqrt(scaled**2 + 0.25)
        return out * MIXTURE.model(x, sigma) + skip * x / (1 + sigma**2).sqrt()

    ours = states_of("lcm", sigmas, with_boundary, noise_sampler=same_noise(6))
    measured = difference(ours, theirs, sigmas)
    check("lcm", "diffusers LCMScheduler", measured)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_tcd(eta):
    scheduler = diffusers.TCDScheduler(**BETAS)
    scheduler.set_timesteps(8)
    sigmas = sigmas_of(scheduler)
    theirs = walk_in_alpha(scheduler, sigmas, eta=eta, generator=torch.Generator().manual_seed(6))[
        :-1
    ]  # their last step ends at timestep 0, which has some noise left
    ours = states_of("tcd", sigmas, eta=eta, noise_sampler=same_noise(6))
    measured = difference(ours, theirs, sigmas)
    check("tcd", f"diffusers TCDScheduler, eta {eta}", measured)


def test_ipndm():
    scheduler = diffusers.IPNDMScheduler()
    scheduler.set_timesteps(20)
    sigmas = (scheduler.betas / scheduler.alphas.clamp(min=1e-6))[1:]  # the first one is infinite
    x = start(float(sigmas[0])) / math.sqrt(1 + float(sigmas[0]) ** 2)
    scheduler._step_index = 1
    theirs = []
    for t, sigma in zip(scheduler.timesteps[1:], sigmas[:-1].double(), strict=True):
        alpha = 1 / (1 + sigma**2).sqrt()
        theirs.append(x / alpha)
        eps = (x / alpha - MIXTURE.model(x / alpha, sigma[None])) / sigma
        # theirs takes v, of which x times its sigma and v times its alpha make the noise
        v = (eps - x * sigma * alpha) / alpha
        x = scheduler.step(v, t, x).prev_sample
    measured = difference(states_of("ipndm", sigmas), theirs, sigmas)
    check("ipndm", "diffusers IPNDMScheduler", measured)
