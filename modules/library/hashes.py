"""SHA-256 of model files: computed once in the background, remembered by path, size and time.

Sites that share models know a file by the beginning of this hash; it goes into pictures so that
others can find the model. Nothing waits for a hash: until it is known, it is ''.
"""

import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path

from modules.library.catalog import ModelFile

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_FILE_BYTES_MAX = 4 * 1024 * 1024
_SHA256 = re.compile(r"[0-9a-f]{64}")


class HashCache:
    """Hashes of the files of one start, kept in a small JSON file of the data folder."""

    def __init__(self, path: Path) -> None:
        """path: read when first needed; a file that is gone or broken counts as empty."""
        self._path = path
        self._lock = threading.Lock()
        self._entries: dict[str, str] | None = None
        self._thread: threading.Thread | None = None

    def known(self, file: ModelFile) -> str:
        """64 hex digits if the file with its present size and time was hashed, else ''."""
        key = _key(file)
        with self._lock:
            return self._read().get(key, "") if key else ""

    def compute_soon(self, *files: ModelFile) -> None:
        """Hash files in a thread, one after the other, unless that is done or being done.

        A model that is a folder has no hash.
        """
        unknown = [file for file in files if file.path.is_file() and not self.known(file)]
        if not unknown:
            return
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                return
            # A daemon: the end of the program does not wait for a file of many gigabytes.
            self._thread = threading.Thread(
                target=self._compute_all, args=(unknown,), name="hashes", daemon=True
            )
            self._thread.start()

    def _compute_all(self, files: Sequence[ModelFile]) -> None:
        for file in files:
            self._compute(file)

    def wait(self) -> None:
        """Until the files that are being hashed now are done."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def _compute(self, file: ModelFile) -> None:
        try:
            before = _key(file)
            digest = hashlib.sha256()
            with file.path.open("rb", buffering=0) as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    digest.update(chunk)
            if not before or before != _key(file):
                return  # it was replaced meanwhile
            with self._lock:
                self._read()[before] = digest.hexdigest()
                self._write()
        except OSError as error:
            logger.warning("the hash of %s is not known: %s", file.name, error.strerror)

    def _read(self) -> dict[str, str]:
        if self._entries is None:
            self._entries = {}
            try:
                if self._path.stat().st_size <= _FILE_BYTES_MAX:
                    content = json.loads(self._path.read_text(encoding="utf-8"))
                    self._entries = {
                        key: value
                        for key, value in content.items()
                        if isinstance(value, str) and _SHA256.fullmatch(value)
                    }
            except (OSError, ValueError, AttributeError, RecursionError):
                logger.debug("no hashes are remembered")
        return self._entries

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(self._entries, indent=1), encoding="utf-8")
        temporary.replace(self._path)


def _key(file: ModelFile) -> str:
    """What a file's content is known by; '' if it is gone."""
    try:
        status = file.path.stat()
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns} {file.path}"
