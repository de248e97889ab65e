"""What a diffusion network is trained to predict: the pieces that go together, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from extras.training.denoiser import (
    Denoiser,
    DiscreteDenoiser,
    EpsScaling,
    VScaling,
    VScalingWithEDMcNoise,
)
from extras.training.loss import StandardDiffusionLoss
from extras.training.noise import (
    DiscreteSampling,
    EDMSampling,
    EpsWeighting,
    LegacyDDPMDiscretization,
    MinSNRWeighting,
    NearestSampling,
    UnitWeighting,
    VWeighting,
    ZeroSNRDiscretization,
)
from ldm_patched.k_diffusion.sampling import get_sigmas_karras

STEPS = 1000
EDM_RANGE = (0.002, 80.0)
LEVELS = ("middle",)
"""What else than an objective's own noise levels can be trained on: see Objective.middle."""
WEIGHTINGS: dict[str, Callable[[], Any]] = {
    "eps": EpsWeighting,
    "v": VWeighting,
    "min_snr": MinSNRWeighting,
    "unit": UnitWeighting,
}


@dataclass(frozen=True, kw_only=True)
class Objective:
    """How to make the denoiser, draw noise levels, and sample; `keys` mark a model file."""

    denoiser: Callable[[], Denoiser]
    sampling: Callable[[], Callable[[int], Tensor]]
    middle: Callable[[], Callable[[int], Tensor]]
    """Draws most levels where a picture is neither seen nor lost, for there most is to be learnt
    (Hang et al. 2024, arXiv:2407.03297): with 16 by 16 latents that is above 1. The highest, at
    which sampling begins, come a quarter as often: learn those first."""
    weighting: str
    sigmas: Callable[[int], Tensor]
    """A number of steps → falling sigmas that end in 0."""
    keys: dict[str, float]


def _middle() -> Callable[[int], Tensor]:
    return EDMSampling(p_mean=0.6, p_std=0.8)


def _of_table(
    table: Callable[[], LegacyDDPMDiscretization],
    scaling: Callable[[], Any],
    weighting: str,
    keys: dict[str, float],
) -> Objective:
    return Objective(
        denoiser=lambda: DiscreteDenoiser(scaling(), STEPS, table()),
        sampling=lambda: DiscreteSampling(table(), STEPS),
        middle=lambda: NearestSampling(table(), STEPS, _middle()),
        weighting=weighting,
        sigmas=lambda count: table()(count),
        keys=keys,
    )


V_KEYS = {"v_pred": 1.0}
OBJECTIVES: dict[str, Objective] = {
    "eps": _of_table(LegacyDDPMDiscretization, EpsScaling, "min_snr", {}),
    "v": _of_table(LegacyDDPMDiscretization, VScaling, "v", V_KEYS),
    "v_ztsnr": _of_table(ZeroSNRDiscretization, VScaling, "v", {**V_KEYS, "ztsnr": 1.0}),
    "edm": Objective(
        denoiser=lambda: Denoiser(VScalingWithEDMcNoise()),
        sampling=lambda: EDMSampling(p_mean=-0.4, p_std=1.4),
        middle=_middle,
        weighting="v",
        sigmas=lambda count: get_sigmas_karras(count, *EDM_RANGE),
        keys={"edm_vpred.sigma_min": EDM_RANGE[0], "edm_vpred.sigma_max": EDM_RANGE[1]},
    ),
}


def make_loss(
    objective: str,
    weighting: str = "",
    loss_type: str = "l2",
    offset_noise: float = 0.05,
    levels: str = "",
) -> StandardDiffusionLoss:
    """The loss of an objective; weighting, levels: names of WEIGHTINGS and LEVELS, by default the
    objective's own."""
    chosen = OBJECTIVES[objective]
    return StandardDiffusionLoss(
        (chosen.middle if levels else chosen.sampling)(),
        WEIGHTINGS[weighting or chosen.weighting](),
        loss_type=loss_type,
        offset_noise_level=offset_noise,
    )


def key_tensors(objective: str) -> dict[str, Tensor]:
    """The entries of a model file that say what its network predicts."""
    return {name: torch.tensor(value) for name, value in OBJECTIVES[objective].keys.items()}
