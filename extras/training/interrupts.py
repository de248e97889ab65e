"""Being asked to end during a run: for the run itself, and not for the processes that draw.

Only a program's main thread can change what it does; elsewhere nothing changes.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

ENDINGS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Ctrl+C, what a system sends that shuts down, and what a terminal sends that is closed."""


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
    """ENDINGS are ignored in here, and ever after by processes that are started in here."""
    with ExitStack() as stack:
        for number in ENDINGS if _is_main() else ():
            stack.enter_context(_handled_by(signal.SIG_IGN, number))
        yield


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def _handled_by(handler: Callable[..., None] | signal.Handlers, number: int) -> Iterator[None]:
    old = signal.signal(number, handler) or signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(number, old)
