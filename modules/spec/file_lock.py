"""A lock on an open file that the operating system drops when its holder dies."""

import sys
from typing import BinaryIO

# Windows refuses reads of a locked range, so the locked byte lies behind what small files hold.
_LOCKED_BYTE = 1 << 20


def lock_file(file: BinaryIO) -> bool:
    """Lock without waiting; False if somebody else holds it. For files of less than 1 MiB.

    Closing the file gives the lock back. On Windows, moves the file's position.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(_LOCKED_BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
