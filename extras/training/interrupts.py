"""Ctrl+C during a run: for the run itself, and not for the processes that draw.

Only a program's main thread can change what it does; elsewhere nothing changes.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

ENDINGS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl+C, and what a system sends that shuts down."""


@contextmanager
def on_interrupt(pressed: Callable[[], None]) -> Iterator[None]:
    """The first of ENDINGS in here calls `pressed`; a second one is as ever.

    What whoever started this chose to ignore stays ignored, as Ctrl+C in a shell's background.
    """
    old = {number: signal.getsignal(number) or signal.SIG_DFL for number in ENDINGS}

    def stop(*_: object) -> None:
        for number, handler in old.items():
            signal.signal(number, handler)
        pressed()

    with ExitStack() as stack:
        for number, handler in old.items():
            if _is_main() and handler is not signal.SIG_IGN:
                stack.enter_context(_handled_by(stop, number))
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
def _handled_by(
    handler: Callable[..., None] | signal.Handlers, number: int = signal.SIGINT
) -> Iterator[None]:
    old = signal.signal(number, handler) or signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(number, old)
