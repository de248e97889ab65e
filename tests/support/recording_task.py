"""A task without a queue: a TaskPort that keeps everything it is told."""

from collections.abc import Callable
from itertools import count
from typing import Any

from modules.spec.flags import TaskState
from modules.spec.task_spec import ResolvedSpec, TaskSpec
from modules.tasks.cancel import CancelToken
from modules.tasks.events import Event, Preview, Progress

_NUMBERS = count(1)


class RecordingTask:
    """`on_event` may press Stop or Skip; `commits` has index → facts of the committed pictures."""

    def __init__(
        self,
        spec: TaskSpec,
        *,
        attempt: int = 1,
        done_indices: frozenset[int] = frozenset(),
        on_event: Callable[["RecordingTask", Event], None] = lambda _task, _event: None,
    ) -> None:
        self.id = f"task{next(_NUMBERS)}"
        self.spec = spec.with_fixed_seed()
        self.attempt = attempt
        self.done_indices = done_indices
        self.cancel = CancelToken()
        self.events: list[Event] = []
        self.commits: dict[int, dict[str, Any]] = {}
        self.skipped: list[int] = []
        self.resolved: ResolvedSpec | None = None
        self.state: TaskState | None = None
        self.code = self.message = ""
        self._on_event = on_event

    def emit(self, event: Event) -> None:
        self.events.append(event)
        self._on_event(self, event)

    def set_resolved(self, resolved: ResolvedSpec) -> None:
        self.resolved = resolved

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
        assert index not in self.commits
        self.commits[index] = {
            "path": relative_path,
            "sha256": sha256,
            "size": (width, height),
            "seed": seed,
            "peak": peak,
        }

    def commit_skip(self, index: int) -> None:
        self.skipped.append(index)

    def finish(self, state: TaskState, code: str = "", message: str = "") -> None:
        assert self.state is None, "a task ends once"
        self.state, self.code, self.message = state, code, message

    @property
    def progress(self) -> list[Progress]:
        return [event for event in self.events if isinstance(event, Progress)]

    @property
    def previews(self) -> list[Preview]:
        return [event for event in self.events if isinstance(event, Preview)]
