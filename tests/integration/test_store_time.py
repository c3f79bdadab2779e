"""Expiry, total deadline, and what they do to each other and to new runs."""

from __future__ import annotations

import pytest

from mesh.core.states import Reason, State
from mesh.store.store import Store
from tests.integration.stores import (
    MINUTE_MS,
    again,
    begin,
    entry,
    fetch,
    lapse,
    members,
    open_store,
    pass_deadline,
    publish,
    record,
    settle,
    take,
    tick,
)


@pytest.fixture
def store(redis_url: str, namespace: str) -> Store:
    return open_store(redis_url, namespace)


def end_of(store: Store, task_id: str) -> tuple[State, str | None]:
    one = record(store, task_id)
    return one.state, one.reason


LATE = (State.TIMED_OUT, Reason.DEADLINE)


def test_a_deadline_ends_a_task_in_every_state(store: Store) -> None:
    publish(store, "later", deadline_ms=MINUTE_MS, delay_ms=MINUTE_MS)
    publish(store, "running", deadline_ms=MINUTE_MS)
    running = take(store)
    begin(store, running)
    publish(store, "leased", deadline_ms=MINUTE_MS)
    take(store)
    publish(store, "queued", deadline_ms=MINUTE_MS)
    ids = ["later", "running", "leased", "queued"]
    assert tick(store)[-1] == 0 and sorted(members(store, "deadlines")) == sorted(ids)
    for one in ids:
        pass_deadline(store, one)
    assert tick(store)[-1] == 4
    assert {end_of(store, one) for one in ids} == {LATE}
    assert [members(store, key) for key in ("scheduled", "leases", "deadlines")] == [[], [], []]
    assert settle(store, running) == "stale", "a late result is refused"


@pytest.mark.parametrize("waits", [True, False])
def test_without_a_coordinator_a_beat_ends_it_and_hears_that_it_is_lost(store: Store, waits: bool) -> None:
    publish(store, "a", deadline_ms=MINUTE_MS, delay_ms=MINUTE_MS if waits else None)
    held = [] if waits else [entry(take(store))]
    pass_deadline(store, "a")
    assert store.agents.renew("w", 1, {}, held).words == ["lost"] * len(held)
    assert end_of(store, "a") == LATE


def test_without_a_coordinator_a_fetch_ends_what_it_meets(store: Store) -> None:
    publish(store, "a", deadline_ms=MINUTE_MS)
    publish(store, "b")
    pass_deadline(store, "a")
    assert [one.id for one in fetch(store, limit=2)] == ["b"]
    assert end_of(store, "a") == LATE and members(store, "deadlines") == []


def test_the_agent_that_runs_it_is_nudged(store: Store) -> None:
    publish(store, "a", deadline_ms=MINUTE_MS)
    take(store)
    pass_deadline(store, "a")
    tick(store)
    assert store.client.execute("LRANGE", store.keys.of("nudge", "worker-1"), 0, -1) == [b"deadline"]


def test_an_expiry_does_not_hide_the_deadline_behind_it(store: Store) -> None:
    publish(store, "a", expires_ms=MINUTE_MS, deadline_ms=2 * MINUTE_MS)
    one = take(store)
    lapse(store, "a")
    assert tick(store)[1] == 0, "it was started in time"
    assert members(store, "deadlines") == ["a"]
    pass_deadline(store, "a")
    store.client.execute("ZADD", store.keys["deadlines"], 1, "a")
    assert tick(store)[-1] == 1 and end_of(store, "a") == LATE
    assert settle(store, one) == "stale"


def test_an_expired_task_says_that_it_was_not_started_in_time(store: Store) -> None:
    publish(store, "a", expires_ms=MINUTE_MS, deadline_ms=2 * MINUTE_MS)
    lapse(store, "a")
    tick(store)
    assert end_of(store, "a") == (State.EXPIRED, Reason.NOT_STARTED)


def test_a_retry_that_would_come_too_late_is_refused_and_changes_nothing(store: Store) -> None:
    publish(store, "a", deadline_ms=MINUTE_MS)
    one = take(store)
    assert again(store, one, delay_ms=2 * MINUTE_MS) == "late"
    assert record(store, "a").state is State.LEASED
    assert again(store, one, delay_ms=1000) == "moved"
    assert members(store, "deadlines") == ["a"]


def test_a_new_run_has_the_deadline_that_it_is_given_and_no_other(store: Store) -> None:
    publish(store, "a", deadline_ms=MINUTE_MS)
    pass_deadline(store, "a")
    tick(store)
    assert store.tasks.replay("a", 1, b"message") == "moved"
    assert record(store, "a").deadline_at is None and tick(store)[-1] == 0
    assert settle(store, take(store)) == "moved"
    publish(store, "a", kind="outside", token="call-2", deadline_ms=MINUTE_MS)
    assert record(store, "a").deadline_at is not None and members(store, "deadlines") == ["a"]
    assert settle(store, take(store)) == "moved"
    assert members(store, "deadlines") == []
