"""The OpenAPI document: the routes as FastAPI knows them, bodies and answers as `mesh.coordinator.models` has them."""

from __future__ import annotations

import inspect
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from mesh.coordinator import models, problems

__all__ = ["answers", "install", "takes"]

_REF = "#/components/schemas/{name}"
_DESCRIPTION = """
Tasks, agents and queues of an Agent Mesh. Each request carries `Authorization: Bearer <API token>`; `mesh auth` makes tokens.
Every error is a problem document (RFC 9457) whose `code` names it: 401 no valid token · 403 the right is missing that it names ·
404 not there, or in a namespace of others · 409 the id is in use, or no agent can take it · 413 too big · 422 wrong ·
503 try again (`Retry-After`). Submitting with an id of your own (`task_id` or `Idempotency-Key`) may be repeated safely.
"""

_TOKEN = "An API token; `mesh auth --agent-id NAME --agent-type TYPE` makes one."


def _schema(model: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": _REF.format(name=model.__name__)}


def answers(
    model: type[msgspec.Struct] | None,
    status: int = 200,
    example: Any = None,
    *,
    otherwise: type[msgspec.Struct] | None = None,
    **more: Any,
) -> dict[Any, Any]:
    """The `responses` of a route that answers `model` (or `otherwise`) with `status`, and problems else.

    `more`: other answers, _202=(model, example).
    """
    found: dict[Any, Any] = {}
    if model is not None:
        found[status] = _described(model, example)
    if model is not None and otherwise is not None:
        found[status]["content"]["application/json"]["schema"] = {
            "anyOf": [_schema(model), _schema(otherwise)]
        }
    for code, (other, one) in more.items():
        found[int(code.removeprefix("_"))] = _described(other, one)
    content = {problems.MEDIA: {"schema": _schema(models.Problem)}}
    return {**found, "default": {"description": "What went wrong.", "content": content}}


def _described(model: type[msgspec.Struct], example: Any) -> dict[str, Any]:
    media = {"schema": _schema(model), **({} if example is None else {"example": example})}
    return {"description": inspect.getdoc(model) or "", "content": {"application/json": media}}


def takes(
    *bodies: type[msgspec.Struct],
    examples: dict[str, Any],
    required: bool = True,
    parameters: tuple[Any, ...] = (),
) -> dict[str, Any]:
    """The `openapi_extra` of a route with a body. `examples`: name -> body."""
    schema: dict[str, Any] = (
        _schema(bodies[0]) if len(bodies) == 1 else {"anyOf": [_schema(one) for one in bodies]}
    )
    shown = {name: {"value": value} for name, value in examples.items()}
    content = {"application/json": {"schema": schema, "examples": shown}}
    extra: dict[str, Any] = {"requestBody": {"required": required, "content": content}}
    return {**extra, "parameters": list(parameters)} if parameters else extra


def install(app: FastAPI) -> None:
    """Make `app` serve the document."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title, version=app.version, description=_DESCRIPTION, routes=app.routes
            )
            structs = [
                one
                for one in vars(models).values()
                if inspect.isclass(one)
                and issubclass(one, msgspec.Struct)
                and one.__module__ == models.__name__
            ]
            _, schemas = msgspec.json.schema_components(structs, ref_template=_REF)
            document.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
            document["components"]["securitySchemes"] = {
                "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": _TOKEN}
            }
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    operation["security"] = [{"token": []}] if path.startswith(("/v1/", "/metrics")) else []
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
