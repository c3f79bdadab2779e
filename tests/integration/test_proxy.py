"""The proxy breaks the network in each of its ways, and heals it: with a real server behind it."""

import contextlib
import resource
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from mesh.errors import StoreUnavailable
from mesh.store.client import Client
from mesh.store.embedded import Server
from mesh.verify.proxy import Proxy
from tests.waiting import wait_until


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", server.port) as running:
        yield running


@pytest.fixture
def client(proxy: Proxy, redis_url: str) -> Iterator[Client]:
    """Through the proxy; gives up after half a second."""
    made = Client(proxy.url(redis_url), connect_timeout_ms=2000, socket_timeout_ms=500)
    yield made
    made.close()


def raw(proxy: Proxy) -> socket.socket:
    """A connection that waits for at most 5 s."""
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def test_it_forwards(client: Client, proxy: Proxy, namespace: str) -> None:
    """Also what is larger than any buffer, both ways."""
    large = bytes(range(256)) * 40_000
    client.execute("SET", namespace, large, "EX", 60)
    assert client.execute("GET", namespace) == large
    client.execute("DEL", namespace)
    assert proxy.connections == 1
    client.close()
    wait_until(lambda: proxy.connections == 0, description="the connection to be closed on both sides")


def test_the_url_keeps_all_but_the_address(proxy: Proxy) -> None:
    assert proxy.url("redis://user:p%40ss@redis.example:6380/3?a=b") == (
        f"redis://user:p%40ss@127.0.0.1:{proxy.port}/3?a=b"
    )


def test_a_half_closed_connection_still_answers(proxy: Proxy) -> None:
    with raw(proxy) as one:
        one.sendall(b"PING\r\n")
        one.shutdown(socket.SHUT_WR)
        assert one.recv(100) == b"+PONG\r\n"
        assert one.recv(100) == b""


def test_cut_resets_and_refuses(client: Client, proxy: Proxy) -> None:
    assert client.execute("PING") == b"PONG"
    with raw(proxy) as one:
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            one.recv(1)
    with pytest.raises(StoreUnavailable):
        client.execute("PING")
    with pytest.raises(ConnectionError), raw(proxy) as refused:
        refused.recv(1)
    port = proxy.port
    proxy.heal()
    assert client.execute("PING") == b"PONG"
    assert proxy.port == port


def test_frozen_accepts_and_answers_when_it_thaws(client: Client, proxy: Proxy) -> None:
    assert client.execute("PING") == b"PONG"
    proxy.freeze()
    with raw(proxy) as one:
        one.sendall(b"PING\r\n")
        with pytest.raises(StoreUnavailable):
            client.execute("PING")
        proxy.heal()
        assert one.recv(100) == b"+PONG\r\n"


@pytest.mark.parametrize(("direction", "arrives"), [("requests", 0), ("replies", 1)])
def test_one_direction_is_swallowed(
    server: Server, proxy: Proxy, namespace: str, direction: str, arrives: int
) -> None:
    """The other works; the connection dies by `heal`, since a gap in a stream is nothing that TCP lets anybody see."""
    direct = Client(server.url)
    with raw(proxy) as one:
        one.sendall(b"PING\r\n")
        assert one.recv(100) == b"+PONG\r\n"
        proxy.drop(direction)  # type: ignore[arg-type]
        one.sendall(f"INCR {namespace}\r\n".encode())
        one.settimeout(0.3)
        with pytest.raises(TimeoutError):
            one.recv(1)
        assert int(direct.execute("GETDEL", namespace) or 0) == arrives
        proxy.heal()
        one.settimeout(5)
        with pytest.raises(ConnectionResetError):
            one.recv(1)
    with raw(proxy) as fresh:
        fresh.sendall(b"PING\r\n")
        assert fresh.recv(100) == b"+PONG\r\n"


def test_delay_goes_both_ways(client: Client, proxy: Proxy) -> None:
    client.execute("PING")
    proxy.delay(100)
    begun = time.monotonic()
    assert client.execute("PING") == b"PONG"
    assert time.monotonic() - begun >= 0.2
    proxy.heal()
    begun = time.monotonic()
    for _ in range(10):
        client.execute("PING")
    assert time.monotonic() - begun < 1


def test_what_is_lost_comes_later_and_in_order(server: Server) -> None:
    """A third of the chunks stalls; the dice are seeded, so the same ones each time."""
    with Proxy("127.0.0.1", server.port, seed=3) as proxy, raw(proxy) as one:
        proxy.lose(0.3, stall_ms=30)
        answers = b""
        for number in range(40):
            one.sendall(f"ECHO {number:02}\r\n".encode())
        while answers.count(b"$2") < 40 or not answers.endswith(b"\r\n"):
            answers += one.recv(4096)
        assert answers == b"".join(f"$2\r\n{number:02}\r\n".encode() for number in range(40))


def test_reset_spares_new_connections(client: Client, proxy: Proxy) -> None:
    with raw(proxy) as one:
        client.execute("PING")
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            one.recv(1)
    assert client.execute("PING") == b"PONG"


def test_a_server_that_is_gone_is_a_reset() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        with (
            Proxy("127.0.0.1", holder.getsockname()[1]) as proxy,
            pytest.raises(ConnectionError),
            raw(proxy) as one,
        ):
            one.recv(1)


@pytest.fixture
def many_files() -> Iterator[None]:
    """Each connection through the proxy takes three descriptors of this process; many systems allow 1024 until asked."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_five_hundred_connections(proxy: Proxy) -> None:
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(raw(proxy)) for _ in range(500)]
        for one in opened:
            one.sendall(b"PING\r\n")
        for one in opened:
            assert one.recv(100) == b"+PONG\r\n"
        assert proxy.connections == 500
        proxy.freeze()
        proxy.heal()
        proxy.cut()
        for one in opened:
            with pytest.raises(ConnectionResetError):
                one.recv(1)


def test_many_threads_may_give_orders(client: Client, proxy: Proxy) -> None:
    with ThreadPoolExecutor(8) as threads:
        for _ in range(20):
            for order in (proxy.freeze, proxy.reset, proxy.cut, proxy.heal):
                threads.submit(order)
    proxy.heal()
    assert client.execute("PING") == b"PONG"


def test_close_ends_connections_and_is_repeatable(server: Server) -> None:
    proxy = Proxy("127.0.0.1", server.port)
    with raw(proxy) as one:
        one.sendall(b"PING\r\n")
        one.recv(100)
        proxy.close()
        with pytest.raises(ConnectionResetError):
            one.recv(1)
    proxy.close()
    with pytest.raises(ConnectionRefusedError):
        raw(proxy).close()
