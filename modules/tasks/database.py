"""One SQLite connection for all threads of a process, with its errors turned into words."""

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from modules.spec.errors import ConfigError, DiskFull, InstanceRunning, StudioError

BUSY_SECONDS = 10.0
_TURN_SECONDS = 0.1
_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    # An acknowledged task must survive a power cut, not only a crash.
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA journal_size_limit = 16777216",
)


class Database:
    """A connection behind a lock. Reads and writes of any thread wait for each other.

    migrations: script n brings `user_version` from n to n + 1; each runs in one transaction.
    """

    def __init__(
        self, path: Path, migrations: Sequence[str], *, busy_seconds: float = BUSY_SECONDS
    ) -> None:
        self._lock = threading.RLock()
        self._busy_seconds = busy_seconds
        with in_words():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                path, timeout=busy_seconds, isolation_level=None, check_same_thread=False
            )
            self._connection.row_factory = sqlite3.Row
            try:
                for pragma in _PRAGMAS:
                    self._connection.execute(pragma)
                self._migrate(migrations)
            except BaseException:
                self._connection.close()
                raise

    def _migrate(self, migrations: Sequence[str]) -> None:
        with self.write() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > len(migrations):
                raise ConfigError(
                    "The task list was written by a newer Easel; update this one, or start it "
                    "with another --data-path."
                )
            for script in migrations[version:]:
                # executescript would commit before it starts.
                for statement in script.split(";"):
                    if statement.strip():
                        connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {len(migrations)}")

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """The connection, outside a transaction: each statement sees the newest state."""
        with self._lock, in_words():
            yield self._connection

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One transaction, which no other process can write in between; all or nothing.

        While another program holds the file, other threads of this one may read it.
        """
        with in_words():
            self._begin()
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            finally:
                self._lock.release()

    def _begin(self) -> None:
        """Take the lock and begin to write, within `busy_seconds` of trying."""
        began = time.monotonic()
        while True:
            self._lock.acquire()
            try:
                self._set_busy(min(_TURN_SECONDS, self._busy_seconds))
                self._connection.execute("BEGIN IMMEDIATE")
                self._set_busy(self._busy_seconds)
                return
            except BaseException as error:
                self._set_busy(self._busy_seconds)
                self._lock.release()
                if not _is_busy(error) or time.monotonic() - began >= self._busy_seconds:
                    raise
            time.sleep(_TURN_SECONDS / 2)  # the others' turn

    def _set_busy(self, seconds: float) -> None:
        self._connection.execute(f"PRAGMA busy_timeout = {round(seconds * 1000)}")

    def verify(self) -> None:
        """ConfigError if the file is damaged."""
        with self.read() as connection:
            if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise _damaged()

    def hurry(self, seconds: float) -> None:
        """From now on wait no longer than `seconds` for another program's lock.

        For the end of the process: whoever closes it should not wait for a stranger.
        """
        self._busy_seconds = seconds
        if self._lock.acquire(timeout=seconds):
            try:
                self._set_busy(seconds)
            finally:
                self._lock.release()

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        with self._lock:
            self._connection.close()


@contextmanager
def in_words() -> Iterator[None]:
    """Turn faults of SQLite and of the folder into StudioErrors with a remedy."""
    try:
        yield
    except sqlite3.Error as error:
        raise _translate(error) from error
    except OSError as error:
        raise _unwritable() from error


def _code(error: BaseException) -> int:
    """SQLite's reason; extended codes carry the base code in their low byte."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _is_busy(error: BaseException) -> bool:
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _translate(error: sqlite3.Error) -> StudioError:
    code = _code(error)
    if code == sqlite3.SQLITE_FULL:
        return DiskFull("The disk of the data folder is full; free some space there and try again.")
    if _is_busy(error):
        return InstanceRunning(
            "Another program holds the task list (easel.db) locked; end it and try again."
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return _damaged()
    if code in (
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_PERM,
    ):
        return _unwritable()
    return StudioError(f"The task list could not be used ({error}); restart Easel.")


def _damaged() -> ConfigError:
    return ConfigError(
        "The task list (easel.db in the data folder) is damaged. Move that file away and restart: "
        "a new list is begun, and finished pictures stay in the output folder."
    )


def _unwritable() -> ConfigError:
    return ConfigError(
        "The data folder cannot be written to; check its rights and its disk, or choose another "
        "one with --data-path."
    )
