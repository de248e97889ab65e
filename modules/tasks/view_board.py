"""What every viewer sees: events of the workers folded into one TaskView per task.

The newest preview and progress win; results are read from the store, so none can be lost. `seq`
is one counter for all tasks of a server's life, on top of the number of its start: it grows with
every change of a view, also across restarts. The view of an ended task has the highest one.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from modules.spec.flags import TaskState
from modules.tasks.events import (
    Ended,
    ErrorView,
    Event,
    Held,
    ImageSaved,
    ImageView,
    Loading,
    Preview,
    Progress,
    TaskView,
)
from modules.tasks.records import TaskRecord
from modules.tasks.store import TaskStore

# Changes that fit into one start; start × this stays below 2^53, exact in JavaScript.
_CHANGES_PER_START = 1_000_000_000


@dataclass(slots=True)
class _Live:
    """What is known of a task that has not ended, beyond its row."""

    changed: threading.Condition
    seq: int
    attempt: int = 0
    running: bool = False
    loading: Loading | None = None
    progress: Progress | None = None
    message: str = ""
    wish: str = ""
    preview: tuple[int, Preview] | None = None
    view: TaskView | None = field(default=None, repr=False)


class ViewBoard:
    """Views of all tasks. Thread-safe; waiting viewers cost nothing until something changes."""

    def __init__(self, store: TaskStore, start_number: int) -> None:
        self._store = store
        self._base = start_number * _CHANGES_PER_START
        self._count = 0
        self._lock = threading.RLock()
        self._live: dict[str, _Live] = {}
        self._listeners: list[Callable[[str], None]] = []
        self._notice = ""

    # Viewers

    def view(self, task_id: str) -> TaskView:
        """The task as of now. NotFound if there is none of this id."""
        with self._lock:
            live = self._live.get(task_id)
            if live and live.view:
                return live.view
            record = self._store.get(task_id)
            if record.state.is_final:
                self._drop(task_id)
                return self._view(record, None)
            live = self._track(task_id)
            live.view = self._view(record, live)
            return live.view

    def wait(self, task_id: str, after_seq: int, timeout: float) -> TaskView | None:
        """The first view newer than `after_seq`; None after `timeout` seconds without one.

        An ended task's view is returned at once whatever `after_seq` is: nothing will follow.
        """
        deadline = time.monotonic() + timeout
        with self._lock:
            while True:
                view = self.view(task_id)
                if view.seq > after_seq or view.state.is_final:
                    return view
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._track(task_id).changed.wait(left)

    def preview(self, task_id: str) -> tuple[int, Preview] | None:
        """(number, newest preview) of a running task. The number grows with every preview."""
        with self._lock:
            live = self._live.get(task_id)
            return live.preview if live else None

    def add_listener(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """Call `listener(task_id)` at every change, from any thread; it must return at once.

        Returns the function that removes it. For event loops, which should not block in wait().
        """
        with self._lock:
            self._listeners.append(listener)

        def remove() -> None:
            with self._lock:
                self._listeners.remove(listener)

        return remove

    # The pool

    def started(self, task_id: str, attempt: int) -> None:
        """A worker has the task: what an earlier attempt showed is over."""
        with self._lock:
            live = self._track(task_id)
            live.attempt, live.running = attempt, True
            live.loading = live.progress = live.preview = None
            live.message = ""
            self._changed(task_id, live)
            self.queue_moved()

    def fold(self, task_id: str, attempt: int, event: Event) -> None:
        """Take in an event; one of an earlier attempt is dropped."""
        with self._lock:
            if isinstance(event, Ended):
                self.refresh(task_id)
                return
            live = self._live.get(task_id)
            if live is None or not live.running or live.attempt != attempt:
                return
            if isinstance(event, Preview):
                live.preview = (self._base + self._count, event)
            elif isinstance(event, Loading):
                live.loading, live.message = event, event.message
            elif isinstance(event, Progress):
                # Nor can one from before the first progress mean a picture that is left: a Skip
                # of that time ends the first before it tells of any.
                if live.progress is None or live.progress.image != event.image:
                    live.wish = ""
                live.loading, live.progress, live.message = None, event, ""
            elif isinstance(event, Held):
                live.message = event.message
            elif isinstance(event, ImageSaved):
                live.preview, live.message = None, ""
            self._changed(task_id, live)

    def refresh(self, task_id: str, message: str = "") -> None:
        """The row has changed: the task ended, or it waits again and `message` says why."""
        with self._lock:
            record = self._store.get(task_id)
            if record.state.is_final:
                self._drop(task_id)
                self._tell(task_id)
            else:
                live = self._track(task_id)
                live.running = record.state is TaskState.RUNNING
                live.loading = live.progress = live.preview = None
                live.message, live.wish = message, ""
                self._changed(task_id, live)
            self.queue_moved()

    def wish(self, task_id: str, words: str) -> None:
        """Show at once that Stop or Skip was heard, until the worker obeys."""
        with self._lock:
            live = self._track(task_id)
            live.wish = words
            self._changed(task_id, live)

    def queue_moved(self) -> None:
        """Positions of waiting tasks may have changed."""
        with self._lock:
            for task_id, live in self._live.items():
                if not live.running:
                    self._changed(task_id, live)

    def set_notice(self, notice: str) -> None:
        """A sentence for all waiting tasks, such as why no worker takes them; '' for none."""
        with self._lock:
            if notice != self._notice:
                self._notice = notice
                self.queue_moved()

    # Inside the lock

    def _track(self, task_id: str) -> _Live:
        live = self._live.get(task_id)
        if live is None:
            live = _Live(threading.Condition(self._lock), self._next())
            self._live[task_id] = live
        return live

    def _next(self) -> int:
        self._count += 1
        return self._base + self._count

    def _changed(self, task_id: str, live: _Live) -> None:
        live.seq, live.view = self._next(), None
        live.changed.notify_all()
        self._tell(task_id)

    def _drop(self, task_id: str) -> None:
        live = self._live.pop(task_id, None)
        if live:
            live.changed.notify_all()

    def _tell(self, task_id: str) -> None:
        for listener in tuple(self._listeners):
            listener(task_id)

    def _view(self, record: TaskRecord, live: _Live | None) -> TaskView:
        waits = record.state is TaskState.QUEUED
        message = record.message if live is None else live.wish or live.message
        failed = record.state is TaskState.FAILED
        return TaskView(
            id=record.id,
            seq=live.seq if live else self._base + _CHANGES_PER_START - 1,
            state=record.state,
            spec=record.spec,
            position=self._store.position(record),
            loading=live.loading if live else None,
            progress=live.progress if live else None,
            message=(message or self._notice) if waits else message,
            images=tuple(
                ImageView(
                    index=image.index,
                    url=f"/api/images/{record.id}/{image.index}",
                    width=image.width,
                    height=image.height,
                    seed=image.seed,
                )
                for image in self._store.images(record.id)
            ),
            error=ErrorView(code=record.code, message=record.message) if failed else None,
            created=record.created,
            started=record.started,
            ended=record.ended,
        )
