"""The connection to Redis: a small pool of redis-py connections, and commands as packed bytes.

redis-py's client costs more than the round trip it makes; the store's hot path is one script call, so it packs the
command itself (`pack`), writes it to a pooled redis-py connection and reads the reply. Everything that redis-py's
*connections* do well is theirs: URLs, TLS, authentication, time-outs, the hiredis parser.

Failures of the network, and replies that mean "not now" (`mesh.store.connections`), become `StoreUnavailable`; a call whose
pooled connection turns out dead is tried once more on a fresh one. That is safe because each script may be repeated: it is
guarded by state and fence, or by an idempotent id.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import redis
from redis.exceptions import NoScriptError, ResponseError

from mesh.core.redaction import safe_url
from mesh.errors import StoreUnavailable
from mesh.store import credentials
from mesh.store.connections import NOT_NOW, NotNow, Sentinels, code_of, connection_options, explained, parse

__all__ = [
    "NETWORK_ERRORS",
    "Client",
    "NoScriptError",
    "NotNow",
    "ResponseError",
    "pack",
    "pack_words",
    "read_reply",
    "safe_url",
    "subscription",
]

NETWORK_ERRORS = (redis.ConnectionError, redis.TimeoutError, OSError)


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


def read_reply(connection: Any) -> Any:
    """The next reply; an error reply is returned, unless it cost the connection: then it is raised like any other loss."""
    try:
        return connection.read_response()
    except ResponseError as error:
        return error
    except NotNow as error:
        if error.drops:
            raise
        return error


class Client:
    """A pool of connections to one Redis. Safe for threads; a forked child starts with an empty pool."""

    def __init__(self, url: str, *, connect_timeout_ms: int = 3000, socket_timeout_ms: int = 10000) -> None:
        self.url = url
        try:
            self._kind, self._options = parse(url, connection_options(connect_timeout_ms, socket_timeout_ms))
        except ValueError as error:
            raise StoreUnavailable(f"REDIS_URL {safe_url(url)!r} cannot be used: {error}.") from None
        self._tls = issubclass(self._kind, redis.SSLConnection)
        provider = credentials.of(url)
        if provider is not None:
            self._options["credential_provider"] = provider
        self._free: deque[redis.Connection] = deque()
        self._pid = os.getpid()

    @property
    def sentinels(self) -> Sentinels | None:
        """Who is asked for the master, if the URL names a service."""
        found: Sentinels | None = self._options.get("sentinels")
        return found

    @property
    def login(self) -> tuple[str | None, str | None]:
        """(user, password) that its connections log in with."""
        provider = self._options.get("credential_provider")
        if provider is not None:
            user, password = provider.current
            return user, password
        return self._options.get("username"), self._options.get("password")

    @property
    def database(self) -> int:
        """The number of the database."""
        return int(self._options.get("db") or 0)

    def connection(self) -> redis.Connection:
        """A fresh connection, not connected and not pooled: for blocking waits and subscriptions."""
        connection: redis.Connection = self._kind(**self._options)
        return connection

    def pool_options(self, **more: Any) -> dict[str, Any]:
        """Arguments of a redis-py pool of connections like ours: for Kombu and Celery."""
        return {**self._options, "db": self.database, "connection_class": self._kind, **more}

    def redis_py(self, **more: Any) -> redis.Redis:
        """A redis-py client on connections like ours."""
        return redis.Redis(connection_pool=redis.ConnectionPool(**self.pool_options(**more)))

    def call(self, command: bytes) -> Any:
        """Send one packed command, return its reply; an error reply is raised."""
        return self.checked(self.calls([command], 1)[0])

    def checked(self, reply: Any) -> Any:
        """A reply, if it is none of an error; else the error is raised, as what it means."""
        if isinstance(reply, Exception):
            raise self._unavailable(reply) or reply
        return reply

    def _unavailable(self, error: Exception) -> StoreUnavailable | None:
        """What a failure means to callers; None for an error that is theirs."""
        where, code = f"Redis at {safe_url(self.url)}", code_of(error)
        meaning = NOT_NOW.get(code)
        if meaning is not None:
            said = StoreUnavailable(f"{where} {meaning.sentence}.")
        elif code in ("NOPERM", "WRONGPASS"):
            said = StoreUnavailable(f"{where} refuses: {error}")
        elif isinstance(error, NETWORK_ERRORS):
            said = StoreUnavailable(f"{where} cannot be reached: {explained(error, tls=self._tls)}")
        else:
            return None
        said.__cause__ = error
        return said

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
                    return read_reply(connection)
                except NETWORK_ERRORS:
                    self._drop(connection)
                    connection = None
            return self.calls([command], 1)[0]

        try:
            for command in commands:
                waiting.append(command)
                if connection is not None:
                    try:
                        connection.send_packed_command([command], check_health=False)
                    except NETWORK_ERRORS:
                        self._drop(connection)
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
                answer = [read_reply(connection) for _ in range(replies)]
            except NETWORK_ERRORS as error:
                self._drop(connection)
                if pooled:
                    continue  # it was dead, or died: at worst the script runs twice, which changes nothing
                raise self._unavailable(error) or error from None
            except BaseException:
                connection.disconnect()  # a reply may be under way: this connection is of no use to anybody
                raise
            self._free.append(connection)
            return answer

    def _drop(self, connection: redis.Connection) -> None:
        """One is dead: so are most likely all that lie idle, and each would cost a time-out of its own to find out."""
        connection.disconnect()
        self.close()

    def execute(self, *args: bytes | str | int | float) -> Any:
        """One command by its words."""
        return self.call(pack(args))

    def pipeline(self, *commands: Sequence[bytes | str | int | float]) -> list[Any]:
        """Several commands in one round trip; the first error reply is raised."""
        return [
            self.checked(one) for one in self.calls([pack(command) for command in commands], len(commands))
        ]

    def close(self) -> None:
        """Close the pooled connections."""
        while (connection := self._pooled()) is not None:
            connection.disconnect()


def subscription(client: Client) -> redis.client.PubSub:
    """A redis-py subscription on a connection of its own."""
    listener: redis.client.PubSub = client.redis_py().pubsub()
    return listener
