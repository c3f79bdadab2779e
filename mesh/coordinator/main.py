"""The coordinator's process: a socket, the loops, the HTTP service, and a clean stop.

A stop has three parts. First it says that it is not ready and gives up the lead, while it answers as before: balancers look
only every second or two, and must not meet a closed port ("lame duck"). Each answer then closes its connection, so that
callers who keep theirs go elsewhere. Then what only waits is answered at once, and what is under way is finished.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import resource
import signal
import socket
import time
from collections.abc import Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from mesh.bus.app import app as celery_app
from mesh.coordinator.app import create_app
from mesh.coordinator.front import Front
from mesh.coordinator.metrics import Counted
from mesh.coordinator.service import Coordinator
from mesh.coordinator.shortcut import Shortcut
from mesh.coordinator.tls import Tls, tls_of
from mesh.coordinator.traced import Traced
from mesh.coordinator.wire import HEADERS, HEADERS_OF_TLS, Terms, Wire
from mesh.errors import Conflict, Invalid
from mesh.settings import Settings
from mesh.telemetry.logging import about, set_up
from mesh.telemetry.spans import close as close_spans
from mesh.telemetry.spans import wanted

__all__ = ["bind", "serve"]
logger = logging.getLogger(__name__)
_GRACE_S = (
    15  # for what is under way: with the lame-duck time well below the 30 s that Kubernetes gives by default
)
_BACKLOG = 1024
_HANDSHAKE_S = 10.0
_SPARE_FILES = 256  # descriptors for all else: Redis, threads, logs
_TICK_S = 0.1  # uvicorn's own
_KEEP_ALIVE_S = (
    75  # longer than callers and balancers keep theirs: they close first, and no request meets a closing one
)


def bind(host: str, port: int, *, asked: bool) -> socket.socket:
    """A listening socket. A port that was not asked for and is taken gives way to a free one.

    Raises `Conflict` for one that was asked for and is taken, `Invalid` for an address that is not this host's.
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise Invalid(f"Address {host!r} is not known: {error.strerror or error}.") from error
    family, _, _, _, address = found[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(_BACKLOG)  # here: until one listens, two may have bound the same port
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE and not asked:
            return bind(host, 0, asked=True)
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            why = "is taken" if error.errno == errno.EADDRINUSE else "may not be used"
            raise Conflict(
                f"Port {port} {why}: choose another with --port or MESH_COORDINATOR_PORT."
            ) from error
        raise Invalid(f"Address {host}:{port} cannot be listened on: {error.strerror}.") from error
    return listener


class _Server(uvicorn.Server):
    """Leaves signals to us: uvicorn would raise them again when it has stopped, and the exit code would be theirs."""

    front: Front
    terms: Terms
    tls: Tls | None
    lame_duck_s: float
    hurried = False  # a person waits, or a second signal has come

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen: the parent's, with our own kind of connection."""
        await self.lifespan.startup()

        def connection() -> Wire:
            return Wire(self.terms, config=self.config, server_state=self.server_state, app_state={})

        await self.on_tick(0)
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(
                connection,
                sock=one,
                backlog=_BACKLOG,
                ssl=self.tls.context if self.tls else None,
                ssl_handshake_timeout=min(self.terms.patience_s, _HANDSHAKE_S) if self.tls else None,
            )
            for one in sockets or ()
        ]
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second; connections are looked at every second."""
        ends = await super().on_tick(counter)
        if counter % 10 == 0:
            self.front.sweep()
            self.terms.refresh(self.server_state.default_headers)
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, Wire):
                    connection.check(now)
        return ends

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish the requests under way; what only waits is answered at once. Another may lead meanwhile."""
        retired = asyncio.create_task(asyncio.to_thread(self.front.coordinator.retire))
        self.front.coordinator.stopping = True
        self.config.encoded_headers.append((b"connection", b"close"))
        await self.on_tick(0)
        self.front.hurry()
        until, ticks = time.monotonic() + self.lame_duck_s, 0
        while not self.hurried and time.monotonic() < until:
            await self.on_tick(ticks)
            ticks += 1
            await asyncio.sleep(_TICK_S)
        self.front.end_waits()
        await super().shutdown(sockets)
        await retired

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing to capture."""
        yield


def _set_up_logging(settings: Settings) -> None:
    set_up(settings)
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.root.level))


def _spare_the_collector() -> None:
    """What is loaded stays for good, and a batch makes tens of thousands of objects that live until it is answered: without
    this, looking at them again and again takes a third of the time of a batch."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _terms(settings: Settings, front: Front) -> Terms:
    """The terms of connections: as many as asked for, if the process may have so many files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.http_max_connections + _SPARE_FILES
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    connections = max(1, min(settings.http_max_connections, soft - _SPARE_FILES))
    if connections < settings.http_max_connections:
        logger.warning(
            "only %d connections at a time: raise the limit of open files (ulimit -n) above %d",
            connections, wanted,
        )  # fmt: skip
    return Terms(
        front.guard,
        front.metrics.http,
        patience_s=settings.http_read_timeout_ms / 1000,
        connections=connections,
        message_bytes=front.batch_limit,
    )


def application(front: Front) -> ASGIApp:
    """All that stands behind the connections."""
    app = Shortcut(create_app(front))
    return Counted(Traced(app) if wanted() else app, front.metrics.http)


def serve(settings: Settings, *, host: str = "0.0.0.0", port: int | None = None) -> None:
    """Run a coordinator until SIGTERM or SIGINT. `port` None: the setting.

    Raises `Invalid` (secret, policies, certificate), `Conflict` (port or id taken), `StoreUnavailable` (no Redis at the start).
    """
    kids, _ = settings.keyring.kids, settings.policies  # before anything is begun
    tls = tls_of(settings)
    _set_up_logging(settings)
    asked = port is not None or settings.was_set("coordinator_port")
    with bind(host, settings.coordinator_port if port is None else port, asked=asked) as listener:
        number = int(listener.getsockname()[1])
        coordinator = Coordinator(
            settings, port=number, complete_chords=lambda groups: celery_app.backend.complete_chords(groups)
        )
        about(coordinator=coordinator.id)
        front = Front(coordinator)
        server = _Server(
            uvicorn.Config(
                application(front),
                log_config=None,
                access_log=False,
                server_header=False,
                headers=[*HEADERS, *(HEADERS_OF_TLS if tls else ())],
                proxy_headers=False,
                lifespan="off",
                ws="none",
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_GRACE_S,
            )
        )
        coordinator.connections = lambda: len(server.server_state.connections)
        server.front, server.lame_duck_s = front, settings.lame_duck_ms / 1000
        server.terms, server.tls = _terms(settings, front), tls

        def end(signum: int, __: FrameType | None) -> None:
            server.hurried = server.should_exit or signum == signal.SIGINT
            server.should_exit = True

        former = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
        if tls is not None:
            former[signal.SIGHUP] = signal.signal(signal.SIGHUP, lambda *_: tls.reload())
        try:
            coordinator.start()
            _spare_the_collector()
            logger.info(
                "coordinator %s of namespace %s on port %d, keys %s",
                coordinator.id,
                settings.namespace,
                number,
                ", ".join(kids),
            )
            server.run(sockets=[listener])
        finally:
            front.close()
            coordinator.stop()
            close_spans()
            logger.info("coordinator %s stopped", coordinator.id)
            for one, handler in former.items():
                signal.signal(one, handler)
