"""The mutable state of one task, and the one it belongs to.

`TaskPort` is what stages may ask and tell: a ClaimedTask of the queue is one, the command line
has another. A `Job` is handed from stage to stage; each writes the fields that its name promises.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from modules.library.catalog import ModelFile
from modules.prompt.plan import LoraUse, PicturePrompt, PromptPlan
from modules.spec.errors import Cancelled
from modules.spec.sizes import SizeTable
from modules.spec.task_spec import ResolvedSpec, TaskSpec
from modules.tasks.cancel import CancelToken
from modules.tasks.events import Event
from modules.worker.progress import PreviewPace, StepClock

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ldm_patched.modules.control_base import ControlBase
    from ldm_patched.modules.model_patcher import ModelPatcher
    from modules.worker.pipeline import LoadedModel


class TaskPort(Protocol):
    """A task as its worker sees it. Every call may raise ClaimLost (a Cancelled)."""

    id: str
    spec: TaskSpec
    attempt: int
    done_indices: frozenset[int]
    cancel: CancelToken

    def emit(self, event: Event) -> None:
        """Tell viewers; nothing depends on it."""

    def set_resolved(self, resolved: ResolvedSpec) -> None:
        """Store what the spec came to."""

    def commit_image(
        self,
        index: int,
        relative_path: str,
        sha256: str,
        width: int,
        height: int,
        seed: int,
        peak: int | None = None,
    ) -> None:
        """Record a picture whose file is on disk. peak: bytes of memory that it took, if known."""

    def commit_skip(self, index: int) -> None:
        """Record that a picture is not wanted."""

    def finish(self, state: Any, code: str = "", message: str = "") -> None:
        """End the task."""


@dataclass(slots=True)
class Job:
    """One task on its way through the stages. `index` and what follows belong to one picture."""

    task: TaskPort
    file: ModelFile | None = None  # resolve
    vae_file: ModelFile | None = None  # resolve; None is the checkpoint's own
    resolved: ResolvedSpec | None = None  # resolve
    sizes: SizeTable | None = None  # resolve
    mode_lora: ModelFile | None = None  # resolve; of the performance mode
    refiner_file: ModelFile | None = None  # resolve
    plain_refiner: "LoadedModel | None" = None  # prompts
    refiner: "LoadedModel | None" = None  # prompts; with the LoRAs of the current picture that fit
    plan: PromptPlan | None = None  # prompts
    lora_files: dict[str, ModelFile] = field(default_factory=dict)  # prompts; by name
    lora_notes: dict[str, str] = field(default_factory=dict)  # prompts; of those that fit in part
    base: "LoadedModel | None" = None  # prompts; the checkpoint as it is
    model: "LoadedModel | None" = None  # prompts; with the LoRAs of the current picture
    control_tasks: tuple[Any, ...] = ()  # control; objects with attach(unet)
    control: "ControlBase | None" = None  # control; a chain that goes with the conditions
    controls_ready: bool = False  # control; both of them are what the spec asks for
    unet: "ModelPatcher | None" = None  # control; a clone, so that nothing sticks to the model
    clock: StepClock = field(default_factory=StepClock)
    preview_pace: PreviewPace = field(default_factory=PreviewPace)
    is_sparing: bool = False  # everything in small parts: since memory ran out once

    index: int = 0
    positive: list[Any] = field(default_factory=list)  # prompts; [[cond, {"pooled_output": …}]]
    negative: list[Any] = field(default_factory=list)  # prompts
    refiner_positive: list[Any] = field(default_factory=list)  # prompts; as the refiner reads it
    refiner_negative: list[Any] = field(default_factory=list)  # prompts
    latents: "Tensor | None" = None  # sample; (1, 4, H/8, W/8) in the VAE's scale
    pixels: "np.ndarray | None" = None  # decode; (H, W, 3) uint8

    @property
    def spec(self) -> TaskSpec:
        return self.task.spec

    @property
    def check(self) -> Callable[[], None]:
        """Raises Cancelled or Skipped when the user asked for it."""
        return self.task.cancel.check

    def check_stop(self) -> None:
        """Raises Cancelled after a Stop. For times that all pictures share, where a Skip waits."""
        if self.task.cancel.is_stopped:
            raise Cancelled

    @property
    def seed(self) -> int:
        """The current picture's own."""
        return self.settled.seeds[self.index]

    @property
    def prompt(self) -> PicturePrompt:
        """What the current picture is painted from; only before the prompts stage it is open."""
        if self.plan is None:
            raise RuntimeError("the prompts stage has not run yet")
        return self.plan.pictures[self.index]

    @property
    def lora_uses(self) -> tuple[LoraUse, ...]:
        """The LoRAs of the current picture; that of the performance mode comes last, and once."""
        mode = self.settled.performance_lora
        if mode is None:
            return self.prompt.loras
        others = (use for use in self.prompt.loras if use.file != mode.name)
        return (*others, LoraUse(file=mode.name, weight=mode.weight, clip_weight=mode.weight))

    @property
    def settled(self) -> ResolvedSpec:
        """The resolved spec; only before the resolve stage there is none."""
        if self.resolved is None:
            raise RuntimeError("the resolve stage has not run yet")
        return self.resolved

    def next_image(self, index: int) -> None:
        """Forget the picture before; `index` (from 0) is painted now."""
        self.index, self.latents, self.pixels = index, None, None
