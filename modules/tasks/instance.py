"""One server per data folder: a lock that the operating system drops when its holder dies."""

import os
import time
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from modules.spec.errors import ConfigError, InstanceRunning
from modules.spec.file_lock import lock_file

LOCK_FILE = "easel.lock"
PATIENCE_SECONDS = 30.0  # a server that starts has its address well before
_LOOK_SECONDS = 0.1
_ADDRESS_BYTES = 400


class InstanceLock:
    """The lock of one data folder. The file holds the address of the running server.

        with InstanceLock(settings.data_path) as lock:
            ...
            lock.announce("http://127.0.0.1:7865")

    Entering raises InstanceRunning, naming that address, if another process holds the lock, and
    ConfigError if the folder cannot be written to. While the other one is still starting, entering
    waits up to `patience` seconds for its address, or for its end.
    """

    def __init__(self, data_path: Path, *, patience: float = PATIENCE_SECONDS) -> None:
        self._path = data_path / LOCK_FILE
        self._patience = patience
        self._file: BinaryIO | None = None

    def acquire(self) -> None:
        """Take the lock, or raise. The address is empty until `announce`."""
        if self._file is not None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            reason = (error.strerror or "unknown reason").lower()
            raise ConfigError(
                f"The data folder cannot be written to ({reason}); check its rights, or choose "
                "another one with --data-path."
            ) from None
        file = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            self._lock_or_raise(file)
            file.truncate(0)
        except BaseException:
            file.close()
            raise
        self._file = file

    def _lock_or_raise(self, file: BinaryIO) -> None:
        deadline = time.monotonic() + self._patience
        while not lock_file(file):
            file.seek(0)
            address = file.read(_ADDRESS_BYTES).decode("utf-8", "replace").strip()
            is_up = address.startswith("http")
            if is_up or time.monotonic() >= deadline:
                where = f"at {address}" if is_up else "and just starting"
                raise InstanceRunning(
                    f"Easel is already running with this data folder, {where}. Use that one, or "
                    "start a second with another --data-path."
                )
            time.sleep(_LOOK_SECONDS)

    def announce(self, address: str) -> None:
        """Write the address for a second instance to show. Needs the lock."""
        if self._file is None:
            raise RuntimeError("announce() needs the lock: call acquire() first")
        self._file.seek(0)
        self._file.truncate(0)
        self._file.write(address.encode()[:_ADDRESS_BYTES])

    def release(self) -> None:
        """Give the lock back. The file stays, since removing it would race with a second start."""
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
