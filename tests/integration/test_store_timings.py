"""How long attempts wait and run, and what is counted beside the states: by the scripts, in the step that moves the task."""

import itertools

import pytest

from mesh.core.states import Reason, State
from mesh.core.timings import BOUNDS_MS, RECENT_RUNS, Kind
from mesh.store.store import Store
from mesh.store.tasks import Entry
from tests.integration.stores import (
    again,
    begin,
    fall_due,
    fetch,
    lose_holder,
    open_store,
    publish,
    settle,
    take,
    tick,
)

SLOW_MS = 700  # between 500 and 1000
SLOW = BOUNDS_MS.index(1000)


@pytest.fixture
def store(redis_url: str, namespace: str) -> Store:
    return open_store(redis_url, namespace, max_crashes=3)


def count(store: Store, kind: Kind, queue: str = "work") -> int:
    found = store.tasks.timings().get((queue, kind))
    return found.count if found else 0


def since(store: Store, task_id: str, field: str, ms: int) -> None:
    """As if that had been so long ago."""
    store.client.execute("HSET", store.keys.of("task", task_id), field, store.agents.now_ms() - ms)


def test_an_attempt_is_counted_once_where_its_start_and_its_end_are_told(store: Store) -> None:
    publish(store, "a")
    since(store, "a", "created", SLOW_MS)
    one = take(store)
    assert store.tasks.timings() == {}, "it has not started"
    begin(store, one)
    wait = store.tasks.timings()["work", Kind.WAIT]
    assert wait.buckets[SLOW] == 1 and SLOW_MS <= wait.sum_ms < 1000
    since(store, "a", "started", SLOW_MS)
    assert settle(store, one) == "moved"
    run = store.tasks.timings()["work", Kind.RUN]
    assert run.buckets[SLOW] == 1 and SLOW_MS <= run.sum_ms < 1000
    assert settle(store, one) == "repeated"
    assert (count(store, Kind.WAIT), count(store, Kind.RUN)) == (1, 1)


def test_an_end_that_comes_before_its_start_was_told_counts_both(store: Store) -> None:
    publish(store, "a")
    since(store, "a", "created", SLOW_MS)
    assert settle(store, take(store), ran_ms=3) == "moved"
    timings = store.tasks.timings()
    assert timings["work", Kind.WAIT].buckets[SLOW] == 1
    assert (timings["work", Kind.RUN].buckets[0], timings["work", Kind.RUN].sum_ms) == (1, 3)


def test_each_attempt_waits_anew(store: Store) -> None:
    publish(store, "a")
    since(store, "a", "created", 100_000_000)
    one = take(store)
    begin(store, one)
    again(store, one, delay_ms=60_000)
    assert (count(store, Kind.WAIT), count(store, Kind.RUN)) == (1, 1)
    fall_due(store, "a")
    tick(store)
    two = take(store)
    begin(store, two)
    lose_holder(store, two)
    (three,) = fetch(store)
    assert settle(store, three) == "moved"
    waits = store.tasks.timings()["work", Kind.WAIT]
    assert waits.count == 3 and waits.buckets[-1] == 1, "only the first had waited for long"
    assert count(store, Kind.RUN) == 2, "nobody knows how long the one that was lost has run"


def test_an_attempt_that_is_tried_again_before_its_start_was_told_counts_too(store: Store) -> None:
    publish(store, "a")
    since(store, "a", "created", SLOW_MS)
    again(store, take(store))
    timings = store.tasks.timings()
    assert timings["work", Kind.WAIT].buckets[SLOW] == 1 and timings["work", Kind.RUN].buckets[0] == 1


def test_an_attempt_whose_process_died_before_its_start_was_told_has_waited_too(store: Store) -> None:
    publish(store, "a")
    for attempts in (1, 2):
        one = take(store)
        if attempts == 1:
            begin(store, one)
        store.tasks.crash(Entry(one.id, one.fence), "died")
        assert (count(store, Kind.WAIT), count(store, Kind.RUN)) == (attempts, 0)


def test_what_an_agent_refused_was_not_run(store: Store) -> None:
    publish(store, "a")
    settle(store, take(store), State.DEAD_LETTERED, reason=Reason.FORGED)
    assert store.tasks.timings() == {} and store.tasks.counts()["work"]["refused"] == 1


def test_ends_that_come_too_late_are_counted(store: Store) -> None:
    publish(store, "a")
    late = take(store)
    begin(store, late)
    lose_holder(store, late)
    one = take(store)
    assert settle(store, late) == "fenced"
    assert settle(store, one) == "moved"
    assert settle(store, late) == "stale"
    counts = store.tasks.counts()["work"]
    assert (counts["late"], counts["reassigned"], counts["succeeded"]) == (2, 1, 1)


def test_a_time_in_each_bucket_is_found_there(store: Store) -> None:
    for index, bound_ms in enumerate((*BOUNDS_MS, BOUNDS_MS[-1] + 1)):
        publish(store, f"a-{index}", f"q-{index}")
        settle(store, take(store, f"q-{index}"), ran_ms=bound_ms)
        run = store.tasks.timings()[f"q-{index}", Kind.RUN]
        assert (run.buckets[index], run.count, run.sum_ms) == (1, 1, bound_ms)


def test_the_recent_mean_follows_what_runs_now(store: Store) -> None:
    def run(ms: int, times: int) -> float:
        for _ in range(times):
            publish(store, one := f"{run.__name__}-{next(numbers)}")
            (taken,) = fetch(store)
            assert taken.id == one and settle(store, taken, ran_ms=ms) == "moved"
        timing = store.tasks.timings()["work", Kind.RUN]
        assert timing.lately_ms == timing.recent_ms is not None
        return timing.recent_ms

    numbers = itertools.count()
    assert run(1000, 1) == 1000 and run(500, 1) == 750, "the plain mean of the first ones"
    run(1000, RECENT_RUNS)
    before = store.tasks.timings()["work", Kind.RUN].mean_ms
    after = run(0, 3 * RECENT_RUNS)
    assert before is not None and before > 900
    assert after < 0.06 * before, "each weighs 1 %: after 300 what was before weighs 5 %"
