"""What the page asks while a prompt is being written: the styles that there are."""

from typing import Any

import anyio
from fastapi import APIRouter

from modules.api.context import ServerContext
from modules.prompt.books import Shelf
from modules.prompt.style_files import title_of

_EXCERPT = 300  # characters of a style's texts, for searching and for a tooltip


def add_prompt_routes(router: APIRouter, context: ServerContext) -> None:
    """GET /api/styles."""
    shelf = Shelf(context.settings.root, context.settings.presets_path)
    # One at a time: the books are not made for several readers, and are quick.
    limiter = anyio.CapacityLimiter(1)

    @router.get("/api/styles")
    async def styles() -> dict[str, Any]:
        return await anyio.to_thread.run_sync(_styles, shelf, limiter=limiter)


def _styles(shelf: Shelf) -> dict[str, Any]:
    book = shelf.books().styles
    listed = [
        {
            "name": style.name,
            "title": style.title,
            "group": title_of(style.group),
            "prompt": style.prompt[:_EXCERPT],
            "negative_prompt": style.negative_prompt[:_EXCERPT],
        }
        for style in book
    ]
    return {"styles": listed, "notices": list(book.notices)}
