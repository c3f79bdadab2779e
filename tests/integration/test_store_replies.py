"""What Redis says when it cannot serve now, each said by a real server: an outage for callers, and over when it is over."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mesh.errors import StoreUnavailable
from mesh.store.client import Client, NotNow, read_reply
from mesh.store.connections import NOT_NOW
from mesh.store.embedded import Server, start_server
from tests.waiting import wait_until

WRITE = ("SET", "key", "value")


@pytest.fixture(scope="module")
def breakable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose configuration the tests of this module change, and change back."""
    with start_server(tmp_path_factory.mktemp("breakable")) as server:
        yield server


@contextmanager
def configured(server: Server, **options: str) -> Iterator[None]:
    """These settings inside, the former ones again after."""
    control = Client(server.url)
    names = {name.replace("_", "-"): value for name, value in options.items()}
    former = {name: control.execute("CONFIG", "GET", name)[1] for name in names}
    for name, value in names.items():
        control.execute("CONFIG", "SET", name, value)
    try:
        yield
    finally:
        for name, value in former.items():
            control.execute("CONFIG", "SET", name, value)
        control.close()


def refusal(client: Client, *words: str) -> str:
    with pytest.raises(StoreUnavailable) as caught:
        client.execute(*words)
    return str(caught.value)


def seen(url: str, *words: str) -> NotNow:
    """The reply as the connection gives it: to Kombu and to Celery as well."""
    connection = Client(url).connection()

    def ask() -> None:
        connection.send_command(*words)
        connection.read_response()

    try:
        with pytest.raises(NotNow) as caught:
            ask()
        assert (connection._sock is None) == caught.value.drops
    finally:
        connection.disconnect()
    return caught.value


def expect(client: Client, code: str, *words: str) -> None:
    """The table's sentence to callers of ours, the code to others."""
    assert NOT_NOW[code].sentence in refusal(client, *(words or WRITE))
    assert seen(client.url, *(words or WRITE)).code == code


def test_full_memory(breakable: Server) -> None:
    client = Client(breakable.url)
    with configured(breakable, maxmemory="1"):
        expect(client, "OOM")
        assert client.execute("GET", "nothing") is None
    client.execute(*WRITE)


def test_too_few_replicas(breakable: Server) -> None:
    client = Client(breakable.url)
    with configured(breakable, min_replicas_to_write="1"):
        expect(client, "NOREPLICAS")
    client.execute(*WRITE)


def test_a_replica(breakable: Server, tmp_path: Path) -> None:
    with start_server(tmp_path, options=("--replicaof", "127.0.0.1", str(breakable.port))) as replica:
        client = Client(replica.url)
        expect(client, "READONLY")
        client.execute("CONFIG", "SET", "replica-serve-stale-data", "no")
        client.execute("REPLICAOF", "127.0.0.1", "1")
        expect(client, "MASTERDOWN", "GET", "key")
        waiting = client.connection()
        client.execute("REPLICAOF", "NO", "ONE")
        waiting.send_command("BLPOP", "nothing", 30)
        wait_until(lambda: b"blocked_clients:1" in client.execute("INFO", "clients"), 10, "the wait to begin")
        client.execute("REPLICAOF", "127.0.0.1", str(breakable.port))
        with pytest.raises(NotNow) as caught:
            waiting.read_response()
        assert caught.value.code == "UNBLOCKED"


def test_busy_with_a_script(breakable: Server) -> None:
    client, busy = (
        Client(breakable.url, socket_timeout_ms=30_000),
        Client(breakable.url, socket_timeout_ms=30_000),
    )
    with configured(breakable, lua_time_limit="50"):
        ended: list[str] = []
        loop = threading.Thread(target=lambda: ended.append(_killed(busy)))
        loop.start()

        def is_busy() -> bool:
            connection = client.connection()
            connection.send_command("PING")
            try:
                return isinstance(read_reply(connection), NotNow)
            finally:
                connection.disconnect()

        wait_until(is_busy, 10, "the script to run for too long")
        expect(client, "BUSY")
        client.execute("SCRIPT", "KILL")
        loop.join(10)
    assert ended and "kill" in ended[0].lower()
    client.execute(*WRITE)


def _killed(client: Client) -> str:
    try:
        client.execute("EVAL", "while true do end", "0")
    except Exception as error:
        return str(error)
    return ""


def test_a_password_that_came_later(breakable: Server) -> None:
    client = Client(breakable.url)
    client.execute("PING")
    knows = Client(breakable.url.replace("redis://", "redis://:secret@"))
    client.execute("CONFIG", "SET", "requirepass", "secret")
    try:
        expect(Client(breakable.url), "NOAUTH")
        knows.execute(*WRITE)
        assert "refuses" in refusal(Client(breakable.url.replace("redis://", "redis://:wrong@")), *WRITE)
    finally:
        knows.execute("CONFIG", "SET", "requirepass", "")
    Client(breakable.url).execute(*WRITE)


def test_full_disk(tmp_path: Path) -> None:
    with start_server(tmp_path) as server:
        client = Client(server.url)
        written = sum(file.stat().st_size for file in tmp_path.glob("**/*.aof"))
        former = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (written + 4096, former[1]))

        def refused() -> bool:
            try:
                client.execute("SET", "key", os.urandom(1024))
            except StoreUnavailable:
                return True
            return False

        wait_until(refused, 20, "the append-only file to reach its limit")
        expect(client, "MISCONF")
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, former)

        def taken() -> bool:
            try:
                client.execute("SET", "key", "after")
            except StoreUnavailable:
                return False
            return True

        wait_until(taken, 20, "writes again")


@pytest.mark.ci
def test_loading(tmp_path: Path) -> None:
    with start_server(tmp_path) as server:
        client = Client(server.url)
        for batch in range(20):
            client.pipeline(*[("SET", f"{batch}-{number}", "x" * 100) for number in range(1000)])
        server.kill()
        slow = Server(
            binary=server.binary,
            directory=tmp_path,
            owned=False,
            appendonly=True,
            port=server.port,
            options=("--key-load-delay", "200", "--loading-process-events-interval-bytes", "1024"),
        )
        starting = threading.Thread(target=slow.start)
        starting.start()
        try:

            def loads() -> bool:
                try:
                    client.execute(*WRITE)
                except StoreUnavailable as error:
                    return NOT_NOW["LOADING"].sentence in str(error)
                return False

            wait_until(loads, 10, "a server that loads")
        finally:
            starting.join(30)
            slow.stop()


def test_an_error_of_the_callers_own_stays_one(breakable: Server) -> None:
    client = Client(breakable.url)
    client.execute("SET", "text", "value")
    with pytest.raises(Exception, match="WRONGTYPE") as caught:
        client.execute("LPUSH", "text", "value")
    assert not isinstance(caught.value, StoreUnavailable)
