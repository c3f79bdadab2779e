"""No route of the HTTP service without a word about who may use it."""

from collections.abc import Iterable, Iterator
from typing import Any

from fastapi.routing import APIRoute

from mesh.coordinator.access import Right
from mesh.coordinator.app import create_app
from mesh.coordinator.front import Front
from mesh.coordinator.service import Coordinator
from mesh.core.policies import ACTIONS
from mesh.settings import Settings

OPEN = {"/", "/page/{name}", "/health", "/health/live", "/health/ready", "/openapi.json"}


def flat(routes: Iterable[Any]) -> Iterator[Any]:
    """The routes, also those of included routers."""
    for route in routes:
        included = getattr(route, "original_router", None)
        yield from flat(included.routes) if included is not None else [route]


def test_every_route_says_what_it_needs() -> None:
    app = create_app(Front(Coordinator(Settings(), port=0, complete_chords=lambda _: None)))
    checked = 0
    for route in flat(app.routes):
        path = getattr(route, "path", "")
        if path in OPEN:
            continue
        assert isinstance(route, APIRoute) and (path.startswith("/v1/") or path == "/metrics"), (
            f"{path} is neither open nor under /v1"
        )
        first = route.dependant.dependencies[0] if route.dependant.dependencies else None
        right = getattr(getattr(first, "call", None), "right", None)
        assert isinstance(right, Right), f"{path}: Needs(...) must be its first dependency"
        assert right.action in ACTIONS and right.kind in ("api", "join")
        checked += 1
    assert checked > 20
