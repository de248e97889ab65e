"""Ctrl+C during a run: for the run itself, and not for the processes that draw.

Only a program's main thread can change what it does; elsewhere nothing changes.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_interrupt(pressed: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl+C in here calls `pressed`; a second one is as ever.

    What a shell runs in the background goes on ignoring it.
    """
    old = signal.getsignal(signal.SIGINT) or signal.default_int_handler
    if not _is_main() or old is signal.SIG_IGN:
        yield
        return

    def stop(*_: object) -> None:
        signal.signal(signal.SIGINT, old)
        pressed()

    with _handled_by(stop):
        yield


@contextmanager
def no_interrupts() -> Iterator[None]:
    """Ctrl+C is ignored in here, and ever after by processes that are started in here."""
    if not _is_main():
        yield
        return
    with _handled_by(signal.SIG_IGN):
        yield


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def _handled_by(handler: Callable[..., None] | signal.Handlers) -> Iterator[None]:
    old = signal.signal(signal.SIGINT, handler) or signal.default_int_handler
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)
