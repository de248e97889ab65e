"""Downloads that outlive the page which asked for them: one at a time, the others wait their turn.

They run in a thread of the server that lives for as long as there is something to fetch. Whoever
wants to know asks for `views`; nobody needs to stay.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from modules.library.download import Phase, Progress, fetch
from modules.settings.presets import Download
from modules.spec.errors import StudioError

logger = logging.getLogger(__name__)

Fetch = Callable[[Download, Path, Callable[[Progress], None]], Coroutine[Any, Any, Path]]


class DownloadState(StrEnum):
    """Where a download is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"


ENDED = frozenset({DownloadState.DONE, DownloadState.FAILED, DownloadState.STOPPED})


@dataclass(frozen=True, slots=True)
class DownloadView:
    """What everybody may know of one. name: its key; url: where it comes from, as far as
    everybody may know that; done, total: bytes; rate: bytes a second; error: a sentence, '' unless
    it failed."""

    name: str
    url: str
    state: DownloadState = DownloadState.WAITING
    phase: Phase = Phase.CONNECTING
    done: int = 0
    total: int | None = None
    rate: float = 0.0
    seconds_left: float | None = None
    error: str = ""


@dataclass(slots=True)
class _Item:
    download: Download
    view: DownloadView
    task: asyncio.Task[None] | None = field(default=None)


class Downloads:
    """The queue. Safe from any thread."""

    def __init__(self, models_path: Path, fetching: Fetch = fetch) -> None:
        self._models_path, self._fetch = models_path, fetching
        self._lock = threading.RLock()
        self._items: dict[str, _Item] = {}
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closed = False

    def begin(self, download: Download) -> DownloadView:
        """Queue a file, unless it waits or runs already; one that ended begins again."""
        with self._lock:
            item = self._items.get(download.key)
            if item is None or item.view.state in ENDED:
                state = DownloadState.STOPPED if self._is_closed else DownloadState.WAITING
                view = DownloadView(download.key, download.link, state, total=download.size)
                item = _Item(download, view)
                self._items.pop(download.key, None)  # the new one goes to the end
                self._items[download.key] = item
            if self._thread is None and not self._is_closed:
                # A daemon: the end of the program waits for no server.
                self._thread = threading.Thread(target=self._run, name="downloads", daemon=True)
                self._thread.start()
            return item.view

    def stop(self, name: str) -> None:
        """End one; what has arrived stays for the next time. One that is not there is no matter."""
        with self._lock:
            item = self._items.get(name)
            if item is None or item.view.state in ENDED:
                return
            if item.task is not None and self._loop is not None:
                self._loop.call_soon_threadsafe(item.task.cancel)
            else:
                item.view = replace(item.view, state=DownloadState.STOPPED)

    def views(self) -> list[DownloadView]:
        """All of this start, in the order in which they were asked for; those that are done, for
        as long as their file is there."""
        with self._lock:
            views = [item.view for item in self._items.values()]
        return [each for each in views if each.state is not DownloadState.DONE or self._has(each)]

    def _has(self, view: DownloadView) -> bool:
        return (self._models_path / view.name).is_file()

    def close(self, seconds: float = 2.0) -> None:
        """Stop all of them, and wait for that so long at most."""
        with self._lock:
            self._is_closed = True
            thread, names = self._thread, list(self._items)
        for name in names:
            self.stop(name)
        if thread is not None:
            thread.join(max(seconds, 0))

    def _run(self) -> None:
        asyncio.run(self._work())

    async def _work(self) -> None:
        """One after the other, until none waits."""
        while True:
            with self._lock:
                self._loop = asyncio.get_running_loop()
                row = self._items.values()
                item = next((i for i in row if i.view.state is DownloadState.WAITING), None)
                if item is None:
                    self._thread = self._loop = None
                    return
                item.view = replace(item.view, state=DownloadState.RUNNING)
                item.task = task = asyncio.create_task(self._one(item))
            await asyncio.wait([task])
            if task.cancelled():  # before it began
                self._end(item, DownloadState.STOPPED)

    async def _one(self, item: _Item) -> None:
        def tell(progress: Progress) -> None:
            with self._lock:
                item.view = replace(
                    item.view,
                    phase=progress.phase,
                    done=progress.done,
                    total=progress.total,
                    rate=progress.rate,
                    seconds_left=progress.seconds_left,
                )

        state, error = DownloadState.FAILED, ""
        try:
            await self._fetch(item.download, self._models_path, tell)
            state = DownloadState.DONE
        except asyncio.CancelledError:
            state = DownloadState.STOPPED
        except StudioError as problem:
            error = str(problem)
        except Exception:  # noqa: BLE001 - the queue goes on; the log gets the story
            logger.exception("%s could not be fetched", item.download.key)
            error = "This file could not be fetched because of a fault of Easel; its log says more."
        self._end(item, state, error)

    def _end(self, item: _Item, state: DownloadState, error: str = "") -> None:
        with self._lock:
            item.task = None
            item.view = replace(item.view, state=state, error=error, rate=0.0, seconds_left=None)
        logger.info("download of %s: %s %s", item.download.key, state, error)
