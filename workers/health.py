"""The agent's health port: `/health` (detail) and `/health/live`."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ..errors import Conflict


class HealthServer:
    """Serves the agent's report; a port that was not asked for gives way to a free one."""

    def __init__(self, port: int, *, asked: bool, report: Callable[[], dict[str, Any]]) -> None:
        handler = _handler(report)
        try:
            self._server = ThreadingHTTPServer(("", port), handler)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            if asked:
                raise Conflict(
                    f"Port {port} is taken: choose another with --health-port or AGENT_PORT."
                ) from error
            self._server = ThreadingHTTPServer(("", 0), handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])

    def start(self) -> None:
        """Serve in a thread of its own."""
        threading.Thread(target=self._server.serve_forever, daemon=True, name="mesh-health").start()

    def stop(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


def _handler(report: Callable[[], dict[str, Any]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path not in ("/health", "/health/live"):
                self._answer(
                    404, {"status": 404, "title": "Not found", "detail": "Only /health and /health/live."}
                )
            elif self.path == "/health/live":
                self._answer(200, {"status": "ok"})
            else:
                body = report()
                self._answer(200 if body["status"] in ("healthy", "degraded") else 503, body)

        def _answer(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Probes are not worth a log line."""

    return Handler
