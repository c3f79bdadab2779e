"""A namespace as a backup left it: what had not ended is failed or queued again, and told of; nobody of before has a say."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from mesh.bus import messages
from mesh.core.states import LIVE, State
from mesh.errors import Conflict, Invalid, StaleFence
from mesh.services import listing
from mesh.services import restore as service
from mesh.services.agents import discover
from mesh.store.store import Store
from tests.integration.stores import (
    MINUTE_MS,
    again,
    begin,
    entry,
    fetch,
    open_store,
    publication,
    publish,
    record,
    settle,
    take,
)

RAN = "may have run since"


@pytest.fixture
def store(redis_url: str, namespace: str) -> Store:
    return open_store(redis_url, namespace, lease_ms=1000, lease_renew_ms=300)


def join(store: Store, agent: str, **fields: Any) -> int:
    given = {"name": agent, "type": "worker", "namespace": store.settings.namespace, "capabilities": "work"}
    incarnation = store.agents.join(agent, {**given, **fields}).incarnation
    store.agents.offer(agent, incarnation, ["work"])
    return incarnation


def silence(store: Store, *agents: str) -> None:
    """As if they had not beaten for an hour."""
    for agent in agents:
        store.client.execute("HINCRBY", store.keys.of("agent", agent), "beat", -60 * MINUTE_MS)


def backup(store: Store) -> list[service.AgentRow]:
    text = json.dumps([agent.to_json() for agent in discover(store)]).encode()
    return service.read_backup(text, store.settings.namespace)


def every_state(store: Store) -> dict[str, Any]:
    """Tasks in each live state and an ended one; the attempts that are held."""
    publish(store, "ended")
    settle(store, take(store))
    publish(store, "running", type="t")
    run = take(store, holder="w1#1")
    begin(store, run)
    publish(store, "leased")
    lease = take(store, holder="w1#1")
    publish(store, "parked")
    again(store, take(store), delay_ms="parked", message=b"", failed=False)
    publish(store, "first")
    publish(store, "second", expires_ms=MINUTE_MS)
    publish(store, "placed", "gpu+work")
    publish(store, "later", delay_ms=MINUTE_MS)
    return {"running": run, "leased": lease}


INCOMPLETE = {"running", "leased", "parked", "first", "second", "placed", "later"}


def live_counts(store: Store) -> dict[tuple[str, str], int]:
    return {(queue, str(state)): number for queue, state, number in store.tasks.live()}


def test_failing_ends_what_had_not_ended_says_what_it_was_and_lists_it(store: Store) -> None:
    every_state(store)
    report = service.restore(store, [])["tasks"]
    assert report["policy"] == "fail" and {row["id"] for row in report["list"]} == INCOMPLETE
    assert report["states"] == {"leased": 1, "queued": 3, "running": 1, "scheduled": 2}
    assert report["types"] == {"t": report["states"]}
    assert {row["now"] for row in report["list"]} == {"failed"}
    for task_id in INCOMPLETE:
        found = record(store, task_id)
        assert (found.state, found.reason, found.fence) == (State.FAILED, "restored", "")
    assert record(store, "running").error == f"was running on w1 when the backup was made; it {RAN}"
    assert record(store, "first").error == f"was queued when the backup was made; it {RAN}"
    assert record(store, "ended").state is State.SUCCEEDED
    assert store.tasks.outcome("ended")[2] == b'"done"'
    listed, _ = listing.tasks(store, state="failed")
    assert {row["id"] for row in listed} == INCOMPLETE
    assert live_counts(store) == {} and fetch(store, "work", "gpu+work", limit=9) == []


def test_requeueing_runs_what_was_held_at_its_old_place_and_leaves_what_waits(store: Store) -> None:
    every_state(store)
    before = record(store, "running")
    report = service.restore(store, [], tasks="requeue")["tasks"]
    assert {(row["id"], row["state"], row["now"]) for row in report["list"]} == {
        ("running", "running", "queued"),
        ("leased", "leased", "queued"),
    }
    order = [one.id for one in fetch(store, limit=9)]
    assert order == ["running", "leased", "first", "second"]
    after = record(store, "running")
    assert (after.attempt, after.crashes, after.failures) == (before.attempt + 1, 0, 0)
    assert [(one.how, one.agent) for one in after.past] == [("released", "w1")]
    assert live_counts(store) == {
        ("work", "leased"): 4,
        ("work", "scheduled"): 2,
        ("gpu+work", "queued"): 1,
    }


@pytest.mark.parametrize("policy", service.POLICIES)
def test_an_attempt_of_before_is_refused_whatever_it_says(store: Store, policy: str) -> None:
    held = every_state(store)
    incarnation = join(store, "w1")
    service.restore(store, [], tasks=policy)
    for one in held.values():
        assert settle(store, one) in ("fenced", "stale")
        assert begin(store, one) in ("fenced", "stale")
        assert store.tasks.release([entry(one)])[0] in ("fenced", "stale")
        assert again(store, one) in ("fenced", "stale")
        assert store.tasks.crash(entry(one), "died")[0] in ("fenced", "stale")
        assert store.tasks.annotate(one.id, one.fence, b"{}") in ("fenced", "stale")
    words = store.agents.renew("w1", incarnation, {}, [entry(one) for one in held.values()]).words
    assert words == ["lost", "lost"]


def test_between_the_epoch_and_its_pages_nobody_renews_reaps_or_fetches_what_was_there(store: Store) -> None:
    held = every_state(store)
    store.restores.begin("fail")
    assert fetch(store, "work", "gpu+work", limit=9) == []
    store.agents.renew("w1", 1, {}, [entry(one) for one in held.values()])
    assert store.client.execute("EXISTS", store.keys["leases"]) == 0
    queued, aside, *_ = store.tasks.reap()
    assert not queued and not aside
    publish(store, "new")
    assert [one.id for one in fetch(store, limit=9)] == ["new"]
    assert service.restore(store, [])["continues"] is True
    assert record(store, "new").state is State.LEASED


def test_an_interrupted_restore_is_gone_on_with_by_its_own_policy(store: Store) -> None:
    every_state(store)
    number, _, _ = store.restores.begin("fail")
    _, some = store.restores.page()
    publish(store, "new")
    planned = service.restore(store, [], tasks="requeue", dry_run=True)
    assert planned["continues"] and planned["tasks"]["policy"] == "fail"
    report = service.restore(store, [], tasks="requeue")
    assert (report["continues"], report["epoch"], report["tasks"]["policy"]) == (True, number, "fail")
    assert {row["id"] for row in report["tasks"]["list"]} | {one.id for one in some} == INCOMPLETE
    assert record(store, "new").state is State.QUEUED
    later = service.restore(store, [])
    assert later["continues"] is False and later["epoch"] > number


def test_a_task_that_somebody_of_before_gave_back_meanwhile_goes_on(store: Store) -> None:
    publish(store, "a")
    one = take(store)
    store.restores.begin("requeue")
    assert store.tasks.release([entry(one)]) == ["moved"]
    other = take(store, holder="w2#1")
    (row,) = service.restore(store, [])["tasks"]["list"]
    assert row["now"] == "leased"
    assert settle(store, other) == "moved"


def test_a_dry_run_tells_the_same_and_changes_nothing(store: Store) -> None:
    every_state(store)
    join(store, "w1")
    silence(store, "w1")
    keys = store.client.execute("KEYS", f"{store.keys.prefix}*")
    before = {key: store.client.execute("DUMP", key) for key in keys}
    planned = service.restore(store, [], dry_run=True)
    after = {key: store.client.execute("DUMP", key) for key in keys}
    assert before == after and sorted(store.client.execute("KEYS", f"{store.keys.prefix}*")) == sorted(keys)
    done = service.restore(store, [])
    assert planned["agents"] == done["agents"]
    for part in ("policy", "states", "types"):
        assert planned["tasks"][part] == done["tasks"][part]
    assert {row["id"]: row["now"] for row in planned["tasks"]["list"]} == {
        row["id"]: row["now"] for row in done["tasks"]["list"]
    }


def test_the_chord_of_a_failed_task_is_told(store: Store) -> None:
    store.chords.arm("g", body=b"body", size=2)
    for index in (0, 1):
        publish(store, f"part-{index}", extra=("chord", f"g|{index}.part-{index}"))
    settle(store, take(store))
    service.restore(store, [])
    due = store.chords.take("g")
    assert due is not None and b"when the backup was made" in due.documents[1]


def test_what_was_to_follow_a_failed_task_fails_with_it_and_its_chord_is_told(store: Store) -> None:
    store.chords.arm("g", body=b"body", size=1)
    follows = {"task": "t", "options": {"task_id": "last", "group_id": "g", "group_index": 0, "chord": {}}}
    embedded = {"callbacks": None, "errbacks": None, "chord": None, "chain": [follows]}
    body = json.dumps([[], {}, embedded]).encode()
    publish(store, "head", message=messages.encode("t", body))
    service.restore(store, [])
    assert record(store, "last").state is State.FAILED
    assert b"task head, which it was to follow" in (store.tasks.outcome("last")[2] or b"")
    assert store.chords.take("g") is not None


def test_agents_come_back_as_offline_and_those_that_beat_are_left_alone(store: Store) -> None:
    join(store, "gone", capabilities="work,gpu", region="eu", labels="ssd=yes")
    join(store, "changed")
    join(store, "alive")
    store.agents.cordon("gone", "cordon")
    rows = backup(store)
    store.client.execute("DEL", store.keys.of("agent", "gone"))
    store.client.execute("ZREM", store.keys["agents"], "gone")
    silence(store, "changed")
    join(store, "changed", region="us")
    join(store, "other")
    silence(store, "changed", "other")
    stop = threading.Event()

    def beat() -> None:
        mine = Store(store.settings)
        number = int((mine.agents.get("alive") or {})["incarnation"])
        while not stop.wait(0.1):
            mine.agents.renew("alive", number, {}, [])
        mine.close()

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        report = service.restore(store, rows)["agents"]
    finally:
        stop.set()
        thread.join()
    assert report == {
        "add": ["gone"],
        "change": [{"id": "changed", "fields": {"region": {"from": "us", "to": None}}}],
        "unchanged": [],
        "live": ["alive"],
        "not_in_file": ["other"],
    }
    agents = {agent.id: agent for agent in discover(store)}
    assert {name: str(agent.status) for name, agent in agents.items()} == {
        "alive": "healthy",
        "changed": "offline",
        "gone": "offline",
        "other": "offline",
    }
    gone = agents["gone"]
    assert (gone.capabilities, gone.region, gone.labels, gone.cordoned) == (
        ("work", "gpu"),
        "eu",
        {"ssd": "yes"},
        True,
    )
    assert agents["changed"].region is None


def test_an_agent_that_only_seems_to_beat_does_not_come_back_as_live(store: Store) -> None:
    """The backup is seconds old: its last beat is as fresh as that of a live agent."""
    join(store, "w1")
    rows = backup(store)
    assert str(discover(store)[0].status) == "healthy"
    assert service.restore(store, rows)["agents"]["unchanged"] == ["w1"]
    assert str(discover(store)[0].status) == "offline"
    assert store.agents.consumers("work") == 0


def test_a_process_of_before_joins_again_and_a_new_one_comes_before_it(store: Store) -> None:
    number = join(store, "w1")
    silence(store, "w1")
    service.restore(store, [])
    assert store.agents.renew("w1", number, {}, []).known == "restored"
    assert not store.agents.join("w1", {"name": "w1"}, rejoin=number).taken
    assert store.agents.renew("w1", number, {}, []).known == "absent"
    silence(store, "w1")
    service.restore(store, [])
    newer = store.agents.join("w1", {"name": "w1"})
    assert not newer.taken and newer.incarnation > number
    assert store.agents.renew("w1", number, {}, []).known == "usurped"


def test_redis_without_a_later_life_of_an_agent_does_not_stop_it(store: Store) -> None:
    """Redis came back with an older life of it, and nobody restored anything."""
    number = join(store, "w1")
    assert store.agents.renew("w1", number + 2, {}, []).known == "unknown"
    assert store.agents.renew("w1", number - 1, {}, []).known == "usurped"


def test_terms_stay_above_those_of_before(store: Store) -> None:
    before = store.agents.lead("c1", MINUTE_MS)
    number = service.restore(store, [])["epoch"]
    after = store.agents.lead("c2", MINUTE_MS)
    assert after.mine and after.term > number > before.term
    assert store.agents.lead("c1", MINUTE_MS).mine is False
    with pytest.raises(StaleFence):
        store.tasks.tick(before.fence)
    store.tasks.tick(after.fence)


def test_a_mesh_that_works_is_not_restored_by_a_slip(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    join(store, "w1")
    publish(store, "a")
    alive = {"w1": True}
    monkeypatch.setattr(service, "beating", lambda _: alive)
    with pytest.raises(Conflict, match=r"1 agents .* are alive \(w1\) and 1 tasks have not ended"):
        service.restore(store, [])
    assert record(store, "a").state is State.QUEUED and store.restores.epoch() == {}
    assert service.restore(store, [], tasks="fail")["tasks"]["states"] == {"queued": 1}


def agent_row(**changes: Any) -> dict[str, Any]:
    row = {
        "id": "w1", "name": "w1", "type": "worker", "namespace": "prod", "capabilities": ["a"], "region": None,
        "labels": {}, "cordoned": False,
    }  # fmt: skip
    return {key: value for key, value in {**row, **changes}.items() if value is not ...}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{", "f is not JSON: "),
        (b"\xff", "f is not JSON: "),
        (b"[" * 100_000, "f is not JSON: "),
        (b"{}", "f is not the list of agents that `mesh discover -o json` prints"),
        (b"3", "f is not the list"),
        ([3], "f: entry 1 is wrong: Expected `object`, got `int`"),
        ([{}], "f: entry 1 is wrong: Object missing required field `id`"),
        ([agent_row(cordoned=...)], "f: agent 'w1' is wrong: Object missing required field `cordoned`"),
        ([agent_row(capabilities="a")], r"f: agent 'w1' is wrong: Expected `array`, got `str`"),
        ([agent_row(capabilities=["a b"])], "f: agent 'w1' is wrong: 'a b' is not a valid capability"),
        ([agent_row(id="{x}")], "f: agent '{x}' is wrong: '{x}' is not a valid agent id"),
        ([agent_row(labels={"a": "b,c=d"})], "f: agent 'w1' has a label with a comma"),
        ([agent_row(shoe_size=44)], "f: agent 'w1' has the field 'shoe_size', .* a newer one wrote it"),
        ([agent_row(namespace="dev")], "f: agent 'w1' is of namespace 'dev', not 'prod'"),
        ([agent_row(), agent_row()], "f has agent 'w1' twice"),
        ([agent_row(joined_at="yesterday")], "f: agent 'w1' is wrong: Invalid RFC3339 encoded datetime"),
    ],
)
def test_a_bad_backup_is_told_in_one_sentence(content: Any, sentence: str) -> None:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    with pytest.raises(Invalid, match=sentence) as caught:
        service.read_backup(raw, "prod", "f")
    assert str(caught.value).count(". ") == 0 and len(str(caught.value)) < 400


def test_many_tasks_are_dealt_with_in_pages_that_keep_nobody_waiting(store: Store) -> None:
    number = 3000
    store.tasks.submit([publication(f"t{at}") for at in range(number)])
    fetch(store, limit=1000)
    store.client.execute("CONFIG", "SET", "slowlog-log-slower-than", 5000)
    store.client.execute("SLOWLOG", "RESET")
    heard: list[int] = []
    report = service.restore(store, [], tell=heard.append)["tasks"]
    slow = store.client.execute("SLOWLOG", "GET", 100)
    store.client.execute("CONFIG", "SET", "slowlog-log-slower-than", 10_000)
    assert report["states"] == {"leased": 1000, "queued": 2000}
    assert len({row["id"] for row in report["list"]}) == number and heard[-1] == number
    assert not any(store.tasks.counts()["work"].get(state) for state in LIVE)
    sha = store.restores.bound["restore"].script.sha.encode()
    pages = [row for row in slow if row[3][:2] == [b"EVALSHA", sha]]
    assert len(pages) < number // 40 // 2, "many of 75 pages take longer than 5 ms"
