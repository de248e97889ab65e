"""What the page asks while a prompt is being written: styles, LoRAs, and what comes of it all."""

from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import quote

import anyio
from fastapi import APIRouter, Path, Query, Request, Response

from modules.api.context import ServerContext
from modules.library.catalog import ModelFile
from modules.library.embedding_info import embedding_tokens
from modules.library.lora_fit import misfit
from modules.library.lora_info import LoraInfo, lora_info
from modules.library.style_pictures import StylePicture, StylePictures
from modules.prompt.books import Shelf
from modules.prompt.inspector import SHOWN, Inspection, inspect_spec, problem_of
from modules.prompt.lora_tags import find_name, index_of_names
from modules.prompt.style_files import title_of
from modules.settings.presets import ModelFolder
from modules.spec.errors import ModelMissing, StudioError
from modules.spec.task_spec import TaskSpec

_EXCERPT = 300  # characters of a style's texts, for searching and for a tooltip

Picture = Annotated[int, Query(ge=0, lt=SHOWN)]


def add_prompt_routes(router: APIRouter, context: ServerContext) -> None:
    """GET /api/styles, /api/styles/{name}/picture, /api/loras and /api/loras/{name};
    POST /api/inspect."""
    pictures = StylePictures(context.settings.style_pictures_path)
    shelf = context.shelf
    # One at a time: they are quick, and wait for each other anyway.
    limiter = anyio.CapacityLimiter(1)

    @router.get("/api/styles")
    async def styles() -> dict[str, Any]:
        return await anyio.to_thread.run_sync(_styles, shelf, pictures, limiter=limiter)

    @router.get("/api/styles/{name:path}/picture")
    async def style_picture(name: Annotated[str, Path(max_length=255)]) -> Response:
        def read() -> StylePicture:
            return pictures.read(shelf.styles().find(name))

        data, mime_type = await anyio.to_thread.run_sync(read, limiter=limiter)
        headers = {"Cache-Control": "private, max-age=31536000, immutable"}
        return Response(data, media_type=mime_type, headers=headers)

    @router.get("/api/loras")
    def loras() -> dict[str, Any]:
        files = context.catalog.files(ModelFolder.LORAS)
        return {"loras": [{"name": file.name, "size": file.size} for file in files]}

    @router.get("/api/loras/{name:path}")
    def lora(
        name: Annotated[str, Path(max_length=255)],
        checkpoint: Annotated[str, Query(max_length=255)] = "",
    ) -> LoraAnswer:
        file = context.catalog.find(ModelFolder.LORAS, name)
        words = "".join(_misfits(context, checkpoint, [file]))
        return LoraAnswer(**lora_info(file).model_dump(), misfit=words)

    @router.post("/api/inspect", response_model=Inspection)
    async def inspect(request: Request, picture: Picture = 0) -> Response:
        body = await request.body()
        answer = await anyio.to_thread.run_sync(
            _inspect, context, shelf, body, picture, limiter=limiter
        )
        return Response(answer.model_dump_json(), media_type="application/json")


class LoraAnswer(LoraInfo):
    """misfit: a sentence if it is not for the checkpoint that was asked about, or ''."""

    misfit: str = ""


def _misfits(context: ServerContext, checkpoint: str, loras: Sequence[ModelFile]) -> list[str]:
    """A sentence on each that cannot be for the checkpoint; that is said only of those there."""
    try:
        base = context.catalog.find_checkpoint(checkpoint)
    except ModelMissing:
        return []
    return [words for file in loras if (words := misfit(file, base))]


def _inspect(context: ServerContext, shelf: Shelf, body: bytes, picture: int) -> Inspection:
    """What is wrong with a request is the answer here, not an error."""
    try:
        spec = context.complete(TaskSpec.from_json(body))
    except StudioError as error:
        return Inspection(problem=problem_of(error))
    loras = {file.name: file for file in context.catalog.files(ModelFolder.LORAS)}

    def vectors(names: Sequence[str]) -> dict[str, int | None]:
        files = {file.name: file for file in context.catalog.files(ModelFolder.EMBEDDINGS)}
        index = index_of_names(list(files))
        found = {name: find_name(index, name) for name in names}
        return {name: embedding_tokens(files[file]) for name, file in found.items() if file}

    def misfits(names: Sequence[str]) -> list[str]:
        return _misfits(context, spec.checkpoint, [loras[name] for name in names if name in loras])

    with shelf.lock:
        return inspect_spec(spec, shelf.books(tuple(loras)), vectors, picture, misfits)


def _styles(shelf: Shelf, pictures: StylePictures) -> dict[str, Any]:
    book = shelf.styles()
    listed = [
        {
            "name": style.name,
            "title": style.title,
            "group": title_of(style.group),
            "picture": f"/api/styles/{quote(style.name, safe='')}/picture"
            f"?v={pictures.version(style)}",
            "prompt": style.prompt[:_EXCERPT],
            "negative_prompt": style.negative_prompt[:_EXCERPT],
        }
        for style in book
    ]
    return {"styles": listed, "notices": list(book.notices)}
