"""The files below a folder, by the names with which requests name them; no name becomes a path."""

import os
from collections.abc import Iterator, Set
from pathlib import Path

_DEPTH = 8


def scan_files(
    folder: Path, suffixes: Set[str], index: str = ""
) -> Iterator[tuple[str, Path, int]]:
    """(name, path, bytes) of each file under `folder` with one of the small-letter `suffixes`.

    A name has its sub-folders before it, as in "sub/a.txt". A folder's own files come first, in
    order; links are followed, but not in circles. Hidden files and folders are left out, and so is
    whatever cannot be read; a missing folder holds nothing. index: a folder with a file of this
    name is given whole, with the bytes of the files one level below it.
    """
    pending: list[tuple[Path, str, int]] = [(folder, "", 0)]
    seen: set[str] = set()
    while pending:
        directory, prefix, depth = pending.pop()
        real = os.path.realpath(directory)
        if real in seen or depth > _DEPTH:  # a link that leads back up
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = Path(entry.path)
            try:
                if entry.is_dir() and index and (path / index).is_file():
                    parts = (part for part in path.glob("*/*") if part.is_file())
                    yield prefix + entry.name, path, sum(part.stat().st_size for part in parts)
                elif entry.is_dir():
                    pending.append((path, f"{prefix}{entry.name}/", depth + 1))
                elif path.suffix.lower() in suffixes and entry.is_file():
                    yield prefix + entry.name, path, entry.stat().st_size
            except OSError:
                continue  # a broken link, or a file that went away meanwhile
