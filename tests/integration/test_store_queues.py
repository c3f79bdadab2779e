"""Queues in the store: who gets what and when, bells, the schedule, expiry."""

import pytest

from mesh.core.states import State
from mesh.services import listing, views
from mesh.store.store import Store
from mesh.store.tasks import Entry
from tests.integration.stores import (
    MINUTE_MS,
    again,
    begin,
    entry,
    fall_due,
    fetch,
    lapse,
    lose_holder,
    members,
    open_store,
    publication,
    publish,
    record,
    settle,
    take,
    tick,
)

# -- queues


def test_what_is_published_is_fetched_with_its_message_and_ends_with_its_result(store: Store) -> None:
    assert publish(store, "a", message=b"\x00any bytes", priority=7) == "moved"
    one = take(store)
    assert (one.id, one.queue, one.message, one.priority, one.run) == ("a", "work", b"\x00any bytes", 7, 1)
    assert not one.redelivered and not one.watched
    assert begin(store, one) == "moved"
    assert settle(store, one, document=b'{"status":"SUCCESS"}') == "moved"
    assert store.tasks.outcome("a") == (State.SUCCEEDED, 0, b'{"status":"SUCCESS"}')
    ended = record(store, "a")
    assert ended.agent == "worker-1" and ended.attempt == 1 and ended.fence == one.fence
    times = [ended.created, ended.queued, ended.leased, ended.started, ended.ended]
    assert None not in times and times == sorted(times, key=lambda time: time or 0)


def test_operators_see_tasks_by_state_and_no_events_among_them(store: Store) -> None:
    publish(store, "a")
    one = take(store)
    begin(store, one)
    again(store, one)
    two = take(store)
    settle(store, two)
    assert settle(store, one) == "stale"
    assert {"retries", "late"} <= set(store.tasks.counts()["work"])
    (queue,) = listing.queues(store)
    assert views.namespace(store)["queues"] == {"work": queue["states"]} == {"work": {"succeeded": 1}}


@pytest.mark.parametrize("task_type", ["work", "another"])
@pytest.mark.parametrize("token", ["", "digest"])
def test_a_task_published_alone_leaves_in_redis_what_it_leaves_in_a_batch(
    redis_url: str, namespace: str, task_type: str, token: str
) -> None:
    """Two scripts publish: one for a single plain task, one for everything. Neither may know what the other does not."""
    left = []
    for way in ("alone", "batch"):
        store = open_store(redis_url, f"{namespace}-{way}")
        old = [word for number in range(10_100) for word in (number, f"old{number}")]
        store.client.execute("ZADD", store.keys["recent"], *old)
        store.client.execute("SET", store.keys["sequence"], 126)
        for number in range(3):  # the second arrival is the 128th: the newest tasks are cut to 10,000
            one = publication(f"t{number}", type=task_type, token=token)
            words = store.tasks.submit([one]) if way == "alone" else next(store.tasks.submit_batches([[one]]))
            assert words == ["moved"]
        left.append(everything(store))
    assert left[0] == left[1]
    assert "queue:work" in left[0] and len(left[0]["recent"]) == 10_001


def everything(store: Store) -> dict[str, object]:
    """Key -> content, of all keys of a namespace, without times."""
    ask, prefix, found = store.client.execute, store.keys.prefix.encode(), {}
    for key in ask("KEYS", prefix + b"*"):
        match ask("TYPE", key):
            case b"hash":
                flat = ask("HGETALL", key)
                fields = dict(zip(flat[::2], flat[1::2], strict=True))
                content = {name: value for name, value in fields.items() if name != b"created"}
            case b"zset" if key.endswith(b"recent"):
                content = sorted(ask("ZRANGE", key, 0, -1))
            case b"zset":
                content = ask("ZRANGE", key, 0, -1, "WITHSCORES")
            case b"set":
                content = sorted(ask("SMEMBERS", key))
            case b"list":
                content = ask("LRANGE", key, 0, -1)
            case _:
                content = ask("GET", key)
        found[key.removeprefix(prefix).decode()] = content
    return found


def test_the_most_urgent_first_then_in_order_of_arrival(store: Store) -> None:
    for task_id, priority in [("a", 4), ("b", 0), ("c", 9), ("d", 4), ("e", 9)]:
        publish(store, task_id, priority=priority)
    assert [one.id for one in fetch(store, limit=9)] == ["c", "e", "a", "d", "b"]


def test_a_fetch_over_several_queues_begins_with_the_most_urgent_head_then_the_oldest(store: Store) -> None:
    for task_id, queue, priority in [("a", "q1", 4), ("b", "q2", 4), ("c", "q3", 9), ("d", "q1", 4)]:
        publish(store, task_id, queue, priority=priority)
    assert [one.id for one in fetch(store, "q1", "q2", "q3")] == ["c"]
    assert [one.id for one in fetch(store, "q2", "q1")] == ["a"]
    assert [(one.id, one.queue) for one in fetch(store, "q1", "q2", limit=9)] == [("b", "q2"), ("d", "q1")]


def test_a_fetch_takes_only_from_the_queues_it_names_and_never_more_than_its_limit(store: Store) -> None:
    for number in range(5):
        publish(store, f"t{number}")
    assert fetch(store, "other", limit=9) == []
    assert [one.id for one in fetch(store, "work", "other", limit=3)] == ["t0", "t1", "t2"]
    assert store.tasks.size("work") == 2 and store.tasks.waiting("work") == ["t3", "t4"]


def test_a_released_task_goes_back_to_its_old_place_uncounted(store: Store) -> None:
    publish(store, "a")
    publish(store, "b")
    one = take(store)
    assert store.tasks.release([entry(one), Entry("b", "1-no"), Entry("none", "1-no")]) == [
        "moved",
        "stale",
        "missing",
    ]
    assert store.tasks.waiting("work") == ["a", "b"]
    back = take(store)
    assert (back.id, back.redelivered, back.watched) == ("a", True, False)
    assert (record(store, "a").crashes, record(store, "a").failures) == (0, 0)
    assert store.tasks.release([entry(one)]) == ["fenced"]


def test_a_task_whose_message_is_gone_is_put_aside_and_its_neighbours_go_on(store: Store) -> None:
    publish(store, "a")
    publish(store, "b")
    store.client.execute("DEL", store.keys.of("message", "a"))
    assert take(store).id == "b"
    assert (record(store, "a").state, record(store, "a").reason) == ("dead_lettered", "message lost")


def test_an_id_without_a_record_leaves_the_queue(store: Store) -> None:
    publish(store, "a")
    store.client.execute("DEL", store.keys.of("task", "a"))
    assert fetch(store) == [] and store.tasks.size("work") == 0


# -- bells (rule 8)


def bell(store: Store, queue: str = "work") -> int:
    return int(store.client.execute("LLEN", store.keys.of("bell", queue)))


def silence(store: Store, queue: str = "work") -> None:
    """As an idle agent that waits at the bell."""
    store.client.execute("LPOP", store.keys.of("bell", queue))


def test_a_bell_is_rung_once_however_much_is_published(store: Store) -> None:
    for task_id in "abc":
        publish(store, task_id)
    assert bell(store) == 1


def test_a_fetch_that_leaves_work_rings_again_in_every_queue(store: Store) -> None:
    for task_id, queue in [("a", "work"), ("b", "work"), ("c", "more")]:
        publish(store, task_id, queue)
        silence(store, queue)
    take(store, "work", "more")
    assert (bell(store), bell(store, "more")) == (1, 1)


def test_a_fetch_that_takes_the_last_rings_nothing(store: Store) -> None:
    publish(store, "a")
    silence(store)
    take(store)
    assert bell(store) == 0
    assert store.client.execute("SMEMBERS", store.keys["ready"]) == []


def test_what_comes_back_to_a_queue_rings(store: Store) -> None:
    publish(store, "a")
    one = take(store)
    silence(store)
    store.tasks.release([entry(one)])
    assert bell(store) == 1


def test_a_fetch_that_may_take_nothing_of_a_queue_does_not_wake_itself(store: Store) -> None:
    """Else a busy agent would ask again and again for the watched task that it must leave to others."""
    publish(store, "a")
    lose_holder(store, take(store))
    silence(store)
    assert fetch(store, isolated=False, held=1) == []
    assert bell(store) == 0
    publish(store, "b")
    silence(store)
    assert [one.id for one in fetch(store, isolated=False, held=1, limit=5)] == ["b"]
    assert bell(store) == 1


# -- times: schedule and expiry (rules 6 and 7)


def test_a_delayed_task_waits_for_its_time_then_arrives_as_the_newest(store: Store) -> None:
    publish(store, "later", delay_ms=MINUTE_MS)
    publish(store, "now")
    bound, words = store.tasks.fetch_words(
        holder="w#1", isolated=True, nonce="n", limit=0, held=0, queues=["empty"]
    )
    wait_ms, *_ = store.tasks.fetched(bound(*words))
    assert 0 < wait_ms <= MINUTE_MS
    assert record(store, "later").state == "scheduled"
    fall_due(store, "later")
    assert tick(store)[0] == 1
    assert store.tasks.waiting("work") == ["now", "later"]


def test_a_fetch_promotes_too_so_that_no_coordinator_is_needed(store: Store) -> None:
    publish(store, "a", delay_ms=MINUTE_MS, priority=9)
    fall_due(store, "a")
    assert (take(store).id, members(store, "scheduled")) == ("a", [])


@pytest.mark.parametrize("by", ["fetch", "tick"])
def test_an_expired_task_is_ended_as_revoked_and_its_neighbour_delivered(store: Store, by: str) -> None:
    publish(store, "a", expires_ms=MINUTE_MS)
    publish(store, "b", expires_ms=MINUTE_MS)
    lapse(store, "a")
    if by == "tick":
        assert tick(store)[1] == 1
    assert [one.id for one in fetch(store, limit=9)] == ["b"]
    state, _, document = store.tasks.outcome("a")
    assert state is State.EXPIRED and b'"status":"REVOKED"' in (document or b"")
    assert store.tasks.message("a") is None and members(store, "deadlines") == []


def test_a_scheduled_task_expires_too(store: Store) -> None:
    publish(store, "a", delay_ms=MINUTE_MS, expires_ms=MINUTE_MS)
    lapse(store, "a")
    assert tick(store)[:2] == (0, 1)
    assert members(store, "scheduled") == [] and record(store, "a").state == "expired"


def test_a_held_task_does_not_expire_but_one_that_waits_again_does(store: Store) -> None:
    publish(store, "a", expires_ms=MINUTE_MS)
    one = take(store)
    lapse(store, "a")
    assert tick(store)[1] == 0 and record(store, "a").state == "leased"
    store.tasks.release([entry(one)])
    assert tick(store)[1] == 1 and record(store, "a").state == "expired"
