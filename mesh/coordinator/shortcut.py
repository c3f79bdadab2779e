"""The shortcut of the busiest route: a single submission goes to its handler past the framework's routing and dependencies.

These cost 0.3 ms of CPU a request, more than all the rest together (0.2 ms; see `benchmarks/http_submit.py`). The handler, the
caller's identity and the answers to errors are the route's own; everything else, and the documentation of this route, stays with
the framework.
"""

from __future__ import annotations

import logging
import re

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from mesh.coordinator import problems, routes_submit
from mesh.coordinator.access import enter
from mesh.coordinator.routes_submit import SUBMIT, submit_to

__all__ = ["Shortcut"]
logger = logging.getLogger(__name__)
_SUBMISSION = re.compile(r"/v1/namespaces/([^/]+)/tasks")


class Shortcut:
    """An ASGI application: single submissions here, all else to `app`; HEAD as GET."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._route = next(
            one
            for one in routes_submit.router.routes
            if isinstance(one, APIRoute) and one.endpoint is routes_submit.submit
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if scope["method"] == "POST" and (match := _SUBMISSION.fullmatch(scope["path"])) is not None:
                await self._submit(match[1], scope, receive, send)
                return
            if scope["method"] == "HEAD":  # as GET; the server leaves the body out
                get = {**scope, "method": "GET"}
                try:
                    await self._app(get, receive, send)
                finally:
                    scope["route"] = get.get("route")
                return
        await self._app(scope, receive, send)

    async def _submit(self, namespace: str, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"], scope["route"] = self._app, self._route
        request = Request(scope, receive)
        try:
            response = await submit_to(enter(request, SUBMIT, namespace), request)
        except Exception as error:
            response = await problems.respond(request, error)
            if response.status_code == 500:
                logger.exception("POST %s failed", scope["path"])
        await response(scope, receive, send)
