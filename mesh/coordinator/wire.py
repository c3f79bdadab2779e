"""One connection: what may come over it, how much, and how long it may take.

uvicorn's protocol on httptools (the parser of Node.js, strict about everything that two servers in a row could read differently),
with bounds: of the headers, the address, the whole message, requests sent ahead, the time in which a message arrives and in which
answers are taken. What is refused here costs no task and no handler; it is answered with a problem document and the connection is
closed, once what was asked before has been answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from mesh.coordinator import problems
from mesh.coordinator.answers import encode
from mesh.coordinator.guard import Guard
from mesh.core.sources import limited_as
from mesh.telemetry.metrics import HttpMeter

__all__ = ["HEADERS", "HEADERS_OF_TLS", "Terms", "Wire"]

_HEAD_BYTES = 32 * 1024
_MOST_HEADERS = 100
_URL_BYTES = 8 * 1024
_SENT_AHEAD = 100  # requests on one connection that wait for the answers of those before
_BYTES_A_S = 1024 * 1024  # a message that arrives faster than that is not slow, however big
_POLICY = b"content-security-policy"
_ONCE = frozenset((b"host", b"content-length", b"content-type", b"idempotency-key", b"transfer-encoding"))

HEADERS = [
    ("cache-control", "no-store"),
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
]
"""Of every answer; one that has a content-security-policy of its own has that instead."""
HEADERS_OF_TLS = [("strict-transport-security", "max-age=31536000")]


class Terms:
    """What the connections of one server share: its limits, who may how often, and the headers of every answer.

    `patience_s`: seconds without progress; `message_bytes`: of the biggest request.
    """

    def __init__(
        self, guard: Guard, meter: HttpMeter, *, patience_s: float, connections: int, message_bytes: int
    ) -> None:
        self.guard, self.meter = guard, meter
        self.patience_s = patience_s
        self.connections = connections
        self.message_bytes = message_bytes
        self.headers = self.headers_but_policy = b""
        self.closing = False

    def refresh(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """The headers of every answer from now on."""
        lines = {header: b"%b: %b\r\n" % header for header in headers}
        self.headers = b"".join(lines.values())
        self.headers_but_policy = b"".join(line for (name, _), line in lines.items() if name != _POLICY)
        self.closing = (b"connection", b"close") in headers


class _Refused(Exception):
    """Raised in a callback of the parser, to end its work."""


class _Cycle(RequestResponseCycle):
    """One request and its answer; the headers of every answer are not looked at again each time."""

    terms: Terms

    async def send(self, message: Any) -> None:
        """The beginning of an answer; the rest is the parent's."""
        if self.response_started or message["type"] != "http.response.start":
            await super().send(message)
            return
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        self.response_started, self.waiting_for_100_continue = True, False
        status = message["status"]
        content = [STATUS_LINE[status], self.terms.headers]
        says_close = self.terms.closing
        for name, value in message["headers"]:
            if HEADER_RE.search(name) or HEADER_VALUE_RE.search(value):
                raise RuntimeError("Invalid header of an answer.")
            if name == b"content-length":
                self.expected_content_length, self.chunked_encoding = int(value), False
            elif name == _POLICY:  # of two, a browser would keep to both
                content[1] = self.terms.headers_but_policy
            elif name == b"connection" and value == b"close":
                if says_close:
                    continue
                says_close = True
            content += (name, b": ", value, b"\r\n")
        if says_close:
            self.keep_alive = False
        elif not self.keep_alive:
            content.append(b"connection: close\r\n")
        if self.chunked_encoding is None and self.scope["method"] != "HEAD" and status not in (204, 304):
            self.chunked_encoding = True
            content.append(b"transfer-encoding: chunked\r\n")
        content.append(b"\r\n")
        self.transport.write(b"".join(content))


class Wire(HttpToolsProtocol):
    """A connection with bounds. `check` is to be called once a second or so."""

    def __init__(self, terms: Terms, **more: Any) -> None:
        super().__init__(**more)
        self._terms, self._guard = terms, terms.guard
        self._peer = self._key = ""
        self._by_proxy = False
        self._deaf = False  # whatever still comes is not read
        self._refusal: tuple[int, str, str] | None = None
        self._since: float | None = None  # when the message that is under way began; None: none is
        self._in_head = False
        self._arrived = self._chunk = 0
        self._unsent: tuple[int, float] | None = None
        self._answering: RequestResponseCycle | None = None

    # -- from the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Welcome, or full."""
        super().connection_made(transport)
        self._since = self.loop.time()
        self._peer = self.client[0] if self.client else ""
        self._key = limited_as(self._peer)
        self._by_proxy = self._guard.proxies.trusts(self._peer)
        if len(self.connections) > self._terms.connections:
            self._refuse(503, "This coordinator has too many connections: try again, or another one.", "1")

    def data_received(self, data: bytes) -> None:
        """Some of a message, or of several."""
        if self._deaf:
            return
        self._unset_keepalive_if_required()
        self._chunk = len(data)
        self._arrived += self._chunk
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            if not self._deaf:
                self._refuse(*(self._refusal or (400, "This is not HTTP/1.1 as its standard has it.", "")))
            return
        except (
            httptools.HttpParserUpgrade
        ):  # nothing else is spoken here: it is answered as if it had not asked
            self._last_one()
            return
        if self._since is None:
            if self.cycle is None or self.cycle.response_complete:
                self._since = self.loop.time()  # empty lines before a request are no request
        elif self._in_head and self._arrived > _HEAD_BYTES:
            self._refuse(431, self._too_much_head(), "")
        elif self._arrived > self._terms.message_bytes + _HEAD_BYTES:
            self._refuse(413, "The request is bigger than anything that is read here.", "")

    def check(self, now: float) -> None:
        """Cut off who sends too slowly, and who does not take his answers."""
        self._check_unsent(now)
        if self._deaf or self._since is None:
            return
        waits = self._in_head and self.cycle is not None and not self.cycle.response_complete
        if waits or self.flow.read_paused or self.pipeline:
            self._since = now  # it is us who do not read, or do not answer
        elif now - self._since > self._terms.patience_s + self._arrived / _BYTES_A_S:
            if self._arrived:
                seconds = self._terms.patience_s
                self._refuse(408, f"The request has not arrived within {seconds:g} s.", "")
            else:
                self.transport.close()

    def _check_unsent(self, now: float) -> None:
        size = self.transport.get_write_buffer_size()
        if not size:
            self._unsent = None
        elif self._unsent is None or size < self._unsent[0]:
            self._unsent = size, now
        elif now - self._unsent[1] > self._terms.patience_s:
            self._gone()
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended."""
        self._gone()
        super().connection_lost(exc)

    def _gone(self) -> None:
        """Nobody hears what is being answered; the parent class tells this only to the request that came last."""
        if self._answering is not None:
            self._answering.disconnected = True
            self._answering.message_event.set()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    # -- from the parser

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        if self._deaf:
            raise _Refused
        super().on_message_begin()
        self._since, self._in_head, self._arrived = self.loop.time(), True, self._chunk

    def on_url(self, url: bytes) -> None:
        """A piece of it."""
        self.url += url
        if len(self.url) > _URL_BYTES:
            self._no(414, f"The address of the request is longer than {_URL_BYTES:,} bytes.")

    def on_headers_complete(self) -> None:
        """All is known of the request but its body: it begins, or waits for those before."""
        names = {name for name, _ in self.headers}
        version = self.parser.get_http_version()
        plain = len(names) == len(self.headers) <= _MOST_HEADERS and self._arrived <= _HEAD_BYTES
        if not plain or version != "1.1" or b"host" not in names:
            self._check_head(names, version)
        self._in_head = False
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        scope = self.scope
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["http_version"] = version
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = url.path
        scope["query_string"] = url.query or b""
        app = self._admitted(names, scope["path"])
        former = self.cycle
        cycle = self.cycle = _Cycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=[],
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version == "1.1" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        cycle.terms = self._terms
        if former is None or former.response_complete:
            self._start_asgi_task(cycle, app)
            return
        self.flow.pause_reading()
        self.pipeline.appendleft((cycle, app))
        if len(self.pipeline) > _SENT_AHEAD:
            self._last_one()

    def _check_head(self, names: set[bytes], version: str) -> None:
        """Refuse what is too much, and what two servers could read differently."""
        size = sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > _HEAD_BYTES or len(self.headers) > _MOST_HEADERS:
            self._no(431, self._too_much_head())
        given = [name for name, _ in self.headers]
        if any(given.count(name) > 1 for name in _ONCE):
            self._no(400, "The request has a header twice that must be there once.")
        if version not in ("1.1", "1.0"):
            self._no(400, "The request is not of HTTP/1.1.")
        if b"host" not in names and version == "1.1":
            self._no(400, "The request has no header Host.")

    def on_body(self, body: bytes) -> None:
        """A piece of it."""
        cycle = self.cycle
        if not cycle.response_complete:
            cycle.body += body
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            cycle.message_event.set()

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        self._since = None
        if not self.cycle.response_complete:
            self.cycle.more_body = False
            self.cycle.message_event.set()

    def send_400_response(self, msg: str) -> None:
        """For the parent class."""
        self._refuse(400, msg, "")

    # -- who comes too often

    def _admitted(self, names: set[bytes], path: str) -> Any:
        """The application, or the answer to who has to wait."""
        source, key = self._peer, self._key
        if b"x-forwarded-for" in names:
            if self._by_proxy:
                said = [value.decode("latin-1") for name, value in self.headers if name == b"x-forwarded-for"]
                source = self._guard.proxies.source(self._peer, said)
                key = limited_as(source)
                self.scope["client"] = source, 0
            else:
                self._guard.told_for(self._peer)
        # A balancer is answered whatever comes through it: its probes are counted apart.
        wait_s = self._guard.addresses.take(
            f"health of {key}" if path[:7] == "/health" else key, self._since or 0.0
        )
        if wait_s:
            return self._answer(429, f"{source} asks too often.", problems.retry_after(wait_s))
        if (
            path.startswith(("/v1", "/metrics"))
            and b"authorization" in names
            and (wait_s := self._guard.locked_s(key))
        ):
            said_s = problems.retry_after(wait_s)
            return self._answer(429, f"Too many tokens from {source} were not valid.", said_s)
        return self.app

    # -- refusing

    def _no(self, status: int, detail: str) -> None:
        self._refusal = status, detail, ""
        raise _Refused

    @staticmethod
    def _too_much_head() -> str:
        return f"The headers of the request are more than {_HEAD_BYTES:,} bytes or {_MOST_HEADERS} lines."

    def _last_one(self) -> None:
        """Nothing is read after the request that was begun last; once it is answered, the connection ends."""
        self._deaf = True
        if self.cycle is not None:
            self.cycle.keep_alive = False

    def _refuse(self, status: int, detail: str, retry_after: str) -> None:
        """The end of this connection: at once, or after the answers that are due before."""
        cycle = self.cycle
        in_body = self._since is not None and not self._in_head and cycle is not None
        self._deaf, self._since = True, None
        if cycle is None or cycle.response_complete:
            if not in_body:  # else its request has had its answer
                self.transport.write(self._raw(status, detail, retry_after))
            self.transport.close()
        elif not cycle.more_body:  # its own request is whole: it is answered
            cycle.keep_alive = False
        elif self.pipeline:  # it waits for its turn: this is its answer then
            self.pipeline[0] = cycle, self._answer(status, detail, retry_after)
        else:
            if not cycle.response_started:
                self.transport.write(self._raw(status, detail, retry_after))
            cycle.disconnected = True
            cycle.message_event.set()
            self.transport.close()

    @staticmethod
    def _head(body: bytes, retry_after: str, *, close: bool = True) -> list[tuple[bytes, bytes]]:
        head = [(b"content-type", problems.MEDIA.encode()), (b"content-length", str(len(body)).encode())]
        if retry_after:
            head.append((b"retry-after", retry_after.encode()))
        return [*head, (b"connection", b"close")] if close else head

    def _raw(self, status: int, detail: str, retry_after: str) -> bytes:
        self._terms.meter.count("", "", status)
        body = encode(problems.plain(status, detail))
        lines = self._head(body, retry_after, close=not self._terms.closing)
        head = b"".join(b"%b: %b\r\n" % line for line in lines)
        return b"".join((STATUS_LINE[status], self._terms.headers, head, b"\r\n", body))

    def _answer(self, status: int, detail: str, retry_after: str) -> Callable[..., Any]:
        """An application that says no."""
        self._terms.meter.count("", "", status)

        async def app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
            body = encode(problems.plain(status, detail))
            headers = self._head(body, retry_after)
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body, "more_body": False})

        return app
