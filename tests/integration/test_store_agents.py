"""Agents in the store: who has an id, who is evicted, what they are told, who leads."""

from mesh.store.keys import NAMESPACES
from mesh.store.store import Store
from tests.integration.stores import (
    LONG_AGO_MS,
    MINUTE_MS,
    begin,
    fetch,
    publish,
    record,
    settle,
    take,
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


def test_agents_silent_for_a_day_are_forgotten(store: Store) -> None:
    join(store, "old")
    join(store, "new")
    store.client.execute("ZADD", store.keys["agents"], LONG_AGO_MS, "old")
    assert store.agents.forget_old() == 1
    assert [one["id"] for one in store.agents.all()] == ["new"]


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
    assert store.tasks.reap()[:2] == (1, 0)
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


def test_one_leads_until_it_resigns_or_falls_silent_and_terms_rise(store: Store) -> None:
    assert store.agents.lead("c1", MINUTE_MS) == (True, 1, "c1")
    assert store.agents.lead("c2", MINUTE_MS) == (False, 1, "c1")
    assert store.agents.lead("c1", MINUTE_MS) == (True, 1, "c1")
    assert store.agents.resign("c2") is False
    assert store.agents.resign("c1") is True
    assert store.agents.lead("c2", MINUTE_MS) == (True, 2, "c2")
    store.client.execute("HSET", store.keys["leader"], "until", LONG_AGO_MS)
    assert store.agents.lead("c2", MINUTE_MS) == (True, 3, "c2"), "a lead that lapsed is a new term"
