"""A model file that is not whole yet: `name.easel-part`, and beside it `name.easel-part.json`.

The second one says where the bytes came from and what the server called that version, so that a
download goes on after a restart; it is locked for as long as somebody writes. The first takes the
file's own name only when it is whole and right, and never in the place of another file; without
the second it is nobody's that we know, and is left alone.
"""

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from modules.library.safetensors_head import head_of
from modules.settings.presets import Download
from modules.spec.errors import DiskFull, DownloadFailed, StudioError
from modules.spec.file_lock import lock_file

_CHUNK_BYTES = 1 << 20
_NOTE_BYTES = 16 * 1024
_NOTE_TRIES = 20
SUFFIX = ".easel-part"
_PLAIN = re.compile(r"[^./\\:\x00][^/\\:\x00]{0,230}(?<![. ])")  # leaves room for SUFFIX and .json


def target_of(download: Download, models_path: Path) -> Path:
    """Where a file belongs: directly in its folder of `models_path`. Raises DownloadFailed.

    Names are checked when a preset is read; this holds for whoever made the Download.
    """
    name = download.file
    if not _PLAIN.fullmatch(name):
        raise DownloadFailed(f"{name[:80]!r} cannot be the name of a model file; correct it.")
    return models_path / download.folder / name


class PartFile:
    """What is there of a file so far. A context: entering takes the lock, leaving gives it back.

        with PartFile(target, url, sha256) as part:
            await part.read()
            part.write(...)
            part.become_target()

    sha256: that the whole is to have, if known: bytes of that file are good from any address.
    size: bytes that are there. version: what the server called the version that they are of
    (an ETag, or a date), '' where it said nothing. Whatever the disk refuses is raised as DiskFull
    or DownloadFailed.
    """

    def __init__(self, target: Path, url: str, sha256: str | None = None) -> None:
        self.target, self.url = target, url
        self.size, self.version = 0, ""
        self._wanted = sha256
        self._path = target.with_name(f"{target.name}{SUFFIX}")
        self._note_path = target.with_name(f"{target.name}{SUFFIX}.json")
        self._is_gone = False  # the names are free, and may be another's by now
        self._digest = hashlib.sha256()
        self._file: BinaryIO | None = None
        self._note: BinaryIO | None = None

    def __enter__(self) -> Self:
        try:
            with self._told():
                self._open()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.size:
            with contextlib.suppress(StudioError):
                self.discard()
        self._close()

    def _open(self) -> None:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        self._lock_note(flags)
        if os.path.lexists(self.target):
            if not os.path.lexists(self._path):
                self._forget()
            raise DownloadFailed(
                f"{self.target.name} is there already; rename or remove it to download it anew."
            )
        opened(self._note).seek(0)
        note = opened(self._note).read(_NOTE_BYTES)
        if not note and os.path.lexists(self._path) and self._path.lstat().st_size:
            self._forget()
            raise DownloadFailed(
                f"{self._path.name} lies where {self.target.name} is to be collected, and Easel "
                "does not know whose it is; rename or remove it, then try again."
            )
        self._file = os.fdopen(os.open(self._path, flags, 0o644), "r+b")
        self.size = os.fstat(self._file.fileno()).st_size
        self._go_on(note)

    def _lock_note(self, flags: int) -> None:
        """Whoever ends removes the note, and a lock on a removed one keeps nobody out."""
        for _ in range(_NOTE_TRIES):
            self._note = os.fdopen(os.open(self._note_path, flags, 0o644), "r+b", buffering=0)
            if not lock_file(self._note):
                break
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._note.fileno()), self._note_path.stat()):
                    return
            self._note.close()
        raise DownloadFailed(
            f"{self.target.name} is being downloaded by another Easel; wait for that one."
        )

    def _go_on(self, text: bytes) -> None:
        """Bytes of another file are of no use. text: the note."""
        try:
            note = json.loads(text or b"{}")
            keys = ("url", "version", "sha256")
            url, version, sha256 = (str(note.get(key) or "") for key in keys)
        except (ValueError, AttributeError, RecursionError):
            url = version = sha256 = ""
        if url == self.url:
            self.version = version
        elif self._wanted is None or sha256 != self._wanted:
            self.restart()
        else:  # what another server calls it means nothing to this one
            self._write_note()

    async def read(self) -> None:
        """Hash what is there; it may take seconds, in which the caller can be cancelled."""
        with self._told():
            file = opened(self._file)
            file.seek(0)
            self._digest = hashlib.sha256()
            left = self.size
            while left and (chunk := file.read(min(left, _CHUNK_BYTES))):
                self._digest.update(chunk)
                left -= len(chunk)
                await asyncio.sleep(0)
            file.seek(self.size - left)
            file.truncate()
            self.size -= left

    def restart(self, version: str = "") -> None:
        """Begin anew, with a file of that version."""
        with self._told():
            file = opened(self._file)
            file.seek(0)
            file.truncate()
            self.size, self.version, self._digest = 0, version, hashlib.sha256()
            self._write_note()

    def _write_note(self) -> None:
        content = {"url": self.url, "version": self.version, "sha256": self._wanted}
        note = opened(self._note)
        note.seek(0)
        note.truncate()
        note.write(json.dumps(content).encode())

    def write(self, chunk: bytes) -> None:
        """Add bytes at the end."""
        with self._told():
            opened(self._file).write(chunk)
        self._digest.update(chunk)
        self.size += len(chunk)

    def free_bytes(self) -> int:
        """Of the disk that takes the file."""
        with self._told():
            return shutil.disk_usage(self.target.parent).free

    def told_size(self) -> int | None:
        """Bytes that the header of a safetensors file names; None for another kind of file."""
        with self._told():
            file = opened(self._file)
            file.seek(0)
            text = head_of(file)
            file.seek(0, os.SEEK_END)
        try:
            parts = [part for name, part in json.loads(text).items() if name != "__metadata__"]
            return 8 + len(text) + max((int(part["data_offsets"][1]) for part in parts), default=0)
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
            return None

    @property
    def sha256(self) -> str:
        """64 hex digits of what is there, provided that `read` has run."""
        return self._digest.hexdigest()

    def become_target(self) -> None:
        """Take the final name. Raises DownloadFailed if a file of that name has come meanwhile."""
        with self._told():
            file = opened(self._file)
            file.flush()
            os.fsync(file.fileno())
            state = os.fstat(file.fileno())
            is_ours = os.path.samestat(state, self._path.stat()) and state.st_size == self.size
            file.close()
            if not is_ours:
                raise DownloadFailed(
                    f"Another program has written into {self._path.name}, so "
                    f"{self.target.name} is not whole; remove it and try again."
                )
            try:
                self._rename()
            except FileExistsError:
                raise DownloadFailed(
                    f"Another file called {self.target.name} has come meanwhile, so the "
                    f"downloaded one is kept beside it as {self._path.name}; choose one of them."
                ) from None
            self._forget()

    def _rename(self) -> None:
        """Without ever replacing a file: a link fails if there is one."""
        try:
            os.link(self._path, self.target)
        except FileExistsError:
            raise
        except OSError:  # a disk without hard links
            if os.path.lexists(self.target):
                raise FileExistsError from None
            os.rename(self._path, self.target)
        else:
            self._path.unlink()

    def discard(self) -> None:
        """Remove what is there; once done, a second call does nothing."""
        if self._is_gone:
            return
        with self._told():
            opened(self._file).close()
            self._path.unlink(missing_ok=True)
            self._forget()
        self.size = 0

    def _forget(self) -> None:
        """Windows removes no open file, others keep their lock until the name is gone."""
        if os.name == "nt":
            opened(self._note).close()
        with contextlib.suppress(FileNotFoundError):
            self._note_path.unlink()
        self._is_gone = True

    def _close(self) -> None:
        for file in (self._file, self._note):
            if file is not None:
                with contextlib.suppress(OSError):  # a full disk, which was told already
                    file.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What the disk refuses, in words."""
        name = self.target.name
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise disk_full(name) from None
            reason = (error.strerror or "unknown reason").lower()
            raise DownloadFailed(
                f"{name} cannot be written into its models folder ({reason}); check that Easel "
                "may write there."
            ) from None


def disk_full(name: str, needed: int | None = None, free: int | None = None) -> DiskFull:
    """needed, free: bytes, where they are known."""
    if needed is None or free is None:
        why = "the disk of the models folder is full"
    else:
        why = (
            f"it needs {needed / 1e9:.1f} GB, and the disk of the models folder has "
            f"{max(0, free) / 1e9:.1f} GB to spare"
        )
    return DiskFull(
        f"{name} cannot be downloaded: {why}. Free some space, or choose another folder with "
        "--models-path, then try again."
    )


def opened(file: BinaryIO | None) -> BinaryIO:
    """`file`, which a context has opened."""
    if file is None:
        raise RuntimeError("the part file is used outside of its context")
    return file
