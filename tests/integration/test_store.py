"""Tasks in the store: how they end, what is kept of them, what is counted."""

import random
from collections import Counter

import pytest

from mesh.core.states import HELD, LIVE, TERMINAL, State
from mesh.errors import StoreUnavailable
from mesh.store.embedded import Server, start_server
from mesh.store.store import Store
from mesh.store.tasks import Settlement
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

# -- ends


def test_a_batch_of_ends_answers_for_each(store: Store) -> None:
    for task_id in "abc":
        publish(store, task_id)
    one, two, _ = fetch(store, limit=3)
    words, due = store.tasks.settle(
        [
            Settlement(one.id, one.fence, State.SUCCEEDED),
            Settlement(one.id, one.fence, State.SUCCEEDED),
            Settlement(two.id, "1-other", State.SUCCEEDED),
            Settlement("none", "1-n", State.SUCCEEDED),
        ]
    )
    assert (words, due) == (["moved", "repeated", "fenced", "missing"], [])
    assert members(store, "leases") == ["b", "c"]


def test_a_late_end_changes_nothing(store: Store) -> None:
    """At most one live lease, exactly one recorded result: the fence decides, together with the state."""
    publish(store, "a")
    late = take(store)
    begin(store, late)
    lose_holder(store, late)
    assert settle(store, late) == "stale"
    current = take(store, holder="worker-2#1")
    for attempt_at_it in (
        settle(store, late),
        again(store, late),
        store.tasks.release([entry(late)])[0],
        store.tasks.crash(entry(late), "died")[0],
        store.tasks.annotate("a", late.fence, b"{}"),
    ):
        assert attempt_at_it == "fenced"
    assert begin(store, late) == "stale"  # a watched task counts as started from its delivery on
    assert settle(store, current, document=b'"second"') == "moved"
    assert settle(store, late, document=b'"first"') == "stale"
    assert store.tasks.outcome("a")[2] == b'"second"'


def test_a_late_start_changes_nothing(store: Store) -> None:
    """A pool that takes up what was given back meanwhile must not make the next holder look as if it had started."""
    publish(store, "a")
    late = take(store)
    store.tasks.release([entry(late)])
    current = take(store, holder="worker-2#1")
    assert begin(store, late) == "fenced" and record(store, "a").state == "leased"
    assert begin(store, current) == "moved" and begin(store, current) == "stale"


def test_two_attempts_of_the_same_number_are_told_apart_by_their_nonce(store: Store) -> None:
    """After a failover that lost writes, two holders may both have attempt 1 (rule 2)."""
    publish(store, "a")
    one = take(store, nonce="second")
    assert store.tasks.settle([Settlement("a", "1-first", State.SUCCEEDED)])[0] == ["fenced"]
    assert one.fence == "1-second" and settle(store, one) == "moved"


def test_a_task_ends_also_if_its_start_was_never_told(store: Store) -> None:
    publish(store, "a")
    assert settle(store, take(store), ran_ms=1500) == "moved"
    ended = record(store, "a")
    assert ended.started is not None and ended.ended is not None and ended.ended - ended.started == 1500


@pytest.mark.parametrize("state", [State.FAILED, State.TIMED_OUT, State.DEAD_LETTERED])
def test_what_may_be_replayed_keeps_its_message(store: Store, state: State) -> None:
    publish(store, "a", message=b"kept")
    assert settle(store, take(store), state, reason="ValueError") == "moved"
    assert (store.tasks.message("a"), record(store, "a").reason) == (b"kept", "ValueError")
    assert [one.id for one in store.tasks.dead_letters()] == (["a"] if state == "dead_lettered" else [])


def test_results_end_with_their_retention_and_what_nobody_wants_much_earlier(
    redis_url: str, namespace: str
) -> None:
    store = open_store(
        redis_url,
        namespace,
        result_retention_s=1000,
        ignored_retention_s=10,
        dead_letter_retention_s=100_000,
        max_crashes=1,
    )
    for task_id in ("kept", "ignored", "ignored-failed", "dead", "poison", "cancelled"):
        publish(store, task_id)
    kept, ignored, failed, dead, poison, _ = fetch(store, limit=9)
    settle(store, kept)
    settle(store, ignored, keep=False, document=b"")
    settle(store, failed, State.FAILED, keep=False)
    settle(store, dead, State.DEAD_LETTERED)
    store.tasks.crash(entry(poison), "died")
    store.tasks.cancel("cancelled", "why")

    def seconds(family: str, task_id: str) -> int:
        return round(int(store.client.execute("PTTL", store.keys.of(family, task_id))) / 1000)

    assert [seconds("task", one) for one in ("kept", "ignored", "ignored-failed")] == [1000, 10, 1000]
    assert [seconds(family, "dead") for family in ("task", "message", "result")] == [100_000] * 3
    assert [seconds(family, "poison") for family in ("task", "message", "result")] == [100_000] * 3
    assert [seconds("result", one) for one in ("kept", "cancelled")] == [1000, 1000]
    assert store.tasks.outcome("ignored") == (State.SUCCEEDED, 0, None)


# -- what cancels, concludes and notes


def test_cancelling_works_wherever_the_task_is_and_reaches_its_holder_at_once(store: Store) -> None:
    for task_id in ("running", "leased", "queued"):
        publish(store, task_id)
    publish(store, "scheduled", delay_ms=MINUTE_MS)
    running, leased = fetch(store, limit=2)
    begin(store, running)
    for state in ("queued", "scheduled"):
        assert store.tasks.cancel(state, "why") == ("moved", state, "")
    assert store.client.execute("EXISTS", store.keys.of("nudge", "worker-1")) == 0
    for state in ("leased", "running"):
        assert store.tasks.cancel(state, "why") == ("moved", state, "")
    assert store.client.execute("LRANGE", store.keys.of("nudge", "worker-1"), 0, -1) == [b"cancel"]
    assert store.tasks.cancel("queued", "why") == ("stale", "cancelled", "")
    assert store.tasks.cancel("none", "why") == ("missing", "", "")
    assert [settle(store, one) for one in (running, leased)] == ["stale", "stale"]
    assert (fetch(store), members(store, "leases"), members(store, "scheduled")) == ([], [], [])
    state, _, document = store.tasks.outcome("running")
    assert state is State.CANCELLED and b'"exc_message":["why"]' in (document or b"")


def test_an_outcome_for_an_unknown_id_makes_an_ended_record(store: Store) -> None:
    """A chain or a chord that failed before its last task was published (rule 3)."""
    assert store.tasks.conclude("a", State.FAILED, b'"why"') == ("moved", "")
    assert store.tasks.outcome("a") == (State.FAILED, 0, b'"why"')
    assert store.tasks.conclude("a", State.FAILED, b'"again"') == ("stale", "")
    assert publish(store, "a", kind="outside", token="call") == "moved"
    assert take(store).run == 2


def test_an_outcome_from_outside_ends_what_waits_but_not_what_somebody_holds(store: Store) -> None:
    publish(store, "held")
    one = take(store)
    publish(store, "queued")
    publish(store, "scheduled", delay_ms=MINUTE_MS)
    assert store.tasks.conclude("held", State.FAILED, b"{}") == ("fenced", "")
    assert store.tasks.conclude("queued", State.FAILED, b"{}") == ("moved", "")
    assert store.tasks.conclude("scheduled", State.FAILED, b"{}") == ("moved", "")
    assert (fetch(store), members(store, "scheduled")) == ([], [])
    assert settle(store, one) == "moved"


def test_a_note_ends_nothing_and_belongs_to_the_attempt(store: Store) -> None:
    publish(store, "a")
    assert store.tasks.annotate("a", "", b'"from outside"') == "moved"
    one = take(store)
    assert store.tasks.annotate("a", "", b"{}") == "fenced"
    assert store.tasks.annotate("a", one.fence, b'"half"') == "moved"
    assert store.tasks.outcome("a") == (State.LEASED, 0, b'"half"')
    again(store, one, delay_ms=MINUTE_MS)
    assert store.tasks.annotate("a", one.fence, b'"why it is tried again"') == "moved"
    assert store.tasks.annotate("a", "1-other", b"{}") == "fenced"
    fall_due(store, "a")
    settle(store, take(store))
    assert store.tasks.annotate("a", "", b"{}") == "stale"
    assert store.tasks.annotate("none", "", b"{}") == "missing"


def test_what_an_attempt_noted_goes_with_it(store: Store) -> None:
    """Else its half-way mark would be read as the next attempt's."""
    publish(store, "a")
    one = take(store)
    store.tasks.annotate("a", one.fence, b'"half"')
    store.tasks.release([entry(one)])
    assert store.tasks.outcome("a") == (State.QUEUED, 0, None)


def test_the_end_is_told_on_the_channel_of_the_result(store: Store) -> None:
    publish(store, "a")
    listener = store.client.connection()
    listener.connect()
    try:
        listener.send_command("SUBSCRIBE", store.keys.of("result", "a"))
        assert listener.read_response()[0] == b"subscribe"
        settle(store, take(store), keep=False, document=b"")
        kind, _, document = listener.read_response()
        assert kind == b"message" and b'"status":"SUCCESS"' in document
    finally:
        listener.disconnect()


# -- readers


def test_the_newest_tasks_are_listed_first_and_the_list_is_bounded(store: Store) -> None:
    for first in range(0, 10_500, 500):
        store.tasks.submit([publication(f"t{number}") for number in range(first, first + 500)])
    assert len(store.tasks.recent(3)) == 3
    assert store.client.execute("ZCARD", store.keys["recent"]) <= 10_500
    store.client.execute("ZADD", store.keys["recent"], store.agents.now_ms() + 1, "t7")
    assert store.tasks.recent(1)[0].id == "t7"
    assert store.tasks.record("none") is None and store.tasks.records(["none", "t1"])[0] is None


def test_counters_are_exact_after_a_random_day(redis_url: str, namespace: str) -> None:
    """Of many tasks in many queues; the machine of `test_machine` looks at few more closely."""
    dice = random.Random(7)
    store = open_store(redis_url, namespace, max_crashes=2)
    queues, ids = ["a", "b", "a+b"], [f"t{number}" for number in range(25)]
    ends, held = Counter[State](), []
    for _ in range(400):
        match dice.choice(
            ["publish", "publish", "fetch", "fetch", "start", "settle", "retry", "lose", "cancel"]
        ):
            case "publish":
                more = dice.choice([{}, {"delay_ms": MINUTE_MS}, {"expires_ms": MINUTE_MS}])
                kind = dice.choice(["outside", "child"])
                publish(
                    store, dice.choice(ids), dice.choice(queues), kind=kind, token=str(dice.random()), **more
                )
            case "fetch":
                held += fetch(store, *queues, limit=dice.randint(1, 4))
            case "start" if held:
                begin(store, dice.choice(held))
            case "settle" if held:
                state = dice.choice([State.SUCCEEDED, State.FAILED, State.DEAD_LETTERED])
                ends[state] += settle(store, dice.choice(held), state) == "moved"
            case "retry" if held:
                again(store, dice.choice(held), dice.choice([None, MINUTE_MS]), queue=dice.choice(queues))
            case "lose" if members(store, "leases"):
                lose_lease(store, dice.choice(members(store, "leases")))
                calm(store)
                ends[State.DEAD_LETTERED] += len(store.tasks.reap().aside)
            case "cancel":
                ends[State.CANCELLED] += store.tasks.cancel(dice.choice(ids), "why")[0] == "moved"
    records = [one for one in store.tasks.records(ids) if one is not None]
    live = Counter((one.queue, one.state) for one in records if one.state in LIVE)
    assert {(queue, state): number for queue, state, number in store.tasks.live()} == live
    counted = Counter[State]()
    for states in store.tasks.counts().values():
        counted.update(
            {State(name): number for name, number in states.items() if name in TERMINAL and number}
        )
    assert counted == +ends
    assert set(members(store, "leases")) == {one.id for one in records if one.state in HELD}


# -- a server whose memory is full


def test_a_full_server_takes_nothing_new_but_lets_work_be_finished(namespace: str) -> None:
    with start_server() as server:
        store = full_store(server, namespace)
        with pytest.raises(StoreUnavailable, match="full"):
            publish(store, "new")
        one, two, three = fetch(store, limit=3)
        assert begin(store, one) == "moved" and settle(store, one) == "moved"
        assert store.tasks.release([entry(two)]) == ["moved"]
        assert store.agents.renew("w", 1, {}, [entry(three)]).words == ["held"]
        assert store.tasks.cancel("c", "to make room")[0] == "moved"
        assert store.tasks.reap()[:2] == (0, []) and tick(store)[:2] == (0, 0)
        assert store.agents.lead("leads", 1000).mine
        store.close()


def full_store(server: Server, namespace: str) -> Store:
    """A store with three queued tasks on a server that has no memory left."""
    store = open_store(server.url, namespace)
    for task_id in "abc":
        publish(store, task_id)
    store.preload()
    store.client.execute("CONFIG", "SET", "maxmemory", LONG_AGO_MS)
    return store
