"""Stage `lora`: what a look or a subject adds to the frozen base model, as a LoRA file."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from extras.training.base_parts import load_base
from extras.training.errors import TrainingFolderError
from extras.training.low_rank import LowRankSet, in_transformers, kohya_file
from extras.training.pages import GroupSource
from extras.training.stage_diffusion import DiffusionStage, Workplace
from extras.training.window import WindowPlan
from extras.training.writing import half, reason
from ldm_patched.modules.utils import load_torch_file


@dataclass(frozen=True, kw_only=True)
class LoraPlan:
    """title: of the run, and with `prefix` of the file; trigger: words that call for it, for the
    file's metadata."""

    title: str
    trigger: str = ""
    rank: int = 8
    prefix: str = "easel-mini-"


class AdapterStage(DiffusionStage):
    """Something small is trained on a base model that stays as it is."""

    def __init__(
        self,
        name: str,
        base_file: Path,
        source: GroupSource,
        window: WindowPlan,
        place: Workplace,
        *,
        output: Path | None = None,
        **learning: Any,
    ) -> None:
        """base_file: the checkpoint; output: another folder for the results; learning: more of
        what DiffusionStage takes."""
        self.name, self.output = name, output
        base = load_base(base_file).to(place.device)
        super().__init__(base, source, window, place, **learning)
        digest = hashlib.sha256()
        with base_file.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        self.base_hash = digest.hexdigest()
        torch.manual_seed(place.seed)

    def begin_with(self, path: Path) -> None:
        """Go on from what this stage left in `path`, such as for an earlier base; what a stage
        learns beside it begins anew. Raises what `weights_like` does."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "base": self.base_hash}

    def places(self, name: str) -> list[Path]:
        """Where a result of this name goes."""
        return [folder / name for folder in (self.place.folder, self.output) if folder]


def weights_like(path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an earlier result, float32, if they have the names and shapes of `wanted`.

    Raises TrainingFolderError, and EngineErrors for a file that is damaged.
    """
    try:
        found = load_torch_file(path)
    except OSError as error:
        raise TrainingFolderError(
            f"{path.name} in {path.absolute().parent.name!r} could not be read ({reason(error)}): "
            "with --adapter, name a file that this stage left before; an IP-Adapter has its "
            "negative embedding beside it."
        ) from error
    if {n: w.shape for n, w in found.items()} != {n: w.shape for n, w in wanted.items()}:
        raise TrainingFolderError(
            f"{path.name} is not of this stage, or not for a model of these sizes and this --rank: "
            "name a file that this stage left before, or leave --adapter out."
        )
    return {name: weight.float() for name, weight in found.items()}


class LoraStage(AdapterStage):
    """Low-rank additions to the attention and feed-forward layers of the UNet."""

    def __init__(
        self,
        plan: LoraPlan,
        base_file: Path,
        source: GroupSource,
        window: WindowPlan,
        place: Workplace,
        *,
        output: Path | None = None,
    ) -> None:
        """See AdapterStage."""
        super().__init__(f"lora-{plan.title}", base_file, source, window, place, output=output)
        self.plan = plan
        self.added = self.model = LowRankSet(self.base.unet, in_transformers, plan.rank)
        self.model.to(self.device)

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "rank": self.plan.rank}

    def metadata(self) -> dict[str, str]:
        """What kohya's trainer would say of the file, as far as it is so."""
        plan = self.plan
        count = {plan.trigger: 1} if plan.trigger else {}
        return {
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(plan.rank),
            "ss_network_alpha": str(float(plan.rank)),
            "ss_base_model_version": "sdxl_base_v1-0",
            "ss_output_name": plan.title,
            "ss_tag_frequency": json.dumps({plan.title: count}),
            "modelspec.title": plan.title,
            **({"modelspec.trigger_phrase": plan.trigger} if plan.trigger else {}),
            "easel.base_sha256": self.base_hash,
        }

    def finish(self) -> list[Path]:
        """Write the LoRA in the form of kohya's. Raises TrainingFolderError."""
        weights: dict[str, Tensor] = half(kohya_file(self.added))
        name = f"{self.plan.prefix}{self.plan.title}.safetensors"
        return self.write(weights, *self.places(name), metadata=self.metadata())
