"""The server: settings, lock, queue, workers and page, put together and taken apart in order.

Run it through launch.py, which makes the environment that it needs. It never loads torch: the
workers do, each in a process of its own.
"""

import logging
import sys
import threading
import webbrowser
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from modules.library.catalog import Catalog
from modules.settings.config import Settings, load_settings
from modules.settings.logs import start_logging
from modules.settings.presets import load_presets
from modules.spec.errors import StudioError
from modules.tasks.ending import end_on_signals, leave, wait_for_end
from modules.tasks.instance import InstanceLock
from modules.tasks.store import TaskStore
from modules.tasks.worker_pool import LocalWorkerPool

if TYPE_CHECKING:
    from modules.api.server import PageServer

logger = logging.getLogger("easel")

WORKER = "modules.async_worker:worker_main"


def run(settings: Settings, worker: str = WORKER) -> None:
    """Serve until KeyboardInterrupt, with workers that run `worker`. StudioError if it cannot."""
    # Not at the top: a worker process imports this file too, and needs nothing of the web.
    from modules.api.context import ServerContext
    from modules.api.server import (
        PageServer,
        check_doors,
        open_listener,
        prepare_environment,
        sweep,
    )

    users = check_doors(settings)
    prepare_environment(settings)
    presets = load_presets(settings.root)
    with ExitStack() as parts:  # taken apart in the opposite order, whatever happens
        lock = parts.enter_context(InstanceLock(settings.data_path))
        start_logging(settings.log_path)
        sweep(settings)
        store = TaskStore(settings.database_path)
        parts.callback(store.close)
        listener = open_listener(settings)
        parts.callback(listener.close)
        pool = LocalWorkerPool(settings, store, worker)
        parts.callback(pool.close)
        pool.start()
        catalog = Catalog(settings, presets)
        catalog.make_folders()
        context = ServerContext(settings, store, pool, catalog, presets)
        server = PageServer(context, listener, users)
        parts.callback(server.close)
        parts.callback(pool.begin_close)  # the workers end while the page does
        server.start()
        lock.announce(server.url)
        tell_address(settings, server)
        if settings.share:
            server.share()
        wait_for_end()


def tell_address(settings: Settings, server: "PageServer") -> None:
    """Say where the page is, and open it when the user wants that."""
    if server.port != settings.port:
        logger.warning("Port %d is taken, so the page is on port %d.", settings.port, server.port)
    elsewhere = f" (elsewhere in the network {server.network_url})" if server.network_url else ""
    sys.stdout.write(f"Easel is ready: {server.url}{elsewhere}\n")
    sys.stdout.flush()
    if settings.in_browser:
        threading.Thread(target=webbrowser.open, args=[server.url], daemon=True).start()


def main(arguments: Sequence[str] | None = None, worker: str = WORKER) -> int:
    """The command line: 0 after an ordinary end, 2 with one sentence when the start fails."""
    end_on_signals()
    try:
        run(load_settings(arguments), worker)
    except StudioError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        logger.info("ended")
    return 0


if __name__ == "__main__":
    leave(main())
