"""Places: strategies, regions, cordons, and what becomes of a place that cannot serve."""

from collections import Counter

import pytest

from mesh.core.places import Strategy, own_queue, parse_placing, placing
from mesh.services.agents import discover
from mesh.store.store import Store
from tests.integration.stores import (
    LONG_AGO_MS,
    begin,
    calm,
    entry,
    fetch,
    lose_holder,
    open_store,
    publication,
    publish,
    record,
    settle,
    take,
    tick,
)

ROUND_ROBIN = placing(Strategy.ROUND_ROBIN, None)
LEAST_LOADED = placing(Strategy.LEAST_LOADED, None)
RANDOM = placing(Strategy.RANDOM, None)
EU = placing(Strategy.CAPABILITY_MATCH, "eu")


def join(store: Store, agent: str, *queues: str, slots: int = 1, held: int = 0) -> int:
    """An agent that consumes these queues, `work` unless said otherwise; its incarnation."""
    incarnation = store.agents.join(agent, {"name": agent, "slots": slots, "held": held}).incarnation
    assert store.agents.offer(agent, incarnation, queues or ("work",)) == "moved"
    return incarnation


def waiting(store: Store, *agents: str) -> dict[str, int]:
    """How many tasks wait with each agent."""
    return {agent: len(store.tasks.waiting(own_queue(agent), 10_000)) for agent in agents}


def submit(store: Store, number: int, how: str, first: int = 0) -> None:
    """Many tasks at once."""
    publications = [publication(f"t{first + index}", placing=how) for index in range(number)]
    assert set(store.tasks.submit(publications)) == {"moved"}


def fall_silent(store: Store, agent: str) -> None:
    """As if it had not beaten for long."""
    assert store.client.execute("ZADD", store.keys["present"], "XX", "CH", LONG_AGO_MS, agent) == 1
    calm(store)


def test_a_placing_says_strategy_and_region() -> None:
    assert placing(Strategy.CAPABILITY_MATCH, None) == ""
    assert parse_placing(placing(Strategy.RANDOM, "eu")) == ("random", "eu")
    assert parse_placing("") == ("capability-match", None) == parse_placing(placing("capability-match", ""))


def test_round_robin_gives_each_agent_the_same_number_within_one(store: Store) -> None:
    agents = [f"w{number}" for number in range(10)]
    for agent in agents:
        join(store, agent)
    for first in range(0, 9900, 550):
        submit(store, 550, ROUND_ROBIN, first=first)
    for number in range(9900, 10_000):
        submit(store, 1, ROUND_ROBIN, first=number)
    shares = waiting(store, *agents)
    assert sum(shares.values()) == 10_000 and max(shares.values()) - min(shares.values()) <= 1
    assert store.tasks.size("work") == 10_000, "they all wait for the requirement"
    assert store.tasks.counts()["work"]["queued"] == 10_000


def test_least_loaded_gives_equal_agents_the_same_within_a_twentieth(store: Store) -> None:
    agents = [f"w{number}" for number in range(10)]
    for agent in agents:
        join(store, agent)
    for first in range(0, 9000, 500):
        submit(store, 500, LEAST_LOADED, first=first)
    for number in range(9000, 10_000):
        submit(store, 1, LEAST_LOADED, first=number)
    shares = waiting(store, *agents)
    assert sum(shares.values()) == 10_000 and 950 <= min(shares.values()) <= max(shares.values()) <= 1050


def test_an_agent_that_comes_later_takes_part_without_being_flooded(store: Store) -> None:
    join(store, "w1")
    submit(store, 100, ROUND_ROBIN)
    join(store, "w2")
    submit(store, 100, ROUND_ROBIN, first=100)
    assert waiting(store, "w1", "w2") == {"w1": 150, "w2": 50}


def test_least_loaded_fills_slots_evenly_and_counts_what_is_held(store: Store) -> None:
    join(store, "big", slots=4)
    join(store, "small", slots=1)
    join(store, "busy", slots=1, held=20)
    submit(store, 50, LEAST_LOADED)
    assert waiting(store, "big", "small", "busy") == {"big": 40, "small": 10, "busy": 0}
    for number in range(50, 55):
        submit(store, 1, LEAST_LOADED, first=number)
    assert waiting(store, "big", "small", "busy") == {"big": 44, "small": 11, "busy": 0}


def test_random_reaches_everybody(store: Store) -> None:
    agents = [f"w{number}" for number in range(4)]
    for agent in agents:
        join(store, agent)
    submit(store, 400, RANDOM)
    shares = waiting(store, *agents)
    assert sum(shares.values()) == 400 and min(shares.values()) > 50


def test_with_nobody_there_the_requirement_queue_takes_it(store: Store) -> None:
    for number, how in enumerate((ROUND_ROBIN, LEAST_LOADED, RANDOM, EU)):
        submit(store, 1, how, first=number)
    assert store.tasks.waiting("work") == ["t0", "t1", "t2", "t3"]
    assert len(fetch(store, limit=10)) == 4


def test_a_placed_task_is_fetched_by_its_agent_under_the_name_of_its_requirement(store: Store) -> None:
    join(store, "w1")
    submit(store, 1, ROUND_ROBIN)
    assert fetch(store) == []
    (one,) = fetch(store, own_queue("w1"), holder="w1#1")
    assert (one.id, one.queue) == ("t0", "work")
    assert settle(store, one) == "moved"
    counts = store.tasks.counts()["work"]
    assert (counts["queued"], counts["leased"], counts["succeeded"]) == (0, 0, 1)


def test_what_is_given_back_waits_for_anybody_and_a_retry_is_placed_afresh(store: Store) -> None:
    join(store, "w1")
    submit(store, 1, ROUND_ROBIN)
    (one,) = fetch(store, own_queue("w1"), holder="w1#1")
    store.tasks.release([entry(one)])
    assert store.tasks.waiting("work") == ["t0"] and waiting(store, "w1") == {"w1": 0}
    one = take(store)
    begin(store, one)
    word = store.tasks.retry(
        entry(one), queue="work", task_type="t", priority=4, message=b"m", delay_ms=None, failed=True
    )
    assert word == "moved" and waiting(store, "w1") == {"w1": 1}
    assert store.tasks.cancel("t0", "not needed")[0] == "moved"
    assert waiting(store, "w1") == {"w1": 0} and store.tasks.places() == []


def test_a_lost_agents_task_waits_for_anybody(store: Store) -> None:
    join(store, "w1")
    submit(store, 1, ROUND_ROBIN)
    (one,) = fetch(store, own_queue("w1"), holder="w1#1")
    lose_holder(store, one)
    assert store.tasks.waiting("work") == ["t0"]


@pytest.mark.parametrize("how", ["cordon", "drain", "leave", "fall silent"])
def test_what_waits_with_an_agent_that_takes_nothing_more_goes_to_the_others(store: Store, how: str) -> None:
    incarnation = join(store, "w1")
    submit(store, 3, ROUND_ROBIN)
    join(store, "w2")
    if how == "leave":
        assert store.agents.leave("w1", incarnation) == "moved"
    elif how == "fall silent":
        fall_silent(store, "w1")
        assert store.tasks.reap()[0] == 3
        assert store.tasks.reap()[0] == 0
    else:
        assert store.agents.cordon("w1", how) == "moved"
    assert waiting(store, "w1") == {"w1": 0} and store.tasks.waiting("work") == ["t0", "t1", "t2"]
    assert all("place" not in record(store, one).other for one in ("t0", "t1", "t2"))
    submit(store, 4, ROUND_ROBIN, first=3)
    assert waiting(store, "w1", "w2") == {"w1": 0, "w2": 4}
    assert store.tasks.size("work") == 7


def test_many_tasks_leave_page_by_page(store: Store) -> None:
    join(store, "w1")
    for first in range(0, 2500, 500):
        submit(store, 500, ROUND_ROBIN, first=first)
    assert store.agents.cordon("w1", "cordon") == "moved"
    assert waiting(store, "w1") == {"w1": 0} and len(store.tasks.waiting("work", 5000)) == 2500


def test_a_cordoned_agent_gets_nothing_until_it_is_uncordoned(store: Store) -> None:
    incarnation = join(store, "w1")
    assert store.agents.cordon("w1", "cordon") == "moved"
    submit(store, 1, ROUND_ROBIN)
    assert store.tasks.waiting("work") == ["t0"]
    assert fetch(store, holder=f"w1#{incarnation}") == []
    assert store.client.execute("LLEN", store.keys.of("bell", "work")) == 1, "others are woken"
    assert store.agents.renew("w1", incarnation, {}, []).asked == "cordoned"
    assert store.agents.leave("w1", incarnation) == "moved"
    again = join(store, "w1")
    assert store.agents.renew("w1", again, {}, []).asked == "cordoned", (
        "an operator's word outlives a restart"
    )
    assert store.agents.cordon("w1", "uncordon") == "moved"
    assert store.agents.renew("w1", again, {}, []).asked == ""
    assert len(fetch(store, holder=f"w1#{again}")) == 1
    submit(store, 1, ROUND_ROBIN, first=1)
    assert waiting(store, "w1") == {"w1": 1}
    assert store.agents.cordon("nobody", "cordon") == "missing"


def test_an_agent_never_puts_off_what_an_operator_said_meanwhile(store: Store) -> None:
    incarnation = join(store, "w1")

    def drain(grace_ms: int, *, itself: bool = False) -> float:
        word = store.agents.cordon(
            "w1", "drain", grace_ms=grace_ms, incarnation=incarnation if itself else None
        )
        assert word == "moved"
        return round(store.agents.renew("w1", incarnation, {}, []).drain_ms, -4)

    assert drain(600_000, itself=True) == 600_000
    assert drain(30_000) == 30_000
    assert drain(600_000, itself=True) == 30_000
    assert drain(10_000, itself=True) == 10_000
    assert drain(300_000) == 300_000


def test_an_agent_that_was_taken_for_absent_is_told_to_offer_again(store: Store) -> None:
    incarnation = join(store, "w1")
    fall_silent(store, "w1")
    assert store.agents.renew("w2", 1, {}, []).next_lease_end_ms == 0, (
        "whoever beats sees that there is something to reap"
    )
    store.tasks.reap()
    assert store.agents.consumers("work") == 0
    assert [(one.id, one.status, one.running) for one in discover(store)] == [("w1", "degraded", 0)]
    assert store.agents.renew("w1", incarnation, {}, []).known == "absent"
    assert store.agents.offer("w1", incarnation, ["work"]) == "moved"
    assert store.agents.renew("w1", incarnation, {}, []).known == "known"
    assert [one.status for one in discover(store)] == ["healthy"]
    assert store.agents.consumers("work") == 1
    assert store.agents.offer("w1", incarnation + 1, ["work"]) == "fenced"


# -- regions


def test_a_region_is_served_by_its_own_agents_first(store: Store) -> None:
    join(store, "e1", "work@@eu", "work")
    join(store, "u1", "work@@us", "work")
    submit(store, 1, EU)
    assert fetch(store, "work@@us", "work") == []
    (one,) = fetch(store, "work@@eu", "work")
    assert one.queue == "work"


def test_a_strategy_stays_within_a_region_that_can_serve(store: Store) -> None:
    join(store, "e1", "work@@eu", "work")
    join(store, "e2", "work@@eu", "work")
    join(store, "u1", "work@@us", "work")
    submit(store, 10, placing(Strategy.ROUND_ROBIN, "eu"))
    assert waiting(store, "e1", "e2", "u1") == {"e1": 5, "e2": 5, "u1": 0}
    submit(store, 9, placing(Strategy.ROUND_ROBIN, "asia"), first=10)
    assert sum(waiting(store, "e1", "e2", "u1").values()) == 19 and waiting(store, "u1") == {"u1": 3}


def test_when_a_regions_last_agent_goes_everybody_serves(store: Store) -> None:
    incarnation = join(store, "e1", "work@@eu", "work")
    submit(store, 2, EU)
    assert store.tasks.places() == ["work@@eu"]
    store.agents.leave("e1", incarnation)
    assert store.tasks.waiting("work") == ["t0", "t1"] and store.tasks.places() == []
    submit(store, 1, EU, first=2)
    assert store.tasks.waiting("work") == ["t0", "t1", "t2"]


def test_what_a_busy_region_leaves_waiting_is_offered_to_all(redis_url: str, namespace: str) -> None:
    store = open_store(redis_url, namespace, region_spill_ms=60_000)
    join(store, "e1", "work@@eu", "work")
    submit(store, 3, EU)
    for one in ("t0", "t2"):
        store.client.execute("HSET", store.keys.of("task", one), "created", LONG_AGO_MS)
    assert tick(store)[4] == 2
    assert store.tasks.waiting("work") == ["t0", "t2"] and store.tasks.waiting("work@@eu") == ["t1"]
    assert Counter(one.queue for one in fetch(store, "work", "work@@eu", limit=5)) == {"work": 3}


def test_a_delayed_task_comes_due_in_its_region(store: Store) -> None:
    join(store, "e1", "work@@eu", "work")
    publish(store, "a", delay_ms=1, placing=EU)
    store.client.execute("ZADD", store.keys["scheduled"], "XX", LONG_AGO_MS, "a")
    assert tick(store)[0] == 1 and store.tasks.waiting("work@@eu") == ["a"]


# -- run again


def test_a_replay_is_a_new_run_of_the_same_id(store: Store) -> None:
    from mesh.core.states import State

    publish(store, "a", token="same")
    settle(store, take(store), State.DEAD_LETTERED)
    assert store.tasks.replay("a", 7, b"m") == "stale" and store.tasks.replay("none", 1, b"m") == "missing"
    assert store.tasks.replay("a", 1, b"again") == "moved"
    one = record(store, "a")
    assert (one.state, one.run, one.failures, store.tasks.dead_letters()) == ("queued", 2, 0, [])
    assert store.tasks.replay("a", 2, b"m") == "stale", "it has not ended"
    again = take(store)
    assert (again.message, again.run) == (b"again", 2)
    assert settle(store, again) == "moved"
    assert store.tasks.replay("a", 2, b"m") == "stale", "it has ended well"
