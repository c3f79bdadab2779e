"""What the witness is given: read from a real store, and seen by the observer while it happens."""

from __future__ import annotations

from pathlib import Path

from mesh.core.states import State
from mesh.store.store import Store
from mesh.store.tasks import Fetched
from mesh.verify.evidence import Observer, collect, read_effects, wait_for_ends
from mesh.verify.witness import Submission, check
from tests.chaos.actors import document, note
from tests.integration.stores import begin, fetch, lose_holder, publish, settle, take
from tests.waiting import wait_until


def test_a_task_taken_over_is_good_evidence(store: Store, tmp_path: Path) -> None:
    effects = tmp_path / "effects"
    effects.touch()
    with Observer(store) as observer:
        observer.watch("a")
        publish(store, "a")
        first = take(store)
        begin(store, first)
        note(effects, "begin", first)
        wait_until(lambda: any(look.state is State.RUNNING for look in observer.looks), description="a look")
        lose_holder(store, first)
        second = take(store, holder="worker-2#1")
        for what in ("begin", "end"):
            note(effects, what, second)
        assert settle(store, first, document=document(first)) == "fenced"
        assert settle(store, second, document=document(second)) == "moved"
        assert wait_for_ends(observer, ["a"], 10)
        wait_until(lambda: observer.pushes, description="the push")
    ledger = [Submission(id="a", number=7, acknowledged=True)]
    evidence = collect(store, ledger, effects, observer=observer)
    assert [one for one in check(evidence) if not one.passed] == []
    assert [push.result["attempt"] for push in evidence.pushes] == [2]
    assert evidence.looks[-1].attempt == 2


def test_what_is_left_is_found_where_no_index_knows_it(store: Store, tmp_path: Path) -> None:
    effects = tmp_path / "effects"
    effects.touch()
    for task_id in ("queued", "leased"):
        publish(store, task_id)
    publish(store, "later", delay_ms=60_000)
    store.client.execute("DEL", store.keys["ready"])
    assert fetch(store) == []
    evidence = collect(store, [], effects)
    assert (evidence.left["queue work"], evidence.left["scheduled"]) == (["queued", "leased"], ["later"])
    assert {one.name for one in check(evidence) if not one.passed} == {"stuck", "unknown"}


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "effects"
    path.write_bytes(b"")
    assert read_effects(path) == []
    note(path, "begin", Fetched("a", "work", "1-x", 1, False, False, b"", 4))
    path.write_bytes(path.read_bytes() + b'{"what":"en')
    assert [one.what for one in read_effects(path)] == ["begin"]


def test_nobody_waits_for_ever(store: Store) -> None:
    with Observer(store) as observer:
        observer.watch("never")
        assert not wait_for_ends(observer, ["never"], 0.2)
