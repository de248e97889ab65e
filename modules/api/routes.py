"""The HTTP API: what the page's script, other programs and assistive tools talk to.

POST /api/tasks                    TaskSpec as JSON → 201 {"id"}
GET  /api/tasks?limit=             newest tasks, as TaskViews
GET  /api/tasks/{id}               one TaskView
POST /api/forecast                 TaskSpec as JSON → seconds a picture, by performance mode
POST /api/inspect?picture=         TaskSpec as JSON → what would be painted, and from which words
GET  /api/styles                   every style, the user's own first
GET  /api/loras, /api/loras/{name} LoRA files; what one says of itself
GET  /api/tasks/{id}/events        server-sent events: `view`, `preview`
POST /api/tasks/{id}/stop, /skip   202
POST /api/inputs                   a picture's bytes → 201 {"image", "width", "height"}
GET  /api/inputs/{hash}            that picture; ?thumb=1 small
GET  /api/inputs/{hash}/map?type=  what of it counts: edges, structure or a face
GET  /api/controls?checkpoint=     types of image prompts, and the files that they still need
GET  /api/images/{id}/{index}      a finished picture; ?download=1 as an attachment, ?thumb=1 small
GET  /api/downloads                model files that are being fetched
POST /api/downloads/{name}         fetch a known file, as in loras/x.safetensors; /stop ends it; 202
GET  /api/history?limit=&before=   finished pictures, newest first; `next` is the next `before`
GET  /api/status                   version, workers, queue, checkpoints, downloads, notices
GET  /healthz                      {"ok": true}
"""

import re
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from modules.api.context import ServerContext
from modules.api.download_routes import add_download_routes, list_downloads
from modules.api.errors import studio_response
from modules.api.feed import TaskFeed
from modules.api.forecasts import seconds_by_mode
from modules.api.input_routes import add_input_routes
from modules.api.pictures import open_picture
from modules.api.prompt_routes import add_prompt_routes
from modules.api.security import USER_KEY
from modules.api.thumbnails import MIME_TYPE, Thumbnails
from modules.spec.errors import LimitError, NotFound, QueueFull
from modules.spec.task_spec import TaskSpec
from modules.spec.version import VERSION
from modules.tasks.events import TaskView

SEQ_MAX = 2**53
STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

TaskId = Annotated[str, Path(min_length=1, max_length=64, pattern=r"^[a-z0-9]+$")]
ImageIndex = Annotated[int, Path(ge=0, le=10_000)]
Limit = Annotated[int, Query(ge=1, le=200)]


def api_routes(context: ServerContext, feed: TaskFeed, owner: str | None = None) -> APIRouter:
    """Every route of the table above. Blocking work runs in threads, never on the event loop.

    owner: the user who may do what others may not; None where nobody logs in.
    """
    router = APIRouter()
    _add_task_routes(router, context)
    _add_forecast_route(router, context)
    _add_event_route(router, feed)
    thumbnails = Thumbnails(context.settings.thumbnail_path)
    _add_picture_routes(router, context, thumbnails)
    add_input_routes(router, context, thumbnails)
    add_prompt_routes(router, context)
    add_download_routes(router, context, owner)
    _add_status_routes(router, context, owner)

    @router.api_route(
        "/api/{rest:path}",
        methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
        include_in_schema=False,
    )
    def nothing_here(rest: str) -> None:
        raise NotFound(f"There is no /api/{rest[:80]}; see /openapi.json for what there is.")

    return router


def _add_task_routes(router: APIRouter, context: ServerContext) -> None:
    pool = context.pool

    @router.post("/api/tasks", status_code=201, openapi_extra=_spec_in_body())
    async def submit(
        request: Request, idempotency_key: Annotated[str | None, Header(max_length=200)] = None
    ) -> Response:
        body = await request.body()
        owner = request.scope.get(USER_KEY, "local")

        def store() -> str:
            return context.submit(TaskSpec.from_json(body), owner, idempotency_key)

        try:
            task_id = await anyio.to_thread.run_sync(store)
        except QueueFull as error:
            return studio_response(error, 429)
        headers = {"Location": f"/api/tasks/{task_id}"}
        return JSONResponse({"id": task_id}, status_code=201, headers=headers)

    @router.get("/api/tasks")
    def newest(limit: Limit = 20) -> list[TaskView]:
        return list(pool.recent(limit))

    @router.get("/api/tasks/{task_id}")
    def one(task_id: TaskId) -> TaskView:
        return pool.view(task_id)

    @router.post("/api/tasks/{task_id}/stop", status_code=202)
    def stop(task_id: TaskId) -> dict[str, str]:
        pool.stop_task(task_id)
        return {"id": task_id}

    @router.post("/api/tasks/{task_id}/skip", status_code=202)
    def skip(task_id: TaskId) -> dict[str, str]:
        pool.skip_image(task_id)
        return {"id": task_id}


def _add_forecast_route(router: APIRouter, context: ServerContext) -> None:
    @router.post("/api/forecast", openapi_extra=_spec_in_body())
    async def forecast(request: Request) -> dict[str, Any]:
        spec = TaskSpec.from_json(await request.body())
        return await anyio.to_thread.run_sync(seconds_by_mode, context, spec)


def _add_event_route(router: APIRouter, feed: TaskFeed) -> None:
    @router.get("/api/tasks/{task_id}/events", response_class=StreamingResponse)
    async def events(
        task_id: TaskId,
        after: Annotated[int | None, Query(ge=-1, le=SEQ_MAX)] = None,
        last_event_id: Annotated[str, Header()] = "",
    ) -> Response:
        # A browser that reconnects repeats the address it knows and adds the newer number.
        if re.fullmatch(r"\d{1,16}", last_event_id, re.ASCII):
            after = int(last_event_id)
        try:
            frames = await feed.follow(task_id, after)
        except LimitError as error:
            return studio_response(error, 429)
        if frames is None:  # tells a browser not to come back
            return Response(status_code=204)
        return StreamingResponse(frames, media_type="text/event-stream", headers=STREAM_HEADERS)


def _add_picture_routes(router: APIRouter, context: ServerContext, thumbnails: Thumbnails) -> None:
    folder = context.settings.output_path

    @router.get("/api/images/{task_id}/{index}", response_class=Response)
    async def image(
        request: Request,
        task_id: TaskId,
        index: ImageIndex,
        download: bool = False,
        thumb: bool = False,
    ) -> Response:
        # A strip asks for many thumbnails at once; other requests must not wait behind them.
        limiter = thumbnails.limiter if thumb else None
        return await anyio.to_thread.run_sync(
            answer, request, task_id, index, download, thumb, limiter=limiter
        )

    def answer(request: Request, task_id: str, index: int, download: bool, thumb: bool) -> Response:
        row = context.store.image(task_id, index)
        etag = f'"{row.sha256}{"-thumb" if thumb else ""}"'
        headers = {"Cache-Control": "private, max-age=86400", "ETag": etag}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        file, mime_type = open_picture(folder, row.path)
        with file:
            if thumb and (small := thumbnails.of(file, row.sha256)):
                return Response(small, media_type=MIME_TYPE, headers=headers)
            file.seek(0)
            data = file.read()
        name = re.sub(r"[^\w.-]", "_", row.path.rpartition("/")[2], flags=re.ASCII)
        kind = "attachment" if download else "inline"
        headers["Content-Disposition"] = f'{kind}; filename="{name}"'
        return Response(data, media_type=mime_type, headers=headers)

    @router.get("/api/history")
    def history(
        limit: Limit = 50, before: Annotated[int | None, Query(ge=0, le=SEQ_MAX)] = None
    ) -> dict[str, Any]:
        rows = context.store.history(limit, before)
        images = [
            {
                "number": row.number,
                "task_id": row.task_id,
                "index": row.index,
                "url": f"/api/images/{row.task_id}/{row.index}",
                "width": row.width,
                "height": row.height,
                "seed": row.seed,
                "created": row.created,
            }
            for row in rows
        ]
        return {"images": images, "next": rows[-1].number if len(rows) == limit else None}


def _add_status_routes(router: APIRouter, context: ServerContext, owner: str | None) -> None:
    @router.get("/api/status")
    def status(request: Request) -> dict[str, Any]:
        checkpoints = [
            {"name": file.name, "size": file.size} for file in context.catalog.checkpoints()
        ]
        return {
            "version": VERSION,
            "pool": context.pool.status(),
            "queue_length": context.store.queue_length(),
            "checkpoints": checkpoints,
            "notices": [*context.notices.sentences(), *context.presets.notices],
            "downloads": list_downloads(context, owner, request),
            "user": request.scope.get(USER_KEY, ""),
        }

    @router.get("/healthz")
    async def health() -> dict[str, bool]:
        return {"ok": True}


def _spec_in_body() -> dict[str, Any]:
    """The request's schema for /openapi.json; the body itself is read by TaskSpec.from_json."""
    schema = TaskSpec.model_json_schema()
    return {"requestBody": {"content": {"application/json": {"schema": schema}}, "required": True}}
