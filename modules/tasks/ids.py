"""Task ids: 26 small letters and digits, sortable by the time they were made, safe in an URL."""

import secrets
import threading
import time

_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"


class IdMaker:
    """Makes ids: 48 bits of milliseconds, then 80 random bits, in base 32 (Crockford's digits)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def make(self) -> str:
        """A new id, later in order than each one this maker made before, clock jumps or not."""
        with self._lock:
            self._last = max(self._last + 1, time.time_ns() // 1_000_000)
            value = self._last << 80 | secrets.randbits(80)
        return "".join(_DIGITS[value >> 5 * place & 31] for place in range(25, -1, -1))
