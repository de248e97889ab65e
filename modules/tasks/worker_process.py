"""One worker process as its supervisor holds it: the process, its pipe, its last sign of life."""

import logging
import multiprocessing
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modules.settings.config import Settings
from modules.spec import limits
from modules.tasks.worker_session import run_worker

logger = logging.getLogger(__name__)

EXIT_RECYCLE = 86
_ACCESS_VIOLATION = 0xC0000005

# Words that follow "the worker".
_CAUSES = {
    -4: "met an instruction this processor does not have",
    -6: "aborted in native code",
    -7: "could not read a file that was mapped into memory (was a model replaced, or the disk "
    "full?)",
    -9: "was killed, most likely because memory ran out",
    -11: "crashed in native code",
    -15: "was ended from outside",
    _ACCESS_VIOLATION: "crashed in native code",
    _ACCESS_VIOLATION - (1 << 32): "crashed in native code",
}


@dataclass(frozen=True, slots=True)
class PoolTimings:
    """Patience of the supervisor, in seconds.

    hung: without a heartbeat. start: until the first one, which comes after heavy imports.
    cancel: from Stop to a kill. stalled: running without any progress. backoff_*: before restarts.
    """

    hung: float = 30.0
    start: float = 300.0
    cancel: float = 15.0
    stalled: float = limits.STALLED_SECONDS
    backoff_first: float = 1.0
    backoff_max: float = 30.0
    tick: float = 0.25


class WorkerProcess:
    """A started worker. `on_message` is called in a thread of its own, message by message.

    Make it in a thread that lives as long as the worker should: Linux ends the child with it.
    """

    def __init__(
        self,
        target: str,
        settings: Settings,
        on_message: Callable[["WorkerProcess", tuple[Any, ...]], None],
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.id = f"w{secrets.token_hex(8)}"
        self._connection, child_end = context.Pipe()
        self._send_lock = threading.Lock()
        self._on_message = on_message
        self.is_ready = False
        self.is_idle = False
        self.task_id: str | None = None
        self.stop_deadline: tuple[str, float] | None = None
        self.last_beat = self.last_progress = time.monotonic()
        self.kill_reason = ""
        self.process = context.Process(
            target=run_worker,
            args=(target, child_end, settings, self.id),
            name="easel-worker",
            daemon=False,
        )
        self.process.start()
        # The child's death can only be seen as an end of file if no copy is left here.
        child_end.close()
        self._reader = threading.Thread(target=self._read, name="worker-reader", daemon=True)
        self._reader.start()

    def send(self, *message: str) -> None:
        """A command to the worker; silently dropped if it is dead, which its burial will handle."""
        try:
            with self._send_lock:
                self._connection.send(message)
        except (OSError, ValueError):
            logger.debug("worker %s did not get %s", self.id, message)

    def _read(self) -> None:
        while True:
            try:
                message = self._connection.recv()
            except (EOFError, OSError):
                return
            self.last_beat = time.monotonic()
            try:
                self._on_message(self, message)
            except Exception:  # a message lost is better than a worker unread
                logger.exception("message %s of worker %s failed", message[:1], self.id)

    def kill(self, reason: str) -> None:
        """End it now; `reason` follows "the worker" in the words for the user."""
        self.kill_reason = self.kill_reason or reason
        logger.warning("ending worker %s: it %s", self.id, reason)
        self.process.kill()

    def bury(self) -> str:
        """Collect a dead process and read what it still had to say. Returns the cause in words."""
        self.process.join()
        self._reader.join(2.0)
        self._connection.close()
        code = self.process.exitcode
        if self.kill_reason:
            return self.kill_reason
        if code in _CAUSES:
            return _CAUSES[code]
        return "ended with an error, which the log shows" if code else "ended too early"
