"""The real server, store and pool over folders of a test; only the worker is another one.

`python -m tests.support.page_server FOLDER [PORT]` serves it for work on the page.
"""

import shutil
import sys
import threading
from pathlib import Path

from modules.api.context import ServerContext
from modules.api.server import PageServer, open_listener, prepare_environment
from modules.library.catalog import Catalog
from modules.settings.config import Settings
from modules.settings.presets import load_presets
from modules.tasks.store import TaskStore
from modules.tasks.worker_pool import LocalWorkerPool, PoolTimings
from tests.support.scene_worker import release_file

REPOSITORY = Path(__file__).parents[2]
SCENE_WORKER = "tests.support.scene_worker:worker_main"


class RunningPage:
    """A served page with its own folders, from construction to close()."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        worker: str = SCENE_WORKER,
        checkpoints: tuple[str, ...] = ("landscape.safetensors",),
        root: Path | None = None,
        backoff: float = 1.0,
    ) -> None:
        """`root`: where presets and built-in models are; the folder itself unless given.
        `backoff`: seconds before a worker that died is started again.
        """
        shutil.copytree(REPOSITORY / "presets", folder / "presets", dirs_exist_ok=True)
        self.settings = Settings(
            root=root or folder,
            data_path=folder / ".easel",
            output_path=folder / "outputs",
            models_path=folder / "models",
            port=port,
            port_is_explicit=True,
        )
        self.checkpoint_folder = folder / "models" / "checkpoints"
        self.checkpoint_folder.mkdir(parents=True, exist_ok=True)
        for name in checkpoints:
            self.add_checkpoint(name)
        self._worker = worker
        self._timings = PoolTimings(backoff_first=backoff, backoff_max=backoff, tick=0.05)
        self.start()

    def start(self) -> None:
        """Serve; again after close() on the same port."""
        settings = self.settings
        settings.temporary_path.mkdir(parents=True, exist_ok=True)
        prepare_environment(settings)
        presets = load_presets(settings.root)
        self.store = TaskStore(settings.database_path)
        self.pool = LocalWorkerPool(settings, self.store, self._worker, timings=self._timings)
        self.pool.start()
        self.context = ServerContext(
            settings=settings,
            store=self.store,
            pool=self.pool,
            catalog=Catalog(settings, presets),
            presets=presets,
        )
        listener = open_listener(settings)
        self._server = PageServer(self.context, listener)
        self._server.start()
        self.closed = False
        self.url = self._server.url
        self.settings = Settings(**{**vars(settings), "port": self._server.port})

    def add_checkpoint(self, name: str) -> None:
        """Put a file of that name, with nothing to load in it, where checkpoints go."""
        with (self.checkpoint_folder / name).open("wb") as file:
            file.truncate(6_938_000_000)  # sparse: the size of a real one, no room on the disk

    def release(self, task_id: str) -> None:
        """Let a task go on that holds, until it holds again."""
        release_file(self.settings, task_id).touch()

    def close(self) -> None:
        """Stop serving and end the workers."""
        self.closed = True
        self._server.close()
        self.pool.close()
        self.store.close()


if __name__ == "__main__":
    page = RunningPage(Path(sys.argv[1]), port=int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    sys.stdout.write(page.url + "\n")
    sys.stdout.flush()
    try:
        threading.Event().wait()
    finally:
        page.close()
