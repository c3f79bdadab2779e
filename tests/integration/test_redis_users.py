"""Redis users of joined agents, on the embedded server and on Debian's Redis 7.0."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import redis

from mesh.errors import StoreUnavailable
from mesh.store import credentials
from mesh.store.client import Client
from mesh.store.credentials import Credentials
from mesh.store.embedded import Server, start_server
from mesh.store.redis_users import OWN, SHARED, Joined, Login, RedisUsers, hashed
from tests.integration.stores import open_store

SERVERS = ("embedded", "redis-server")


@pytest.fixture(scope="module", params=SERVERS)
def home(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of its own: tests here restart it and delete its users."""
    binary = None
    if request.param != "embedded":
        found = shutil.which(request.param)
        if found is None:
            pytest.skip(f"no {request.param} here")
        binary = Path(found)
    with start_server(binary=binary) as server:
        yield server


@pytest.fixture
def users(home: Server) -> RedisUsers:
    return RedisUsers(Client(home.url))


def joined(namespace: str, agent: str = "w1", **more: object) -> Joined:
    row = Joined(
        namespace=namespace, agent=agent, life=uuid.uuid4().hex, subject="w1", jti="j" * 16, issued_at_s=1,
        capabilities=("ocr",), reach=OWN, expires_ms=1, seen_ms=1,
    )  # fmt: skip
    return msgspec.structs.replace(row, **more)


def client_of(server: Server, login: Login) -> redis.Redis:
    once = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
    return redis.Redis(port=server.port, username=login.username, password=login.password, retry=once)


def test_a_user_may_use_its_namespace_and_nothing_else(
    home: Server, users: RedisUsers, namespace: str
) -> None:
    _, login = users.issue(joined(namespace))
    assert login.reach == OWN
    client = client_of(home, login)
    assert client.set(f"mesh:{{{namespace}}}:pulse", 1)
    for command in (
        ("GET", "mesh:{other}:pulse"),
        ("SET", f"mesh:{{{namespace}x}}:pulse", 1),
        ("SET", "anything", 1),
        ("HGETALL", "mesh:{mesh}:joined"),
        ("SADD", "mesh:{mesh}:coordinators", 1),
        ("EVAL", "return redis.call('GET', 'mesh:{other}:pulse')", 0),
        ("CONFIG", "GET", "*"),
        ("ACL", "LIST"),
        ("ACL", "SETUSER", "default", "on"),
        ("FLUSHALL",),
        ("KEYS", "*"),
        ("SCRIPT", "FLUSH"),
        ("DEBUG", "SLEEP", 0),
        ("MODULE", "LIST"),
        ("CLIENT", "KILL", "ID", 1),
        ("SHUTDOWN", "NOSAVE"),
        ("REPLICAOF", "NO", "ONE"),
        ("MONITOR",),
        ("PSUBSCRIBE", "*"),
    ):
        with pytest.raises(redis.ResponseError, match=r"permission|not allowed"):
            client.execute_command(*command)


def test_passwords_are_nowhere_in_redis(users: RedisUsers, namespace: str) -> None:
    row, login = users.issue(joined(namespace))
    assert login.password and login.password not in repr(login) and login.password not in repr(row)
    raw = users._client.execute("HGET", "mesh:{mesh}:joined", f"{namespace}/w1")
    assert login.password.encode() not in raw and hashed(login.password).encode() in raw


def test_two_passwords_are_alive_during_a_renewal(home: Server, users: RedisUsers, namespace: str) -> None:
    row, first = users.issue(joined(namespace))
    assert first.password is not None
    row, second = users.issue(row, in_use=hashed(first.password))
    old, new = client_of(home, first), client_of(home, second)
    assert old.ping() and new.ping()
    # The answer was lost: the agent still has the first.
    row, third = users.issue(row, in_use=hashed(first.password))
    assert client_of(home, first).ping() and client_of(home, third).ping()
    assert old.ping()  # connections stay
    with pytest.raises(redis.AuthenticationError):
        client_of(home, second).ping()
    assert users.get(namespace, "w1") == row


def test_a_user_that_redis_forgot_is_made_anew(home: Server, users: RedisUsers, namespace: str) -> None:
    row, login = users.issue(joined(namespace))
    client = client_of(home, login)
    assert client.ping()
    home.restart()
    with pytest.raises(redis.AuthenticationError):
        client.ping()
    users.restore(row)
    assert client.ping()


def test_withdrawal_cuts_connections(home: Server, users: RedisUsers, namespace: str) -> None:
    row, login = users.issue(joined(namespace))
    connection = client_of(home, login).connection_pool.get_connection()
    connection.connect()
    assert users.withdraw(row)
    with pytest.raises(redis.ConnectionError):
        connection.read_response()
    with pytest.raises(redis.AuthenticationError):
        client_of(home, login).ping()
    assert users.get(namespace, "w1") is None and not users.withdraw(row)


def test_who_has_joined_anew_is_not_withdrawn(home: Server, users: RedisUsers, namespace: str) -> None:
    before, _ = users.issue(joined(namespace))
    _, login = users.issue(joined(namespace))
    assert not users.withdraw(before)
    assert client_of(home, login).ping()


def test_users_that_nobody_was_issued_are_deleted(home: Server, users: RedisUsers, namespace: str) -> None:
    """A server that was away when they were withdrawn has them still."""
    _, login = users.issue(joined(namespace))
    _, stays = users.issue(joined(namespace, "w2"))
    other = RedisUsers(Client(home.url.removesuffix("/0") + "/1"))
    _, elsewhere = other.issue(joined(namespace))
    users._client.execute("HDEL", "mesh:{mesh}:joined", f"{namespace}/w1")
    assert users.forget_strays() == 1
    with pytest.raises(redis.AuthenticationError):
        client_of(home, login).ping()
    assert client_of(home, stays).ping() and client_of(home, elsewhere).ping()


def test_without_the_right_to_make_users_agents_are_refused_or_share(
    home: Server, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    admin = redis.Redis(port=home.port)
    admin.execute_command(
        "ACL", "SETUSER", "small", "reset", "on", ">right-of-it", "~*", "&*", "+@all", "-acl"
    )
    url = f"redis://small:right-of-it@127.0.0.1:{home.port}/0"
    strict = RedisUsers(Client(url))
    with pytest.raises(StoreUnavailable, match="MESH_SHARED_REDIS_LOGIN"):
        strict.issue(joined(namespace))
    assert strict.get(namespace, "w1") is None
    own, _ = RedisUsers(Client(home.url)).issue(joined(namespace, "w2"))
    with pytest.raises(StoreUnavailable, match="MESH_SHARED_REDIS_LOGIN"):
        strict.issue(own)
    assert strict.get(namespace, "w2") == own  # what it had stays good
    assert len([one for one in caplog.records if "are refused" in one.message]) == 1
    users = RedisUsers(Client(url), shared=True)
    row, login = users.issue(joined(namespace))
    assert (login.reach, login.username, login.password) == (SHARED, "small", "right-of-it")
    assert row.reach == SHARED and row.hashes == ()
    users.issue(row)
    users.restore(row)
    assert len([one for one in caplog.records if "no user of their own" in one.message]) == 1
    assert "right-of-it" not in caplog.text
    assert users.withdraw(row) and users.get(namespace, "w1") is None
    admin.execute_command("ACL", "DELUSER", "small")


def test_an_agents_user_runs_the_scripts(home: Server, users: RedisUsers, namespace: str) -> None:
    """All that an agent does with its store, but for what needs more: to look at Redis's configuration."""
    _, login = users.issue(joined(namespace))
    url = f"redis://127.0.0.1:{home.port}/0"
    credentials.use(url, Credentials(login.username, login.password))
    try:
        store = open_store(url, namespace)
        store.preload()
        assert not store.agents.join("w1", {"capabilities": "ocr", "id": "w1"}).taken
        assert "password" not in repr(store.client.redis_py())
        store.close()
    finally:
        credentials._used.clear()


def test_forked_children_see_new_credentials() -> None:
    given = Credentials("u", "one")
    reader, writer = os.pipe()
    go, start = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(go, 1)
        os.write(writer, " ".join(given.get_credentials()).encode())
        os._exit(0)
    given.set("u", "two")
    os.write(start, b"x")
    assert os.read(reader, 100) == b"u two"
    os.waitpid(pid, 0)
    assert "two" not in repr(given)


def test_what_redis_refuses_for_another_reason_is_no_reason_to_share(home: Server, namespace: str) -> None:
    """The coordinator's own access is more than an agent may ever get by a trick."""
    users = RedisUsers(Client(home.url))
    with pytest.raises(redis.ResponseError, match="spaces"):
        users.issue(joined(namespace, agent="a b"))
