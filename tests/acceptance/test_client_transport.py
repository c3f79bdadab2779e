"""What the settings of the HTTP client's transport mean, seen from the other end of its connections."""

from __future__ import annotations

import dataclasses
import socketserver
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from mesh.client import Mesh
from mesh.errors import CoordinatorUnavailable
from mesh.settings import Settings

ANSWER = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 13\r\n\r\n{"agents":[]}'


class Server(socketserver.ThreadingTCPServer):
    """Answers `GET agents` after `takes_s`, never if that is None; counts connections and requests."""

    daemon_threads = True
    takes_s: float | None = 0.0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.connections = self.requests = self.open = self.most = 0
        self.ended = threading.Event()

    def mesh(self, **settings: int | bool) -> Mesh:
        """A client of it."""
        changed = dataclasses.replace(Settings(), **settings)
        return Mesh(settings=changed, coordinator_url=f"http://127.0.0.1:{self.server_address[1]}")


class Handler(socketserver.StreamRequestHandler):
    server: Server

    def handle(self) -> None:
        server = self.server
        with server.lock:
            server.connections += 1
            server.open += 1
            server.most = max(server.most, server.open)
        while line := self.rfile.readline():
            if line == b"\r\n":
                with server.lock:
                    server.requests += 1
                server.ended.wait(server.takes_s)
                if server.takes_s is not None:
                    self.wfile.write(ANSWER)
        with server.lock:
            server.open -= 1


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield made
        made.ended.set()
        made.shutdown()
        thread.join()


@pytest.mark.parametrize(("keep_alive", "connections"), [(True, 1), (False, 5)])
def test_keep_alive(server: Server, keep_alive: bool, connections: int) -> None:
    with server.mesh(keep_alive=keep_alive) as mesh:
        for _ in range(5):
            assert mesh.agents() == []
    assert (server.connections, server.requests) == (connections, 5)


def test_max_concurrent_connections(server: Server) -> None:
    server.takes_s = 0.05
    with server.mesh(max_concurrent_connections=4) as mesh, ThreadPoolExecutor(12) as threads:
        assert list(threads.map(lambda _: mesh.agents(), range(24))) == [[]] * 24
    assert server.requests == 24 and 1 < server.most <= 4


def test_timeout_retries_and_retry_delay(server: Server) -> None:
    server.takes_s = None
    begun = time.monotonic()
    with (
        server.mesh(transport_timeout_ms=300, transport_retries=2, transport_retry_delay_ms=200) as mesh,
        pytest.raises(CoordinatorUnavailable, match="no answer in time"),
    ):
        mesh.agents()
    took = time.monotonic() - begun
    assert server.requests == 3, "the first try and two more"
    assert 3 * 0.3 + 0.75 * (0.2 + 0.4) <= took < 10
