"""The worker's side of the pool: claims tasks, reports, beats, and obeys.

Over the pipe go small tuples. To the pool: ("ready",), ("beat",), ("idle",),
("started", task_id, attempt), ("event", task_id, attempt, event), ("trouble", sentence). To the
worker: ("wake",), ("stop", task_id), ("skip", task_id), ("exit",). Results never depend on the
pipe: they are rows in the store before they are messages.
"""

import importlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from modules.settings.config import Settings
from modules.spec.errors import DiskFull, InstanceRunning, StudioError
from modules.spec.flags import TaskState
from modules.spec.task_spec import ResolvedSpec, TaskSpec
from modules.tasks.cancel import CancelToken
from modules.tasks.database import BUSY_SECONDS
from modules.tasks.ending import leave
from modules.tasks.events import Ended, Event, Held, ImageSaved
from modules.tasks.records import Claim, ClaimLost
from modules.tasks.store import TaskStore

logger = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
POLL_SECONDS = 2.0
_RETRIES = 5
_RETRY_SECONDS = 1.0
_LOCKED = (
    "Another program holds the task list (easel.db) locked; end it. Easel waits, and nothing is "
    "lost."
)
_EXIT_ORPHANED = 87


class ClaimedTask:
    """One task in this worker's hands: what to paint, whom to tell, when to stop.

    done_indices: pictures (from 0) that an earlier attempt stored or the user skipped.
    """

    def __init__(self, session: "WorkerSession", claim: Claim) -> None:
        self._session = session
        self._claim = claim
        self._ended = False
        self.id: str = claim.id
        self.spec: TaskSpec = claim.spec
        self.attempt: int = claim.attempt
        self.done_indices: frozenset[int] = claim.done_indices
        self.cancel = CancelToken()

    @property
    def is_finished(self) -> bool:
        return self._ended

    def emit(self, event: Event) -> None:
        """Tell viewers. For Loading, Progress and Preview: pictures and ends report themselves."""
        self._session.send("event", self.id, self.attempt, event)

    def set_resolved(self, resolved: ResolvedSpec) -> None:
        """Store what the spec came to. Raises ClaimLost when the task was given to another."""
        self._insist(lambda: self._session.store.set_resolved(self._claim, resolved))

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
        """Record picture `index` (from 0), whose file is on disk, and tell viewers.

        relative_path: below the output folder, with forward slashes. peak: the most memory in
        bytes that it took, if that is known. Raises ClaimLost when the
        task was given to another or the picture is stored already: remove the file then.
        """
        self._insist(
            lambda: self._session.store.add_image(
                self._claim,
                index,
                path=relative_path,
                sha256=sha256,
                width=width,
                height=height,
                seed=seed,
                peak=peak,
            )
        )
        self.emit(ImageSaved(index=index, width=width, height=height, seed=seed))

    def commit_skip(self, index: int) -> None:
        """Record that the user skipped picture `index`, so that a retry leaves it out too."""
        self._insist(lambda: self._session.store.add_skipped(self._claim, index))

    def finish(self, state: TaskState, code: str = "", message: str = "") -> None:
        """End the task. Does nothing if it is no longer this worker's, or has ended.

        A Stop that came from the program's own end puts the task back into the queue instead.
        """
        if self._ended:
            return
        self._ended = True
        leaving = self._session.is_leaving and state is TaskState.STOPPED
        try:
            if leaving and not self._session.store.stop_is_requested(self._claim):
                self._session.store.release(self._claim)
                return
            self._insist(lambda: self._session.store.finish(self._claim, state, code, message))
        except ClaimLost as error:
            logger.warning("result dropped: %s", error)
            return
        self.emit(Ended(state=state, code=code, message=message))

    def _insist(self, write: Callable[[], None]) -> None:
        """Repeat a write that was refused: the result is worth the wait.

        A full disk gets a few seconds; another program's lock, which costs nothing but time, all
        it takes, and viewers are told. Only the end of this process ends the wait.
        """
        for attempt in count(1):
            try:
                return write()
            except (DiskFull, InstanceRunning) as error:
                is_locked = isinstance(error, InstanceRunning)
                if self._session.is_leaving or not (is_locked or attempt < _RETRIES):
                    raise
                if is_locked:
                    self.emit(Held(message=_LOCKED))
            time.sleep(_RETRY_SECONDS)
        return None


class WorkerSession:
    """One worker process's talk with the pool. Make it on the main thread, then iterate tasks()."""

    def __init__(
        self,
        connection: Connection,
        store_path: Path,
        worker_id: str,
        *,
        beat_seconds: float = BEAT_SECONDS,
        busy_seconds: float = BUSY_SECONDS,
    ) -> None:
        self.store = TaskStore(store_path, busy_seconds=busy_seconds)
        self.worker_id = worker_id
        self._connection = connection
        self._send_lock = threading.Lock()
        self._current: ClaimedTask | None = None
        self._current_lock = threading.Lock()
        self._stops: set[str] = set()
        self._wake = threading.Event()
        self._leaving = threading.Event()
        self._beat_seconds = beat_seconds
        for job in (self._beat, self._listen):
            threading.Thread(target=job, name=f"worker{job.__name__}", daemon=True).start()

    @property
    def is_leaving(self) -> bool:
        """True once the pool asked this process to end."""
        return self._leaving.is_set()

    def send(self, *message: Any) -> None:
        """One message to the pool; a broken pipe ends the process, which then is an orphan."""
        try:
            with self._send_lock:
                self._connection.send(message)
        except (OSError, ValueError):
            _die_as_orphan()

    def tasks(self) -> Iterator[ClaimedTask]:
        """Claimed tasks, one after the other, until the pool asks this process to end.

        A task that the caller leaves without finish() is failed here.
        """
        self.send("ready")
        while not self.is_leaving:
            task = self._claim()
            if task is None:
                continue
            yield task
            if not task.is_finished:
                task.finish(
                    TaskState.FAILED,
                    StudioError.code,
                    "The task ended without a result; the log says more. Try it again.",
                )
            with self._current_lock:
                self._current = None
        self.store.close()

    def _claim(self) -> ClaimedTask | None:
        """The next task, or None after a wait for one."""
        self._wake.clear()
        try:
            claim = self.store.claim(self.worker_id)
        except StudioError as error:
            logger.exception("claim failed")
            self.send("trouble", str(error))
            self._wake.wait(POLL_SECONDS)
            return None
        if claim is None:
            self.send("idle")
            self._wake.wait(POLL_SECONDS)
            return None
        task = ClaimedTask(self, claim)
        with self._current_lock:
            self._current = task
            # A Stop may have come between the claim and this line.
            if self.is_leaving or claim.id in self._stops:
                task.cancel.stop()
            self._stops.clear()
        self.send("started", claim.id, claim.attempt)
        return task

    def _beat(self) -> None:
        while True:
            self.send("beat")
            time.sleep(self._beat_seconds)

    def _listen(self) -> None:
        while True:
            try:
                message = self._connection.recv()
            except (EOFError, OSError):
                _die_as_orphan()
            self._obey(*message)

    def _obey(self, command: str, task_id: str = "") -> None:
        with self._current_lock:
            current = self._current
            if command == "exit":
                self._leaving.set()
                if current:
                    current.cancel.stop()
            elif command == "stop":
                self._stops.add(task_id)
                if current and current.id == task_id:
                    current.cancel.stop()
            elif command == "skip" and current and current.id == task_id:
                current.cancel.skip()
        self._wake.set()


def run_worker(target: str, connection: Connection, settings: Settings, worker_id: str) -> NoReturn:
    """What a fresh process runs: `target` is "package.module:function" of (connection, settings,
    worker_id). It ends when its parent does, and leaves Ctrl+C to it. It never returns.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()
    module, _, function = target.partition(":")
    try:
        getattr(importlib.import_module(module), function)(connection, settings, worker_id)
    except Exception as error:  # last line of defence: the pool must learn why
        logger.exception("the worker ended")
        sentence = str(error) if isinstance(error, StudioError) else "The log says why."
        connection.send(("trouble", sentence))
        leave(1)
    except SystemExit as error:  # the caller's way to say how it ended
        leave(error.code if isinstance(error.code, int) else int(error.code is not None))
    leave(0)


def _end_with_parent() -> None:
    """Ask Linux to kill this process with its parent; elsewhere the closed pipe tells it."""
    if sys.platform != "linux":
        return
    import ctypes

    pr_set_pdeathsig = 1
    parent = os.getppid()
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it died in between
        _die_as_orphan()


def _die_as_orphan() -> None:
    """End at once: nobody is left to report to, and stored results are safe."""
    os._exit(_EXIT_ORPHANED)
