"""Errors as the HTTP API tells them: {"error": {"code", "message", "field"}} and a status."""

from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from modules.spec.errors import StudioError

STATUS = {
    "E_INPUT": 422,
    "E_LIMIT": 422,
    "E_MODEL_MISSING": 422,
    "E_NOT_FOUND": 404,
    "E_OWNER": 403,
    "E_CONFLICT": 409,
    "E_INSTANCE": 503,
    "E_DISK_FULL": 507,
    "E_OUTPUT": 507,
}
_INTERNAL = "The server could not do this because of a fault of its own; its log says more."


def error_response(
    status: int, code: str, message: str, field: str = "", headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The one shape of an error on the wire."""
    body = {"error": {"code": code, "message": message, "field": field}}
    return JSONResponse(body, status_code=status, headers=headers)


def studio_response(error: StudioError, status: int | None = None) -> JSONResponse:
    """A typed error with the status that its code has, or the one given."""
    return error_response(
        status or STATUS.get(error.code, 500), error.code, str(error), getattr(error, "field", "")
    )


def internal_error() -> JSONResponse:
    """What a visitor learns of a fault of the program: that there was one."""
    return error_response(500, StudioError.code, _INTERNAL)


def add_error_handlers(app: FastAPI) -> None:
    """Every failure of a route of `app` leaves in the one shape, never as a traceback."""

    @app.exception_handler(StudioError)
    async def studio(_: Request, error: StudioError) -> JSONResponse:
        return studio_response(error)

    @app.exception_handler(RequestValidationError)
    async def parameters(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        name = str(first["loc"][-1])[:80]
        if first["loc"][0] == "path":
            return error_response(404, "E_NOT_FOUND", "There is no such task or picture.")
        reason = first["msg"].lower()
        return error_response(422, "E_INPUT", f"The parameter {name} is wrong: {reason}.", name)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        phrase = HTTPStatus(error.status_code).phrase.lower()
        code = "E_NOT_FOUND" if error.status_code == 404 else "E_INPUT"
        return error_response(
            error.status_code, code, f"This address answers: {phrase}.", headers=error.headers
        )

    @app.exception_handler(Exception)
    async def anything(_: Request, __: Exception) -> JSONResponse:
        return internal_error()  # the gate logs it
