"""Stage 2: the UNet and both text encoders, from nothing, on latents of the picture book."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from extras.training import builtin_model as builtin
from extras.training.alignment import Lessons
from extras.training.base_parts import MODEL_FILE, continued_base, fresh_base
from extras.training.detector import Detector
from extras.training.kept_pages import KeptPages
from extras.training.objectives import key_tensors
from extras.training.pages import PagePlan, source_record
from extras.training.stage_diffusion import DiffusionStage, Workplace
from extras.training.window import WindowPlan


@dataclass(frozen=True, kw_only=True)
class BasePlan:
    """What is learnt and how. weighting, levels: see make_loss. ucg: how often each text encoder's
    output is zeroed, on top of the captions that are emptied, while they are trained. frozen_text:
    they stay as the stage `text`, or `start_from`, has them. start_from: a model file whose weights
    to begin with. emphasis: how much more the error counts where a thing is."""

    objective: str = "eps"
    weighting: str = ""
    levels: str = ""
    loss_type: str = "l2"
    offset_noise: float = 0.05
    ucg: float = 0.02
    frozen_text: bool = False
    use_checkpoint: bool = False
    compile: bool = False
    start_from: Path | None = None
    emphasis: float = 1.0


class BaseStage(DiffusionStage):
    """See the module's docstring."""

    name = "base"

    def __init__(
        self,
        sizes: builtin.BuiltinSizes,
        pages: PagePlan,
        window: WindowPlan,
        plan: BasePlan,
        place: Workplace,
        *,
        teacher: Detector | None = None,
        output: Path | None = None,
    ) -> None:
        """teacher: what it sees in a page is told by the UNet as well, see alignment.py. output: a
        second folder for the result."""
        self.sizes, self.plan, self.output = sizes, plan, output
        lessons = Lessons(teacher=teacher, emphasis=plan.emphasis)
        torch.manual_seed(place.seed)
        how = {"objective": plan.objective, "use_checkpoint": plan.use_checkpoint}
        if plan.start_from:
            base = continued_base(sizes, plan.start_from, **how)
        else:
            base = fresh_base(sizes, place.folder, needs_text=plan.frozen_text, **how)
        base = base.to(place.device)
        parts = {"unet": base.unet, "clip_l": base.clip_l, "clip_g": base.clip_g}
        self.model = nn.ModuleDict(parts)
        super().__init__(
            base,
            lessons.pages(pages),
            window,
            place,
            weighting=plan.weighting,
            levels=plan.levels,
            loss_type=plan.loss_type,
            offset_noise=plan.offset_noise,
            text_dropout=None if plan.frozen_text else plan.ucg,
            lessons=lessons,
        )
        self.model.update(self.learn_to_tell(compiled=plan.compile))
        if plan.compile and self.lessons.teacher is None:
            self.forward = torch.compile(base.unet)

    def kept_pages(self) -> KeptPages | None:
        """Where what `rows` gives of these pages may be already."""
        if self.place.keep_pages is None:
            return None
        source = {**source_record(self.source), "bf16": self.place.bf16}
        makers: list[nn.Module] = [self.base.vae]
        if self.lessons.teacher is not None:
            makers.append(self.lessons.teacher)
        if self.plan.emphasis != 1.0:
            source["emphasis"] = self.plan.emphasis
        return KeptPages(self.place.keep_pages, source, *makers)

    def identity(self) -> dict[str, Any]:
        plan = asdict(replace(self.plan, compile=False, start_from=None))
        for name, once in (("levels", ""), ("emphasis", 1.0)):
            if plan[name] == once:  # nothing of it, as before there was a choice
                del plan[name]
        # Once the emphasis was on the latents alone.
        both = self.lessons.teacher is not None and "emphasis" in plan
        told = {"told": "with emphasis"} if both else {}
        return {**super().identity(), "sizes": asdict(self.sizes), "plan": plan, **told}

    def frozen(self) -> dict[str, Tensor]:
        base = self.base
        parts: dict[str, nn.Module] = {"vae": base.vae}
        if self.plan.frozen_text:
            parts |= {"clip_l": base.clip_l, "clip_g": base.clip_g}
        own = {f"{p}.{n}": w for p, net in parts.items() for n, w in net.state_dict().items()}
        return {**own, **self.lessons.frozen()}

    def file(self) -> dict[str, Tensor]:
        """The whole model in SDXL's layout, from the weights now in `model`."""
        base = self.base
        return {
            **builtin.checkpoint_file(
                base.unet.state_dict(),
                base.vae.state_dict(),
                builtin.clip_l_file(base.clip_l, base.clip_l.state_dict()),
                builtin.clip_g_file(base.clip_g, base.clip_g.state_dict()),
            ),
            **key_tensors(self.plan.objective),
        }

    def finish(self) -> list[Path]:
        """Write the model file. Raises TrainingFolderError if a folder cannot be written to."""
        metadata = {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in builtin.file_metadata(self.source.sizes).items()
        }
        paths = [folder / MODEL_FILE for folder in (self.place.folder, self.output) if folder]
        return self.write(self.file(), *paths, metadata=metadata)
