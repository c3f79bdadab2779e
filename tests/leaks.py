"""The secrets of a whole run of tests are searched for wherever they must not be: Redis, logs, error bodies, health, metrics.

Installed for every run (tests/conftest.py). What is a secret is collected where tests hand one over: the environment of each
process that they start, passwords in URLs, bearer tokens of requests. A find fails the run at its end, and says where it was.
"""

from __future__ import annotations

import http.client
import io
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest

from mesh.core.redaction import secrets_of_url
from mesh.errors import StoreUnavailable
from mesh.store.client import Client
from mesh.store.embedded import Server

_NAMES = re.compile(r"^(MESH_JWT_SECRET(_NEW)?|MESH_TOKEN|MESH_JOIN_TOKEN)$")
_SHORTEST = 16  # what tests call a secret to see that it is refused is shorter
_TOKEN = re.compile(rb"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}")
_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")
_PUBLIC = re.compile(r"^/(health|metrics)\b")
_PAGE = 500


class Leaks:
    """What is secret in this run, where it was found, and the logs that are still to be looked at."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.logs: set[Path] = set()
        self._words: set[bytes] = set()
        self._tokens: set[bytes] = set()

    def know(self, *secrets: str | None) -> None:
        """These are secret."""
        for secret in secrets:
            if secret and len(secret) >= _SHORTEST:
                (self._tokens if secret.startswith("eyJ") else self._words).add(secret.encode())

    def know_environment(self, environ: Mapping[str, str]) -> None:
        """The secrets among the variables that a process is given."""
        for name, value in environ.items():
            if _NAMES.match(name):
                self.know(value)
            elif "://" in value and "@" in value:
                self.know(*secrets_of_url(value))

    def look(self, data: bytes, place: str) -> None:
        """Note the place if a secret is in `data`."""
        leaked = any(word in data for word in self._words) or _KEY.search(data) is not None
        if not leaked and b"eyJ" in data:
            leaked = any(one in self._tokens for one in _TOKEN.findall(data))
        if leaked:
            self.found.append(place)

    def look_at_logs(self) -> None:
        """All of them that are still there."""
        for path in self.logs:
            try:
                data = path.read_bytes()
            except OSError:
                continue
            for number, line in enumerate(data.split(b"\n"), 1):
                if b"export " not in line:  # `mesh up` hands over what it has made, to whoever started it
                    self.look(line, f"{path}, line {number}")
        self.logs.clear()

    def look_at_redis(self, client: Client) -> None:
        """Every key of the database, of every type, and what Redis itself notes."""
        for name, words in (("ACL LOG", ("ACL", "LOG", 128)), ("SLOWLOG", ("SLOWLOG", "GET", 128))):
            self.look(repr(client.execute(*words)).encode(), name)
        for keys in _pages(client):
            kinds = client.pipeline(*[("TYPE", key) for key in keys])
            reads = [_READ[kind](key) for key, kind in zip(keys, kinds, strict=True) if kind in _READ]
            kept = [key for key, kind in zip(keys, kinds, strict=True) if kind in _READ]
            for key, value in zip(kept, client.pipeline(*reads) if reads else [], strict=True):
                self.look(key + b"\n" + b"\n".join(_flat(value)), f"Redis, {key.decode(errors='replace')}")


_READ: dict[bytes, Any] = {
    b"string": lambda key: ("GET", key),
    b"hash": lambda key: ("HGETALL", key),
    b"set": lambda key: ("SMEMBERS", key),
    b"zset": lambda key: ("ZRANGE", key, 0, -1),
    b"list": lambda key: ("LRANGE", key, 0, -1),
    b"stream": lambda key: ("XRANGE", key, "-", "+"),
}


def _pages(client: Client) -> Iterator[list[bytes]]:
    cursor = b"0"
    while True:
        cursor, keys = client.execute("SCAN", cursor, "COUNT", _PAGE)
        if keys:
            yield keys
        if cursor == b"0":
            return


def _flat(value: Any) -> Iterable[bytes]:
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _flat(part)


leaks = Leaks()


@pytest.fixture(scope="session", autouse=True)
def _nothing_leaks() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr(Server, "stop", _stop(Server.stop))
    patch.setattr(subprocess.Popen, "__init__", _start(subprocess.Popen.__init__))
    patch.setattr(httpx2.Client, "send", _send(httpx2.Client.send))
    patch.setattr(http.client.HTTPResponse, "read", _read(http.client.HTTPResponse.read))
    leaks.know_environment(os.environ)
    yield
    leaks.look_at_logs()
    patch.undo()
    assert not leaks.found, "secrets of this run were found in: " + "; ".join(sorted(set(leaks.found))[:20])


def _stop(stop: Any) -> Any:
    """Before a server goes, look at all that it has."""

    def stopped(self: Server) -> None:
        if self.running:
            client = Client(self.url, connect_timeout_ms=1000, socket_timeout_ms=5000)
            try:
                leaks.look_at_redis(client)
            except (StoreUnavailable, AssertionError):
                pass  # frozen, or it lets nobody in: whoever set it up so looks himself
            except Exception as error:
                if type(error).__module__.split(".")[0] != "redis":
                    raise
            client.close()
        stop(self)

    return stopped


def _start(start: Any) -> Any:
    """Take the secrets of a process's environment, and where its output goes."""

    def started(self: Any, *args: Any, **options: Any) -> None:
        if options.get("env"):
            leaks.know_environment(options["env"])
        for name in ("stdout", "stderr"):
            out = options.get(name)
            if isinstance(out, io.IOBase) and isinstance(getattr(out, "name", None), (str, Path)):
                leaks.logs.add(Path(str(getattr(out, "name", ""))).absolute())
        start(self, *args, **options)

    return started


def _send(send: Any) -> Any:
    """Take the token of a request, look at the body of an error, of health and of metrics."""

    def sent(self: Any, request: Any, **options: Any) -> Any:
        header = request.headers.get("authorization", "")
        if header.startswith("Bearer "):
            leaks.know(header.removeprefix("Bearer "))
        response = send(self, request, **options)
        if not options.get("stream") and (response.status_code >= 400 or _PUBLIC.match(request.url.path)):
            leaks.look(response.content, f"the body of {request.method} {request.url.path}")
        return response

    return sent


def _read(read: Any) -> Any:
    """The same of urllib, which knows no path here: errors, and what looks like metrics."""

    def got(self: Any, *args: Any) -> Any:
        data = read(self, *args)
        if data and (self.status >= 400 or data.startswith(b"# HELP")):
            leaks.look(data, f"a body of status {self.status}")
        return data

    return got
