"""What a viewer of a task may see, and the small messages that keep it fresh.

A worker emits Events over its pipe; the pool folds them into one TaskView per task, whose `seq`
grows with every change. A viewer that knows the last TaskView needs nothing else: attaching,
re-attaching and reconnecting are all "give me the view newer than seq".
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from modules.spec.flags import TaskState
from modules.spec.task_spec import TaskSpec


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Loading(_Frozen):
    """The worker is reading a model. `fraction` is None while it cannot be known."""

    kind: Literal["loading"] = "loading"
    message: str
    fraction: float | None = None


class Progress(_Frozen):
    """Step `step` of `steps` of picture `image` (from 1) of `image_count` is finished.

    note: what else to know while it is painted, in words, or ''.
    """

    kind: Literal["progress"] = "progress"
    image: int
    image_count: int
    step: int
    steps: int
    seconds_left: float | None = None
    note: str = ""

    @property
    def fraction(self) -> float:
        """0.0 before the first step of the first picture, 1.0 after the last of the last."""
        return min(
            1.0, (self.image - 1 + self.step / max(self.steps, 1)) / max(self.image_count, 1)
        )


class Held(_Frozen):
    """Something keeps the task from going on for now; `message` is a sentence on what."""

    kind: Literal["held"] = "held"
    message: str


class Preview(_Frozen):
    """A small JPEG of the picture as it forms. Lossy: only the newest counts."""

    kind: Literal["preview"] = "preview"
    jpeg: bytes
    width: int
    height: int


class ImageSaved(_Frozen):
    """Picture `index` (from 0) is on disk and in the store."""

    kind: Literal["image"] = "image"
    index: int
    width: int
    height: int
    seed: int


class Ended(_Frozen):
    """The task reached a final state; `code` and `message` are set when it failed."""

    kind: Literal["ended"] = "ended"
    state: TaskState
    code: str = ""
    message: str = ""


Event = Loading | Progress | Held | Preview | ImageSaved | Ended


class ImageView(_Frozen):
    """One finished picture as a viewer sees it."""

    index: int
    url: str
    width: int
    height: int
    seed: int


class ErrorView(_Frozen):
    """Why a task failed: a stable code and one sentence."""

    code: str
    message: str


class TaskView(_Frozen):
    """Everything a page shows of a task, as of change number `seq`.

    position: 0 for the running task, 1 for the next in line, None once it has ended.
    message: a sentence on what is happening ("loading easel-mini.safetensors (74 MB)",
    "the worker stopped and is being restarted"), or ''.
    """

    id: str
    seq: int
    state: TaskState
    spec: TaskSpec
    position: int | None = None
    loading: Loading | None = None
    progress: Progress | None = None
    message: str = ""
    images: tuple[ImageView, ...] = ()
    error: ErrorView | None = None
    created: float
    started: float | None = None
    ended: float | None = None
