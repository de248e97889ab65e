"""What a network predicts: as its file says, by names or metadata, or as it shows when asked."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldm_patched.modules.errors import CorruptModelFile

if TYPE_CHECKING:
    from ldm_patched.modules.model_base import BaseModel

EDM_RANGE = {"sigma_min": 0.002, "sigma_max": 120.0}  # what the schedule has where a file is silent
SIGMA_RANGE = (1e-5, 1e5)  # far beyond any model's; outside of it float32 loses the steps
LARGEST_STATISTIC = 1e4


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a file says of its network. kind: "eps", "v", "edm", "edm-v", or None for nothing."""

    kind: str | None = None
    zero_snr: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    """Statistics of each latent channel that the network was trained with."""
    sigmas: Mapping[str, float] = field(default_factory=dict)


def said_prediction(state_dict: Mapping[str, Tensor]) -> Said:
    """What the marker keys `v_pred`, `ztsnr`, `edm_mean`, `edm_std` and `edm_vpred.*` say.

    Without them, entries of the file's metadata: `modelspec.prediction_type`, `easel.zero_snr`,
    `easel.latents_mean` and `easel.latents_std`. A marker of four channels' numbers that is
    something else is a mere marker; raises CorruptModelFile for numbers that cannot be.
    """
    file = str(getattr(state_dict, "name", "The checkpoint"))
    metadata: Mapping[str, str] = getattr(state_dict, "metadata", {})
    if "edm_mean" in state_dict and "edm_std" in state_dict:
        mean, std = (_numbers(state_dict[f"edm_{name}"]) for name in ("mean", "std"))
        return Said(kind="edm", **_statistics(mean, std, file))
    if "edm_vpred.sigma_max" in state_dict:
        keys = {name: f"edm_vpred.{name}" for name in EDM_RANGE}
        found = {name: state_dict[key].flatten() for name, key in keys.items() if key in state_dict}
        return Said(kind="edm-v", sigmas=_sigmas(found, file))
    word = metadata.get("modelspec.prediction_type", "").lower()
    kind = "v" if "v_pred" in state_dict else PREDICTION_WORDS.get(word)
    if kind == "edm":
        mean, std = (_list(metadata.get(f"easel.latents_{name}")) for name in ("mean", "std"))
        return Said(kind=kind, **_statistics(mean, std, file))
    zero_snr = "ztsnr" in state_dict or metadata.get("easel.zero_snr") == "true"
    return Said(kind=kind, zero_snr=kind == "v" and zero_snr)


PREDICTION_WORDS = {
    "v": "v",
    "v_prediction": "v",
    "epsilon": "eps",
    "eps": "eps",
    "edm": "edm",
}


Numbers = tuple[float, ...]


def _statistics(mean: Numbers | None, std: Numbers | None, file: str) -> dict[str, Numbers | None]:
    """Both, if latents can have them: finite, not absurd, and a spread above nothing."""
    for number in (*(mean or ()), *(std or ())):
        if not abs(number) <= LARGEST_STATISTIC:  # a NaN is not, either
            raise _senseless(file, "its latents' statistics")
    if std is not None and min(std) <= 0:
        raise _senseless(file, "its latents' statistics")
    return {"mean": mean, "std": std}


def _sigmas(found: Mapping[str, Tensor], file: str) -> dict[str, float]:
    """The noise levels that a file names, if a schedule can be laid between them."""
    if any(tensor.numel() != 1 for tensor in found.values()):
        raise _senseless(file, "its noise levels")
    sigmas = {name: float(tensor) for name, tensor in found.items()}
    low, high = (sigmas.get(name, usual) for name, usual in EDM_RANGE.items())
    if not SIGMA_RANGE[0] <= low < high <= SIGMA_RANGE[1]:
        raise _senseless(file, "its noise levels")
    return sigmas


def _senseless(file: str, what: str) -> CorruptModelFile:
    return CorruptModelFile(
        f"{file} is damaged: the numbers that it gives for {what} make no sense. Download it "
        "again, or choose another checkpoint."
    )


def _numbers(tensor: Tensor) -> Numbers | None:
    """A number for each of four channels, or None if the tensor holds something else."""
    numbers = tuple(float(number) for number in tensor.flatten()[:5])
    return numbers if len(numbers) == 4 else None


def _list(text: str | None) -> tuple[float, ...] | None:
    """As `_numbers`, of a list in JSON."""
    try:
        return _numbers(torch.tensor(json.loads(text or "null"), dtype=torch.float32))
    except (ValueError, TypeError, RuntimeError, RecursionError):
        return None


@torch.inference_mode()
def predicts_velocity(model: "BaseModel") -> bool:
    """Whether a network with text attention answers pure noise with something else than noise.

    At the last timestep a network that predicts noise can only give its input back, while one that
    predicts velocity gives the picture that it sees in it, which has little to do with the noise.
    """
    generator = torch.Generator().manual_seed(0)
    weight: Tensor = next(model.parameters())
    config: Any = model.diffusion_model.config
    dtype = model.manual_cast_dtype or model.get_dtype()
    noise = torch.randn(1, config.in_channels, 16, 16, generator=generator)
    placed = {"device": weight.device, "dtype": dtype}
    output = model.diffusion_model(
        noise.to(**placed),
        torch.tensor([999.0], device=weight.device),
        context=torch.zeros(1, 77, config.context_dim, **placed),
    )
    pair = torch.stack([noise[:, : config.out_channels].flatten(), output.float().cpu().flatten()])
    likeness = torch.corrcoef(pair)[0, 1]
    return bool(torch.isfinite(likeness)) and float(likeness) < 0.5
