"""How many submissions one coordinator serves over HTTP: single ones on kept connections, and batches.

```
python -m benchmarks.http_submit [--url http://127.0.0.1:3000] [--seconds 5] [--connections 16] [--pipeline 4]
```

Without `--url` it starts a Redis and a coordinator of its own. The client is one process that writes prepared bytes to raw
sockets and counts answers, so that it costs less than what it measures. Figures: tasks/s, ms of the coordinator's CPU for a
thousand tasks. With `--url`, MESH_JWT_SECRET must be that coordinator's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import selectors
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from mesh.core import tokens
from mesh.core.keyring import Keyring
from mesh.store.embedded import free_port, start_server

NAMESPACE = "bench-http"
_PATH = f"/v1/namespaces/{NAMESPACE}"
_START_S = 30.0
SECRET = os.environ.get("MESH_JWT_SECRET") or secrets.token_hex(32)
_RING = Keyring([SECRET])
_TOKEN = tokens.issue(
    "api", _RING, _RING.kids[0], subject="bench", agent_type="producer", namespaces=[NAMESPACE], ttl_s=3600,
    now_s=time.time(), jti=secrets.token_hex(16),
)  # fmt: skip
_BATCH = 10_000


@contextlib.contextmanager
def coordinator() -> Iterator[tuple[str, int, str]]:
    """(URL, process id, REDIS_URL) of a coordinator with a Redis of its own."""
    with tempfile.TemporaryDirectory() as folder, start_server(Path(folder)) as server:
        port = free_port()
        environ = {
            **os.environ,
            "REDIS_URL": server.url,
            "MESH_NAMESPACE": NAMESPACE,
            "MESH_JWT_SECRET": SECRET,
            "LOG_LEVEL": "warning",
        }
        words = [sys.executable, "-m", "mesh", "coordinator", "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(words, env=environ)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(url, process)
            yield url, process.pid, server.url
        finally:
            process.terminate()
            process.wait()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health/ready", timeout=1):
            return
        time.sleep(0.1)
    raise SystemExit("the coordinator did not start")


def cpu_s(pid: int) -> float:
    """CPU time that a process has used; 0 for a process that is not on this host."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def request(host: str, path: str, body: bytes) -> bytes:
    """The bytes of a POST."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {_TOKEN}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def singles(host: str, port: int, seconds: float, connections: int, pipeline: int) -> tuple[int, float]:
    """(tasks accepted, seconds) of single submissions; `pipeline` requests under way on each connection."""
    body = json.dumps({"type": "noop", "payload": {"n": 1}, "unsatisfiable": "accept"}).encode()
    one = request(f"{host}:{port}", f"{_PATH}/tasks", body)
    selector = selectors.DefaultSelector()
    for _ in range(connections):
        link = socket.create_connection((host, port))
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.sendall(one * pipeline)
        selector.register(link, selectors.EVENT_READ)
    begun, accepted = time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        for key, _ in selector.select(0.5):
            link = key.fileobj
            assert isinstance(link, socket.socket)
            answers = link.recv(262_144).count(
                b"HTTP/1.1 202"
            )  # answers are small: none is cut in its first line
            accepted += answers
            link.sendall(one * answers)
    took = time.monotonic() - begun
    for key in list(selector.get_map().values()):
        link = key.fileobj
        assert isinstance(link, socket.socket)
        under_way = pipeline
        while under_way > 0:
            under_way -= link.recv(262_144).count(b"HTTP/1.1 202")
        link.close()
    return accepted, took


def batches(url: str, seconds: float, compact: bool) -> tuple[int, float]:
    """(tasks accepted, seconds) of batches of 10,000; two are under way at a time."""
    if compact:
        content = {"type": "noop", "payloads": [{"n": n} for n in range(_BATCH)], "unsatisfiable": "accept"}
    else:
        one = {"type": "noop", "payload": {"n": 1}, "unsatisfiable": "accept"}
        content = {"tasks": [one] * _BATCH}
    body = json.dumps(content).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {_TOKEN}"}
    call = urllib.request.Request(f"{url}{_PATH}/tasks:batch", body, headers)
    begun = time.monotonic()

    def repeat() -> int:
        accepted = 0
        while time.monotonic() - begun < seconds:
            with urllib.request.urlopen(call) as answer:
                accepted += answer.read().count(b"-") // 4  # an id has four
        return accepted

    with ThreadPoolExecutor(2) as pool:
        accepted = sum(one.result() for one in [pool.submit(repeat) for _ in range(2)])
    return accepted, time.monotonic() - begun


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description="Submissions over HTTP to one coordinator.")
    parser.add_argument("--url", help="of a coordinator that runs; by default one is started")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each measurement")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--pipeline", type=int, default=4, help="requests under way on a connection")
    asked = parser.parse_args()
    given = contextlib.nullcontext((asked.url, 0, "")) if asked.url else coordinator()
    with given as (url, pid, _):
        place = urlsplit(url)
        host, port = place.hostname or "127.0.0.1", place.port or 80
        singles(host, port, 1.0, asked.connections, asked.pipeline)  # warm
        for name, measure in (
            ("single", lambda: singles(host, port, asked.seconds, asked.connections, asked.pipeline)),
            ("batch", lambda: batches(url, asked.seconds, compact=False)),
            ("batch, compact", lambda: batches(url, asked.seconds, compact=True)),
        ):
            before = cpu_s(pid)
            accepted, took = measure()
            used = cpu_s(pid) - before
            cost = (
                f"{used * 1e6 / accepted:8.1f} ms CPU for 1,000, {used / took:5.0%} of a core" if pid else ""
            )
            print(f"{name:15} {accepted / took:10,.0f} tasks/s {cost}", flush=True)


if __name__ == "__main__":
    main()
