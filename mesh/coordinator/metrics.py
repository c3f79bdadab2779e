"""What a coordinator tells Prometheus, and the counting of its answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mesh import __version__
from mesh.coordinator.service import Coordinator
from mesh.errors import StoreUnavailable
from mesh.services import metrics
from mesh.store.rotation import rotation_of
from mesh.store.store import Store
from mesh.telemetry.metrics import HttpMeter, Registry, Sample

__all__ = ["Counted", "registry_of"]
logger = logging.getLogger(__name__)
_PATIENCE_MS = (
    2000  # with Redis: Prometheus waits for 10 s, and what the process knows itself must be told by then
)


def registry_of(coordinator: Coordinator) -> Registry:
    """The metrics of a coordinator; those of its namespace only while it leads."""
    patience_ms = min(_PATIENCE_MS, coordinator.settings.redis_socket_timeout_ms)
    store = Store(replace(coordinator.settings, redis_socket_timeout_ms=patience_ms))
    return Registry(
        "namespace", "coordinator", "process",
        read=lambda: _samples(coordinator, store), pulse=coordinator.leadership.pulse, version=__version__,
    )  # fmt: skip


def _samples(coordinator: Coordinator, store: Store) -> Iterator[Sample]:
    namespace, leadership = coordinator.settings.namespace, coordinator.leadership
    leads = leadership.leading
    yield Sample("leader", (namespace,), int(leads))
    yield Sample("connections", (), coordinator.connections())
    signs = rotation_of(coordinator.settings).signing()
    for kid in coordinator.settings.keyring.kids:
        yield Sample("signing_key_info", (namespace, kid, "in_force" if kid == signs else "known"), 1)
    if leads and leadership.pulse.up:
        try:
            yield from metrics.of_namespace(store)
        except StoreUnavailable as error:  # the process's own figures say so
            logger.warning("metrics of namespace %s: %s", namespace, error)


class Counted:
    """An ASGI application that counts the answers of another: by route, method, status and time."""

    def __init__(
        self, app: ASGIApp, meter: HttpMeter, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._app, self._meter, self._clock = app, meter, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = self._clock(), 500  # nothing was answered: the server says 500

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, told)
        finally:
            route = getattr(scope.get("route"), "path", "")
            self._meter.observe(route, scope["method"], status, self._clock() - begun)
