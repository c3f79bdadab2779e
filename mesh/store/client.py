"""The connection to Redis: a small pool of redis-py connections, and commands as packed bytes.

redis-py's client costs more than the round trip it makes; the store's hot path is one script call, so it packs the
command itself (`pack`), writes it to a pooled redis-py connection and reads the reply. Everything that redis-py's
*connections* do well is theirs: URLs, TLS, authentication, time-outs, the hiredis parser.

Failures of the network become `StoreUnavailable`; a call whose connection turns out dead is tried once more on a fresh
one. That is safe because each script may be repeated: it is guarded by state and fence, or by an idempotent id.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import redis
from redis.exceptions import NoScriptError, ResponseError

from mesh.errors import StoreUnavailable

__all__ = [
    "NETWORK_ERRORS",
    "Client",
    "NoScriptError",
    "ResponseError",
    "pack",
    "pack_words",
    "safe_url",
    "subscription",
]

_REFUSALS = (redis.ReadOnlyError, redis.AuthenticationError, redis.exceptions.NoPermissionError)
NETWORK_ERRORS = (redis.ConnectionError, redis.TimeoutError, OSError)

_KEEPALIVE = {
    getattr(socket, name): value
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
}


def pack_words(words: Iterable[bytes | str | int | float]) -> list[bytes]:
    """Each word as a bulk string of the Redis protocol."""
    packed = []
    for word in words:
        data = word if type(word) is bytes else (word.encode() if type(word) is str else str(word).encode())
        packed.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return packed


def pack(args: Iterable[bytes | str | int | float]) -> bytes:
    """One command in the Redis protocol."""
    words = pack_words(args)
    return b"".join([b"*%d\r\n" % len(words), *words])


def safe_url(url: str) -> str:
    """The URL without its password, for messages and logs."""
    head, separator, tail = url.rpartition("@")
    if not separator:
        return url
    scheme, _, user = head.partition("://")
    return f"{scheme}://{user.partition(':')[0]}:***@{tail}"


def connection_options(connect_timeout_ms: int, socket_timeout_ms: int) -> dict[str, Any]:
    """Options of every connection: redis-py's defaults (5 s and ten retries) and Kombu's (none, none) both surprise."""
    return {
        "socket_timeout": socket_timeout_ms / 1000,
        "socket_connect_timeout": connect_timeout_ms / 1000,
        "socket_keepalive": True,
        "socket_keepalive_options": _KEEPALIVE,
        "health_check_interval": 0,
        "retry": redis.retry.Retry(redis.backoff.NoBackoff(), 0),
        "protocol": 2,
    }


class Client:
    """A pool of connections to one Redis. Safe for threads; a forked child starts with an empty pool."""

    def __init__(self, url: str, *, connect_timeout_ms: int = 3000, socket_timeout_ms: int = 10000) -> None:
        self.url = url
        try:
            # Only the URL's parsing is wanted of this pool: it names the connection class and its arguments.
            self._pool = redis.ConnectionPool.from_url(
                url, **connection_options(connect_timeout_ms, socket_timeout_ms)
            )
        except ValueError as error:
            raise StoreUnavailable(f"REDIS_URL {safe_url(url)!r} is not a Redis URL: {error}") from error
        self._free: deque[redis.Connection] = deque()
        self._pid = os.getpid()

    def connection(self) -> redis.Connection:
        """A fresh connection, not connected and not pooled: for blocking waits and subscriptions."""
        connection: redis.Connection = self._pool.connection_class(**self._pool.connection_kwargs)
        return connection

    def call(self, command: bytes) -> Any:
        """Send one packed command, return its reply; an error reply is raised."""
        return self.checked(self.calls([command], 1)[0])

    def checked(self, reply: Any) -> Any:
        """A reply, if it is none of an error; else the error is raised, as what it means."""
        if isinstance(reply, Exception):
            text = str(reply)
            if "OOM" in text or "maxmemory" in text:
                raise StoreUnavailable(
                    f"Redis at {safe_url(self.url)} is full (maxmemory) and takes nothing new; what runs can still end."
                ) from reply
            if isinstance(reply, _REFUSALS):
                raise StoreUnavailable(f"Redis at {safe_url(self.url)} refuses: {text}") from reply
            raise reply
        return reply

    def stream(self, commands: Iterable[bytes]) -> Iterator[Any]:
        """The replies of packed commands, in order; each is sent while the server still works on the one before.

        Error replies are returned as exceptions. What is under way when the network fails is sent once more: commands
        must bear being repeated.
        """
        connection: redis.Connection | None = self._pooled() or self.connection()
        waiting: deque[bytes] = deque()
        finished = False

        def answer() -> Any:
            nonlocal connection
            command = waiting.popleft()
            if connection is not None:
                try:
                    return self._read(connection)
                except NETWORK_ERRORS:
                    connection.disconnect()
                    connection = None
            return self.calls([command], 1)[0]

        try:
            for command in commands:
                waiting.append(command)
                if connection is not None:
                    try:
                        connection.send_packed_command([command], check_health=False)
                    except NETWORK_ERRORS:
                        connection.disconnect()
                        connection = None
                if len(waiting) > 1:
                    yield answer()
            while waiting:
                yield answer()
            finished = True
        finally:
            if connection is not None:
                if finished:
                    self._free.append(connection)
                else:
                    connection.disconnect()  # replies may be under way

    def _pooled(self) -> redis.Connection | None:
        """A connection that nobody uses, or None."""
        if self._pid != os.getpid():  # forked: the sockets are the parent's
            self._free, self._pid = deque(), os.getpid()
        try:
            return self._free.pop()
        except IndexError:
            return None

    def calls(self, commands: Sequence[bytes], replies: int) -> list[Any]:
        """Send packed commands in one write, return one reply each; error replies are returned as exceptions."""
        packed: list[Any] = [b"".join(commands)]
        while True:
            pooled = self._pooled()
            connection = pooled or self.connection()
            try:
                if not pooled:
                    connection.connect()
                connection.send_packed_command(packed, check_health=False)
                answer = [self._read(connection) for _ in range(replies)]
            except NETWORK_ERRORS as error:
                connection.disconnect()
                if pooled:
                    continue  # it was dead, or died: at worst the script runs twice, which changes nothing
                raise StoreUnavailable(f"Redis at {safe_url(self.url)} cannot be reached: {error}") from None
            except BaseException:
                connection.disconnect()  # a reply may be under way: this connection is of no use to anybody
                raise
            self._free.append(connection)
            return answer

    @staticmethod
    def _read(connection: redis.Connection) -> Any:
        try:
            return connection.read_response()
        except ResponseError as error:
            return error

    def execute(self, *args: bytes | str | int | float) -> Any:
        """One command by its words."""
        return self.call(pack(args))

    def pipeline(self, *commands: Sequence[bytes | str | int | float]) -> list[Any]:
        """Several commands in one round trip; the first error reply is raised."""
        replies = self.calls([pack(command) for command in commands], len(commands))
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    def close(self) -> None:
        """Close the pooled connections."""
        while self._free:
            self._free.pop().disconnect()


def subscription(client: Client) -> redis.client.PubSub:
    """A redis-py subscription on a connection pool of its own."""
    pool = redis.ConnectionPool(
        connection_class=client._pool.connection_class, **client._pool.connection_kwargs
    )
    listener: redis.client.PubSub = redis.Redis(connection_pool=pool).pubsub()
    return listener
