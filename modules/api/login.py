"""The login page and its two actions. One small HTML text, no script, nothing from outside."""

import base64
import hashlib
import html
import math
import re
from urllib.parse import parse_qsl, urlencode

import anyio
from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from modules.api.auth import Users
from modules.api.sessions import SESSION_SECONDS, Sessions, Throttle

FORM_BYTES = 16 * 1024  # the gate reads no more
DIRECT_KEY = "easel.direct"  # in the ASGI scope: whether the visitor sits at this computer
_STYLE = """
:root{color-scheme:light dark;--ground:#f6f4f1;--card:#fff;--ink:#26231f;--soft:#6b645b;
--line:#d8d2c9;--accent:#b4690e;--on:#fff;--bad:#a3261b}
@media(prefers-color-scheme:dark){:root{--ground:#171614;--card:#211f1c;--ink:#efebe4;
--soft:#a79f93;--line:#3a3631;--accent:#e8a33d;--on:#201a10;--bad:#ff9a8d}}
*{box-sizing:border-box}
body{margin:0;min-height:100vh;display:grid;place-items:center;padding:16px;
background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
form{width:100%;max-width:360px;padding:32px;background:var(--card);
border:1px solid var(--line);border-radius:8px}
h1{margin:0 0 4px;font-size:24px}p{margin:0 0 20px;color:var(--soft)}
p[role=alert]{color:var(--bad)}
label{display:block;margin:0 0 16px}
input{display:block;width:100%;min-height:44px;margin-top:4px;padding:8px 12px;font:inherit;
color:inherit;background:var(--ground);border:1px solid var(--line);border-radius:8px}
button{width:100%;min-height:44px;font:inherit;font-weight:600;cursor:pointer;
color:var(--on);background:var(--accent);border:0;border-radius:8px}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
LOGIN_CSP = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Easel: log in</title>
<meta name="viewport" content="width=device-width,initial-scale=1"><style>{style}</style></head>
<body><main><form method="post" action="/login?{query}"><h1>Easel</h1>{message}
<label>Name<input id="user" name="user" autocomplete="username" required autofocus></label>
<label>Password<input id="password" name="password" type="password"
 autocomplete="current-password" required></label>
<button id="login" type="submit">Log in</button></form></main></body></html>
"""


def safe_next(target: str) -> str:
    """`target` when it is a place of this server, else '/'."""
    return target if re.fullmatch(r"/(?![/\\])[\x21-\x5b\x5d-\x7e]{0,500}", target) else "/"


def cookie_name(port: int) -> str:
    """Cookies ignore ports, so two servers on one machine need two names."""
    return f"easel_session_{port}"


def client_address(request: Request) -> str:
    """Whom the throttle counts together. Behind a proxy or the public link all have one address,
    that of this computer; who sits at it must not wait for what those others guess."""
    if request.scope.get(DIRECT_KEY, False):
        return "here"
    return request.client.host if request.client else ""


class Door:
    """Users, sessions and throttle: what the login page and the gate share."""

    def __init__(self, users: Users, port: int) -> None:
        self.users = users
        self.sessions = Sessions()
        self.throttle = Throttle()
        self.cookie = cookie_name(port)
        self._verifiers = anyio.CapacityLimiter(2)  # each takes 64 MiB and a core

    async def check(self, user: str, password: str) -> bool:
        return await anyio.to_thread.run_sync(
            self.users.verify, user, password, limiter=self._verifiers
        )


def login_page(next_path: str, message: str = "", status: int = 200) -> HTMLResponse:
    """The page, with a sentence when the last attempt failed."""
    text = f'<p role="alert">{html.escape(message)}</p>' if message else "<p>Log in to paint.</p>"
    page = _PAGE.format(style=_STYLE, query=urlencode({"next": next_path}), message=text)
    headers = {"Content-Security-Policy": LOGIN_CSP, "Cache-Control": "no-store"}
    return HTMLResponse(page, status_code=status, headers=headers)


def login_routes(door: Door | None) -> APIRouter:
    """GET and POST /login, POST /logout. Without a door they lead straight to the page."""
    router = APIRouter(include_in_schema=False)

    @router.get("/login")
    async def show(request: Request) -> Response:
        target = safe_next(request.query_params.get("next", "/"))
        if door is None or door.sessions.user_of(request.cookies.get(door.cookie, "")):
            return RedirectResponse(target, status_code=303)
        return login_page(target)

    @router.post("/login")
    async def enter(request: Request) -> Response:
        target = safe_next(request.query_params.get("next", "/"))
        if door is None:
            return RedirectResponse(target, status_code=303)
        body = await request.body()
        try:
            form = dict(parse_qsl(body.decode("utf-8"), max_num_fields=8))
        except ValueError:
            form = {}
        user, password = form.get("user", "")[:64], form.get("password", "")
        address = client_address(request)
        wait = door.throttle.attempt(user, address)
        if wait > 0:
            seconds = math.ceil(wait)
            plural = "" if seconds == 1 else "s"
            message = f"Too many attempts; try again in {seconds} second{plural}."
            refusal = login_page(target, message, 429)
            refusal.headers["Retry-After"] = str(seconds)
            return refusal
        if not await door.check(user, password):
            return login_page(target, "Name or password is wrong; try again.", 401)
        door.throttle.succeeded(user, address)
        response = RedirectResponse(target, status_code=303)
        response.set_cookie(
            door.cookie,
            door.sessions.open(user),
            max_age=SESSION_SECONDS,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    @router.post("/logout")
    async def leave(request: Request) -> Response:
        response = RedirectResponse("/login", status_code=303)
        if door is not None:
            door.sessions.close(request.cookies.get(door.cookie, ""))
            response.delete_cookie(door.cookie, httponly=True, samesite="strict")
        return response

    return router
