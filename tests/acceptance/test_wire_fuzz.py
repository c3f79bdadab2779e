"""Hypothesis sends requests that are right, nearly right, and nothing of the kind, byte by byte: no 5xx, no trace in the log.

`FUZZ_WIRE=18000 pytest tests/acceptance/test_wire_fuzz.py` sends so many connections instead of some hundreds.
"""

from __future__ import annotations

import os
import re
import socket
from collections import Counter
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.acceptance.conftest import Place
from tests.acceptance.test_api_fuzz import GROWTH_KB, credentials, furnish, memory_kb
from tests.acceptance.test_coordinator import ask, start

CONNECTIONS = int(os.environ.get("FUZZ_WIRE", "300"))
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")

junk = st.binary(max_size=40)
ways = st.sampled_from(
    [b"tasks", b"tasks:batch", b"tasks:wait", b"tasks:explain", b"tasks/x", b"tasks/%00", b"tasks/x/result?wait_s=0", b"agents",
     b"agents/x:drain", b"dead-letters:replay", b"queues", b"types", b"%2e%2e/x", b"tasks/%ff", b"tasks?limit=-1", b"../..//"]
)  # fmt: skip
methods = st.sampled_from(
    [b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"TRACE", b"PATCH", b"BREW"]
)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
bodies = st.one_of(
    junk,
    st.sampled_from(
        [b"{}", b"[]", b'{"type":"a","payload":1}', b'{"type":"a","type":"b"}', b'{"ids":["x"],"wait_s":0}', b"[" * 500,
         b'{"type":"a","payload":1e999}', b'{"type":"a","payload":"\\ud800"}', b'{"type":"a","task_id":"\\u0000"}',
         b'{"tasks":[{"type":"a"},{"type":1}]}', b'{"type":"a","payloads":[1,2]}', b'{"type":"a","payload":' + b"9" * 400 + b"}"]
    ),
    leaves.map(lambda value: b'{"type": "a", "payload": %b}' % repr(value).replace("'", '"').encode("utf-8", "replace")),
)  # fmt: skip
headers = st.lists(
    st.sampled_from(
        [b"Content-Length: 5", b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"Connection: close",
         b"Upgrade: websocket",
         b"Idempotency-Key: \xff", b"Idempotency-Key: k", b"X-Forwarded-For: 1.2.3.4", b"Content-Encoding: gzip", b"Host: y",
         b": v"]
    )
    | junk,
    max_size=3,
)  # fmt: skip


@pytest.mark.ci
@pytest.mark.fuzz
@pytest.mark.timeout(180 + CONNECTIONS // 20)
def test_no_bytes_break_it(place: Place) -> None:
    process, url = start(place, "c1", MESH_HTTP_RATE_FAILED="0", MESH_HTTP_READ_TIMEOUT_MS="2000")
    furnish(place)
    address = urlsplit(url)
    shown = [
        b"" if one is None else b"Authorization: %b\r\n" % one.encode("latin-1") for one in credentials()
    ]
    seen: Counter[int] = Counter()
    before = memory_kb(process)

    @st.composite
    def requests(draw: st.DrawFn) -> bytes:
        if not draw(st.integers(0, 9)):
            return draw(junk)
        body = draw(bodies)
        proof = shown[0] if draw(st.booleans()) else draw(st.sampled_from(shown))
        more = b"".join(b"%b\r\n" % line for line in draw(headers))
        length = b"Content-Length: %d\r\n" % len(body) if draw(st.integers(0, 9)) else b""
        path = b"/v1/namespaces/%b/%b" % (place.namespace.encode(), draw(ways))
        made = b"%b %b HTTP/1.1\r\nHost: x\r\n%b%b%b\r\n%b" % (draw(methods), path, proof, length, more, body)
        if not draw(st.integers(0, 4)):  # a byte changed
            at = draw(st.integers(0, len(made) - 1))
            made = made[:at] + draw(st.binary(max_size=2)) + made[at + 1 :]
        return made

    @settings(
        max_examples=CONNECTIONS, database=None, phases=[Phase.generate], derandomize=True, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.lists(requests(), min_size=1, max_size=3))
    def send(parts: list[bytes]) -> None:
        end = b"\r\n\r\nGET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        got = b""
        with (
            socket.create_connection((address.hostname, address.port), timeout=20) as link,
            suppress(ConnectionError),
        ):
            link.sendall(b"".join(parts) + end)
            while data := link.recv(65536):
                got += data
        found = [int(status) for status in STATUS.findall(got)]
        seen.update(found)
        assert all(status < 500 for status in found), (parts, got)

    send()
    assert ask(f"{url}/health")[0] == 200
    assert "Traceback" not in process.output(), process.output()[-6000:]
    grown = memory_kb(process) - before
    assert grown < GROWTH_KB, f"{grown} KB more"
    assert seen.total() >= CONNECTIONS and len(seen) > 4
    print(
        f"{seen.total()} answers on {CONNECTIONS} connections, {dict(sorted(seen.items()))}, {grown} KB more than before"
    )
