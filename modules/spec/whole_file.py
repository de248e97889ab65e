"""Writing a small file so that nobody ever sees half of it."""

import os
import secrets
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write beside `path`, then take its name; the folder is made. Raises OSError.

    Whoever else writes the same file at the same time, one of both is there whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # or a power cut leaves the name without the bytes
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
