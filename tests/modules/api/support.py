"""A small pool, a bare page and a real loopback server for the tests of modules/api."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from modules.api.context import ServerContext
from modules.api.server import PageServer, check_doors, open_listener, prepare_environment
from modules.library.catalog import Catalog
from modules.settings.config import Settings
from modules.settings.presets import Preset, Presets
from modules.spec.errors import NotFound
from modules.spec.flags import TaskState
from modules.spec.task_spec import TaskSpec
from modules.tasks.events import ErrorView, Preview, TaskView
from modules.tasks.store import TaskStore

BARE_PAGE = "tests.modules.api.bare_page"

PRESETS = Presets(default=Preset(name="default", title="Default", description="", settings={}))


class ScriptedPool:
    """Views that a test changes by hand; submits go to the real store."""

    def __init__(self, store: TaskStore) -> None:
        self.store = store
        self.views: dict[str, TaskView] = {}
        self.previews: dict[str, tuple[int, Preview]] = {}
        self.submitted: list[tuple[TaskSpec, str]] = []
        self.calls: list[tuple[str, str]] = []
        self.listeners: list[Callable[[str], None]] = []
        self.looks = 0
        self.refuse: Exception | None = None
        self._lock = threading.Lock()

    def submit(
        self,
        spec: TaskSpec,
        owner: str = "local",
        idempotency_key: str | None = None,
        request: str | None = None,
    ) -> str:
        if self.refuse is not None:
            raise self.refuse
        task_id = self.store.submit(
            spec, owner=owner, idempotency_key=idempotency_key, request=request
        )
        self.submitted.append((spec, owner))
        self.add(task_id, spec=self.store.get(task_id).spec)
        return task_id

    def add(self, task_id: str, **values: Any) -> TaskView:
        spec = values.pop("spec", TaskSpec(prompt=task_id, seed=1))
        values = {"seq": 1, "state": TaskState.QUEUED, "created": time.time()} | values
        view = TaskView(id=task_id, spec=spec, **values)
        with self._lock:
            self.views[task_id] = view
        return view

    def change(self, task_id: str, **values: Any) -> TaskView:
        with self._lock:
            view = self.views[task_id]
            view = view.model_copy(update={"seq": view.seq + 1, **values})
            self.views[task_id] = view
        self.tell(task_id)
        return view

    def remove(self, task_id: str) -> None:
        del self.views[task_id]
        self.tell(task_id)

    def show(self, task_id: str, number: int, jpeg: bytes, width: int = 8, height: int = 8) -> None:
        self.previews[task_id] = (number, Preview(jpeg=jpeg, width=width, height=height))
        self.tell(task_id)

    def tell(self, task_id: str) -> None:
        for listener in tuple(self.listeners):
            listener(task_id)

    def add_listener(self, listener: Callable[[str], None]) -> Callable[[], None]:
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)

    def fail(self, task_id: str, code: str, message: str) -> TaskView:
        error = ErrorView(code=code, message=message)
        return self.change(task_id, state=TaskState.FAILED, error=error)

    def view(self, task_id: str) -> TaskView:
        self.looks += 1
        if task_id not in self.views:
            raise NotFound("There is no such task; it may have been removed.")
        return self.views[task_id]

    def preview(self, task_id: str) -> tuple[int, Preview] | None:
        return self.previews.get(task_id)

    def recent(self, limit: int = 50) -> list[TaskView]:
        return list(reversed(self.views.values()))[:limit]

    def stop_task(self, task_id: str) -> None:
        self.view(task_id)  # NotFound, as the real pool raises it
        self.calls.append(("stop", task_id))

    def skip_image(self, task_id: str) -> None:
        self.view(task_id)
        self.calls.append(("skip", task_id))

    def status(self) -> dict[str, int]:
        return {"workers": 1}


@dataclass
class Running:
    """A server under test."""

    server: PageServer
    context: ServerContext
    pool: ScriptedPool
    client: httpx.Client
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.server.url


def visit(url: str, timeout: float = 20) -> httpx.Client:
    """A visitor of a server on this computer, which needs none of the certificates that a client
    reads for a twentieth of a second when it is made.
    """
    return httpx.Client(base_url=url, timeout=timeout, trust_env=False, verify=False)


def make_settings(folder: Path, **values: Any) -> Settings:
    base = Settings(
        root=folder,
        data_path=folder / ".easel",
        output_path=folder / "outputs",
        models_path=folder / "models",
    )
    base.output_path.mkdir(exist_ok=True)
    return replace(base, **values)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serve(folder: Path, *, page: str = BARE_PAGE, **values: Any) -> Iterator[Running]:
    """A real server on a free loopback port; `values` are settings."""
    settings = make_settings(folder, **({"port": free_port()} | values))
    prepare_environment(settings)
    users = check_doors(settings)
    store = TaskStore(settings.database_path)
    pool = ScriptedPool(store)
    checkpoint = settings.models_path / "checkpoints" / "a.safetensors"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_bytes(b"weights")
    context = ServerContext(settings, store, pool, Catalog(settings, PRESETS), PRESETS)
    server = PageServer(context, open_listener(settings), users, page)
    try:
        server.start()
        with visit(server.url) as client:
            yield Running(server, context, pool, client)
    finally:
        server.close()
        store.close()


def read_events(lines: Iterator[str]) -> Iterator[tuple[str, str, str]]:
    """(event, id, data) of a stream of server-sent events; comments come as ('', '', text)."""
    event = {"event": "", "id": "", "data": ""}
    for line in lines:
        if line.startswith(":"):
            yield "", "", line[1:].strip()
        elif line:
            name, _, value = line.partition(": ")
            event[name] = value
        else:
            if event["event"]:
                yield event["event"], event["id"], event["data"]
            event = {"event": "", "id": "", "data": ""}
