"""Agents in the store: who has an id, who is evicted, what they are told, who leads."""

from collections.abc import Callable

import pytest

from mesh.errors import StaleFence
from mesh.services import agents
from mesh.store.agents import Lead
from mesh.store.keys import NAMESPACES
from mesh.store.store import Store
from tests.integration.stores import (
    LONG_AGO_MS,
    MINUTE_MS,
    begin,
    fall_due,
    fetch,
    open_store,
    publish,
    record,
    settle,
    take,
    without_fences,
)
from tests.waiting import wait_until

FIELDS = {"name": "Worker 1", "slots": 4}


def join(store: Store, agent: str = "w", **more: int) -> int:
    """Register; its incarnation."""
    joined = store.agents.join(agent, FIELDS, **more)
    assert not joined.taken
    assert store.agents.offer(agent, joined.incarnation, ["ocr", "gpu"]) == "moved"
    return joined.incarnation


def age(store: Store, agent: str, by_ms: int) -> None:
    """As if its last beat were so long ago."""
    store.client.execute("HSET", store.keys.of("agent", agent), "beat", store.agents.now_ms() - by_ms)


def consumers(store: Store, queue: str) -> list[str]:
    return [one.decode() for one in store.client.execute("ZRANGE", store.keys.of("consumers", queue), 0, -1)]


def test_an_agent_is_found_by_its_id_and_its_capabilities(store: Store) -> None:
    join(store, "w2")
    join(store, "w1")
    found = store.agents.get("w1")
    assert found is not None and (found["name"], found["slots"], found["id"]) == ("Worker 1", "4", "w1")
    assert [one["id"] for one in store.agents.all()] == ["w1", "w2"]
    assert consumers(store, "ocr") == consumers(store, "gpu") == ["w1", "w2"]
    assert store.client.execute("SISMEMBER", NAMESPACES, store.keys.namespace) == 1
    assert store.agents.get("none") is None


def test_a_second_live_agent_with_the_same_id_is_refused(store: Store) -> None:
    first = join(store)
    second = store.agents.join("w", FIELDS)
    assert second.taken and second.incarnation == first and 0 <= second.beat_age_ms < MINUTE_MS
    assert store.agents.renew("w", first, {}, []).known == "known"


def test_an_agent_that_has_not_beaten_for_a_lease_no_longer_blocks_its_id(store: Store) -> None:
    first = join(store)
    age(store, "w", store.settings.lease_ms)
    second = store.agents.join("w", FIELDS)
    assert (second.taken, second.before, second.incarnation) == (False, first, first + 1)
    assert store.agents.renew("w", first, {}, []).known == "usurped"


def test_a_restarted_agent_with_proof_that_its_former_life_is_over_takes_over_at_once(store: Store) -> None:
    first = join(store)
    assert store.agents.join("w", FIELDS, gone=first + 1).taken, "proof about some other life"
    assert join(store, gone=first) == first + 1


def test_an_agent_whose_record_vanished_comes_back_as_the_same_life(store: Store) -> None:
    first = join(store)
    store.client.execute("DEL", store.keys.of("agent", "w"))
    assert store.agents.renew("w", first, {}, []).known == "unknown"
    assert join(store, rejoin=first) == first
    assert store.agents.renew("w", first, {}, []).known == "known"


def test_a_usurped_life_cannot_rejoin(store: Store) -> None:
    first = join(store)
    second = join(store, gone=first)
    assert store.agents.join("w", FIELDS, rejoin=first).incarnation == second


def test_incarnations_rise_also_after_the_record_has_gone(store: Store) -> None:
    first = join(store)
    second = join(store, gone=first)
    store.client.execute("DEL", store.keys.of("agent", "w"))
    wait_until(lambda: store.agents.now_ms() > second)  # lives of one agent are more than a millisecond apart
    assert join(store) > second


def test_an_agent_that_leaves_is_seen_as_gone_and_frees_its_id(store: Store) -> None:
    first = join(store)
    assert store.agents.leave("w", first + 1) == "fenced"
    assert consumers(store, "ocr") == ["w"]
    assert store.agents.leave("w", first) == "moved"
    assert consumers(store, "ocr") == consumers(store, "gpu") == []
    gone = store.agents.get("w")
    assert gone is not None and "left" in gone
    assert join(store) == first + 1
    assert "left" not in (store.agents.get("w") or {})


def test_a_beat_reports_load_and_keeps_the_registration(store: Store) -> None:
    incarnation = join(store)
    key = store.keys.of("agent", "w")
    store.client.execute("PEXPIRE", key, MINUTE_MS)
    age(store, "w", MINUTE_MS)
    store.agents.renew("w", incarnation, {"busy": 3}, [])
    found = store.agents.get("w")
    assert found is not None and found["busy"] == "3"
    assert store.agents.now_ms() - int(found["beat"]) < MINUTE_MS
    assert store.client.execute("PTTL", key) > MINUTE_MS, "a day from its last beat on"


# -- health


def judge(store: Store, **settings: int) -> agents.Judged:
    """One run of the leader's loop over health."""
    judging = open_store(store.settings.redis_url, store.settings.namespace, **settings)
    return agents.judge(judging, store.agents.lead("leads", MINUTE_MS).fence)


def found(judged: agents.Judged) -> list[tuple[str, str, str]]:
    return [(agent.id, before, str(agent.status)) for agent, before in judged.changed]


def test_a_change_of_health_is_recorded_once(store: Store) -> None:
    for agent in ("a", "b", "c"):
        join(store, agent)
    assert found(judge(store)) == [("a", "", "healthy"), ("b", "", "healthy"), ("c", "", "healthy")]
    assert found(judge(store)) == []
    age(store, "a", 31_000)
    age(store, "b", 301_000)
    assert agents.counts(agents.discover(store)) == {"healthy": 1, "degraded": 1, "unhealthy": 1}
    assert [one.status_since for one in agents.discover(store)][:2] == [None, None], "nobody has looked since"
    assert found(judge(store)) == [("a", "healthy", "degraded"), ("b", "healthy", "unhealthy")]
    assert found(judge(store)) == []
    assert all(one.status_since for one in agents.discover(store))
    assert found(judge(store, heartbeat_interval_ms=MINUTE_MS, unhealthy_threshold_ms=400_000)) == [
        ("a", "degraded", "healthy"), ("b", "unhealthy", "degraded"),
    ]  # fmt: skip


def test_what_an_agent_says_is_wrong_with_it_makes_it_degraded(store: Store) -> None:
    incarnation = join(store)
    sentence = "1 task runs past its time limit and cannot be stopped"
    store.agents.renew("w", incarnation, {"condition": sentence}, [])
    (agent,) = agents.discover(store)
    assert (agent.status, agent.condition) == ("degraded", sentence)
    store.agents.renew("w", incarnation, {"condition": ""}, [])
    (agent,) = agents.discover(store)
    assert (agent.status, agent.condition) == ("healthy", "")


def test_what_was_found_last_outlives_a_new_registration(store: Store) -> None:
    incarnation = join(store)
    judge(store)
    store.agents.leave("w", incarnation)
    assert found(judge(store)) == [("w", "healthy", "offline")]
    join(store)
    assert found(judge(store)) == [("w", "offline", "healthy")]


def test_agents_whose_record_has_gone_go_from_the_list(store: Store) -> None:
    join(store, "old")
    join(store, "new")
    store.client.execute("DEL", store.keys.of("agent", "old"))  # as its retention does
    assert [one.id for one in agents.discover(store)] == ["new"]
    assert sorted(store.agents.names()) == ["new", "old"]
    assert judge(store).forgotten == 1 and store.agents.names() == ["new"]


def test_a_verdict_makes_no_record(store: Store) -> None:
    lead = store.agents.lead("leads", MINUTE_MS).fence
    store.agents.judge(lead, {"never-there": "unhealthy"})
    assert store.agents.get("never-there") is None


# -- eviction


def test_evicting_a_former_life_gives_back_its_tasks_and_nobody_elses_even_in_grace(store: Store) -> None:
    for task_id in ("a", "b", "c"):
        publish(store, task_id)
    former = take(store, holder="w#1")
    begin(store, former)
    take(store, holder="w#2")
    take(store, holder="v#1")
    store.client.execute("SET", store.keys["pulse"], LONG_AGO_MS)  # Redis was silent: grace
    assert store.agents.evict("w#1") == 1
    assert store.tasks.reap()[:2] == (1, [])
    assert [record(store, one).state for one in ("a", "b", "c")] == ["queued", "leased", "leased"]
    assert settle(store, former) == "stale"


def test_eviction_looks_at_every_page_of_the_leases(store: Store) -> None:
    for number in range(1200):
        publish(store, f"t{number}")
    mine = others = 0
    for number in range(12):
        taken = len(fetch(store, holder=f"w#{number % 2}", limit=100))
        mine, others = mine + taken * (number % 2), others + taken * (1 - number % 2)
    assert mine + others == 1200
    assert store.agents.evict("w#1") == mine
    assert sum(store.tasks.reap(500)[0] for _ in range(3)) == mine
    assert store.client.execute("ZCARD", store.keys["leases"]) == others


# -- requirements


def nudges(store: Store, agent: str) -> list[bytes]:
    told: list[bytes] = store.client.execute("LRANGE", store.keys.of("nudge", agent), 0, -1)
    return told


def test_a_new_requirement_is_registered_once_and_told_to_every_agent(store: Store) -> None:
    incarnation = join(store, "w1")
    join(store, "w2")
    publish(store, "a", "gpu+ocr")
    assert store.agents.requirements() == (1, ["gpu+ocr"])
    assert nudges(store, "w1") == nudges(store, "w2") == [b"requirement"]
    publish(store, "b", "gpu+ocr")
    publish(store, "c", "cuda+gpu")
    assert store.agents.requirements()[0] == 2
    assert nudges(store, "w1") == [b"requirement"], "at most one token"
    assert 0 < store.client.execute("PTTL", store.keys.of("nudge", "w1")) <= MINUTE_MS
    assert store.agents.renew("w1", incarnation, {}, []).requirements_version == 2


def test_one_capability_is_no_requirement_to_be_told(store: Store) -> None:
    join(store)
    publish(store, "a", "ocr")
    assert (store.agents.requirements(), nudges(store, "w")) == ((0, []), [])


def test_requirements_are_bounded(store: Store) -> None:
    names = [f"a+n{number}" for number in range(10_000)]
    store.client.execute("HSET", store.keys["requirements"], *[word for name in names for word in (name, 1)])
    assert publish(store, "a", "new+one") == "full"
    assert store.tasks.record("a") is None
    assert publish(store, "b", "a+n7") == "moved" and publish(store, "c", "simple") == "moved"


def test_a_nudge_is_one_token_that_ends(store: Store) -> None:
    join(store)
    assert store.agents.cordon("w", "cordon") == store.agents.cordon("w", "uncordon") == "moved"
    assert len(nudges(store, "w")) == 1
    assert 0 < store.client.execute("PTTL", store.keys.of("nudge", "w")) <= MINUTE_MS


# -- leader


def words(lead: Lead) -> tuple[bool, int, str]:
    return lead.mine, lead.term, lead.leader


def test_one_leads_until_it_resigns_or_falls_silent_and_terms_rise(store: Store) -> None:
    first = store.agents.lead("c1", MINUTE_MS)
    assert words(first) == (True, 1, "c1") and first.ends_in_ms == MINUTE_MS
    other = store.agents.lead("c2", MINUTE_MS)
    assert words(other) == (False, 1, "c1") and 0 < other.ends_in_ms <= MINUTE_MS
    assert words(store.agents.lead("c1", MINUTE_MS)) == (True, 1, "c1")
    assert store.agents.resign("c2#1") is False and store.agents.resign("c1#0") is False
    assert store.agents.resign(first.fence) is True and store.agents.resign(first.fence) is False
    assert words(store.agents.lead("c2", MINUTE_MS)) == (True, 2, "c2")
    run_out(store)
    assert words(store.agents.lead("c2", MINUTE_MS)) == (True, 3, "c2"), "a lead that ran out is a new term"


def run_out(store: Store) -> None:
    store.client.execute("HSET", store.keys["leader"], "until", LONG_AGO_MS)


def take_over(store: Store) -> None:
    run_out(store)
    assert store.agents.lead("c2", MINUTE_MS).mine


def take_over_again(store: Store) -> None:
    """The same id under the next term: a process that was frozen while its successor got its name."""
    run_out(store)
    assert store.agents.lead("c1", MINUTE_MS).term == 2


def take_the_same_term(store: Store) -> None:
    """A failover of Redis forgot the first lead."""
    store.client.execute("HSET", store.keys["leader"], "id", "c2", "term", 1)


@pytest.mark.parametrize("over", [run_out, take_over, take_over_again, take_the_same_term])
@pytest.mark.parametrize("fenced", [True, False])
def test_a_lead_that_is_over_changes_nothing(
    store: Store, over: Callable[[Store], None], fenced: bool
) -> None:
    """`fenced` False: the same with scripts that forget to look, to see that this test would notice."""
    lead = store.agents.lead("c1", MINUTE_MS).fence
    over(store)
    publish(store, "due", delay_ms=MINUTE_MS)
    fall_due(store, "due")
    join(store)
    if not fenced:
        without_fences(store)
        assert store.tasks.tick(lead)[0] == 1
        store.agents.judge(lead, {"w": "unhealthy"})
        assert (store.agents.get("w") or {})["judged"] == "unhealthy"
        return
    with pytest.raises(StaleFence, match="The lead c1#1 is over"):
        store.tasks.tick(lead)
    with pytest.raises(StaleFence, match="The lead c1#1 is over"):
        store.agents.judge(lead, {"w": "unhealthy", "never-there": ""})
    assert store.agents.resign(lead) is False
    assert record(store, "due").state == "scheduled" and "judged" not in (store.agents.get("w") or {})
