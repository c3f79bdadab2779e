"""A span for each request to the API, where spans are wanted."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mesh.core.tracing import TRACEPARENT, TRACESTATE, Trace, parse
from mesh.telemetry.spans import exporter

__all__ = ["Traced", "told_trace"]


def told_trace(headers: Headers) -> Trace | None:
    """The trace that a request continues."""
    parents = headers.getlist(TRACEPARENT)
    return parse(parents[0], ",".join(headers.getlist(TRACESTATE))) if len(parents) == 1 else None


class Traced:
    """An ASGI application around another. Probes and scrapes are left out: they would be most of it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        exporter()  # now, and not in the first request's time

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        makes = exporter() if scope["type"] == "http" and scope["path"].startswith("/v1/") else None
        if makes is None:
            await self._app(scope, receive, send)
            return
        method, status = scope["method"], 500
        told = {
            "http.request.method": method,
            "url.path": scope["path"],
            "url.scheme": scope["scheme"],
            "client.address": (scope.get("client") or ("",))[0],
        }
        span = makes.start(method, "SERVER", told_trace(Headers(scope=scope)), told)

        async def answered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            with makes.use(span):
                await self._app(scope, receive, answered)
        finally:
            route = getattr(scope.get("route"), "path", "")
            if route:
                span.update_name(f"{method} {route}")
                span.set_attribute("http.route", route)
            span.set_attribute("http.response.status_code", status)
            if status >= 500:
                makes.fail(span, status)
            span.end()
