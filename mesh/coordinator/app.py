"""The coordinator's HTTP service: its health, for probes, load balancers and people."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from mesh import __version__
from mesh.coordinator.service import Coordinator

__all__ = ["create_app"]


def create_app(coordinator: Coordinator) -> FastAPI:
    """The service of one coordinator. Handlers are plain functions: they run in a pool of threads."""
    app = FastAPI(title="Agent Mesh coordinator", version=__version__, docs_url=None, redoc_url=None)

    @app.get("/health")
    def health() -> JSONResponse:
        """All that it knows of itself; 503 when it cannot do its work."""
        well, body = coordinator.report()
        return JSONResponse(body, 200 if well else 503)

    @app.get("/health/live")
    async def live() -> JSONResponse:
        """Whether the process is alive: independent of Redis, so that an outage restarts nobody."""
        return JSONResponse({"status": "ok"})

    @app.get("/health/ready")
    def ready() -> JSONResponse:
        """Whether to send it requests."""
        well, why = coordinator.ready()
        if well:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready", "detail": why}, 503)

    return app
