"""What probes look at: the health port with `/health` (detail), `/health/live`, `/health/ready` and `/metrics`, and a file.

Anybody may ask the port, so it is bounded: so many at a time, each for so long, whatever he sends.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ..errors import Conflict, Invalid

logger = logging.getLogger(__name__)
TOUCHED_EVERY_S = 5.0

Report = Callable[[], dict[str, Any]]
Metrics = Callable[[str], tuple[bytes, str]]  # header Accept -> (text, its media type)
_PATHS = "/health, /health/live, /health/ready and /metrics"
_MOST, _MOST_OF_ONE = 16, 4  # connections at a time, and those of one address; the next is closed at once
_PATIENCE_S = 5.0  # for one of them, from its beginning to its end
_OFTEN_S = 0.5


class _Server(ThreadingHTTPServer):
    """A thread for each connection, and an end for each thread."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._held: dict[Any, tuple[str, float]] = {}  # connection -> whose, since when
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        peer = client_address[0]
        peers = [one for one, _ in list(self._held.values())]
        if len(peers) >= _MOST or peers.count(peer) >= _MOST_OF_ONE:
            self.shutdown_request(request)
            return
        self._held[request] = peer, time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._held.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called by the loop twice a second: who has had his time is cut off, which ends what his thread waits for."""
        for request, (_, since) in list(self._held.items()):
            if time.monotonic() - since > _PATIENCE_S:
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Somebody hung up: nothing to say."""


class HeartbeatFile:
    """Its age says how long ago the event loop turned; None: there is none. Raises `Invalid` if it cannot be written at first."""

    def __init__(self, path: str | None) -> None:
        self._path = Path(path) if path is not None else None
        try:
            self._touch()
        except OSError as error:
            raise Invalid(
                f"The heartbeat file {path} cannot be written ({error.strerror}); correct MESH_HEARTBEAT_FILE."
            ) from error

    def _touch(self) -> None:
        if self._path is not None:
            self._path.touch()

    def touch(self) -> None:
        """The loop turns. Never raises: a full disk is no reason to stop work."""
        try:
            self._touch()
        except OSError as error:
            logger.warning("the heartbeat file %s cannot be touched: %s", self._path, error.strerror)

    def remove(self) -> None:
        """A clean end: nobody shall take what is left for an agent that hangs."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()


class HealthServer:
    """Serves the agent's report; a port that was not asked for gives way to a free one."""

    def __init__(self, port: int, *, asked: bool, report: Report, metrics: Metrics) -> None:
        handler = _handler(report, metrics)
        try:
            self._server = _Server(("", port), handler)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            if asked:
                raise Conflict(
                    f"Port {port} is taken: choose another with --health-port or AGENT_PORT."
                ) from error
            self._server = _Server(("", 0), handler)
        self.port = int(self._server.server_address[1])

    def start(self) -> None:
        """Serve in a thread of its own."""
        threading.Thread(
            target=self._server.serve_forever, args=(_OFTEN_S,), daemon=True, name="mesh-health"
        ).start()

    def stop(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


def _handler(report: Report, metrics: Metrics) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._send(200, *metrics(self.headers.get("Accept", "")))
            elif self.path == "/health/ready":
                ready = report()["ready"]
                self._answer(200 if ready else 503, {"status": "ready" if ready else "not ready"})
            elif self.path not in ("/health", "/health/live"):
                self._answer(404, {"status": 404, "title": "Not found", "detail": f"Only {_PATHS}."})
            elif self.path == "/health/live":
                self._answer(200, {"status": "ok"})
            else:
                body = report()
                self._answer(200 if body["status"] in ("healthy", "degraded") else 503, body)

        do_HEAD = do_GET

        def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
            """What the parent class refuses: a broken request, another method."""
            phrase = HTTPStatus(code).phrase
            self._answer(code, {"status": code, "title": phrase, "detail": f"GET {_PATHS}."})

        def _answer(self, status: int, body: dict[str, Any]) -> None:
            self._send(status, json.dumps(body).encode(), "application/json")

        def _send(self, status: int, data: bytes, media: str) -> None:
            self.close_connection = True
            self.send_response_only(status)
            self.send_header("Content-Type", media)
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Probes are not worth a log line."""

    return Handler
