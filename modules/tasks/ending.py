"""How processes end: on a signal, in order, and without lingering."""

import logging
import os
import signal
import sys
import time
from contextlib import suppress
from typing import NoReturn

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # not every system has them all


def end_on_signals() -> None:
    """Turn the first request to end into KeyboardInterrupt, whether still starting or serving.

    Later ones are ignored, so that the end stays orderly. What the caller of this process chose
    to ignore (nohup) stays ignored.
    """
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]

    def interrupt(*_: object) -> NoReturn:
        for number in heeded:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in heeded:
        signal.signal(number, interrupt)


def wait_for_end() -> NoReturn:
    """Until a signal raises KeyboardInterrupt: see end_on_signals."""
    while True:
        time.sleep(0.5)  # Windows ends a sleep early for Ctrl+C, but not for Ctrl+Break


def leave(code: int) -> NoReturn:
    """End the process now: Python would take a second to take the modules of Gradio or torch apart.

    Nothing of the caller's runs after it; what has to be closed is closed before.
    """
    try:
        logging.shutdown()
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with suppress(OSError, ValueError):  # nobody reads it any more, or a full disk
                stream.flush()
    finally:
        os._exit(code)
