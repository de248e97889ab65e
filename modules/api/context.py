"""What the routes and the page are handed: one object instead of globals."""

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modules.gallery.inputs import InputStore
from modules.library.download_queue import Downloads
from modules.library.embedding_info import require_embeddings
from modules.library.preset_fit import with_preset
from modules.prompt.books import Shelf
from modules.prompt.plan import make_plan
from modules.settings.performance import load_modes
from modules.settings.presets import ModelFolder
from modules.tasks.records import digest_of, with_seed_of

if TYPE_CHECKING:
    from modules.library.catalog import Catalog
    from modules.settings.config import Settings
    from modules.settings.presets import Presets
    from modules.spec.task_spec import TaskSpec
    from modules.tasks.store import TaskStore
    from modules.tasks.worker_pool import WorkerPool


class NoticeBoard:
    """Sentences that every page shows until they no longer hold. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sentences: dict[str, str] = {}

    def put(self, topic: str, sentence: str) -> None:
        """Show `sentence`, or nothing if it is ''; it replaces the one that `topic` had."""
        if not sentence:
            self.drop(topic)
            return
        with self._lock:
            self._sentences[topic] = sentence

    def drop(self, topic: str) -> None:
        """Stop showing what `topic` said, if anything."""
        with self._lock:
            self._sentences.pop(topic, None)

    def sentences(self) -> list[str]:
        """All sentences, oldest topic first."""
        with self._lock:
            return list(self._sentences.values())


@dataclass(slots=True)
class ServerContext:
    """The server's parts. Built once in webui.py; nothing in it is replaced afterwards."""

    settings: "Settings"
    store: "TaskStore"
    pool: "WorkerPool"
    catalog: "Catalog"
    presets: "Presets"
    notices: NoticeBoard = field(default_factory=NoticeBoard)
    shelf: Shelf = field(init=False)
    downloads: Downloads = field(init=False)

    def __post_init__(self) -> None:
        self.shelf = Shelf(
            self.settings.root, self.settings.presets_path, self.settings.models_path
        )
        self.downloads = Downloads(self.settings.models_path)

    @property
    def inputs(self) -> InputStore:
        """The pictures that requests refer to."""
        return InputStore(self.settings.inputs_path)

    def complete(self, spec: "TaskSpec") -> "TaskSpec":
        """`spec` with what its preset sets besides. Raises SpecError for one that is not there, or
        whose mode would decide what `spec` names."""
        modes = load_modes(self.settings.root)
        return with_preset(spec, self.presets, self.catalog, self.shelf.styles(), modes)

    def require_paintable(self, spec: "TaskSpec") -> None:
        """Refuse words that cannot be painted, as the worker would, but before they wait.

        Raises SpecError for an unknown style or a tag that cannot be read, LimitError for more
        than may be written, ModelMissing for a LoRA or an embedding without a file.
        """
        loras = tuple(file.name for file in self.catalog.files(ModelFolder.LORAS))
        with self.shelf.lock:
            plan = make_plan(spec, self.shelf.books(loras))
        plan.raise_if_missing()
        require_embeddings(plan.embeddings, self.catalog)

    def submit(
        self, spec: "TaskSpec", owner: str = "local", idempotency_key: str | None = None
    ) -> str:
        """Queue a request from the page or the API, completed, and return its task's id.

        The same request with the same key gives the task that it made the first time, whatever
        has become of presets and files since; Conflict for another one with that key.
        Raises SpecError for an input picture that is not there, and what `complete`,
        `require_paintable` and WorkerPool.submit raise.
        """
        request = None
        if idempotency_key is not None:
            request = digest_of(spec)
            known = self.store.submitted(owner, idempotency_key, request)
            if known is not None:
                return known
        spec = self.complete(spec)
        fixed = with_seed_of(spec, owner, idempotency_key)  # it decides on words
        self.inputs.require(spec.image_prompts)
        self.require_paintable(fixed)
        if idempotency_key is None:  # a key must find the request as it came
            spec = fixed
        return self.pool.submit(spec, owner, idempotency_key, request)
