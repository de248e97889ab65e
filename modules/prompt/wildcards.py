"""Word lists: text files with one entry a line, which prompts name as __name__.

    wildcards/animal.txt            __animal__
    wildcards/clothes/winter.txt    __clothes/winter__, or __winter__ if no other list is called so

A blank line and a line that begins with # hold no entry. Names are looked up among the files that
are there and are never made into a path. The user's folder comes before the one that ships.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path

from modules.prompt.template import read_template
from modules.spec import limits
from modules.spec.file_scan import scan_files

_SUFFIX = ".txt"


class WildcardBook:
    """The word lists below some folders, earlier folders first. Files are read when asked for."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)
        self._paths: dict[str, Path] | None = None
        self._short: dict[str, str] = {}
        self._lines: dict[Path, tuple[tuple[int, int], tuple[str, ...]]] = {}
        self._notices: dict[str, str] = {}
        self._answers: dict[str, tuple[str, ...] | None] = {}
        self.template = lru_cache(maxsize=4_096)(read_template)

    def refresh(self) -> None:
        """Look at the folders and files again at the next question."""
        self._paths = None
        self._answers.clear()

    def names(self) -> tuple[str, ...]:
        """Names of all lists, sorted."""
        return tuple(sorted(self._listing()))

    def notices(self, names: Sequence[str]) -> tuple[str, ...]:
        """A sentence for each of the lists that could not be used as it is."""
        found = (self._notices.get(self._full_name(name) or "") for name in names)
        return tuple(notice for notice in dict.fromkeys(found) if notice)

    def lines(self, name: str) -> tuple[str, ...] | None:
        """The entries of a list; None if there is no such list, or it cannot be read."""
        if name not in self._answers:
            self._answers[name] = self._look_up(name)
        return self._answers[name]

    def _look_up(self, name: str) -> tuple[str, ...] | None:
        full = self._full_name(name)
        if full is None:
            return None
        path = self._listing()[full]
        try:
            status = path.stat()
            stamp = (status.st_size, status.st_mtime_ns)
            if path not in self._lines or self._lines[path][0] != stamp:
                self._notices.pop(full, None)
                self._lines[path] = (stamp, self._read(path, full))
        except OSError:
            self._notices[full] = f"The word list __{full}__ cannot be read; check the file."
            return None
        return self._lines[path][1] or None

    def _read(self, path: Path, name: str) -> tuple[str, ...]:
        with path.open("rb") as file:
            raw = file.read(limits.WILDCARD_FILE_BYTES + 1)
        if len(raw) > limits.WILDCARD_FILE_BYTES:
            megabytes = limits.WILDCARD_FILE_BYTES // 1024**2
            self._notices[name] = (
                f"The word list __{name}__ is larger than {megabytes} MiB, so it is not used; "
                "split it."
            )
            return ()
        rows = _decoded(raw).replace("\x00", "").splitlines()
        entries = [entry for row in rows if (entry := row.strip()) and not entry.startswith("#")]
        short = [entry for entry in entries if len(entry.encode()) <= limits.WILDCARD_LINE_BYTES]
        kept = short[: limits.WILDCARD_LINES]
        if len(kept) < len(entries):
            self._notices[name] = (
                f"The word list __{name}__ has lines over {limits.WILDCARD_LINE_BYTES // 1024} KiB "
                f"or more than {limits.WILDCARD_LINES:,} lines; those are left out."
            )
        elif not kept:
            self._notices[name] = f"The word list __{name}__ is empty; write one entry a line."
        return tuple(kept)

    def _full_name(self, name: str) -> str | None:
        listing = self._listing()
        key = name.casefold()
        return key if key in listing else self._short.get(key)

    def _listing(self) -> dict[str, Path]:
        if self._paths is None:
            paths: dict[str, Path] = {}
            for folder in self._folders:
                files = islice(scan_files(folder, {_SUFFIX}), limits.WILDCARD_FILES)
                for name, path, _ in files:
                    paths.setdefault(name[: -len(_SUFFIX)].casefold(), path)
            self._paths = dict(sorted(paths.items()))
            self._short = {}
            for name in self._paths:
                self._short.setdefault(name.rpartition("/")[2], name)
        return self._paths


def _decoded(raw: bytes) -> str:
    """UTF-8, or what old Windows editors wrote."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace")
