"""The gate: one ASGI middleware around everything, Gradio included.

In this order: host name, origin, size and pace of the body, login; and on every answer the
headers that keep a browser from doing more than the page needs. What it refuses never reaches a
route.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response

from modules.api.errors import error_response, internal_error
from modules.api.hosts import HostPolicy, is_loopback, split_host
from modules.api.login import DIRECT_KEY, FORM_BYTES, Door
from modules.spec import limits

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger(__name__)

BODY_SECONDS = 30.0  # between two parts of a body
SAFE_METHODS = ("GET", "HEAD")
OPEN_PATHS = ("/login", "/healthz")
_RELAY_HEADERS = (b"x-forwarded-", b"x-real-ip", b"forwarded", b"via")
USER_KEY = "easel.user"  # in the ASGI scope: who is logged in

# Gradio's page compiles the small functions of its event listeners ('unsafe-eval') and writes
# style attributes and four inline scripts ('unsafe-inline'). Nothing may come from elsewhere.
PAGE_CSP = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' blob: data:",
        "media-src 'self' blob: data:",
        "font-src 'self' data:",
        "connect-src 'self' blob: data:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
API_CSP = "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; frame-ancestors 'none'"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
# Doors of Gradio that the page does not use: other servers' files, uploads, editing the program.
CLOSED_PREFIXES = (
    "/gradio_api/proxy=",
    "/gradio_api/file=http:",
    "/gradio_api/file=https:",
    "/gradio_api/dev/",
    "/gradio_api/vibe-",
    "/gradio_api/undo-vibe-",
    "/gradio_api/run-history/",
    "/gradio_api/runs",
    "/gradio_api/deep_link",
    "/gradio_api/process_recording",
    "/gradio_api/component_server",
    "/gradio_api/upload",  # no panel takes files yet; open it together with a quota
    "/monitoring",
)


class _BodyRefused(Exception):
    """Ends whatever was reading the body; the gate itself answers."""


class Gate:
    """The middleware. `door` is None when no login is asked for."""

    def __init__(self, app: App, policy: HostPolicy, door: Door | None = None) -> None:
        self._app = app
        self._policy = policy
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page uses no WebSocket
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        send = _with_headers(scope["path"], send)
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        await self._pass_on(scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app; a body that broke a bound is answered here, whoever caught the error."""
        body = _BoundedBody(receive, _body_bytes(scope))
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            if started or body.refusal is None:
                started = True
                await send(message)

        try:
            await self._app(scope, body.receive, sending)
        except (_BodyRefused, ClientDisconnect):
            pass  # answered below, or nobody is left to be answered
        except Exception:  # noqa: BLE001 - last line of defence, logged in full
            logger.exception("%s %s failed", scope["method"], scope["path"])
            if not started:
                await internal_error()(scope, receive, sending)
        if body.refusal is not None and not started:
            await body.refusal(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that may not pass, or None; notes the user in the scope."""
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        host = split_host(hosts[0]) if len(hosts) == 1 else None
        if host is None or not self._policy.allows(host[0]):
            return error_response(
                403,
                "E_HOST",
                "Easel does not answer to this host name; open it as localhost, or start it "
                "with --public-host and the name.",
            )
        forwarded = headers.get("x-forwarded-proto", "").split(",")[0].strip()
        scope["scheme"] = self._policy.scheme(host[0], scope["scheme"], forwarded)
        scope[DIRECT_KEY] = _is_direct(scope, host[0])
        _straighten(scope)
        if not self._is_own_page(scope, headers, hosts[0]):
            return error_response(403, "E_ORIGIN", "A page from elsewhere may not use Easel.")
        length = headers.get("content-length", "0")
        most = _body_bytes(scope)
        if not length.isascii() or not length.isdigit() or int(length) > most:
            return _too_large(most)
        refusal = self._login_refusal(scope, headers)
        if refusal is None and scope["path"].startswith(CLOSED_PREFIXES):
            return error_response(404, "E_NOT_FOUND", "There is nothing at this address.")
        return refusal

    def _is_own_page(self, scope: Scope, headers: Headers, host: str) -> bool:
        """False for what a foreign page sent. Programs send neither header and may pass."""
        origins = headers.getlist("origin")
        if origins and not (
            len(origins) == 1 and self._policy.same_origin(origins[0], host, scope["scheme"])
        ):
            return False
        return scope["method"] in SAFE_METHODS or headers.get("sec-fetch-site", "none") in (
            "same-origin",
            "none",
        )

    def _login_refusal(self, scope: Scope, headers: Headers) -> Response | None:
        if self._door is None:
            return None
        token = Request(scope).cookies.get(self._door.cookie, "")
        user = self._door.sessions.user_of(token) if token else None
        if user is not None:
            scope[USER_KEY] = user
            return None
        path = scope["path"]
        if path in OPEN_PATHS:
            return None
        if scope["method"] in SAFE_METHODS and "text/html" in headers.get("accept", ""):
            query = scope.get("query_string", b"").decode("latin-1")
            target = quote(path + ("?" + query if query else ""), safe="/?=&%")
            return RedirectResponse(f"/login?next={quote(target, safe='/')}", status_code=303)
        return error_response(401, "E_LOGIN", "Log in first, at /login.")


def _is_direct(scope: Scope, host: str) -> bool:
    """Whether a browser on this computer asks, and no proxy on it for somebody else.

    host: the name asked for. A relay is told by the public one, or by a header that says whom it
    stands for; one on this computer that passes on neither is taken for a browser.
    """
    client = scope.get("client")
    relayed = any(name.startswith(_RELAY_HEADERS) for name, _ in scope["headers"])
    return client is not None and is_loopback(client[0]) and is_loopback(host) and not relayed


def _straighten(scope: Scope) -> None:
    """Drop what a visitor could use to lie about the address, and requests for many ranges."""
    scope["headers"] = [
        (name, value)
        for name, value in scope["headers"]
        if not name.startswith((b"x-forwarded-", b"x-gradio-server"))
        and name != b"forwarded"
        and not (name == b"range" and (b"," in value or len(value) > 64))
    ]


def _body_bytes(scope: Scope) -> int:
    """The longest body that a path takes: where nobody has logged in yet, no more than a form."""
    return FORM_BYTES if scope["path"] in OPEN_PATHS else limits.REQUEST_BYTES


class _BoundedBody:
    """A `receive` that counts the body and does not wait for ever for its next part.

    most: bytes of the body that are read.
    """

    def __init__(self, receive: Receive, most: int) -> None:
        self.refusal: Response | None = None
        self._receive = receive
        self._most = most
        self._size = 0
        self._complete = False

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), BODY_SECONDS)
        except TimeoutError:
            self.refusal = _too_slow()
            raise _BodyRefused from None
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
            if self._size > self._most:
                self.refusal = _too_large(self._most)
                raise _BodyRefused
        return message


def _with_headers(path: str, send: Send) -> Send:
    csp = API_CSP if path.startswith("/api/") else PAGE_CSP

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message.setdefault("headers", [])
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("Content-Security-Policy", csp)
            if "server" in headers:
                del headers["server"]
        await send(message)

    return sending


def _too_large(most: int) -> Response:
    size = f"{most // 1024**2} MB" if most >= 1024**2 else f"{most // 1024} KB"
    return error_response(413, "E_LIMIT", f"The request is larger than {size}; send less at once.")


def _too_slow() -> Response:
    return error_response(408, "E_LIMIT", "The request stopped arriving; send it again.")
