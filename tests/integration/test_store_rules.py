"""One id published again, attempts that are lost, leases: the rules found by thinking through interleavings."""

import pytest

from mesh.core.states import State
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
    lose_holder,
    lose_lease,
    members,
    open_store,
    publication,
    publish,
    record,
    settle,
    take,
    tick,
)


@pytest.fixture
def store(redis_url: str, namespace: str) -> Store:
    return open_store(redis_url, namespace, max_crashes=3)


def end(store: Store, state: State = State.SUCCEEDED) -> None:
    """Run the next task to its end."""
    assert settle(store, take(store), state) == "moved"


# -- one id, published again (rule 6)


def test_creating_is_idempotent_while_the_record_lives_and_a_conflict_if_the_content_differs(
    store: Store,
) -> None:
    assert publish(store, "a", token="digest", message=b"1") == "moved"
    assert publish(store, "a", token="digest", message=b"2") == "exists"
    assert publish(store, "a", token="other") == "conflict"
    assert store.tasks.message("a") == b"1" and store.tasks.waiting("work") == ["a"]
    end(store)
    assert publish(store, "a", token="digest") == "exists"
    assert publish(store, "a", token="other") == "conflict"
    assert record(store, "a").state == "succeeded"


def test_from_outside_a_live_id_stays_as_it_is(store: Store) -> None:
    publish(store, "a", kind="outside", token="call-1", message=b"1")
    assert publish(store, "a", kind="outside", token="call-2", message=b"2") == "exists"
    one = take(store)
    assert (one.message, publish(store, "a", kind="outside", token="call-3")) == (b"1", "exists")
    assert settle(store, one) == "moved"


def test_from_outside_an_ended_id_starts_a_new_run_and_the_same_call_twice_only_one(store: Store) -> None:
    publish(store, "a", kind="outside", token="call-1")
    old = take(store)
    settle(store, old, State.DEAD_LETTERED, reason="why")
    assert publish(store, "a", kind="outside", token="call-2", message=b"2") == "moved"
    fresh = record(store, "a")
    assert (fresh.state, fresh.run, fresh.reason, fresh.ended) == ("queued", 2, None, None)
    assert store.tasks.outcome("a") == (State.QUEUED, 0, None)
    assert store.tasks.dead_letters() == []
    assert store.client.execute("PTTL", store.keys.of("task", "a")) == -1
    assert store.client.execute("PTTL", store.keys.of("message", "a")) == -1
    assert publish(store, "a", kind="outside", token="call-2") == "exists"
    one = take(store)
    assert (one.run, one.message) == (2, b"2")
    assert settle(store, old) == "fenced"
    settle(store, one)
    assert publish(store, "a", kind="outside", token="call-2") == "exists", (
        "a repeated call, its reply was lost"
    )


def test_the_first_publication_of_a_parents_run_wins(store: Store) -> None:
    assert publish(store, "a", kind="child", token="p:1", message=b"1") == "moved"
    assert publish(store, "a", kind="child", token="p:1", message=b"2") == "exists"
    end(store)
    assert publish(store, "a", kind="child", token="p:1") == "exists"
    assert (record(store, "a").state, record(store, "a").run) == ("succeeded", 1)


@pytest.mark.parametrize("state", ["queued", "scheduled", "leased", "running", "succeeded"])
def test_a_newer_run_of_the_parent_starts_a_newer_run_wherever_the_old_one_is(
    store: Store, state: str
) -> None:
    publish(store, "a", kind="child", token="p:1", delay_ms=MINUTE_MS if state == "scheduled" else None)
    held = fetch(store) if state not in ("queued", "scheduled") else []
    if state == "running":
        begin(store, held[0])
    if state == "succeeded":
        settle(store, held[0])
    assert record(store, "a").state == state
    assert publish(store, "a", "elsewhere", kind="child", token="p:2", message=b"2") == "moved"
    assert (members(store, "scheduled"), members(store, "leases"), store.tasks.size("work")) == ([], [], 0)
    one = take(store, "elsewhere")
    assert (one.run, one.message, one.watched) == (2, b"2", False)
    for old in held:
        assert settle(store, old) == "fenced"
        assert store.agents.renew("w", 1, {}, [entry(old)]).words == ["lost"]
    assert settle(store, one) == "moved"
    live = {(queue, str(name)): number for queue, name, number in store.tasks.live()}
    assert live == {}


def test_an_older_run_of_the_parent_that_publishes_late_changes_nothing(store: Store) -> None:
    publish(store, "a", kind="child", token="p:9", message=b"9")
    assert publish(store, "a", kind="child", token="p:10", message=b"10") == "moved"
    assert publish(store, "a", kind="child", token="p:9", message=b"9") == "exists"
    one = take(store)
    assert publish(store, "a", kind="child", token="p:9", message=b"9") == "exists"
    assert (one.message, settle(store, one)) == (b"10", "moved")


def test_another_parent_starts_a_newer_run(store: Store) -> None:
    """A chord's body, which the tick of any process may publish, has the chord as its parent."""
    publish(store, "a", kind="child", token="p:5")
    assert publish(store, "a", kind="child", token="chord:g:1700000000000") == "moved"


def test_several_at_once_are_answered_one_by_one(store: Store) -> None:
    publish(store, "old", token="t")
    words = store.tasks.submit(
        [
            publication(one, queue, token=token)
            for one, queue, token in [
                ("new", "work", "t"),
                ("old", "work", "t"),
                ("new", "work", "t"),
                ("old", "work", "u"),
                ("else", "a+b", "t"),
            ]
        ]
    )
    assert words == ["moved", "exists", "exists", "conflict", "moved"]
    assert store.tasks.waiting("work") == ["old", "new"] and store.tasks.waiting("a+b") == ["else"]


# -- the running attempt publishes its own id (rule 6)


def test_an_own_retry_is_one_move_and_the_old_fence_is_refused_afterwards(store: Store) -> None:
    publish(store, "a", message=b"1")
    one = take(store)
    begin(store, one)
    store.tasks.annotate("a", one.fence, b'"half"')
    assert again(store, one, delay_ms=MINUTE_MS, message=b"2", queue="more", priority=9) == "moved"
    waiting = record(store, "a")
    assert (waiting.state, waiting.failures, waiting.run, waiting.queue) == ("scheduled", 1, 1, "more")
    assert (members(store, "leases"), members(store, "scheduled")) == ([], ["a"])
    assert settle(store, one) == "stale", "the acknowledgement that follows says nothing (rule 3)"
    fall_due(store, "a")
    two = take(store, "more")
    assert (two.message, two.redelivered, two.watched, two.priority) == (b"2", True, False, 9)
    assert settle(store, one) == "fenced" and settle(store, two) == "moved"
    assert store.tasks.counts()["more"]["retries"] == 1


def test_a_retry_at_once_arrives_as_the_newest(store: Store) -> None:
    publish(store, "a")
    publish(store, "b")
    assert again(store, take(store), failed=False) == "moved"
    assert store.tasks.waiting("work") == ["b", "a"]
    assert record(store, "a").failures == 0


def test_a_parked_task_waits_for_its_canvas(store: Store) -> None:
    """A task that replaced itself by a chord: the body has its id, and is published when the header is complete."""
    publish(store, "a", message=b"1", expires_ms=MINUTE_MS)
    one = take(store)
    begin(store, one)
    assert again(store, one, delay_ms="parked", message=b"", failed=False) == "moved"
    assert (record(store, "a").state, store.tasks.message("a")) == ("scheduled", b"1")
    assert tick(store)[:2] == (0, 0) and fetch(store) == []
    assert (members(store, "scheduled"), members(store, "deadlines")) == ([], [])
    assert publish(store, "a", kind="child", token="chord:g:1", message=b"body") == "moved"
    two = take(store)
    assert (two.message, two.run, settle(store, two)) == (b"body", 2, "moved")
    assert settle(store, one) == "stale"


# -- crashes and watched tasks (rule 1)


def test_a_task_that_kills_its_agents_is_put_aside_and_its_neighbours_go_on(store: Store) -> None:
    publish(store, "poison")
    publish(store, "good")
    for number in range(3):
        one, *rest = fetch(store, limit=2)
        assert one.id == "poison" and one.watched == (number > 0)
        begin(store, one)
        crashed = store.tasks.crash(entry(one), "its process died: signal 9")
        assert crashed[:2] == ("moved", "queued" if number < 2 else "dead_lettered")
        store.tasks.release([entry(other) for other in rest])
    aside = record(store, "poison")
    assert (aside.state, aside.crashes, aside.failures) == ("dead_lettered", 3, 0)
    said = "it killed its pool process on worker-1, worker-1 and worker-1; the last time its process died: signal 9"
    assert (aside.reason, aside.error) == ("poison", said)
    assert [one.id for one in store.tasks.dead_letters()] == ["poison"]
    document = store.tasks.outcome("poison")[2] or b""
    assert b"WorkerLostError" in document and said.encode() in document
    end(store)
    assert record(store, "good").crashes == 0
    assert store.tasks.counts()["work"]["crashes"] == 3


def test_losing_an_agent_counts_only_against_what_it_had_started(store: Store) -> None:
    """Else a poison task would condemn those that were fetched beside it."""
    for task_id in "abc":
        publish(store, task_id)
    started, leased, ended = fetch(store, limit=3)
    begin(store, started)
    settle(store, ended)
    for one in (started, leased):
        lose_lease(store, one.id)
    calm(store)
    assert store.tasks.reap() == (2, [], -1, [], [])
    assert (record(store, "a").crashes, record(store, "b").crashes) == (1, 0)
    assert [(one.how, one.error) for one_id in "ab" for one in record(store, one_id).past] == [
        ("crashed", "agent worker-1 died while it ran"),
        ("lost", "agent worker-1 died before it started"),
    ]
    assert store.tasks.waiting("work") == ["a", "b"]
    assert store.tasks.counts()["work"]["reassigned"] == 2


@pytest.mark.parametrize("started", [True, False])
def test_what_lost_its_agent_is_delivered_alone_with_its_start_recorded(store: Store, started: bool) -> None:
    for task_id in "abc":
        publish(store, task_id)
    one = take(store)
    if started:
        begin(store, one)
    lose_holder(store, one)
    watched = take(store, limit=9)
    assert (watched.id, watched.watched, record(store, "a").state) == ("a", True, "running")
    assert begin(store, watched) == "stale" and settle(store, watched) == "moved"
    assert [one.id for one in fetch(store, limit=9)] == ["b", "c"]


def test_a_watched_task_behind_others_does_not_join_them(store: Store) -> None:
    publish(store, "urgent", priority=9)
    publish(store, "a")
    urgent, one = fetch(store, limit=2)
    lose_holder(store, one)
    store.tasks.release([entry(urgent)])
    publish(store, "b")
    assert [one.id for one in fetch(store, limit=9)] == ["urgent", "b"]
    assert [one.id for one in fetch(store, limit=9)] == ["a"]


def test_an_agent_whose_tasks_share_a_process_takes_a_watched_task_when_idle_or_after_patience(
    store: Store,
) -> None:
    publish(store, "a")
    lose_holder(store, take(store))
    publish(store, "b")
    busy = {"isolated": False, "held": 1, "limit": 9}
    assert [one.id for one in fetch(store, **busy)] == ["b"]
    assert fetch(store, **busy) == []
    (one,) = fetch(store, **{**busy, "held": 0})
    assert (one.id, one.watched) == ("a", True)
    store.tasks.release([entry(one)])
    (one,) = fetch(store, **busy, patience_ms=0)
    assert one.id == "a"


def test_poison_that_kills_whole_agents_is_put_aside_by_the_reaper(store: Store) -> None:
    publish(store, "a")
    for _ in range(2):
        one = take(store)
        begin(store, one)
        lose_holder(store, one)
    lose_lease(store, take(store).id)
    assert store.tasks.reap()[:2] == (0, ["a"])
    assert (record(store, "a").reason, record(store, "a").crashes) == ("poison", 3)


# -- leases


def test_a_lease_ends_by_redis_clock_and_is_told_ahead(store: Store) -> None:
    publish(store, "a")
    take(store)
    again_, aside, next_end_ms, *_ = store.tasks.reap()
    assert (again_, aside) == (0, []) and 0 < next_end_ms <= store.settings.lease_ms
    assert record(store, "a").state == "leased"


def test_one_reap_takes_back_no_more_than_its_limit(store: Store) -> None:
    for task_id in "abc":
        publish(store, task_id)
    for one in fetch(store, limit=3):
        lose_lease(store, one.id)
    calm(store)
    assert store.tasks.reap(limit=2)[:3] == (2, [], 0)
    assert store.tasks.reap(limit=2)[:3] == (1, [], -1)


def test_after_a_silence_of_redis_nothing_is_reaped_for_one_lease(store: Store) -> None:
    """Redis slept or was down: nobody could renew, so an old lease proves nothing."""
    publish(store, "a")
    one = take(store)
    lose_lease(store, "a")
    store.client.execute("SET", store.keys["pulse"], store.agents.now_ms() - MINUTE_MS)
    assert store.tasks.reap()[:2] == (0, [])
    assert store.tasks.reap()[:2] == (0, []), "the pulse is fresh again, the grace goes on"
    left_ms = store.client.execute("PTTL", store.keys["grace"])
    assert 0 < left_ms <= store.settings.lease_ms
    assert store.agents.renew("worker-1", 1, {}, [entry(one)]).words == ["held"]
    calm(store)
    assert store.tasks.reap()[:2] == (0, []), "its holder has renewed meanwhile"
    lose_lease(store, "a")
    assert store.tasks.reap()[:2] == (1, [])


def test_a_beat_after_a_silence_sets_the_grace_too(store: Store) -> None:
    publish(store, "a")
    take(store)
    lose_lease(store, "a")
    store.client.execute("SET", store.keys["pulse"], LONG_AGO_MS)
    store.agents.renew("somebody", 1, {}, [])
    assert store.tasks.reap()[:2] == (0, [])


def test_a_beat_renews_exactly_what_it_names_and_says_what_became_of_the_rest(store: Store) -> None:
    for task_id in ("held", "settled", "cancelled", "released", "forgotten"):
        publish(store, task_id)
    held, settled, cancelled, released, forgotten = fetch(store, limit=5)
    settle(store, settled)
    store.tasks.cancel("cancelled", "why")
    store.tasks.release([entry(released)])
    taken_over = take(store, holder="worker-2#1")
    for task_id in ("held", "released", "forgotten"):
        lose_lease(store, task_id)
    beat = store.agents.renew("worker-1", 1, {}, [entry(one) for one in (held, settled, cancelled, released)])
    assert beat.words == ["held", "settled", "lost", "lost"]
    assert beat.next_lease_end_ms == 0, "somebody's lease has ended: time to reap"
    assert members(store, "leases") == ["forgotten", "released", "held"]
    calm(store)
    assert store.tasks.reap()[0] == 2
    assert settle(store, held) == "moved"
    assert settle(store, taken_over) == settle(store, forgotten) == "stale"


def test_what_a_death_interrupted_goes_ahead_of_all_priorities_once(store: Store) -> None:
    publish(store, "low", priority=0)
    first = take(store)
    begin(store, first)
    for number in range(3):
        publish(store, f"urgent-{number}", priority=9)
    lose_holder(store, first)
    again = take(store)
    assert again.id == "low" and again.priority == 0
    store.tasks.release([entry(again)])
    assert take(store).id == "urgent-0"
