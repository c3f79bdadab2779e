"""What each role's user may not do in Redis, one test each; what it has to do, by real processes under these users."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.core.redis_rights import RIGHTS, acl_file
from mesh.errors import StoreUnavailable
from mesh.store.client import Client, ResponseError, code_of
from mesh.store.embedded import start_server
from mesh.store.keys import TABLE
from tests.acceptance.redis_users import Guarded

ROOT = Path(__file__).resolve().parents[2]
DEBIANS = shutil.which("redis-server")
NAMESPACE = "mine"

#: What somebody might try -> its command, and the roles to which it is no attack.
FOREIGN = {
    "read a task": "HGETALL mesh:{other}:task:1",
    "read a message": "GET mesh:{other}:message:1",
    "read a result": "GET mesh:{other}:result:1",
    "publish to a queue": "ZADD mesh:{other}:queue:ocr 1 x",
    "take from a queue": "ZREM mesh:{other}:queue:ocr x",
    "wait at a bell": "BLPOP mesh:{other}:bell:ocr 0.1",
    "end a lease": "ZREM mesh:{other}:leases x",
    "list agents": "ZRANGE mesh:{other}:agents 0 -1",
    "change an agent": "HSET mesh:{other}:agent:a cordoned 1",
    "delete": "DEL mesh:{other}:task:1",
    "rename into it": "RENAME mesh:{mine}:task:1 mesh:{other}:task:1",
    "hear its results": "SUBSCRIBE mesh:{other}:result:1",
    "hear all results": "PSUBSCRIBE mesh:*",
    "publish results": "PUBLISH mesh:{other}:result:1 x",
    "send remote control": "PUBLISH mesh:{other}:kombu:/0.celery.pidbox x",
    "tell the audit for it": "XADD mesh:{other}:told * a b",
    "read a key of somebody else": "GET anything",
}
SERVER = {
    words: words
    for words in (
        "CONFIG SET maxmemory 1",
        "CONFIG REWRITE",
        "ACL LIST",
        "ACL LOAD",
        "ACL SAVE",
        "ACL LOG RESET",
        "FLUSHALL",
        "FLUSHDB",
        "KEYS *",
        "RANDOMKEY",
        "SCRIPT FLUSH",
        "SCRIPT KILL",
        "FUNCTION FLUSH",
        "DEBUG SLEEP 0",
        "SHUTDOWN NOSAVE",
        "MODULE LIST",
        "SLAVEOF NO ONE",
        "REPLICAOF NO ONE",
        "CLIENT LIST",
        "CLIENT KILL TYPE normal",
        "MONITOR",
        "SAVE",
        "BGREWRITEAOF",
        "SWAPDB 0 1",
        "SLOWLOG GET",
        "LATENCY RESET",
        "PSYNC ? -1",
        "EVAL return(1) 0",
        "SORT mesh:{mine}:ready",
        "DUMP mesh:{mine}:task:1",
        "RESTORE mesh:{mine}:task:1 0 x",
        "MIGRATE 127.0.0.1 1 k 0 1",
        "OBJECT FREQ mesh:{mine}:task:1",
    )
}
NOT_COORDINATOR = {
    "read Redis's settings": "CONFIG GET *",
    "make a user": "ACL SETUSER eve on nopass +@all ~*",
    "remove a user": "ACL DELUSER agent",
    "look through the keys": "SCAN 0",
    "call itself a coordinator": "SET mesh:{mesh}:coordinator:eve x",
    "withdraw a coordinator": "DEL mesh:{mesh}:coordinator:c1",
    "undo a revocation": "ZREM mesh:{mesh}:revoked x",
    "write to the audit": "XADD mesh:{mesh}:audit * a b",
    "cut the audit off": "XADD mesh:{mesh}:audit MAXLEN 1 * a b",
    "let the audit wait": "SET mesh:{mesh}:moving:mine 1",
    "spend what others may tell": "SET mesh:{mesh}:moved:other 10000",
    "shorten the audit": "XTRIM mesh:{mesh}:audit MAXLEN 0",
    "read the audit": "XRANGE mesh:{mesh}:audit - +",
    "delete the audit": "DEL mesh:{mesh}:audit",
    "delete from the audit": "XDEL mesh:{mesh}:audit 1-1",
    "forget a namespace": "SREM mesh:{mesh}:namespaces mine",
}
NOT_AGENT = {
    "register an agent": "HSET mesh:{mine}:agent:eve state healthy",
    "list an agent": "ZADD mesh:{mine}:agents 1 eve",
    "lead": "HSET mesh:{mine}:leader id eve",
    "raise the epoch": "HSET mesh:{mine}:epoch raised 1",
    "put tasks aside": "ZADD mesh:{mine}:aside:x 0 1",
    "advertise a type": "HSET mesh:{mine}:types ocr {}",
    "stop the pulse": "SET mesh:{mine}:pulse 1",
    "grant grace": "SET mesh:{mine}:grace 1",
    "tell the audit": "XADD mesh:{mine}:told * a b",
    "wait at a bell": "BLPOP mesh:{mine}:bell:ocr 0.1",
}
NOT_PRODUCER = {
    "change a task": "HSET mesh:{mine}:task:1 state queued",
    "delete a task": "DEL mesh:{mine}:task:1",
    "change a message": "SET mesh:{mine}:message:1 x",
    "record a result": "SET mesh:{mine}:result:1 x",
    "publish a result": "SETEX mesh:{mine}:result:1 1 x",
    "queue a task": "ZADD mesh:{mine}:queue:ocr 1 1",
    "end a lease": "ZREM mesh:{mine}:leases 1",
    "change a counter": "HINCRBY mesh:{mine}:counters a 1",
    "ring a bell": "RPUSH mesh:{mine}:bell:ocr 1",
}
_ATTEMPTS = {
    "coordinator": {**{f"foreign: {what}": words for what, words in FOREIGN.items()}, **SERVER},
}
_ATTEMPTS["agent"] = {**_ATTEMPTS["coordinator"], **NOT_COORDINATOR}
_ATTEMPTS["producer"] = {**_ATTEMPTS["agent"], **NOT_AGENT}
_ATTEMPTS["flower"] = {**_ATTEMPTS["producer"], **NOT_PRODUCER}
ATTEMPTS = [
    pytest.param(role, words, id=f"{role}-{what}")
    for role, some in _ATTEMPTS.items()
    for what, words in some.items()
]


@pytest.fixture(
    scope="module",
    params=[
        None,
        pytest.param(DEBIANS, marks=pytest.mark.skipif(DEBIANS is None, reason="no redis-server on PATH")),
    ],
    ids=["embedded", "debian"],
)
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    binary = Path(request.param) if request.param else None
    running = Guarded(tmp_path_factory.mktemp("guarded"), NAMESPACE, binary=binary)
    yield running
    running.stop()


def refused(client: Client, *words: str) -> bool:
    """Whether Redis says that this user may not."""
    try:
        client.execute(*words)
    except (StoreUnavailable, ResponseError) as error:
        cause = error.__cause__ if isinstance(error, StoreUnavailable) else error
        return cause is not None and code_of(cause) == "NOPERM"
    return False


@pytest.mark.parametrize(("role", "words"), ATTEMPTS)
def test_a_role_may_not(guarded: Guarded, role: str, words: str) -> None:
    client = Client(guarded.url(role))
    assert refused(client, *words.split())
    client.close()


@pytest.mark.parametrize("role", RIGHTS)
def test_a_script_may_do_no_more_than_its_user(guarded: Guarded, role: str) -> None:
    client = Client(guarded.url(role))
    for lua in ("return redis.call('GET', 'mesh:{other}:message:1')", "return redis.call('FLUSHALL')"):
        digest = client.execute("SCRIPT", "LOAD", lua)
        with pytest.raises(
            (ResponseError, StoreUnavailable), match=r"(?i)permission|ACL failure|can't (run|access)"
        ):
            client.execute("EVALSHA", digest, 0)
    client.close()


@pytest.mark.parametrize(
    ("role", "words"),
    [
        ("agent", "XADD mesh:{mine}:told * who w1"),
        ("coordinator", "XTRIM mesh:{mine}:told MAXLEN 0"),
        ("agent", "SADD mesh:{mesh}:namespaces mine"),
        ("producer", "GET mesh:{mesh}:coordinator:c1"),
        ("producer", "ZRANGE mesh:{mine}:agents 0 -1"),
        ("flower", "HGETALL mesh:{mine}:task:1"),
        ("coordinator", "XRANGE mesh:{mesh}:audit - +"),
        ("coordinator", "ACL SETUSER joined-1 reset on >0123456789abcdef"),
        ("coordinator", "ACL DELUSER joined-1"),
    ],
)
def test_a_role_may(guarded: Guarded, role: str, words: str) -> None:
    client = Client(guarded.url(role))
    client.execute(*words.split())
    client.close()


def test_nobody_gets_in_without_a_password(guarded: Guarded) -> None:
    for login in ("coordinator:guessed", "root:", ":"):
        client = Client(f"redis://{login}@127.0.0.1:{guarded.server.port}/0")
        with pytest.raises(StoreUnavailable):
            client.execute("GET", "mesh:{mine}:task:1")


def test_the_file_is_as_the_table_says() -> None:
    """Else run `python docs/generate.py`."""
    assert (ROOT / "deploy/redis/users.acl").read_text() == acl_file()


def test_the_table_names_keys_that_there_are() -> None:
    known = {row.text + ("*" if row.family else "") for row in TABLE}
    for rights in RIGHTS.values():
        assert {*rights.writes, *rights.reads} - {"*"} <= known


def test_redis_does_not_start_before_the_passwords_are_set(tmp_path: Path) -> None:
    shutil.copy(ROOT / "deploy/redis/users.acl", tmp_path)
    with pytest.raises(StoreUnavailable, match="ended during its start"):
        start_server(tmp_path, options=("--aclfile", str(tmp_path / "users.acl")))


def test_the_documented_lines_set_the_passwords(tmp_path: Path) -> None:
    shutil.copy(ROOT / "deploy/redis/users.acl", tmp_path)
    page = (ROOT / "docs/redis-users.md").read_text()
    (lines,) = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    done = subprocess.run(
        ["sh", "-euc", lines], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=20
    )
    passwords = dict(line.split() for line in done.stdout.splitlines())
    assert set(passwords) == {"admin", *RIGHTS}
    file = tmp_path / "users.acl"
    # Who starts the server asks it as nobody whether it is there.
    file.write_text(file.read_text().replace("user default off", "user default on nopass +ping +info +quit"))
    with start_server(tmp_path, options=("--aclfile", str(file))) as server:
        for user, password in passwords.items():
            client = Client(f"redis://{user}:{password}@127.0.0.1:{server.port}/0")
            client.execute("PING")
            client.close()
