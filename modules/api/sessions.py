"""Who is logged in, and how often somebody may guess. Kept in memory: a restart logs all out."""

import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

SESSION_SECONDS = 7 * 24 * 3600
SESSIONS_MAX = 10_000
FREE_GUESSES = 5  # per user and address
FREE_GUESSES_ADDRESS = 20  # per address, whatever the user
DELAY_MAX = 300.0
DELAY_MAX_ADDRESS = 5.0  # short: people behind one proxy share an address
FORGET_SECONDS = 900.0
GUESSERS_MAX = 10_000


class Sessions:
    """Random tokens of logged-in users. Only a hash of each is kept. Safe from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: OrderedDict[bytes, tuple[str, float]] = OrderedDict()

    def open(self, user: str) -> str:
        """A new token for `user`; the oldest session makes room when there are too many."""
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._sessions[_digest(token)] = (user, self._clock() + SESSION_SECONDS)
            while len(self._sessions) > SESSIONS_MAX:
                self._sessions.popitem(last=False)
        return token

    def user_of(self, token: str) -> str | None:
        """Who holds `token`, or None when nobody does (any more)."""
        with self._lock:
            user, expires = self._sessions.get(_digest(token), ("", 0.0))
            return user if user and self._clock() < expires else None

    def close(self, token: str) -> None:
        with self._lock:
            self._sessions.pop(_digest(token), None)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


@dataclass(slots=True)
class _Record:
    guesses: int = 0
    until: float = 0.0
    last: float = 0.0


class Throttle:
    """Lets a few guesses through, then makes each next one wait twice as long.

    A guess counts as wrong before it is checked, so that many at once gain nothing; `succeeded`
    takes the count back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._records: OrderedDict[tuple[str, str], _Record] = OrderedDict()

    def attempt(self, user: str, address: str) -> float:
        """Seconds that this guess has to wait; 0 means that it may be checked now."""
        rules = (
            ((user, address), FREE_GUESSES, DELAY_MAX),
            (("", address), FREE_GUESSES_ADDRESS, DELAY_MAX_ADDRESS),
        )
        with self._lock:
            now = self._clock()
            waits = [self._record(key, now).until - now for key, _, _ in rules]
            if max(waits) > 0:
                return max(waits)
            for key, free, longest in rules:
                record = self._record(key, now)
                record.guesses += 1
                record.last = now
                over = record.guesses - free
                if over >= 0:
                    record.until = now + min(2.0 ** min(over, 30), longest)
            return 0.0

    def succeeded(self, user: str, address: str) -> None:
        """The guess was right: this user starts afresh, the address gets its guess back."""
        with self._lock:
            self._records.pop((user, address), None)
            record = self._records.get(("", address))
            if record is not None:
                record.guesses = max(0, record.guesses - 1)
                record.until = 0.0

    def _record(self, key: tuple[str, str], now: float) -> _Record:
        record = self._records.get(key)
        if record is None or now - record.last > FORGET_SECONDS + DELAY_MAX:
            record = _Record(last=now)
            self._records[key] = record
        self._records.move_to_end(key)
        while len(self._records) > GUESSERS_MAX:
            self._records.popitem(last=False)
        return record
