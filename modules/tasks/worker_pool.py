"""The workers behind the queue as processes of this computer (see `pool_interface`).

The supervisor is one thread. It starts every worker, watches heartbeats, ends a worker that hangs
or does not obey Stop, gives a dead one's tasks back to the queue and restarts it with back-off.
All waiting is measured on the monotonic clock, so a changed wall clock changes nothing.
"""

import atexit
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import wait as wait_for_any
from typing import Any, Literal

from modules.settings.config import Settings
from modules.spec.errors import StudioError, TaskStalled
from modules.spec.flags import TaskState
from modules.spec.task_spec import TaskSpec
from modules.tasks.events import Ended, Preview, TaskView
from modules.tasks.pool_interface import PoolStatus, WorkerPool, WorkerStatus
from modules.tasks.store import TaskStore
from modules.tasks.view_board import ViewBoard
from modules.tasks.worker_process import EXIT_RECYCLE, PoolTimings, WorkerProcess

__all__ = ["LocalWorkerPool", "PoolStatus", "PoolTimings", "WorkerPool", "WorkerStatus"]

logger = logging.getLogger(__name__)

_ASK_SECONDS, _TERMINATE_SECONDS, _KILL_SECONDS = 1.2, 0.5, 0.5
_END_SECONDS = _ASK_SECONDS + _TERMINATE_SECONDS + _KILL_SECONDS + 0.3
_LAST_WRITE_SECONDS = 0.2
# A supervisor that itself did not run for so long was suspended with the whole computer.
_SUSPENDED_SECONDS = 5.0


@dataclass(slots=True)
class _Slot:
    """A place for one worker. failures: deaths in a row without a finished task between."""

    number: int
    process: WorkerProcess | None = None
    start_at: float = 0.0
    failures: int = 0
    starts: int = 0
    message: str = ""
    trouble: str = ""


class LocalWorkerPool:
    """Worker processes on this computer. Nothing runs before start()."""

    def __init__(
        self,
        settings: Settings,
        store: TaskStore,
        target: str = "modules.async_worker:worker_main",
        count: int = 1,
        *,
        timings: PoolTimings | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._target = target
        self._timings = timings or PoolTimings()
        self._slots = [_Slot(number) for number in range(count)]
        self._lock = threading.RLock()
        self._board: ViewBoard | None = None
        self._closing = threading.Event()
        self._end_by = 0.0
        self._poke_reader, self._poke_writer = Pipe(duplex=False)
        self._supervisor = threading.Thread(
            target=self._supervise, name="pool-supervisor", daemon=True
        )

    def start(self) -> None:
        """Take back what a former run left unfinished, and start the workers."""
        self._store.verify()
        for task_id in self._store.recover():
            logger.info("task %s waits again after a restart", task_id)
        self._board = ViewBoard(self._store, self._store.count_start())
        self._supervisor.start()
        atexit.register(self.close)

    @property
    def _views(self) -> ViewBoard:
        if self._board is None:
            raise RuntimeError("the pool is not started: call start() first")
        return self._board

    # What a user does

    def submit(
        self,
        spec: TaskSpec,
        owner: str = "local",
        idempotency_key: str | None = None,
        request: str | None = None,
    ) -> str:
        """See TaskStore.submit: queue a task and return its id, once it is safely stored."""
        task_id = self._store.submit(
            spec, owner=owner, idempotency_key=idempotency_key, request=request
        )
        self._wake()
        return task_id

    def stop_task(self, task_id: str) -> None:
        """End a task: at once if it waits, by its worker if it runs, else not at all."""
        record = self._store.request_stop(task_id)
        if record.state is TaskState.STOPPED:
            self._views.refresh(task_id)
        elif record.state is TaskState.RUNNING:
            self._views.wish(task_id, "Stopping…")
            self._send_stop(task_id, record.worker_id)

    def skip_image(self, task_id: str) -> None:
        """End the current picture of a running task and go on with the next."""
        record = self._store.get(task_id)
        process = self._process_of(record.worker_id)
        if record.state is TaskState.RUNNING and process:
            self._views.wish(task_id, "Skipping this picture…")
            process.send("skip", task_id)

    # What a viewer sees

    def view(self, task_id: str) -> TaskView:
        """The task as of now."""
        return self._views.view(task_id)

    def wait(self, task_id: str, after_seq: int, timeout: float) -> TaskView | None:
        """See ViewBoard.wait: blocks until there is something newer than `after_seq`."""
        return self._views.wait(task_id, after_seq, timeout)

    def preview(self, task_id: str) -> tuple[int, Preview] | None:
        """The newest preview of a running task and its growing number."""
        return self._views.preview(task_id)

    def add_listener(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """See ViewBoard.add_listener."""
        return self._views.add_listener(listener)

    def recent(self, limit: int = 50) -> list[TaskView]:
        """Views of the newest tasks, newest first."""
        return [self._views.view(record.id) for record in self._store.recent(limit)]

    def status(self) -> PoolStatus:
        """All workers and the queue as of now."""
        with self._lock:
            workers = tuple(self._status_of(slot) for slot in self._slots)
        return PoolStatus(
            workers=workers,
            running=tuple(worker.task_id for worker in workers if worker.task_id),
            queue_length=self._store.queue_length(),
            message=next((worker.message for worker in workers if worker.message), ""),
        )

    def _status_of(self, slot: _Slot) -> WorkerStatus:
        process = slot.process
        state: Literal["starting", "idle", "busy", "restarting"]
        if process is None:
            state = "restarting" if slot.starts else "starting"
        elif not process.is_ready:
            state = "starting"
        else:
            state = "busy" if process.task_id else "idle"
        return WorkerStatus(
            number=slot.number,
            state=state,
            task_id=process.task_id if process else None,
            restarts=max(slot.starts - 1, 0),
            message=slot.message,
            pid=process.process.pid if process else None,
        )

    def begin_close(self) -> None:
        """Let every worker begin to end, and return at once: close() waits until they have."""
        if not self._closing.is_set():
            self._end_by = time.monotonic() + _END_SECONDS
            self._closing.set()
            self._poke_writer.send(None)

    def close(self) -> None:
        """End every worker within 2.5 seconds; running tasks go back to the queue."""
        atexit.unregister(self.close)
        self.begin_close()
        if self._supervisor.is_alive():
            self._supervisor.join(max(self._end_by - time.monotonic(), 0))

    # Talk with the workers

    def _wake(self) -> None:
        with self._lock:
            idle = [slot.process for slot in self._slots if slot.process and slot.process.is_idle]
        for process in idle:
            process.send("wake")

    def _process_of(self, worker_id: str | None) -> WorkerProcess | None:
        with self._lock:
            for slot in self._slots:
                if slot.process and slot.process.id == worker_id:
                    return slot.process
        return None

    def _send_stop(self, task_id: str, worker_id: str | None) -> None:
        process = self._process_of(worker_id)
        if process is None:
            return
        with self._lock:
            if process.stop_deadline and process.stop_deadline[0] == task_id:
                return  # pressed again: the first deadline counts
            process.stop_deadline = (task_id, time.monotonic() + self._timings.cancel)
        process.send("stop", task_id)

    def _on_message(self, process: WorkerProcess, message: tuple[Any, ...]) -> None:
        kind, *rest = message
        if kind == "event":
            process.last_progress = time.monotonic()
            task_id, attempt, event = rest
            self._views.fold(task_id, attempt, event)
            if isinstance(event, Ended):
                self._set_task(process, None, finished=True)
        elif kind == "started":
            process.last_progress = time.monotonic()
            self._set_task(process, rest[0])
            self._views.started(*rest)
        elif kind == "idle":
            self._set_task(process, None)
            # A task may have come between its last look and this message.
            if self._store.queue_length():
                process.send("wake")
        elif kind == "ready":
            process.is_ready = True
            self._set_words(process, "")
        elif kind == "trouble":
            words = rest[0] if process.is_ready else f"The worker could not start. {rest[0]}"
            self._set_words(process, words)

    def _set_task(
        self, process: WorkerProcess, task_id: str | None, *, finished: bool = False
    ) -> None:
        with self._lock:
            process.task_id = task_id
            process.is_idle = task_id is None and not finished
            for slot in self._slots:
                if finished and slot.process is process:
                    slot.failures = 0
        self._set_words(process, "")

    def _set_words(self, process: WorkerProcess, trouble: str) -> None:
        """`trouble` is a sentence on what keeps the worker from working; '' says it is well."""
        with self._lock:
            for slot in self._slots:
                if slot.process is process:
                    slot.message = slot.trouble = trouble
        self._update_notice()

    def _update_notice(self) -> None:
        """Waiting tasks are told why they wait when no worker is well."""
        with self._lock:
            messages = [slot.message for slot in self._slots]
        self._views.set_notice(messages[0] if all(messages) else "")

    # The supervisor's thread

    def _supervise(self) -> None:
        last = time.monotonic()
        while not self._closing.is_set():
            now = time.monotonic()
            if now - last > _SUSPENDED_SECONDS:
                self._forgive()
            last = now
            for slot in self._slots:
                try:
                    self._look_after(slot, now)
                except Exception:  # the supervisor must outlive every fault
                    logger.exception("looking after worker %d failed", slot.number)
                    self._closing.wait(self._timings.tick)
            sentinels = [slot.process.process.sentinel for slot in self._slots if slot.process]
            wait_for_any([*sentinels, self._poke_reader], self._timings.tick)
        self._shut_down()

    def _forgive(self) -> None:
        for slot in self._slots:
            if slot.process:
                slot.process.last_beat = slot.process.last_progress = time.monotonic()

    def _look_after(self, slot: _Slot, now: float) -> None:
        process = slot.process
        if process is None:
            if now >= slot.start_at:
                slot.start_at = now + self._timings.backoff_max  # if starting itself fails
                slot.starts += 1
                slot.process = WorkerProcess(self._target, self._settings, self._on_message)
        elif not process.process.is_alive():
            self._replace(slot, process)
        else:
            self._watch(process, now)

    def _watch(self, process: WorkerProcess, now: float) -> None:
        patience = self._timings.hung if process.is_ready else self._timings.start
        stop, task_id = process.stop_deadline, process.task_id
        if now - process.last_beat > patience:
            process.kill(f"did not answer for {patience:.0f} seconds and was ended")
        elif stop and stop[0] == task_id and now > stop[1]:
            process.kill("did not react to Stop and was ended")
        elif task_id and now - process.last_progress > self._timings.stalled:
            process.last_progress = now
            minutes = self._timings.stalled / 60
            self._store.fail(
                task_id,
                TaskStalled.code,
                f"There was no progress for {minutes:.0f} minutes, so the task was ended. Try a "
                "smaller size or fewer steps.",
            )
            self._views.refresh(task_id)
            self._send_stop(task_id, process.id)

    def _replace(self, slot: _Slot, process: WorkerProcess) -> None:
        """Bury a dead worker, give its tasks back, and plan the next start."""
        cause = process.bury()
        code = process.process.exitcode
        logger.warning("worker %s (exit code %s) %s", process.id, code, cause)
        # If this fails (a full disk), the slot keeps the dead process and comes here again.
        records = self._store.requeue_after_crash(process.id, cause)
        if process.task_id and process.task_id not in {record.id for record in records}:
            self._views.refresh(process.task_id)  # it ended, and died before it could say so
        now = time.monotonic()
        with self._lock:
            slot.process = None
            if code == EXIT_RECYCLE:
                slot.start_at = now
            else:
                slot.failures += 1
                pause = self._timings.backoff_first * 2 ** min(slot.failures - 1, 16)
                slot.start_at = now + min(pause, self._timings.backoff_max)
                if process.is_ready or not slot.trouble:
                    slot.message = f"The worker {cause}. It is being restarted."
        self._update_notice()
        for record in records:
            again = f"The worker {cause}. It is being restarted, and this task is tried once more."
            self._views.refresh(record.id, "" if record.state.is_final else again)

    def _shut_down(self) -> None:
        """Ask, then terminate, then kill. In this thread: Linux ends its children with it."""
        processes = [slot.process for slot in self._slots if slot.process]
        for process in processes:
            process.send("exit")
        _join(processes, _ASK_SECONDS)
        for process in processes:
            if process.process.is_alive():
                process.process.terminate()
        _join(processes, _TERMINATE_SECONDS)
        for process in processes:
            if process.process.is_alive():
                process.kill("did not leave")
        _join(processes, _KILL_SECONDS)
        for process in processes:
            if not process.process.is_alive():
                process.bury()
        try:
            self._store.hurry(_LAST_WRITE_SECONDS)
            self._store.recover()
        except StudioError:
            logger.exception("running tasks are given back at the next start")


def _join(processes: list[WorkerProcess], seconds: float) -> None:
    """Wait for all of them to end, `seconds` at most in total."""
    deadline = time.monotonic() + seconds
    for process in processes:
        process.process.join(max(deadline - time.monotonic(), 0))
