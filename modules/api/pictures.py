"""Finished pictures over HTTP: found by task and number in the store, read from one folder only."""

import os
import stat
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from modules.spec.errors import NotFound
from modules.spec.flags import OutputFormat

MIME_TYPES = {form.suffix: form.mime_type for form in OutputFormat}
_GONE = "This picture is no longer in the outputs folder."


def open_picture(folder: Path, relative: str) -> tuple[BinaryIO, str]:
    """The opened file and the MIME type of the picture `relative` to `folder`.

    No link is followed anywhere below `folder`, and nothing but an ordinary picture file is
    read. Raises NotFound for everything else, whatever the reason.
    """
    name = PurePosixPath(relative)
    mime_type = MIME_TYPES.get(name.suffix.lower())
    if mime_type is None or name.is_absolute() or not _is_plain(relative, name):
        raise NotFound(_GONE)
    try:
        root = folder.resolve(strict=True)
        path = root.joinpath(*name.parts)
        if path.resolve(strict=True) != path:
            raise NotFound(_GONE)
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError):
        raise NotFound(_GONE) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotFound(_GONE)
    return os.fdopen(descriptor, "rb"), mime_type


def _is_plain(relative: str, name: PurePosixPath) -> bool:
    return (
        not set(relative) & {"\x00", "\\", ":"} and ".." not in name.parts and str(name) == relative
    )
