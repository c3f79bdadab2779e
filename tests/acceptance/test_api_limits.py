"""What comes over the coordinator's socket: shapes that two servers could read differently, too much, too slowly."""

from __future__ import annotations

import json
import re
import selectors
import socket
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.acceptance.conftest import Place, Running, make_place
from tests.acceptance.test_coordinator import ask, start
from tests.tokens import bearer
from tests.waiting import wait_until

PATIENCE_S = 1.0
MOST = 260
PATIENT_S = 30


@dataclass(kw_only=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def detail(self) -> str:
        assert self.headers["content-type"] == "application/problem+json"
        problem = json.loads(self.body)
        assert problem["status"] == self.status and problem["code"]
        said: str = problem["detail"]
        return said


class Peer:
    """A connection that sends what it likes."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self.socket = socket.create_connection((place.hostname, place.port), timeout=PATIENT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        with suppress(ConnectionError):  # it may have been refused already
            self.socket.sendall(data)

    def answer(self, method: str = "GET") -> Answer | None:
        """The next answer; None once the other side has closed."""
        try:
            line = self.file.readline()
        except ConnectionResetError:
            return None
        if not line:
            return None
        found = re.fullmatch(rb"HTTP/1\.1 (\d{3}) .*\r\n", line)
        assert found, line
        headers: dict[str, str] = {}
        while (line := self.file.readline()) != b"\r\n":
            name, _, value = line.decode("latin-1").partition(":")
            assert name.lower() not in headers, f"{name} twice"
            headers[name.lower()] = value.strip()
        size = 0 if method == "HEAD" else int(headers["content-length"])
        return Answer(status=int(found[1]), headers=headers, body=self.file.read(size))

    def answers(self) -> list[Answer]:
        """All until it closes."""
        return list(iter(self.answer, None))


def talk(url: str, data: bytes) -> list[Answer]:
    """The answers to `data`, until the other side closes; what is sent has to make it do so."""
    with Peer(url) as peer:
        peer.send(data)
        return peer.answers()


@pytest.fixture(scope="module")
def served(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, Running, str]]:
    """A coordinator with little patience."""
    with make_place(redis_url, f"limits-{uuid.uuid4().hex[:12]}", tmp_path_factory.mktemp("limits")) as place:
        process, url = start(
            place, "c1", LOG_FORMAT="text", MESH_HTTP_READ_TIMEOUT_MS=str(int(PATIENCE_S * 1000)),
            MESH_HTTP_MAX_CONNECTIONS=str(MOST),
        )  # fmt: skip
        yield place, process, url
        assert "Traceback" not in process.output(), process.output()


@pytest.fixture
def url(served: tuple[Place, Running, str]) -> str:
    return served[2]


GET = b"GET /health/live HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /v1/namespaces/none/tasks HTTP/1.1\r\nHost: x\r\n"
END = b"Connection: close\r\n\r\n"


def fields(number: int, size: int = 1) -> bytes:
    return b"".join(b"X-%d: %b\r\n" % (one, b"v" * size) for one in range(number))


SHAPES: dict[str, tuple[bytes, int]] = {
    "two lengths": (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ", 400),
    "two equal lengths": (POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", 400),
    "a list of lengths": (POST + b"Content-Length: 2, 2\r\n\r\n{}", 400),
    "a length with a sign": (POST + b"Content-Length: +2\r\n\r\n{}", 400),
    "a negative length": (POST + b"Content-Length: -2\r\n\r\n{}", 400),
    "a length in hexadecimal": (POST + b"Content-Length: 0x2\r\n\r\n{}", 400),
    "an endless length": (POST + b"Content-Length: 99999999999999999999999\r\n\r\n{}", 400),
    "length and chunks": (POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "chunks and length": (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400),
    "chunked twice": (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "chunked not last": (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
    "a coding like chunked": (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    "a hidden coding": (POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
    "a tab in a coding": (POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n", 400),
    "a folded header": (GET + b"X: a\r\n b\r\n" + END, 400),
    "a folded coding": (POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400),
    "bare line feeds": (b"GET /health/live HTTP/1.1\nHost: x\nConnection: close\n\n", 400),
    "one bare line feed": (GET + b"X: a\nY: b\r\n" + END, 400),
    "a bare carriage return": (GET + b"X: a\rY: b\r\n" + END, 400),
    "a zero in a value": (GET + b"X: a\x00b\r\n" + END, 400),
    "a zero in a name": (GET + b"X\x00: a\r\n" + END, 400),
    "a blank before the colon": (GET + b"X : a\r\n" + END, 400),
    "a line without a colon": (GET + b"nothing\r\n" + END, 400),
    "a blank first line": (b" " + GET + END, 400),
    "a chunk that is no number": (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", 400),
    "a chunk that is too long": (POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}", 400),
    "a chunk with a sign": (POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n{}\r\n0\r\n\r\n", 400),
    "a chunk without its end": (POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}X\r\n0\r\n\r\n", 400),
    "a chunk ended by a line feed": (POST + b"Transfer-Encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n", 400),
    "no host": (b"GET /health/live HTTP/1.1\r\n" + END, 400),
    "two hosts": (GET + b"Host: y\r\n" + END, 400),
    "two keys": (POST + b"Idempotency-Key: a\r\nIdempotency-Key: b\r\n" + END, 400),
    "no version": (b"GET /health/live\r\n\r\n", 400),
    "another version": (b"GET /health/live HTTP/3.7\r\nHost: x\r\n\r\n", 400),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "the beginning of TLS": (bytes.fromhex("16030100c8010000c40303") + bytes(200), 400),
    "an unknown method": (b"BREW /health/live HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a method in small letters": (b"get /health/live HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a tunnel": (b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a letter beyond ASCII": (b"GET /h\xc3\xa4 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "nonsense": (b"\x00\x01\x02\x03" * 100, 400),
    "many headers": (GET + fields(101) + END, 431),
    "long headers": (GET + fields(10, 4_000) + END, 431),
    "one header without end": (GET + b"X: " + b"v" * 400_000, 431),
    "one name without end": (GET + b"x" * 400_000, 431),
    "a long address": (b"GET /health/live?" + b"a" * 9_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    "an address without end": (b"GET /" + b"a" * 400_000, 414),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_that_is_refused(url: str, name: str) -> None:
    """One answer, whatever stands behind it, and the connection is closed: nothing of it is taken for a second request."""
    data, status = SHAPES[name]
    (answer,) = talk(url, data + b"GET /health/live HTTP/1.1\r\nHost: smuggled\r\n\r\n")
    assert answer.status == status and answer.headers["connection"] == "close"
    assert answer.detail and answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "data",
    [
        GET + END,
        b"\r\n\r\n" + GET + END,
        GET + fields(90) + END,
        GET.replace(b"live", b"live?" + b"a" * 8_000) + END,
        GET + b"X: " + b"v" * 30_000 + b"\r\n" + END,
        GET
        + b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        GET + b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n\x00\x01\x02",
        b"GET /health/live HTTP/1.0\r\n\r\n",
        b"GET http://elsewhere.example/health/live HTTP/1.1\r\nHost: x\r\n" + END,
    ],
)
def test_a_shape_that_is_not(url: str, data: bytes) -> None:
    (answer,) = talk(url, data)
    assert (answer.status, answer.body) == (200, b'{"status":"ok"}')


def test_a_body_that_is_announced_too_big_is_not_read(url: str) -> None:
    proof = b"Authorization: %b\r\n" % bearer()["Authorization"].encode()
    for size, status in ((1_114_113, 413), (99_999_999_999, 413)):
        (answer,) = talk(url, POST + proof + b"Content-Length: %d\r\n\r\n{" % size)
        assert answer.status == status and "1,114,112 bytes allowed" in answer.detail


def test_requests_sent_ahead_are_answered_in_order(url: str) -> None:
    """Up to a hundred; who sends more finds his connection closed after those. What is broken ends it, after what was whole."""
    ways = [b"/health/live", b"/", b"/nothing"]
    data = b"".join(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % way for way in ways) + GET + END
    assert [one.status for one in talk(url, data)] == [200, 200, 404, 200]
    answers = talk(url, (GET + b"\r\n") * 3 + b"nonsense\r\n\r\n" + GET + END)
    assert [one.status for one in answers] in ([200, 200, 200], [200, 200, 200, 400])
    many = talk(url, (GET + b"\r\n") * 5_000)
    assert {one.status for one in many} == {200} and 100 <= len(many) <= 103
    broken = talk(url, GET + b"\r\n" + POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n")
    assert [one.status for one in broken] in ([200, 400], [200])


METHODS = {b"HEAD": 200, b"OPTIONS": 405, b"TRACE": 405, b"PUT": 405, b"DELETE": 405, b"PATCH": 405}


@pytest.mark.parametrize("method", METHODS)
def test_methods(url: str, method: bytes) -> None:
    request = (
        b"%b /health/live HTTP/1.1\r\nHost: x\r\nOrigin: http://evil.example\r\nCookie: secret=1\r\n%b"
        % (method, END)
    )
    with Peer(url) as peer:
        peer.send(request)
        answer = peer.answer(method.decode())
        assert answer is not None and answer.status == METHODS[method] and peer.answer() is None
    assert not any(name.startswith("access-control") for name in answer.headers)
    assert b"secret" not in answer.body
    if answer.status == 405:
        assert answer.headers["allow"] == "GET" and "but GET is" in answer.detail
    else:
        assert answer.headers["content-length"] == "15"


def test_headers_of_every_answer(url: str) -> None:
    for path, status in (("/health/live", 200), ("/", 200), ("/nothing", 404), ("/openapi.json", 200)):
        (answer,) = talk(url, b"GET %b HTTP/1.1\r\nHost: x\r\n%b" % (path.encode(), END))
        assert answer.status == status
        found = {name: answer.headers.get(name) for name in ("cache-control", "referrer-policy", "server")}
        assert found == {"cache-control": "no-store", "referrer-policy": "no-referrer", "server": None}
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert "strict-transport-security" not in answer.headers, "there is no TLS here"


@pytest.mark.parametrize("host", ["evil.example", "evil.example/x?", "a@b", "[::1", "%00", "x" * 5_000, ""])
def test_the_host_header_says_nothing(url: str, host: str) -> None:
    (answer,) = talk(url, b"GET /nothing HTTP/1.1\r\nHost: %b\r\n%b" % (host.encode(), END))
    assert answer.status == 404
    assert answer.detail == "There is nothing at /nothing; GET /openapi.json lists what there is."
    assert b"evil" not in b"".join(f"{name}{value}".encode() for name, value in answer.headers.items())


# -- time


def ended(link: socket.socket) -> bool:
    """Whether the other side has closed; what it has said stays to be read."""
    state = link.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return state != 1  # ESTABLISHED


def drip(peers: list[Peer], data: bytes, asked: Any) -> float:
    """Send `data` a byte a second on each; `asked()` again and again meanwhile. Seconds until all were cut off."""
    with selectors.DefaultSelector() as selector:
        for peer in peers:
            selector.register(peer.socket, selectors.EVENT_READ, peer)
        begun = time.monotonic()
        sent = 0
        while selector.get_map():
            assert time.monotonic() - begun < PATIENT_S, f"{len(selector.get_map())} hang still"
            if time.monotonic() - begun > sent:
                for key in selector.get_map().values():
                    key.data.send(data[sent : sent + 1])
                sent += 1
            for key, _ in selector.select(0.1):
                if ended(key.data.socket):
                    selector.unregister(key.fileobj)
            asked()
        return time.monotonic() - begun


SLOW = {
    "first line": (b"", 408),
    "before a header": (GET, 408),
    "in a header": (GET + b"X: a", 408),
    "in the body": (POST + b"PROOF" + b"Content-Length: 500\r\n\r\n{", 408),
    "in a body that nobody wants": (POST + b"Content-Length: 500\r\n\r\n{", 401),
}


@pytest.mark.parametrize(
    "where",
    ["in the body", *(pytest.param(one, marks=pytest.mark.ci) for one in SLOW if one != "in the body")],
)
def test_slow_senders_are_cut_off_and_others_do_not_notice(url: str, where: str) -> None:
    """200 at a time, a byte a second."""
    begun, status = SLOW[where]
    begun = begun.replace(b"PROOF", b"Authorization: %b\r\n" % bearer()["Authorization"].encode())
    took: list[float] = []

    def asked() -> None:
        since = time.monotonic()
        assert ask(f"{url}/health/live") == (200, {"status": "ok"})
        took.append(time.monotonic() - since)

    with ExitStack() as stack:
        peers = [stack.enter_context(Peer(url)) for _ in range(200)]
        for peer in peers:
            peer.send(begun)
        lasted = drip(peers, b"GET /aaaaaaaaaaaaaaaaaaaaaaaaaaaa" if not begun else b"a" * 60, asked)
        assert PATIENCE_S * 0.7 <= lasted < PATIENCE_S + 12
        for peer in peers:
            (answer,) = peer.answers()
            assert answer.status == status
            assert status == 401 or "has not arrived within 1 s" in answer.detail
    assert sorted(took)[len(took) // 2] < 1.0, "others wait"


def test_who_says_nothing_and_who_does_not_read_is_let_go(
    url: str, served: tuple[Place, Running, str]
) -> None:
    with Peer(url) as silent, Peer(url) as blank:
        blank.send(b"\r\n")
        assert silent.answers() == []
        assert [one.status for one in blank.answers()] == [408]
    with Peer(url) as deaf:
        deaf.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        request = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
        deaf.send(request * 100)
        pid = served[1].process.pid
        port = deaf.socket.getsockname()[1]
        wait_until(lambda: not connected(pid, port), PATIENT_S, "the connection to be dropped")


def test_who_sends_ahead_and_hangs_up_leaves_no_trace(url: str, served: tuple[Place, Running, str]) -> None:
    for _ in range(20):
        with Peer(url) as peer:
            peer.send((b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n") * 50)
    assert ask(f"{url}/health/live")[0] == 200
    assert "Traceback" not in served[1].output()


def connected(pid: int, port: int) -> bool:
    """Whether a process of this network still has a connection from `port`."""
    with open(f"/proc/{pid}/net/tcp", encoding="ascii") as table:
        return any(
            row.split()[2].endswith(f":{port:04X}") and row.split()[3] == "01" for row in list(table)[1:]
        )


def test_waiting_for_an_answer_is_not_slow_sending(url: str, served: tuple[Place, Running, str]) -> None:
    place, _, _ = served
    name = place.mesh.submit("x", 1, countdown_s=999, unsatisfiable="accept").id
    path = f"/v1/namespaces/{place.namespace}/tasks/{name}/result?wait_s={PATIENCE_S + 2}"
    with Peer(url) as peer:
        peer.send(
            f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {bearer()['Authorization']}\r\n\r\n".encode()
        )
        peer.send(GET[:-20])  # the beginning of the next: its time begins with the answer to the first
        answer = peer.answer()
        assert answer is not None and answer.status == 202
        peer.send(GET[-20:] + END)
        assert [one.status for one in peer.answers()] == [200]


def test_no_more_connections_than_there_may_be(url: str) -> None:
    with ExitStack() as stack:
        peers = [stack.enter_context(Peer(url)) for _ in range(MOST)]
        for peer in peers:
            peer.send(GET + b"\r\n")
        welcome = [peer for peer in peers if (answer := peer.answer()) is not None and answer.status == 200]
        assert len(welcome) >= MOST - 20
        wait_until(lambda: full(url), PATIENT_S, "it to be full")
        assert welcome[0].socket.fileno() > 0
        welcome[0].send(GET + b"\r\n")
        told = welcome[0].answer()
        assert told is not None and told.status == 200, "who was there before is served"
    wait_until(lambda: reachable(url), PATIENT_S, "it to have room again")


def full(url: str) -> bool:
    with Peer(url) as peer:
        peer.send(GET + END)
        answer = peer.answer()
        if answer is None or answer.status == 200:
            return False
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert "too many connections" in answer.detail
        return True


def reachable(url: str) -> bool:
    try:
        return ask(f"{url}/health/live")[0] == 200
    except (urllib.error.URLError, ConnectionError):
        return False
