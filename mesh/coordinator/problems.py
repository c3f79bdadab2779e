"""Errors as problem documents (RFC 9457): one shape, made in one place.

{type, title, status, detail, code} and the error's own fields; `code` is the name of the class in `mesh.errors`, from which
clients build the error again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from mesh.coordinator.answers import encode
from mesh.errors import CoordinatorUnavailable, MeshError, TaskFailed, TooManyRequests
from mesh.telemetry.redacting import redact

__all__ = ["MEDIA", "busy", "document", "install", "plain", "respond", "retry_after"]
MEDIA = "application/problem+json"
_RETRY_AFTER_S = "1"
_CODES = {
    **dict.fromkeys((400, 405, 413, 414, 422, 431), "Invalid"),
    404: "NotFound",
    429: "TooManyRequests",
    **dict.fromkeys((408, 503), "CoordinatorUnavailable"),
}


def _document(status: int, detail: str, code: str, **more: Any) -> dict[str, Any]:
    title = HTTPStatus(status).phrase
    return {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": redact(detail),
        "code": code,
        **more,
    }


def plain(status: int, detail: str) -> dict[str, Any]:
    """The problem document of what is told before any handler is asked."""
    return _document(status, detail, _CODES[status])


def document(error: MeshError) -> dict[str, Any]:
    """The problem document of an error."""
    more: dict[str, Any] = {}
    if isinstance(error, TaskFailed):
        more = {"task_id": error.task_id, "state": error.state, "error": error.error}
    return _document(error.http_status, error.message, type(error).__name__, **more)


def _response(body: dict[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    headers = dict(headers or {})
    if body["status"] == 401:
        headers.setdefault("WWW-Authenticate", "Bearer")
    if body["status"] in (429, 503):
        headers.setdefault("Retry-After", _RETRY_AFTER_S)
    return Response(encode(body), body["status"], headers, MEDIA)


def retry_after(wait_s: float) -> str:
    """The value of the header Retry-After: whole seconds."""
    return str(max(1, math.ceil(wait_s)))


async def respond(request: Request, error: Exception) -> Response:
    """The answer to a request that failed with `error`; of what nobody has foreseen, the log tells more."""
    if isinstance(error, TooManyRequests):
        return _response(document(error), {"Retry-After": retry_after(error.retry_after_s)})
    if isinstance(error, MeshError):
        return _response(document(error))
    if isinstance(error, HTTPException):
        return _http_error(request, error)
    if isinstance(error, RequestValidationError):
        said = [f"{' '.join(str(part) for part in one['loc'])}: {one['msg']}" for one in error.errors()]
        return _response(_document(422, f"{'; '.join(said)}.", "Invalid"))
    if isinstance(error, ClientDisconnect):
        return Response(status_code=400)  # nobody reads it: the caller hung up while it was sending
    return _response(_document(500, "The coordinator failed to answer; its log says why.", "MeshError"))


def _http_error(request: Request, error: HTTPException) -> Response:
    detail = error.detail
    if error.status_code == 404 and detail == HTTPStatus(404).phrase:
        detail = f"There is nothing at {request.scope['path']}; GET /openapi.json lists what there is."
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods(request))
        detail = f"{request.method} is not possible at {request.scope['path']}, but {headers['Allow']} is."
    code = _CODES.get(error.status_code, "MeshError")
    return _response(_document(error.status_code, detail, code), headers)


def _methods(request: Request) -> list[str]:
    """What is possible at this path; the framework itself names those of one route only."""
    routes = request.app.routes
    return [
        method
        for method in ("GET", "POST", "PUT", "DELETE")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]


def install(app: FastAPI) -> None:
    """Answer every error of `app` with a problem document, also those that the framework makes itself."""
    for kind in (MeshError, HTTPException, RequestValidationError, ClientDisconnect, Exception):
        app.add_exception_handler(kind, respond)


def busy(what: str) -> CoordinatorUnavailable:
    """The error of a coordinator that has too much of something under way."""
    return CoordinatorUnavailable(
        f"This coordinator has too many {what} under way: try again, or another one."
    )
