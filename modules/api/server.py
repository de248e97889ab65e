"""The web server: doors, routes and page behind one gate, on one port.

`check_doors` decides who may come in, before anything is started. `PageServer` serves; it runs in
a thread of its own, so that the main thread can wait for Ctrl+C and end everything in order.
Gradio is imported here and late, once its environment is set.
"""

import asyncio
import errno
import importlib
import inspect
import logging
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from modules.api.auth import Users, load_users
from modules.api.context import ServerContext
from modules.api.errors import add_error_handlers
from modules.api.feed import TaskFeed
from modules.api.hosts import HostPolicy, is_wildcard
from modules.api.login import Door, login_routes
from modules.api.routes import api_routes
from modules.api.security import USER_KEY, Gate
from modules.api.share import ShareLink
from modules.settings.config import DATA_FOLDER, Settings
from modules.spec import limits
from modules.spec.errors import ConfigError, StudioError
from modules.spec.version import VERSION

logger = logging.getLogger(__name__)

PAGE = "modules.ui.app"
PORTS_TRIED = 100
SESSIONS = 200
"""Pages whose choices Gradio remembers; each is some hundred kilobytes, and each reload is one."""
CONNECTIONS = 1_024
START_SECONDS = 30.0
END_SECONDS = 2.0
# No telemetry, no run history, no second server, whatever the caller's environment says.
QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_MCP_SERVER": "False",
    "GRADIO_SSR_MODE": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "FASTAPI_OTEL_AUTO_CONFIGURE": "false",
    "OTEL_SDK_DISABLED": "true",
    "DO_NOT_TRACK": "1",
}
UNWANTED = ("GRADIO_WATCH_DIRS", "GRADIO_VIBE_MODE", "GRADIO_LOCAL_DEV_MODE", "GRADIO_ROOT_PATH")


def check_doors(settings: Settings) -> Users | None:
    """Who may log in, or None when nobody has to.

    ConfigError when the page would be open beyond this computer without a login, and for every
    fault of the users file: no login by accident.
    """
    auth = settings.auth
    fallback = settings.root / "auth.json"  # where Fooocus users have it
    if auth is None and settings.is_exposed and not settings.no_auth and fallback.exists():
        auth = fallback
    if auth is not None:
        return load_users(auth)
    if settings.is_exposed and not settings.no_auth:
        raise ConfigError(
            "Others could reach this page, so it needs a login: add --auth NAME:PASSWORD or "
            "--auth-file FILE, or accept the risk with --no-auth."
        )
    return None


def prepare_environment(settings: Settings) -> None:
    """Set what Gradio reads from the environment. Before Gradio is imported."""
    os.environ.update(QUIET)
    os.environ["GRADIO_TEMP_DIR"] = str(settings.temporary_path / "gradio")
    for name in UNWANTED:
        os.environ.pop(name, None)


def sweep(settings: Settings) -> None:
    """Remove what a former start left in the temporary folder. Only with the instance lock.

    So, too, the two folders that had other names once, where the data folder is surely ours.
    """
    shutil.rmtree(settings.temporary_path, ignore_errors=True)
    if settings.data_path == settings.root / DATA_FOLDER:
        for name in ("tmp", "thumbnails"):
            shutil.rmtree(settings.data_path / name, ignore_errors=True)


def import_gradio() -> ModuleType:
    """Gradio, without its habit of writing typing stubs beside its source at every import.

    That habit takes half of the import's time. Gradio leaves it out for classes whose file is not
    found; should it ever ask in another way, the import is slow again and nothing else happens.
    """
    find = inspect.getfile

    def find_no_component(thing: Any) -> str:
        if str(getattr(thing, "__module__", "")).startswith("gradio."):
            raise FileNotFoundError("typing stubs are not wanted")
        return find(thing)

    inspect.getfile = find_no_component  # type: ignore[assignment]
    try:
        return importlib.import_module("gradio")
    finally:
        inspect.getfile = find


@contextmanager
def routes_once() -> Iterator[None]:
    """Blocks made within get an application without routes, until they are mounted.

    Gradio makes a hundred routes when Blocks begin, again when they end and once more when they
    are mounted, and serves the last of them alone; the others took most of the time that making
    the page takes. A Gradio that has them made elsewhere makes them all again.
    """
    from gradio import routes

    create = vars(routes.App).get("create_app")
    if create is None:
        yield
        return

    def without_routes(blocks: Any, *_: Any, **__: Any) -> Any:
        app = routes.App()
        app.configure_app(blocks)
        return app

    routes.App.create_app = staticmethod(without_routes)
    try:
        yield
    finally:
        routes.App.create_app = create


_NOT_FREE = (
    errno.EADDRINUSE,
    getattr(errno, "WSAEADDRINUSE", errno.EADDRINUSE),
    errno.EACCES,  # Windows keeps whole ranges of ports, other ones after each start
)


def open_listener(settings: Settings) -> socket.socket:
    """A listening socket: on the port asked for, or on the first free one from the default on.

    ConfigError when a port asked for is taken, or the address is not this computer's.
    """
    tries = 1 if settings.port_is_explicit else PORTS_TRIED
    last = min(settings.port + tries, 65_536)
    for port in range(settings.port, last):
        try:
            return _bind(settings.listen, port)
        except (OSError, UnicodeError) as error:  # UnicodeError: no name that could be looked up
            number = getattr(error, "errno", None)
            if number == errno.EACCES and settings.port_is_explicit:
                raise ConfigError(
                    f"Port {port} needs an administrator; choose one above 1023 with --port."
                ) from None
            if number not in _NOT_FREE:
                raise ConfigError(
                    f"{settings.listen} is not an address of this computer; try --listen alone."
                ) from None
    if settings.port_is_explicit:
        raise ConfigError(
            f"Port {settings.port} is taken by another program; end it, or choose another --port."
        )
    raise ConfigError(f"Ports {settings.port} to {last - 1} are all taken; choose one with --port.")


def _bind(address: str, port: int) -> socket.socket:
    family, kind, protocol, _, target = socket.getaddrinfo(
        address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        if sys.platform == "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(target)
        listener.listen(socket.SOMAXCONN)
    except OSError:
        listener.close()
        raise
    return listener


def page_url(settings: Settings, port: int) -> str:
    """The address to type on this computer."""
    name = settings.listen
    if is_wildcard(name):
        name = "127.0.0.1"
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


_FAR_AWAY = "192.0.2.1"  # of documentation (RFC 5737): nobody has it


def network_url(settings: Settings, port: int) -> str | None:
    """The address to type on another device of the network, where the page is open to all of it."""
    if not is_wildcard(settings.listen):
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((_FAR_AWAY, 9))  # sends nothing: it only asks which way that would go
        except OSError:
            return None
        return f"http://{probe.getsockname()[0]}:{port}"


def build_server(
    context: ServerContext,
    policy: HostPolicy,
    door: Door | None,
    feed: TaskFeed,
    page: str = PAGE,
) -> Gate:
    """API, login and Gradio's page as one ASGI app behind the gate.

    page: the module whose `build_app(context)` and `launch_options()` make the page.
    """
    gradio = import_gradio()
    page_module = importlib.import_module(page)

    app = FastAPI(title="Easel", version=VERSION, docs_url=None, redoc_url=None)
    app.add_middleware(CORSMiddleware, allow_origins=[])  # Gradio leaves CORS to us then: nobody
    add_error_handlers(app)
    app.include_router(login_routes(door))
    app.include_router(api_routes(context, feed, door.users.owner if door else None))

    def user(request: Any) -> str | None:
        return request.scope.get(USER_KEY)

    settings = context.settings
    with routes_once():
        blocks = page_module.build_app(context)
    blocks.delete_cache = blocks.delete_cache or (3_600, 86_400)
    blocks.state_session_capacity = SESSIONS
    gradio.mount_gradio_app(
        app,
        blocks,
        path="/",
        auth_dependency=user if door else None,
        allowed_paths=[],
        blocked_paths=[str(settings.models_path), str(settings.root / "auth.json")],
        max_file_size=limits.REQUEST_BYTES,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        **page_module.launch_options(),
    )
    return Gate(app, policy, door)


class PageServer:
    """The page on a listening socket, from `start` to `close`."""

    def __init__(
        self,
        context: ServerContext,
        listener: socket.socket,
        users: Users | None = None,
        page: str = PAGE,
    ) -> None:
        self._context = context
        self._listener = listener
        self._page = page
        self.port: int = listener.getsockname()[1]
        self.url = page_url(context.settings, self.port)
        self.network_url = network_url(context.settings, self.port)
        public = context.settings.public_host
        self.policy = HostPolicy(context.settings.listen, [public] if public else [])
        self._door = Door(users, self.port) if users else None
        self._feed = TaskFeed(context.pool)
        self._share: ShareLink | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Serve; returns once the page answers. StudioError when it does not come up."""
        if self._context.settings.is_exposed and self._door is None:
            self._context.notices.put(
                "no-auth", "This page is open to others without a login (--no-auth)."
            )
        app = build_server(self._context, self.policy, self._door, self._feed, self._page)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            proxy_headers=False,  # the gate decides whose word counts
            server_header=False,
            ws="none",
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=asyncio.run, args=(self._serve(self._server),), name="page", daemon=True
        )
        self._thread.start()
        for _ in range(int(START_SECONDS / 0.02)):
            if self._server.started:
                return
            self._thread.join(0.02)
            if not self._thread.is_alive():
                break
        raise StudioError("The page could not be started; the log says more.")

    async def _serve(self, server: uvicorn.Server) -> None:
        serving = asyncio.create_task(server.serve(sockets=[self._listener]))
        while not (server.should_exit or serving.done()):
            await asyncio.sleep(0.05)
        await self._feed.close()  # open streams would hold the shutdown up
        await serving

    def share(self, service: str | None = None) -> None:
        """Open the public link in the background."""
        address = page_url(self._context.settings, self.port)
        host = address.removeprefix("http://").rpartition(":")[0].strip("[]")
        self._share = ShareLink(
            host,
            self.port,
            folder=self._context.settings.temporary_path,
            notices=self._context.notices,
            admit=partial(self.policy.admit, tls=True),
            service=service,
        )
        self._share.start()

    def close(self) -> None:
        """Stop serving and downloading, within two seconds; a second call does nothing."""
        deadline = time.monotonic() + END_SECONDS
        if self._server is not None:
            self._server.should_exit = True  # it ends while the others do
        if self._share is not None:
            self._share.close()
        self._context.downloads.close(deadline - time.monotonic())
        if self._thread is not None:
            self._thread.join(max(deadline - time.monotonic(), 0))
        self._listener.close()
