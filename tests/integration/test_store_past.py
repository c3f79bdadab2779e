"""Attempts that ended without ending their task: remembered on the record, once each, in order."""

from __future__ import annotations

import pytest

from mesh.bus import messages
from mesh.core.states import State
from mesh.services import tasks as task_services
from mesh.services import views
from mesh.store.signing import sealer
from mesh.store.store import Store
from mesh.store.tasks import Attempt
from tests.integration.stores import (
    again,
    begin,
    calm,
    entry,
    fetch,
    lose_holder,
    lose_lease,
    open_store,
    publish,
    record,
    settle,
    take,
)

ERROR = 'ValueError: "page 4" is empty, \\ and é'


@pytest.fixture
def store(redis_url: str, namespace: str) -> Store:
    return open_store(redis_url, namespace)


def past(store: Store, task_id: str = "a") -> list[tuple[int, int, str | None, str]]:
    """(run, attempt, agent, how) of what is remembered."""
    return [(one.run, one.attempt, one.agent, one.how) for one in record(store, task_id).past]


def test_a_task_that_simply_succeeds_has_none(store: Store) -> None:
    publish(store, "a")
    one = take(store)
    begin(store, one)
    settle(store, one)
    assert record(store, "a").past == ()
    tried = views.attempts(record(store, "a"))
    assert (tried["past"], tried["latest"]["how"], tried["latest"]["attempt"]) == ([], "succeeded", 1)


def test_each_way_to_end_without_an_end_is_told_with_agent_times_and_error(store: Store) -> None:
    publish(store, "a")
    failed = take(store)
    begin(store, failed)
    again(store, failed, problem=ERROR)
    store.tasks.release([entry(take(store, holder="worker-2#7"))])
    lose_holder(store, take(store, holder="worker-3#1"))
    crashed = take(store, holder="worker-4#1")
    begin(store, crashed)
    store.tasks.crash(entry(crashed), "its process died: signal 9")
    replaced = take(store, holder="worker-5#1")
    again(store, replaced, failed=False, message=b"other")
    assert past(store) == [
        (1, 1, "worker-1", "failed"),
        (1, 2, "worker-2", "released"),
        (1, 3, "worker-3", "lost"),
        (1, 4, "worker-4", "crashed"),
        (1, 5, "worker-5", "replaced"),
    ]
    one, two, three, four, five = record(store, "a").past
    assert [attempt.error for attempt in (one, two, three, four, five)] == [
        ERROR,
        None,
        "agent worker-3 died before it started",
        "its process died: signal 9",
        None,
    ]
    assert [attempt.started is None for attempt in (one, two, three, four, five)] == [
        False, True, True, False, False
    ]  # fmt: skip
    for attempt in (one, two, three, four, five):
        assert attempt.leased <= (attempt.started or attempt.leased) <= attempt.ended
    assert views.attempts(record(store, "a"))["latest"] is None, "the newest attempt is among the past ones"


def test_an_attempt_whose_start_was_not_told_yet_has_begun_if_it_failed(store: Store) -> None:
    publish(store, "a")
    again(store, take(store))
    (one,) = record(store, "a").past
    assert one.started == one.ended


def test_the_attempt_under_way_is_the_latest(store: Store) -> None:
    publish(store, "a")
    first = take(store)
    begin(store, first)
    again(store, first)
    take(store, holder="worker-2#1")
    latest = views.attempts(record(store, "a"))["latest"]
    assert (latest["attempt"], latest["agent"], latest["how"]) == (2, "worker-2", "leased")
    assert latest["started_at"] is None and latest["ended_at"] is None, "those of the attempt before"


@pytest.mark.parametrize(
    ("end", "reason", "how"),
    [
        (State.FAILED, "KeyError", "failed"),
        (State.TIMED_OUT, "attempt timed out", "timed_out"),
        (State.DEAD_LETTERED, "ValueError", "failed"),
        (State.DEAD_LETTERED, "poison", "crashed"),
    ],
)
def test_a_replay_remembers_what_ended_the_run_before(
    store: Store, end: State, reason: str, how: str
) -> None:
    message = sealer(store, "work")("a", messages.of_arguments("t", b"[]"))
    publish(store, "a", message=message)
    first = take(store)
    begin(store, first)
    again(store, first, problem="first", message=message)
    second = take(store, holder="worker-2#1")
    begin(store, second)
    settle(store, second, end, reason=reason, error="second")
    assert (record(store, "a").reason, record(store, "a").error) == (reason, "second")
    ended = record(store, "a").ended
    task_services.retry(store, "a")
    assert past(store) == [(1, 1, "worker-1", "failed"), (1, 2, "worker-2", how)]
    last = record(store, "a").past[-1]
    assert (last.error, last.ended) == ("second", ended)
    assert record(store, "a").error is None
    third = take(store)
    assert (third.run, record(store, "a").attempt) == (2, 3)
    store.tasks.release([entry(third)])
    assert past(store)[-1] == (2, 3, "worker-1", "released")


def test_nothing_is_remembered_twice_when_a_task_ended_while_it_waited(store: Store) -> None:
    publish(store, "a")
    again(store, take(store))
    store.tasks.conclude("a", State.FAILED, b"{}")
    assert store.tasks.replay("a", 1, b"m") == "moved"
    assert past(store) == [(1, 1, "worker-1", "failed")]


def test_the_newest_thirty_two_are_kept(store: Store) -> None:
    publish(store, "a")
    for _ in range(40):
        store.tasks.release([entry(take(store))])
    assert [one.attempt for one in record(store, "a").past] == list(range(9, 41))


def test_a_fresh_submission_of_the_id_begins_anew(store: Store) -> None:
    publish(store, "a", kind="outside", token="1")
    again(store, take(store))
    settle(store, take(store))
    assert publish(store, "a", kind="outside", token="2") == "moved"
    assert record(store, "a").past == ()


def test_a_late_word_of_an_old_attempt_adds_nothing(store: Store) -> None:
    publish(store, "a")
    late = take(store)
    begin(store, late)
    lose_holder(store, late)
    take(store, holder="worker-2#1")
    assert again(store, late) == "fenced"
    assert store.tasks.release([entry(late)]) == ["fenced"]
    assert store.tasks.crash(entry(late), "died").word == "fenced"
    assert past(store) == [(1, 1, "worker-1", "crashed")]


@pytest.mark.parametrize(
    ("holders", "sentence"),
    [
        (["w1 agent", "w2 agent", "w1 agent"], "it killed agents w1, w2 and w1"),
        (
            ["w1 process", "w1 process", "w2 process"],
            "it killed its pool process on w1, w1 and w2; the last time it exited",
        ),
        (
            ["w1 agent", "w2 process", "w3 process"],
            "it killed agent w1, and its pool process on w2 and w3; the last time it exited",
        ),
        (["w1 process", "w2 agent", "w3 agent"], "it killed agents w2 and w3, and its pool process on w1"),
    ],
)
def test_poison_names_what_it_killed(store: Store, holders: list[str], sentence: str) -> None:
    publish(store, "a")
    for holder in holders:
        name, _, what = holder.partition(" ")
        (one,) = fetch(store, holder=f"{name}#1")
        begin(store, one)
        if what == "agent":
            lose_holder(store, one)
        else:
            store.tasks.crash(entry(one), "it exited")
    aside = record(store, "a")
    assert (aside.state, aside.reason, aside.error) == ("dead_lettered", "poison", sentence)
    assert sentence.encode() in (store.tasks.outcome("a")[2] or b"")
    assert [one.how for one in aside.past] == ["crashed", "crashed"]


def test_poison_that_is_replayed_has_its_crashes_before_it_again(store: Store) -> None:
    publish(store, "a")
    for _ in range(3):
        one = take(store)
        begin(store, one)
        lose_holder(store, one)
    assert record(store, "a").state == "dead_lettered"
    assert store.tasks.replay("a", 1, b"m") == "moved"
    assert (record(store, "a").crashes, len(record(store, "a").past)) == (0, 3)
    one = take(store, holder="other#1")
    begin(store, one)
    lose_holder(store, one)
    assert (record(store, "a").state, record(store, "a").crashes) == ("queued", 1)


def test_an_attempt_is_what_the_view_shows(store: Store) -> None:
    publish(store, "a")
    again(store, take(store), problem=ERROR)
    (one,) = record(store, "a").past
    assert isinstance(one, Attempt)
    (shown,) = views.task(record(store, "a"))["past"]
    assert shown == {
        "attempt": 1,
        "run": 1,
        "agent": "worker-1",
        "how": "failed",
        "leased_at": views.iso(one.leased),
        "started_at": views.iso(one.started),
        "ended_at": views.iso(one.ended),
        "error": ERROR,
    }


def poison(store: Store) -> None:
    """Task `a` has killed its third agent, and nobody has reaped that yet."""
    publish(store, "a")
    for number in range(3):
        one = take(store)
        begin(store, one)
        if number < 2:
            lose_holder(store, one)
    lose_lease(store, "a")
    calm(store)


def test_the_end_of_poison_is_told_by_one_who_claims_it(store: Store) -> None:
    poison(store)
    reaped = store.tasks.reap()
    assert (reaped.aside, reaped.claimed, reaped.next_end_ms) == (["a"], [], 0), "a coordinator tells nobody"
    assert store.agents.renew("w", 1, {}, []).next_lease_end_ms == 0, "the next beat of an agent hears of it"
    assert store.tasks.reap(claim=5).claimed == ["a"]
    assert store.tasks.reap(claim=5).claimed == [], "it is being told"
    assert 0 < store.tasks.reap().next_end_ms <= 10_000, "if its teller dies, another tries again"
    store.tasks.told(["a"])
    assert (store.tasks.reap(claim=5).claimed, store.tasks.reap().next_end_ms) == ([], -1)


def test_whoever_reaps_may_claim_at_once(store: Store) -> None:
    poison(store)
    reaped = store.tasks.reap(claim=5)
    assert (reaped.aside, reaped.claimed) == (["a"], ["a"])


def test_an_agent_whose_pool_process_died_tells_by_itself(store: Store) -> None:
    publish(store, "a")
    for _ in range(3):
        store.tasks.crash(entry(take(store)), "it exited")
    assert store.tasks.reap(claim=5).claimed == []
    assert 0 < store.tasks.reap().next_end_ms <= 10_000
