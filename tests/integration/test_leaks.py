"""The search for leaked secrets has teeth: one that is planted is found, wherever it is."""

from __future__ import annotations

import base64
import secrets
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import httpx2
import pytest

from mesh.store.client import Client
from mesh.store.embedded import start_server
from tests import leaks as plugin
from tests.leaks import Leaks

PLANTED = secrets.token_hex(32)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Leaks:
    """A search of this test's own, that knows one secret and one token."""
    made = Leaks()
    made.know(PLANTED)
    monkeypatch.setattr(plugin, "leaks", made)
    return made


@pytest.mark.parametrize(
    "words",
    [
        ("SET", "k", f"a{PLANTED}b"), ("HSET", "k", "f", PLANTED), ("SADD", "k", PLANTED), ("ZADD", "k", "1", PLANTED),
        ("RPUSH", "k", PLANTED), ("XADD", "k", "*", "f", PLANTED), ("SET", PLANTED, "1"),
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_in_redis_when_its_server_stops(found: Leaks, words: tuple[str, ...]) -> None:
    with start_server() as server:
        client = Client(server.url)
        client.execute("SET", "another", "nothing")
        client.execute(*words)
        client.close()
    (place,) = found.found
    assert place.startswith("Redis, ")


def test_in_a_log_of_a_process_that_was_given_it(found: Leaks, tmp_path: Path) -> None:
    token = "eyJ" + ".".join(base64.urlsafe_b64encode(secrets.token_bytes(30)).decode() for _ in range(3))
    log = tmp_path / "process.log"
    with log.open("wb") as out:
        subprocess.Popen(
            [sys.executable, "-c", "import os; print('one'); print('it is', os.environ['MESH_TOKEN'])"],
            env={"MESH_TOKEN": token}, stdout=out, stderr=subprocess.STDOUT,
        ).wait(30)  # fmt: skip
    found.look_at_logs()
    assert found.found == [f"{log}, line 2"]


@pytest.mark.parametrize(("path", "status"), [("/health", 200), ("/metrics", 200), ("/v1/tasks", 404)])
def test_in_a_body(found: Leaks, path: str, status: int) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(PLANTED.encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.handle_request, daemon=True).start()
        httpx2.get(f"http://127.0.0.1:{server.server_address[1]}{path}")
    assert found.found == [f"the body of GET {path}"]


def test_what_is_none_is_not_found(found: Leaks) -> None:
    found.look(b"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJlLW9mLWl0", "a token of nobody")
    found.look(PLANTED[:-1].encode(), "half a secret")
    assert found.found == []
