"""Calls to a coordinator, whichever answers.

All coordinators are equal, so a call goes to the first that answers: the one that answered last, then the other addresses of
its name, then the next URL. The addresses of one name come in an order of each client's own, so that many clients spread
over them, and are looked up anew whenever one has failed. A call that nobody answered is repeated after a pause that grows;
that is safe because submissions carry an id and the other calls may be repeated too (the one that may not says so).
"""

from __future__ import annotations

import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2
import msgspec

from mesh import __version__, errors
from mesh.client.bearer import Bearer
from mesh.errors import (
    Conflict,
    CoordinatorUnavailable,
    Invalid,
    MeshError,
    NotFound,
    Refused,
    StoreUnavailable,
    TaskFailed,
    TooManyRequests,
    Unauthenticated,
)
from mesh.settings import Settings
from mesh.telemetry.tracing import current

__all__ = [
    "UNANSWERED",
    "Caller",
    "Endpoints",
    "answer_of",
    "client_options",
    "error_of",
    "named",
    "shares",
]

CONNECT_S = 3.0  # a host that is gone must not hold the others up
KEPT_S = 4.0  # less than the 5 s after which a coordinator closes an idle connection
_LONGEST_PAUSE_S = 30.0
_WAITING = 4  # connections for waiting at most: each request waits for up to 1,000 tasks
UNANSWERED = (
    StoreUnavailable,
    CoordinatorUnavailable,
)  # another coordinator, or a later moment, may do better


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address of one URL."""

    url: str  # as it was given (without a password), for people
    base: str  # the same with the address in place of the name
    host: str  # what the URL says: for the Host header
    name: str  # ... and for TLS

    def request(self, path: str) -> dict[str, Any]:
        """Where to, for an httpx2 client."""
        return {"url": self.base + path, "extensions": {"sni_hostname": self.name}}


class Endpoints:
    """The addresses behind the URLs, the one that answered last in front. Safe for threads."""

    def __init__(
        self, urls: Sequence[str], resolve: Callable[[str, int], Sequence[str]] | None = None
    ) -> None:
        self._urls = urls
        self._resolve = resolve or resolved
        self._known: list[Endpoint] = []
        self._found: dict[str, Sequence[str]] = {}  # name -> its addresses, should nobody know it for a while
        self._rank: dict[str, float] = {}  # address -> its place among those of its name
        self._said: dict[str, str] = {}  # URL -> why it did not answer last time

    def order(self) -> list[Endpoint]:
        """In the order in which to try them. Names are looked up again once something has failed."""
        return list(self._known) or self._look_up()

    def prefer(self, endpoint: Endpoint) -> None:
        """It has answered."""
        known = self._known
        if known[:1] != [endpoint]:
            self._known = [endpoint, *(one for one in known or self._look_up() if one != endpoint)]

    def failed(self, endpoint: Endpoint, why: str) -> None:
        """It has not answered: the next one is tried first."""
        self._said[endpoint.url] = why
        if self._known[:1] in ([endpoint], []):
            found = self._look_up()
            at = found.index(endpoint) + 1 if endpoint in found else 0
            self._known = found[at:] + found[:at]

    def _look_up(self) -> list[Endpoint]:
        return [endpoint for url in self._urls for endpoint in self._of(url)]

    def _of(self, url: str) -> Iterator[Endpoint]:
        parts = urlsplit(url)
        name, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        found = (
            self._resolve(name, port) or self._found.get(name) or [name]
        )  # trying an unknown name says why
        self._found[name] = found
        for address in sorted(found, key=self._place):
            literal = f"[{address}]" if ":" in address else address
            base = f"{parts.scheme}://{literal}:{port}{parts.path}"
            yield Endpoint(_without_password(url), base, parts.netloc.rpartition("@")[2], name)

    def _place(self, address: str) -> tuple[bool, float]:
        """IPv4 first, and dice that are thrown once."""
        return ":" in address, self._rank.setdefault(address, random.random())

    def nobody(self) -> CoordinatorUnavailable:
        """The error when none answers."""
        said = self._said
        urls = [_without_password(url) for url in self._urls]
        tried = ", ".join(f"{url} ({said[url]})" if url in said else url for url in urls)
        return CoordinatorUnavailable(f"No coordinator answers at {tried}.")


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def resolved(name: str, port: int) -> list[str]:
    """The addresses of a name; none if it is not known."""
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return list(dict.fromkeys(str(one[4][0]) for one in found))


def shares(connections: int) -> tuple[int, int]:
    """How many of a client's connections are for calls and for waiting; each needs one at least."""
    waiting = max(1, min(_WAITING, connections // 3))
    return max(1, connections - waiting), waiting


def client_options(settings: Settings, connections: int) -> dict[str, Any]:
    """Options of the HTTP clients, blocking or not."""
    timeout_s = settings.transport_timeout_ms / 1000
    secure = any(url.startswith("https:") for url in settings.coordinator_urls)
    headers = {"user-agent": f"agent-mesh/{__version__}", "accept": "application/json"}
    return {
        "headers": headers,
        "timeout": httpx2.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s)),
        "limits": httpx2.Limits(
            max_connections=connections,
            max_keepalive_connections=connections if settings.keep_alive else 0,
            keepalive_expiry=KEPT_S,
        ),
        # Reading the system's certificates takes 20 ms; a context without any trusts nobody.
        "verify": _trust(settings) if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        "trust_env": False,  # coordinators are not behind the proxy for the web
    }


def _trust(settings: Settings) -> ssl.SSLContext:
    """Whom to believe to be a coordinator. Raises `Invalid`."""
    file = settings.coordinator_ca_file
    try:
        return ssl.create_default_context(cafile=file)
    except OSError as error:  # ssl.SSLError is one
        why = "no certificate in PEM is in it" if isinstance(error, ssl.SSLError) else error.strerror
        raise Invalid(f"MESH_COORDINATOR_CA_FILE: cannot use {file} ({why}).") from None


# -- answers


_BY_STATUS: Mapping[int, type[MeshError]] = {
    400: Invalid,
    401: Unauthenticated,
    403: Refused,
    404: NotFound,
    405: Invalid,
    409: Conflict,
    413: Invalid,
    415: Invalid,
    422: Invalid,
    424: TaskFailed,
    429: TooManyRequests,
    502: CoordinatorUnavailable,
    503: CoordinatorUnavailable,
    504: CoordinatorUnavailable,
}
_NEVER_BARE = (400, 404, 405, 501)  # a coordinator says these as problems only, and no proxy makes them up
_KINDS = {name: getattr(errors, name) for name in errors.__all__}


def error_of(status: int, problem: Any) -> MeshError:
    """The error that a problem document describes; what answers in another way (a proxy) is judged by its status."""
    if not isinstance(problem, dict):
        problem = {}
    detail = str(problem.get("detail") or problem.get("title") or f"The coordinator answered {status}.")
    kind: type[MeshError] = _KINDS.get(str(problem.get("code"))) or _BY_STATUS.get(status, MeshError)
    if issubclass(kind, TaskFailed):
        return kind(
            detail,
            task_id=str(problem.get("task_id") or ""),
            state=problem.get("state"),
            error=problem.get("error"),
        )
    return kind(detail)


class NoCoordinator(CoordinatorUnavailable):
    """Something else answers there: it has done nothing. Agents and coordinators share a default port."""


def answer_of(response: httpx2.Response) -> Any:
    """The decoded body. Raises what a refusal means, `NoCoordinator` for an answer that no coordinator gives."""
    try:
        body = msgspec.json.decode(response.content) if response.content else None
    except msgspec.DecodeError:
        body = None
    if 200 <= response.status_code < 300 and (body is not None or not response.content):
        return body
    problem = response.headers.get("content-type", "").startswith("application/problem+json")
    if response.is_success or response.is_redirect or (response.status_code in _NEVER_BARE and not problem):
        raise NoCoordinator(f"What answers at {response.url.host}:{response.url.port} is not a coordinator.")
    error = error_of(response.status_code, body)
    if isinstance(error, TooManyRequests):
        said = response.headers.get("retry-after", "")
        error.retry_after_s = float(said) if said.isdecimal() else 1.0
    raise error


def named(error: Exception) -> str:
    """A network error in a few words."""
    if isinstance(error, httpx2.TimeoutException):
        return "no connection in time" if isinstance(error, httpx2.ConnectTimeout) else "no answer in time"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return str(getattr(cause, "verify_message", "") or cause.reason or cause).rstrip(".").lower()
        if isinstance(cause, OSError) and cause.errno:
            return (os.strerror(cause.errno) if cause.errno > 0 else str(cause.strerror)).lower()
        cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__


# -- calls


class _Unanswered(Exception):
    """A try that nobody answered."""

    def __init__(self, error: MeshError, *, again: bool = True) -> None:
        super().__init__(str(error))
        self.error, self.again = error, again


class Caller:
    """Blocking calls on a pool of kept connections. Safe for threads; a forked child makes a pool of its own."""

    def __init__(self, settings: Settings, bearer: Bearer, endpoints: Endpoints) -> None:
        self.endpoints = endpoints
        self.bearer = bearer
        self._settings = settings
        self._lock = threading.Lock()
        self._client: httpx2.Client | None = None
        self._pid = 0

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        repeat: bool = True,
        patient: bool = True,
    ) -> Any:
        """The decoded answer. `repeat` False: not once more if it may have been carried out; `patient` False: one try.

        Raises what the coordinator says, `CoordinatorUnavailable` if none answers.
        """
        retries = self._settings.transport_retries if patient else 0
        for number in range(retries + 1):
            try:
                return self._in_turn(method, path, body, repeat, patient)
            except _Unanswered as unanswered:
                if number == retries or not unanswered.again:
                    raise unanswered.error from None
            time.sleep(self.pause_s(number))
        raise AssertionError("unreachable")

    def _in_turn(self, method: str, path: str, body: bytes | None, repeat: bool, patient: bool) -> Any:
        """As `_try`; who is asked to come less often waits as long as he is told, within the time-out of a call."""
        until = time.monotonic() + (self._settings.transport_timeout_ms / 1000 if patient else 0.0)
        while True:
            try:
                return self._try(method, path, body, repeat)
            except TooManyRequests as error:
                if time.monotonic() + error.retry_after_s > until:
                    raise
                time.sleep(error.retry_after_s * random.uniform(1.0, 1.1))

    def pause_s(self, number: int) -> float:
        """Before try `number` + 2: doubled each time, and not the same for all who lost the same coordinator."""
        pause = self._settings.transport_retry_delay_ms / 1000 * 2**number
        return float(min(pause, _LONGEST_PAUSE_S)) * random.uniform(0.75, 1.25)

    def _try(self, method: str, path: str, body: bytes | None, repeat: bool) -> Any:
        """One round over all endpoints."""
        refusal: MeshError | None = None
        why = ""
        for endpoint in self.endpoints.order():
            # A kept connection may have been closed from the other side just now: that is worth a second try at once.
            for attempt in range(2):
                try:
                    response = self._send(endpoint, method, path, body)
                    answer = answer_of(response)
                except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
                    why = named(error)  # nothing was sent
                    break
                except httpx2.TransportError as error:
                    why = named(error)
                    if not repeat:
                        raise _Unanswered(self._unknown(endpoint, error), again=False) from error
                    if isinstance(error, httpx2.TimeoutException) or attempt:
                        break
                except TooManyRequests:
                    self.endpoints.prefer(
                        endpoint
                    )  # it has answered, and another one is no way around its limit
                    raise
                except UNANSWERED as error:
                    why, refusal = str(error), error
                    if not repeat and not isinstance(error, NoCoordinator):
                        raise _Unanswered(error, again=False) from error
                    break
                else:
                    self.endpoints.prefer(endpoint)
                    return answer
            self.endpoints.failed(endpoint, why)
        raise _Unanswered(refusal or self.endpoints.nobody())

    def _send(self, endpoint: Endpoint, method: str, path: str, body: bytes | None) -> httpx2.Response:
        fixed = {"host": endpoint.host} | ({} if body is None else {"content-type": "application/json"})
        trace = current()
        for again in (True, False):
            headers = {**fixed, **(trace.headers if trace is not None else {}), **self.bearer.headers()}
            response = self._pool().request(method, headers=headers, content=body, **endpoint.request(path))
            if not (again and response.status_code == 401 and self.bearer.refused(headers)):
                break
        return response

    def _pool(self) -> httpx2.Client:
        if self._client is None or self._pid != os.getpid():
            with self._lock:
                if self._client is None or self._pid != os.getpid():
                    connections, _ = shares(self._settings.max_concurrent_connections)
                    self._client = httpx2.Client(**client_options(self._settings, connections))
                    self._pid = os.getpid()
        return self._client

    @staticmethod
    def _unknown(endpoint: Endpoint, error: Exception) -> CoordinatorUnavailable:
        return CoordinatorUnavailable(
            f"The coordinator at {endpoint.url} broke off ({named(error)}): whether this was done is not known."
        )

    def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None and self._pid == os.getpid():
            client.close()
