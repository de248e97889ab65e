"""Stop and Skip as a token that the painting code checks as often as it likes."""

from modules.spec.errors import Cancelled, Skipped


class CancelToken:
    """Set from any thread, checked by the one that paints. A check costs two attribute reads."""

    __slots__ = ("_skip", "_stop")

    def __init__(self) -> None:
        self._stop = False
        self._skip = False

    @property
    def is_stopped(self) -> bool:
        return self._stop

    @property
    def is_skipped(self) -> bool:
        return self._skip

    def stop(self) -> None:
        """End the task at its next check."""
        self._stop = True

    def skip(self) -> None:
        """End the current picture at its next check."""
        self._skip = True

    def check(self) -> None:
        """Raise Cancelled after stop(), Skipped after skip(); Stop is the stronger one."""
        if self._stop:
            raise Cancelled
        if self._skip:
            raise Skipped

    def next_image(self) -> None:
        """A picture is over: an earlier Skip was not meant for the next."""
        self._skip = False
