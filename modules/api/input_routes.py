"""Input pictures over HTTP, what of them counts, and what each type of image prompt needs."""

import hashlib
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Path, Query, Request, Response

from modules.api.context import ServerContext
from modules.api.thumbnails import MIME_TYPE, SIDE, Thumbnails, as_webp
from modules.gallery.maps import map_of
from modules.gallery.read_image import image_type
from modules.library.control_files import Needed, missing_files, optional_files
from modules.library.text_width import text_width
from modules.spec import limits
from modules.spec.errors import ModelMissing
from modules.spec.image_prompt import ImagePrompt, ImagePromptType

MAPS_KEPT = 100
CACHED = {"Cache-Control": "private, max-age=86400"}
"""Pictures are named by their hash, so what an address gives never changes."""

Hash = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]
Threshold = Annotated[int, Query(ge=1, le=255)]
Face = Annotated[int, Query(ge=1, le=limits.FACES_MAX)]
Side = Annotated[int | None, Query(ge=limits.SIDE_MIN, le=limits.SIDE_MAX)]


def add_input_routes(router: APIRouter, context: ServerContext, thumbnails: Thumbnails) -> None:
    """POST /api/inputs; GET /api/inputs/{hash} and its map; GET /api/controls."""
    # The largest picture takes 0.6 GB while it is read, as a WebP 1.3 GB (7 to 8 and 16 bytes a
    # pixel): whoever comes third waits. Maps take turns of their own, so that a slider that asks
    # for many does not hold up what is sent.
    reading, mapping = anyio.CapacityLimiter(2), anyio.CapacityLimiter(1)
    maps = Thumbnails(context.settings.thumbnail_path / "maps", files_max=MAPS_KEPT)
    body = {"requestBody": {"content": {"image/*": {"schema": {"type": "string"}}}}}

    @router.post("/api/inputs", status_code=201, openapi_extra=body)
    async def store(request: Request) -> dict[str, Any]:
        data = await request.body()  # bounded for every route, see security.py
        stored = await anyio.to_thread.run_sync(context.inputs.add, data, limiter=reading)
        return {"image": stored.image, "width": stored.width, "height": stored.height}

    @router.get("/api/inputs/{image}", response_class=Response)
    async def one(image: Hash, thumb: bool = False) -> Response:
        if thumb:
            small = await anyio.to_thread.run_sync(small_one, image, limiter=reading)
            return Response(small, media_type=MIME_TYPE, headers=CACHED)
        data = await anyio.to_thread.run_sync(context.inputs.bytes_of, image)
        headers = {**CACHED, "ETag": f'"{image}"'}
        return Response(data, media_type=image_type(data), headers=headers)

    def small_one(image: str) -> bytes:
        return thumbnails.kept(
            f"input-{image}", lambda: as_webp(context.inputs.read(image), side=SIDE)
        )

    @router.get("/api/inputs/{image}/map", response_class=Response)
    async def map_route(
        request: Request,
        image: Hash,
        type: ImagePromptType,  # noqa: A002 - the name in the address and in the request
        canny_low: Threshold = 64,
        canny_high: Threshold = 128,
        face: Face = 1,
        width: Side = None,
        height: Side = None,
    ) -> Response:
        prompt = ImagePrompt(
            image=image, type=type, face=face, canny_low=canny_low, canny_high=canny_high
        )
        size = (width, height) if width and height else None
        async with mapping:
            if await request.is_disconnected():  # the slider has moved on
                return Response(status_code=204)
            made = await anyio.to_thread.run_sync(made_map, prompt, size)
        return Response(made, media_type=MIME_TYPE, headers=CACHED)

    def made_map(prompt: ImagePrompt, size: tuple[int, int] | None) -> bytes:
        key = hashlib.sha256(f"{prompt.model_dump_json()} {size}".encode()).hexdigest()

        def make() -> bytes:
            pixels = context.inputs.read(prompt.image, whole=prompt.type is ImagePromptType.FACE)
            found = map_of(pixels, prompt, size)
            return as_webp(found, side=limits.SIDE_MAX, lossless=True)

        return maps.kept(key, make)

    @router.get("/api/controls")
    def controls(checkpoint: Annotated[str, Query(max_length=255)] = "") -> dict[str, Any]:
        return {"types": control_types(context, checkpoint)}


def control_types(context: ServerContext, checkpoint: str = "") -> list[dict[str, Any]]:
    """Every type of image prompt: its usual stop and weight, and which files it still needs.

    `missing`: for the family of `checkpoint`, as {"file", "folder", "size", "url"} each; None where
    no file of the type is known for it, and nothing for a checkpoint whose family shows only once
    it is loaded. `optional`: likewise, of files that it does without, though not as well.
    """
    width, is_told = None, True
    try:
        file = context.catalog.find_checkpoint(checkpoint)
        width = text_width(file).width
        is_told = width is not None or file.path.suffix.lower() == ".safetensors"
    except ModelMissing:
        pass
    return [
        {
            "type": kind.value,
            "stop": kind.stop,
            "weight": kind.weight,
            "missing": _in_json(missing_files(context.catalog, kind, width) if is_told else []),
            "optional": _in_json(optional_files(context.catalog, kind, width) if is_told else []),
        }
        for kind in ImagePromptType
    ]


def _in_json(missing: list[Needed] | None) -> list[dict[str, Any]] | None:
    if missing is None:
        return None
    return [
        {"file": need.file, "folder": need.folder, "size": need.size, "url": need.url}
        for need in missing
    ]
