"""What the server asks of its workers, wherever they run, and how they are doing."""

from collections.abc import Callable
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from modules.spec.task_spec import TaskSpec
from modules.tasks.events import Preview, TaskView


class WorkerStatus(BaseModel):
    """One worker as of now."""

    model_config = ConfigDict(frozen=True)

    number: int
    state: Literal["starting", "idle", "busy", "restarting"]
    task_id: str | None
    restarts: int
    message: str = ""
    pid: int | None = Field(None, exclude=True)


class PoolStatus(BaseModel):
    """All workers as of now; `message` is one sentence if something is wrong, else ''."""

    model_config = ConfigDict(frozen=True)

    workers: tuple[WorkerStatus, ...]
    running: tuple[str, ...]
    queue_length: int
    message: str = ""


class WorkerPool(Protocol):
    """Where tasks are sent and watched. Unknown ids raise NotFound everywhere."""

    def start(self) -> None: ...
    def submit(
        self,
        spec: TaskSpec,
        owner: str = "local",
        idempotency_key: str | None = None,
        request: str | None = None,
    ) -> str: ...
    def stop_task(self, task_id: str) -> None: ...
    def skip_image(self, task_id: str) -> None: ...
    def view(self, task_id: str) -> TaskView: ...
    def wait(self, task_id: str, after_seq: int, timeout: float) -> TaskView | None: ...
    def preview(self, task_id: str) -> tuple[int, Preview] | None: ...
    def add_listener(self, listener: Callable[[str], None]) -> Callable[[], None]: ...
    def recent(self, limit: int = 50) -> list[TaskView]: ...
    def status(self) -> PoolStatus: ...
    def close(self) -> None: ...
