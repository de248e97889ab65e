"""Where log lines go: short ones to the terminal, all of them to a file that does not grow."""

import logging
import logging.handlers
import sys
from pathlib import Path

FILE_BYTES = 2 * 1024 * 1024
FILES_KEPT = 3


def start_logging(folder: Path, name: str = "easel", told: int = logging.INFO) -> None:
    """Log to `folder`/`name`.log and to the terminal. A folder that cannot be written is no fault.

    name: one for each kind of process, for none should roll over another's file. Two of a kind,
    such as two runs of `generate` at once, share one, and lines may be lost when it rolls over.

    The terminal gets our own words from the level `told` on, of libraries warnings at the least,
    and no tracebacks: those are in the file. That there is no file it gets at any level.
    """
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(_Short("%(message)s"))
    terminal.addFilter(_is_for_the_terminal)
    root.addHandler(terminal)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = logging.handlers.RotatingFileHandler(
            folder / f"{name}.log", maxBytes=FILE_BYTES, backupCount=FILES_KEPT, encoding="utf-8"
        )
    except OSError as error:
        root.warning("There is no log file: %s.", error.strerror)
    else:
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(file)
    terminal.setLevel(told)


class _Short(logging.Formatter):
    """One line a record; the traceback goes to the file alone."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += " (the log file says why)"
        return text


def _is_for_the_terminal(record: logging.LogRecord) -> bool:
    ours = record.name.split(".")[0] in ("easel", "modules", "root")
    return record.levelno >= (logging.INFO if ours else logging.WARNING)
