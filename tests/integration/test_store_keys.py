"""Every key that the mesh leaves behind is declared, of the declared type, and ends unless it is declared permanent."""

import pytest

from mesh.core.states import LIVE, State
from mesh.store import audit
from mesh.store.keys import NAMESPACES, PERMANENT, TABLE, Row
from mesh.store.store import Store
from tests.integration.stores import (
    LONG_AGO_MS,
    MINUTE_MS,
    again,
    begin,
    calm,
    entry,
    fall_due,
    fetch,
    lapse,
    lose_holder,
    lose_lease,
    open_store,
    publish,
    settle,
    take,
    tick,
)


@pytest.fixture
def store(redis_url: str, namespace: str) -> Store:
    return open_store(redis_url, namespace, max_crashes=2)


def live_a_whole_life(store: Store) -> None:
    """Something of everything that the scripts can do; some tasks stay live, some chords incomplete."""
    for agent in ("stays", "leaves", "dies"):
        incarnation = store.agents.join(agent, {"name": agent}).incarnation
        store.agents.offer(agent, incarnation, ["ocr"])
        store.agents.renew(agent, incarnation, {"busy": 0}, [])
        if agent == "leaves":
            store.agents.leave(agent, incarnation)
    store.agents.judge(store.agents.lead("c1", MINUTE_MS).fence, {"stays": "healthy", "gone": ""})
    store.types.advertise({"ocr": {}})
    store.agents.cordon("stays", "uncordon")

    publish(store, "succeeds")
    settle(store, take(store))
    publish(store, "ignored")
    settle(store, take(store), keep=False)
    publish(store, "fails")
    settle(store, take(store), State.FAILED)
    publish(store, "needs", "gpu+ocr", expires_ms=MINUTE_MS)
    publish(store, "expires", delay_ms=MINUTE_MS, expires_ms=MINUTE_MS)
    lapse(store, "expires")
    publish(store, "retries")
    again(store, take(store), delay_ms=MINUTE_MS)
    fall_due(store, "retries")
    tick(store)
    begin(store, take(store, holder="stays#1"))
    publish(store, "parked")
    again(store, take(store), delay_ms="parked", message=b"", failed=False)
    publish(store, "poison")
    for _ in range(2):
        store.tasks.crash(entry(take(store)), "died")
    publish(store, "revised", kind="child", token="p:1")
    publish(store, "revised", kind="child", token="p:2")
    lose_holder(store, take(store))
    publish(store, "cancelled")
    store.tasks.cancel("cancelled", "why")
    store.tasks.conclude("concluded", State.FAILED, b"{}")
    store.tasks.annotate("never-seen", "", b"{}")
    publish(store, "later", delay_ms=MINUTE_MS)

    store.chords.arm("incomplete", body=b"body", size=5, token="p:1")
    store.chords.grow("incomplete")
    store.chords.grow("never-armed")
    for group in ("incomplete", "late"):
        publish(store, f"part-of-{group}", "parts", extra=("chord", f"{group}|0"))
        settle(store, take(store, "parts"), keep=False)
    store.chords.arm("complete", body=b"body", size=1)
    store.chords.part("complete", "0", b"{}")
    store.chords.take("complete")
    store.chords.done("complete")
    store.chords.arm("due", body=b"body", size=1)
    store.chords.part("due", "0", b"{}")

    store.client.execute("SET", store.keys["pulse"], LONG_AGO_MS)
    store.tasks.reap()

    store.restores.begin("requeue")  # interrupted before it has gone through what it put aside
    publish(store, "after", "after")
    take(store, "after")


def keys_of(store: Store) -> list[str]:
    """Every key of the namespace."""
    cursor, found = b"0", []
    while True:
        cursor, page = store.client.execute(
            "SCAN", cursor, "MATCH", f"*{{{store.keys.namespace}}}*", "COUNT", 1000
        )
        found += [key.decode() for key in page]
        if cursor == b"0":
            return sorted(found)


def row_of(store: Store, key: str) -> Row | None:
    """The row of the table that declares this key."""
    text = key.removeprefix(store.keys.prefix)
    for row in TABLE:
        if text == row.text or (row.family and text.startswith(row.text)):
            return row
    return None


def lives_on(store: Store, row: Row, key: str) -> bool:
    """Whether this key belongs to a live task, and needs no end yet."""
    if row.name not in ("task", "message"):
        return False
    found = store.tasks.record(key.removeprefix(store.keys.of(row.name, "")))
    return found is not None and found.state in LIVE


def test_every_key_is_declared_and_of_its_declared_type(store: Store) -> None:
    live_a_whole_life(store)
    for key in keys_of(store):
        row = row_of(store, key)
        assert row is not None, f"{key} is not in the table of keys"
        assert store.client.execute("TYPE", key).decode() == row.kind, key


def test_every_key_that_is_not_declared_permanent_ends(store: Store) -> None:
    live_a_whole_life(store)
    leaks = []
    for key in keys_of(store):
        row = row_of(store, key)
        assert row is not None
        endless = store.client.execute("PTTL", key) == -1
        if endless != (row.lives == PERMANENT or lives_on(store, row, key)):
            leaks.append((key, row.lives, "no TTL" if endless else "a TTL"))
    assert leaks == []


def test_the_whole_life_leaves_something_of_every_row(store: Store) -> None:
    """Else the two tests above would not look at it. Celery's own keys are written by the bus."""
    live_a_whole_life(store)
    audit.append(store.client, [dict.fromkeys(audit.FIELDS, "")], store.keys["told"])
    rows = [row_of(store, key) for key in keys_of(store)]
    seen = {row.name for row in rows if row is not None}
    assert {row.name for row in TABLE} - seen == {"group", "kombu"}


def test_no_permanent_key_grows_with_the_tasks_that_have_ended(store: Store) -> None:
    for number in range(30):
        publish(store, f"t{number}", expires_ms=MINUTE_MS)
    for one in fetch(store, limit=30):
        settle(store, one)
    for row in TABLE:
        if row.lives == PERMANENT and not row.family and row.kind in ("set", "zset", "hash"):
            command = {"set": "SCARD", "zset": "ZCARD", "hash": "HLEN"}[row.kind]
            number = store.client.execute(command, store.keys[row.name])
            assert number <= 5 or row.name == "recent", row.name


def test_dead_letters_leave_the_index_with_their_retention(store: Store) -> None:
    publish(store, "a")
    settle(store, take(store), State.DEAD_LETTERED)
    assert tick(store)[2] == 0
    store.client.execute("ZADD", store.keys["dead"], LONG_AGO_MS, "a")
    assert tick(store)[2] == 1 and store.tasks.dead_letters() == []


def test_mesh_wide_keys_have_a_slot_of_their_own(store: Store) -> None:
    assert "{mesh}" in NAMESPACES
    assert all("{" not in row.text for row in TABLE)
    assert store.keys.of("task", "x") == f"mesh:{{{store.keys.namespace}}}:task:x"


def test_two_namespaces_do_not_see_each_other(redis_url: str, namespace: str, store: Store) -> None:
    other = open_store(redis_url, f"{namespace}-b")
    publish(store, "a")
    publish(other, "a", message=b"theirs")
    assert fetch(other, limit=9)[0].message == b"theirs"
    assert store.tasks.size("work") == 1
    lose_lease(other, "a")
    calm(other)
    assert store.tasks.reap()[0] == 0 and other.tasks.reap()[0] == 1
