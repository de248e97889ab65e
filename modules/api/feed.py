"""Server-sent events of a task: one watcher for all followers, whatever their number.

A follower costs an asyncio task and no thread. The pool says which task has changed; the watcher
looks at those that are followed, in one thread and a few times a second at most, and wakes their
followers. Views and previews are lossy on the way (the latest wins), so a slow client never holds
anything up; the final view is the latest for ever, so it cannot be missed.
"""

import asyncio
import base64
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import anyio

from modules.spec import limits
from modules.spec.errors import LimitError, NotFound
from modules.tasks.events import Preview, TaskView

if TYPE_CHECKING:
    from modules.tasks.worker_pool import WorkerPool

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.05
HEARTBEAT_SECONDS = 15.0


class _Channel:
    """The latest of one task, and a signal that its followers wait on."""

    def __init__(self, view: TaskView) -> None:
        self.view = view
        self.preview: tuple[int, str] | None = None
        self.followers = 0
        self.gone = False
        self.changed = asyncio.Event()

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class TaskFeed:
    """Hands out the frames of GET /api/tasks/{id}/events. Lives on the server's event loop."""

    def __init__(self, pool: "WorkerPool", tick: float = TICK_SECONDS) -> None:
        self._pool = pool
        self._tick = tick
        self._channels: dict[str, _Channel] = {}
        self._watcher: asyncio.Task[None] | None = None
        self._followers = 0
        self._closed = False
        self._changed_ids: set[str] = set()
        self._news = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_listening: Callable[[], None] | None = None

    @property
    def followers(self) -> int:
        return self._followers

    async def follow(self, task_id: str, after: int | None) -> AsyncIterator[str] | None:
        """Frames newer than change number `after`, or None when there will never be any.

        Raises NotFound for an unknown task and LimitError when too many follow already.
        A number that the task has not reached (it counts anew after a restart) is no obstacle:
        whatever differs from `after` is news.
        """
        if self._is_full():
            raise LimitError(
                f"{limits.SSE_CONNECTIONS} pages follow tasks already; close some and try again."
            )
        view = await anyio.to_thread.run_sync(self._pool.view, task_id)
        if view.state.is_final and view.seq == after:
            return None
        return self._frames(task_id, view, after)

    def _is_full(self) -> bool:
        return self._followers >= limits.SSE_CONNECTIONS

    async def close(self) -> None:
        """End every follower's stream now."""
        self._closed = True
        if self._stop_listening is not None:
            self._stop_listening()
        for channel in self._channels.values():
            channel.wake()
        if self._watcher is not None:
            self._watcher.cancel()

    async def _frames(self, task_id: str, view: TaskView, after: int | None) -> AsyncIterator[str]:
        if self._is_full():  # many were let in at once
            return
        channel = self._channels.setdefault(task_id, _Channel(view))
        channel.followers += 1
        self._followers += 1
        self._listen()
        self._note(task_id)  # it may have changed since `view` was read
        seen, shown = after, None
        try:
            yield "retry: 1000\n\n"
            while not (self._closed or channel.gone):
                changed = channel.changed
                latest, preview = channel.view, channel.preview
                if latest.seq != seen:
                    seen = latest.seq
                    yield view_frame(latest)
                if latest.state.is_final:
                    return
                if preview is not None and preview[0] != shown:
                    shown = preview[0]
                    yield preview[1]
                try:
                    await asyncio.wait_for(changed.wait(), HEARTBEAT_SECONDS)
                except TimeoutError:
                    yield ": still here\n\n"
        finally:
            self._followers -= 1
            channel.followers -= 1
            if channel.followers == 0:
                self._channels.pop(task_id, None)

    def _listen(self) -> None:
        """Have the pool report changes to this event loop, from the first follower on."""
        if self._watcher is not None:
            return
        self._loop = asyncio.get_running_loop()
        self._stop_listening = self._pool.add_listener(self._heard)
        self._watcher = asyncio.create_task(self._watch())

    def _heard(self, task_id: str) -> None:
        """A task has changed. Any thread, and often: what nobody follows costs nothing."""
        if task_id in self._channels and self._loop is not None and not self._closed:
            with contextlib.suppress(RuntimeError):  # the loop ends at this moment
                self._loop.call_soon_threadsafe(self._note, task_id)

    def _note(self, task_id: str) -> None:
        self._changed_ids.add(task_id)
        self._news.set()

    async def _watch(self) -> None:
        """Look at what has changed, again and again; several changes at once count as one."""
        while not self._closed:
            await self._news.wait()
            self._news.clear()
            ids, self._changed_ids = self._changed_ids, set()
            known = [
                (task_id, channel.preview[0] if channel.preview else None)
                for task_id, channel in self._channels.items()
                if task_id in ids
            ]
            for task_id, view, preview in await anyio.to_thread.run_sync(self._look, known):
                channel = self._channels.get(task_id)
                if channel is None:
                    continue
                channel.gone = view is None
                channel.view = view or channel.view
                channel.preview = preview or channel.preview
                channel.wake()
            await asyncio.sleep(self._tick)

    def _look(
        self, known: list[tuple[str, int | None]]
    ) -> list[tuple[str, TaskView | None, tuple[int, str] | None]]:
        """(id, view or None when gone, new preview or None) of each known task. Any thread."""
        found: list[tuple[str, TaskView | None, tuple[int, str] | None]] = []
        for task_id, shown in known:
            try:
                view: TaskView | None = self._pool.view(task_id)
                latest = self._pool.preview(task_id)
            except NotFound:
                view = latest = None
            except Exception:  # noqa: BLE001 - the watcher serves all followers and must live
                logger.exception("cannot look at task %s", task_id)
                continue
            new = None
            if latest is not None and latest[0] != shown:
                new = (latest[0], preview_frame(*latest))
            found.append((task_id, view, new))
        return found


def view_frame(view: TaskView) -> str:
    """One `view` event; its id is the change number that a reconnecting page sends back."""
    return f"id: {view.seq}\nevent: view\ndata: {view.model_dump_json()}\n\n"


def preview_frame(number: int, preview: Preview) -> str:
    """One `preview` event; the picture rides along as a data URI."""
    data = {
        "number": number,
        "url": "data:image/jpeg;base64," + base64.b64encode(preview.jpeg).decode("ascii"),
        "width": preview.width,
        "height": preview.height,
    }
    return f"event: preview\ndata: {json.dumps(data)}\n\n"
