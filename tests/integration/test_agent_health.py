"""The health port of an agent: anybody may connect to it, so nobody may hold it."""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from mesh.workers.health import HealthServer
from tests.waiting import wait_until


@pytest.fixture
def port() -> Iterator[int]:
    server = HealthServer(
        0,
        asked=False,
        report=lambda: {"status": "healthy", "ready": False},
        metrics=lambda _: (b"", "text/plain"),
    )
    server.start()
    yield server.port
    server.stop()


def talk(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as link:
        link.sendall(data)
        return b"".join(iter(lambda: link.recv(65536), b""))


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError):
        return False


def test_what_it_answers(port: int) -> None:
    head, _, body = talk(port, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").partition(b"\r\n\r\n")
    assert body == b'{"status": "healthy", "ready": false}' and b"nosniff" in head
    assert b"Server" not in head and b"Python" not in head
    head, _, body = talk(port, b"HEAD /health/live HTTP/1.1\r\nHost: x\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200") and not body
    head, _, body = talk(port, b"GET /health/ready HTTP/1.1\r\nHost: x\r\n\r\n").partition(b"\r\n\r\n")
    assert b" 503 " in head and body == b'{"status": "not ready"}'
    for data, status in (
        (b"GET /etc/passwd HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /health HTTP/1.1\r\nContent-Length: 5\r\n\r\nabcde", b"501"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET /health HTTP/1.1\r\n" + b"X: a\r\n" * 200 + b"\r\n", b"431"),
    ):
        answer = talk(port, data)
        assert status in answer.partition(b"\r\n")[0] and b"Traceback" not in answer
        assert answer.endswith(b"}"), "a sentence in JSON"


def connect(port: int, address: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20, source_address=(address, 0))


def answers(port: int, address: str) -> bool:
    """Whether it answers who comes from there; it closes at once what it does not serve."""
    with connect(port, address) as link:
        try:
            link.sendall(b"GET /health HTTP/1.1\r\n\r\n")
            return b" 200 " in link.recv(65536)
        except ConnectionError:
            return False


def test_one_address_does_not_take_all_connections(port: int) -> None:
    with ExitStack() as stack:
        links = [stack.enter_context(connect(port, "127.0.0.2")) for _ in range(20)]
        assert not answers(port, "127.0.0.2")
        assert answers(port, "127.0.0.3")
        links[0].close()
        wait_until(lambda: answers(port, "127.0.0.2"), 20, "its own to be served again")


@pytest.mark.ci
def test_who_sends_nothing_or_too_slowly_does_not_hold_it(port: int) -> None:
    """60 connections: 16 are served at a time, each for 5 s at most, so that others come in again."""
    before = threading.active_count()
    with ExitStack() as stack:
        links = [stack.enter_context(connect(port, f"127.0.0.{2 + number // 4}")) for number in range(60)]
        for link in links[:30]:
            link.send(b"GET /hea")
        assert threading.active_count() <= before + 17
        wait_until(lambda: healthy(port), 20, "it to answer others")
        assert [link.recv(1) for link in links[:16]] == [b""] * 16
