"""Connections to Redis as all of the mesh makes them: the store's own, those of Kombu's transport, Celery's backend and Flower.

They are redis-py's, with three things added.

- **An error reply that means "not now" is an outage.** `NOT_NOW` is the table: such a reply is raised as `NotNow`, a kind of
  redis-py's ConnectionError, so that whoever survives a lost connection survives a full disk or a failover too. Some of them
  also drop the connection: behind the name there is, or soon will be, another server.
- **A dead peer is noticed** within about 15 s, also where nobody sends anything: TCP's keepalive and user time-out.
- **A `sentinel://` URL names a service, not a host.** Each connect asks the sentinels who its master is, and believes only a
  server that says of itself that it is one. So a failover is a lost connection like any other.
- **TLS** is asked for by `rediss://` (or `?ssl=true` of a `sentinel://` URL), certificates are named in the URL's query, and
  the server's certificate and host name are checked unless the URL says otherwise.
"""

from __future__ import annotations

import re
import socket
import threading
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import redis
from redis.exceptions import ResponseError

from mesh.core.setting_rows import split_hosts
from mesh.store.credentials import REFUSALS, Credentials
from mesh.store.tls import OPTIONS, explained, refuse_unknown

__all__ = [
    "HEALTH_CHECK_S",
    "NOT_NOW",
    "NotNow",
    "Sentinels",
    "code_of",
    "connection_options",
    "explained",
    "is_sentinel",
    "parse",
    "stand_in",
]

HEALTH_CHECK_S = (
    5  # Kombu and Celery ask a silent subscription whether it lives, and give it up after twice as long
)
SENTINEL_PORT = 26379
_SENTINEL_S = 1.0  # for one sentinel to answer: the next one is asked then


class _Meaning(NamedTuple):
    sentence: str  # what Redis does, for messages
    drops: bool = False  # the connection is of no use any more: connect anew, perhaps to another server


NOT_NOW: dict[str, _Meaning] = {
    "OOM": _Meaning("is full (maxmemory) and takes nothing new; what runs can still end"),
    "MISCONF": _Meaning("cannot write to its disk and takes no writes until it can"),
    "NOREPLICAS": _Meaning(
        "has fewer replicas in touch than min-replicas-to-write and takes no writes until it has"
    ),
    "BUSY": _Meaning("is busy with a script that somebody runs in it"),
    "LOADING": _Meaning("is loading its data", drops=True),
    "READONLY": _Meaning("is a replica: it takes no writes", drops=True),
    "MASTERDOWN": _Meaning("is a replica that has lost its master", drops=True),
    "UNBLOCKED": _Meaning("has become a replica", drops=True),
    "NOAUTH": _Meaning("wants a password, or another one", drops=True),
}
"""What an error reply means that will not be given for ever, by its first word."""


def code_of(error: BaseException) -> str:
    """The first word of an error reply; redis-py takes it off the text of those that it has classes for."""
    return getattr(error, "status_code", None) or str(error).partition(" ")[0]


class NotNow(redis.ConnectionError):
    """An error reply of the table. `code`: its first word; `drops`: its connection has been dropped."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = self.status_code = code
        self.sentence, self.drops = NOT_NOW[code]


class _OurConnection:
    """Mixed into redis-py's classes of connections."""

    def read_response(self, *args: Any, **options: Any) -> Any:
        """A reply; an error of the table is raised as `NotNow`."""
        try:
            return super().read_response(*args, **options)  # type: ignore[misc]
        except (
            ResponseError,
            redis.ConnectionError,
        ) as error:  # redis-py takes LOADING and NOAUTH for the latter
            code = code_of(error)
            if code in REFUSALS and isinstance(self.credential_provider, Credentials):  # type: ignore[attr-defined]
                self.credential_provider.on_refused(code)  # type: ignore[attr-defined]
            if code not in NOT_NOW:
                raise
            not_now = NotNow(code, str(error))
            if not_now.drops:
                self.disconnect()  # type: ignore[attr-defined]
            raise not_now from None


class _Tcp(_OurConnection, redis.Connection):
    pass


class _Tls(_OurConnection, redis.SSLConnection):
    pass


class _Unix(_OurConnection, redis.UnixDomainSocketConnection):
    pass


_OURS = {redis.Connection: _Tcp, redis.SSLConnection: _Tls, redis.UnixDomainSocketConnection: _Unix}

_TCP_OPTIONS = {
    getattr(socket, name): value
    for name, value in (
        ("TCP_KEEPIDLE", 5),
        ("TCP_KEEPINTVL", 3),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 15_000),  # ms: for what was sent and nobody acknowledged
    )
    if hasattr(socket, name)
}


def connection_options(connect_timeout_ms: int, socket_timeout_ms: int) -> dict[str, Any]:
    """Options of every connection: redis-py's defaults (5 s and ten retries) and Kombu's (none, none) both surprise."""
    return {
        "socket_timeout": socket_timeout_ms / 1000,
        "socket_connect_timeout": connect_timeout_ms / 1000,
        "socket_keepalive": True,
        "socket_keepalive_options": _TCP_OPTIONS,
        "health_check_interval": 0,
        "retry": redis.retry.Retry(redis.backoff.NoBackoff(), 0),
        "protocol": 2,
        "driver_info": None,  # two more commands for each connection, which Redis 7.0 does not know yet
    }


def parse(url: str, options: dict[str, Any]) -> tuple[type[Any], dict[str, Any]]:
    """(class, arguments) of connections to `url` with the `options` of all. Raises `ValueError` for what is no such URL."""
    if is_sentinel(url):
        return _parse_sentinel(url, options)
    # Only the URL's parsing is wanted of this pool.
    pool = redis.ConnectionPool.from_url(re.sub(r"^redis\+socket://", "unix://", url), **options)
    arguments = dict(pool.connection_kwargs)
    kind = _OURS[pool.connection_class]
    refuse_unknown(arguments)
    if kind is not _Tls and any(name.startswith("ssl") for name in arguments):
        raise ValueError("options of TLS are for rediss:// only")
    if kind is _Unix:
        for name in ("socket_keepalive", "socket_keepalive_options"):
            arguments.pop(name, None)
    return kind, arguments


# -- Sentinel


def is_sentinel(url: str) -> bool:
    """Whether a URL names a service that sentinels know."""
    return url.startswith("sentinel://")


def stand_in(url: str) -> str:
    """The URL for those who only show it, or take it apart the way that Kombu does: no passwords, no TLS, one host.

    They connect through the store, which knows all of that. The service's name stands for a host that the sentinels know.
    """
    if url.startswith(("unix://", "redis+socket://")):
        return url
    parts, _, hosts = split_hosts(url)
    place = parts.path.strip("/")
    return f"redis://{place}" if is_sentinel(url) else f"redis://{hosts[0]}/{place}"


@dataclass(frozen=True, kw_only=True)
class Said:
    """What one sentinel says: the master's address, or why it says nothing."""

    sentinel: str
    master: tuple[str, int] | None
    error: str = ""


class Sentinels:
    """The sentinels of one service. Shared by all connections of a process; safe for threads."""

    def __init__(self, service: str, addresses: list[tuple[str, int]], **login: Any) -> None:
        self.service = service
        self._addresses, self._login = list(addresses), login
        self._lock = threading.Lock()

    def master(self) -> tuple[str, int]:
        """The address that the first sentinel names that knows one. Raises redis-py's ConnectionError if none does."""
        told = []
        for address in list(self._addresses):
            said = self.ask(address)
            if said.master is not None:
                return said.master
            told.append(f"{said.sentinel}: {said.error}")
        raise redis.ConnectionError(f"no sentinel knows a master of {self.service!r} ({'; '.join(told)})")

    def all(self) -> list[Said]:
        """What each of them says."""
        return [self.ask(address) for address in list(self._addresses)]

    def distrust(self) -> None:
        """The first one told of a server that is no master: it is asked last from now on."""
        with self._lock:
            self._addresses.append(self._addresses.pop(0))

    def ask(self, address: tuple[str, int]) -> Said:
        """What one of them says."""
        host, port = address
        name = f"{host}:{port}"
        options = connection_options(int(_SENTINEL_S * 1000), int(_SENTINEL_S * 1000))
        kind = redis.SSLConnection if "ssl_cert_reqs" in self._login else redis.Connection
        connection = kind(host=host, port=port, **options, **self._login)
        try:
            connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
            answer = connection.read_response()
        except (redis.RedisError, OSError) as error:
            why = explained(error, tls=kind is redis.SSLConnection)
            return Said(sentinel=name, master=None, error=why)
        finally:
            connection.disconnect()
        if not answer:
            return Said(sentinel=name, master=None, error="does not know it")
        return Said(sentinel=name, master=(answer[0].decode(), int(answer[1])))


class _ToMaster(_OurConnection):
    """Mixed into a connection: it goes to whichever server the sentinels call the master."""

    def __init__(self, *, sentinels: Sentinels, **options: Any) -> None:
        self._sentinels = sentinels
        super().__init__(**options)

    def _connect(self) -> Any:
        self.host, self.port = self._sentinels.master()
        return super()._connect()  # type: ignore[misc]

    def on_connect_check_health(self, check_health: bool = True) -> None:
        """Log in, then make sure that it is one: a sentinel that was cut off tells of former times."""
        super().on_connect_check_health(check_health=check_health)  # type: ignore[misc]
        self.send_command("ROLE", check_health=False)  # type: ignore[attr-defined]
        try:
            role = self.read_response()[0]
        except ResponseError:
            return  # it may not be asked: then its READONLY tells
        if role != b"master":
            self._sentinels.distrust()
            raise redis.ConnectionError(
                f"{self.host}:{self.port} is no longer the master of {self._sentinels.service!r}"
            )


class _Master(_ToMaster, redis.Connection):
    pass


class _TlsMaster(_ToMaster, redis.SSLConnection):
    pass


def _parse_sentinel(url: str, options: dict[str, Any]) -> tuple[type[Any], dict[str, Any]]:
    parts, user, hosts = split_hosts(url)
    service, _, database = parts.path.strip("/").partition("/")
    addresses = [_address(one) for one in hosts if one]
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    login = {
        name: query.pop(f"sentinel_{name}")
        for name in ("username", "password")
        if f"sentinel_{name}" in query
    }
    tls = {name: query.pop(name) for name in OPTIONS if name in query}
    if query.pop("ssl", "true" if tls else "") == "true":
        tls.setdefault("ssl_cert_reqs", "required")
    if not service or not addresses or query or not re.fullmatch(r"[0-9]*", database):
        raise ValueError(
            "the form is sentinel://[user:password@]host:port,host:port,…/service[/database]"
            "[?sentinel_username=…&sentinel_password=…&ssl=true&ssl_ca_certs=…]"
        )
    refuse_unknown(tls)
    arguments: dict[str, Any] = {**options, **_typed(tls), "host": unquote(service), "db": int(database or 0)}
    name, _, password = user.partition(":")
    if password:
        arguments["password"] = unquote(password)
        if name:
            arguments["username"] = unquote(name)
    sentinels = Sentinels(unquote(service), addresses, **login, **_typed(tls))
    return _TlsMaster if tls else _Master, {**arguments, "sentinels": sentinels}


def _typed(tls: dict[str, str]) -> dict[str, Any]:
    """The options as redis-py wants them."""
    if "ssl_check_hostname" not in tls:
        return dict(tls)
    return {**tls, "ssl_check_hostname": tls["ssl_check_hostname"].lower() not in ("false", "0", "no")}


def _address(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError(f"{text!r} is no address of a sentinel")
    return parts.hostname, parts.port or SENTINEL_PORT
