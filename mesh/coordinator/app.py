"""The coordinator's HTTP service, put together: routes, errors, the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Request, Response

from mesh import __version__
from mesh.coordinator import (
    openapi,
    problems,
    routes_joining,
    routes_namespace,
    routes_page,
    routes_submit,
    routes_tasks,
    routes_tokens,
)
from mesh.coordinator.access import Call, MeshNeeds, Right
from mesh.coordinator.answers import Json
from mesh.coordinator.front import Front

__all__ = ["create_app"]

_METRICS: dict[int | str, dict[str, Any]] = {
    **openapi.answers(None),
    200: {"description": "The metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}},
}


def create_app(front: Front) -> FastAPI:
    """The service of one coordinator.

    Handlers that use the store are plain functions: they run in a pool of threads. What only waits is a coroutine.
    """
    app = FastAPI(
        title="Agent Mesh coordinator",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        default_response_class=Json,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.front = front
    for router in (
        routes_submit.router,
        routes_tasks.router,
        routes_namespace.router,
        routes_joining.router,
        routes_namespace.cluster_router,
        routes_tokens.router,
        routes_page.router,
    ):
        app.include_router(router)
    _add_health(app, front)
    problems.install(app)
    openapi.install(app)
    return app


def _described(meaning: str, bad: str) -> dict[int | str, dict[str, Any]]:
    content = {"application/json": {"schema": {"type": "object"}}}
    return {200: {"description": meaning, "content": content}, 503: {"description": bad, "content": content}}


def _add_health(app: FastAPI, front: Front) -> None:
    coordinator = front.coordinator

    @app.get("/health", tags=["health"], responses=_described("All is well.", "It cannot do its work."))
    def health() -> Response:
        """All that it knows of itself; 503 when it cannot do its work."""
        well, body = coordinator.report()
        return Json(body, 200 if well else 503)

    @app.get("/health/live", tags=["health"])
    async def live() -> Response:
        """Whether the process is alive: independent of Redis, so that an outage restarts nobody."""
        return Json({"status": "ok"})

    @app.get("/health/ready", tags=["health"], responses=_described("Send it requests.", "Send it none."))
    def ready() -> Response:
        """Whether to send it requests."""
        well, why = coordinator.ready()
        if well:
            return Json({"status": "ready"})
        return Json({"status": "not ready", "detail": why}, 503)

    @app.get("/metrics", tags=["health"], summary="Read the metrics", responses=_METRICS)
    def metrics(
        call: Annotated[Call, MeshNeeds(Right(action="read", verb="metrics"))], request: Request
    ) -> Response:
        """In the text format of Prometheus, or OpenMetrics if it is asked for. The figures of the namespace are told by the
        coordinator that leads it, and by no other."""
        body, media = front.metrics.exposition(request.headers.get("accept", ""))
        return Response(body, media_type=media)
