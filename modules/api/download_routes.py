"""Downloads over HTTP: what runs, and for the owner begin and stop.

A request names a file of our own lists, never an address. Whoever comes through a shared link may
look; only the owner may fill the owner's disk.
"""

import contextlib
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Path, Request

from modules.api.context import ServerContext
from modules.api.security import USER_KEY
from modules.library.download_queue import DownloadView
from modules.library.known_files import find_known, known_files
from modules.settings.config import Settings
from modules.settings.performance import load_modes
from modules.settings.presets import Download
from modules.spec.errors import NotFound, OwnerOnly

Name = Annotated[str, Path(min_length=1, max_length=300)]


@dataclass(frozen=True, slots=True)
class DownloadList:
    """allowed: whether this visitor may begin and stop them."""

    allowed: bool
    downloads: list[DownloadView]


def add_download_routes(router: APIRouter, context: ServerContext, owner: str | None) -> None:
    """GET /api/downloads, POST /api/downloads/{name} and /api/downloads/{name}/stop.

    owner: the user who may, None where nobody logs in.
    """

    def known() -> dict[str, Download]:
        return known_files(context.catalog, load_modes(context.settings.root))

    @router.get("/api/downloads")
    def all_downloads(request: Request) -> DownloadList:
        return list_downloads(context, owner, request)

    @router.post("/api/downloads/{name:path}/stop", status_code=202)
    def stop(request: Request, name: Name) -> DownloadList:
        _require_owner(context, owner, request)
        with contextlib.suppress(NotFound):  # one that nobody names any more can be stopped, too
            name = find_known(known(), name).key
        context.downloads.stop(name)
        return list_downloads(context, owner, request)

    @router.post("/api/downloads/{name:path}", status_code=202)
    def begin(request: Request, name: Name) -> DownloadList:
        _require_owner(context, owner, request)
        context.downloads.begin(find_known(known(), name))
        return list_downloads(context, owner, request)


def list_downloads(context: ServerContext, owner: str | None, request: Request) -> DownloadList:
    """Those of this start, as this visitor may see them: everybody may."""
    allowed = not refusal(context.settings, owner, request.scope.get(USER_KEY))
    return DownloadList(allowed, context.downloads.views())


def refusal(settings: Settings, owner: str | None, user: str | None) -> str:
    """Why `user` may not download, or ''. Where nobody logs in, only this computer's users may."""
    if owner is None and settings.is_exposed:
        return (
            "This page is open to others without a login, so it downloads nothing; use "
            "`launch.py download` on the computer itself, or start Easel with --auth."
        )
    if owner is not None and user != owner:
        return "Only the owner of this Easel, the first of its users, can download files here."
    return ""


def _require_owner(context: ServerContext, owner: str | None, request: Request) -> None:
    words = refusal(context.settings, owner, request.scope.get(USER_KEY))
    if words:
        raise OwnerOnly(words)
