"""What the page asks while a prompt is being written: the styles and LoRAs that there are."""

from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Path

from modules.api.context import ServerContext
from modules.library.lora_info import LoraInfo, lora_info
from modules.prompt.books import Shelf
from modules.prompt.style_files import title_of
from modules.settings.presets import ModelFolder

_EXCERPT = 300  # characters of a style's texts, for searching and for a tooltip


def add_prompt_routes(router: APIRouter, context: ServerContext) -> None:
    """GET /api/styles, /api/loras and /api/loras/{name}."""
    shelf = Shelf(context.settings.root, context.settings.presets_path)
    # One at a time: the books are not made for several readers, and are quick.
    limiter = anyio.CapacityLimiter(1)

    @router.get("/api/styles")
    async def styles() -> dict[str, Any]:
        return await anyio.to_thread.run_sync(_styles, shelf, limiter=limiter)

    @router.get("/api/loras")
    def loras() -> dict[str, Any]:
        files = context.catalog.files(ModelFolder.LORAS)
        return {"loras": [{"name": file.name, "size": file.size} for file in files]}

    @router.get("/api/loras/{name:path}")
    def lora(name: Annotated[str, Path(max_length=255)]) -> LoraInfo:
        return lora_info(context.catalog.find(ModelFolder.LORAS, name))


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
