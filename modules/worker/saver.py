"""A thread that saves pictures in order while the next one is painted."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Saver:
    """Runs what it is given one after the other; errors come out at the next question."""

    def __init__(self, at_once: int = 2) -> None:
        """at_once: pictures that may wait here; a faster painter is held back."""
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saver")
        self._pending: deque[Future[None]] = deque()
        self._at_once = at_once

    def submit(self, write: Callable[[], None]) -> None:
        """Have `write` called soon. Raises what an earlier one raised, and then takes nothing."""
        self.raise_if_failed()
        while len(self._pending) >= self._at_once:
            self._pending.popleft().result()
        self._pending.append(self._threads.submit(write))

    def raise_if_failed(self) -> None:
        """Raise what a finished write raised; waits for none."""
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()

    def wait(self) -> None:
        """Until every write is over; raises what the first failing one raised, and forgets all."""
        pending, self._pending = list(self._pending), deque()
        failures = [error for write in pending if (error := write.exception())]
        if failures:
            raise failures[0]

    def close(self) -> None:
        """Finish what is pending and end the thread."""
        self._threads.shutdown(wait=True)
