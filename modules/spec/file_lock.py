"""A lock on an open file that the operating system drops when its holder dies."""

import errno
import sys
from typing import BinaryIO

from modules.spec.errors import ConfigError

# What the system says of a lock that somebody else holds; anything else is a disk without locks.
_HELD_ELSEWHERE = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)
# Windows refuses reads of a locked range, so the locked byte lies behind what small files hold.
_LOCKED_BYTE = 1 << 20


def lock_file(file: BinaryIO) -> bool:
    """Lock without waiting; False if somebody else holds it. For files of less than 1 MiB.

    Closing the file gives the lock back. On Windows, moves the file's position. Raises ConfigError
    if the disk knows no locks.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(_LOCKED_BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD_ELSEWHERE:
            return False
        raise ConfigError(
            "The disk of this folder knows no file locks, so two Easels could write over each "
            "other: choose a folder on another disk with --data-path, for models --models-path."
        ) from None
    return True
