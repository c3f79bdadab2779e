"""Poison: tasks that harm whatever runs them are stopped, say why, and leave their neighbours alone."""

from __future__ import annotations

import dataclasses
import time

from celery import Celery, chain, signature

from mesh import install
from mesh.core.states import State
from mesh.services.tasks import new_id
from mesh.settings import Settings
from tests.chaos.conftest import Recovery
from tests.chaos.matrix import fault
from tests.chaos.stage import Stage

TYPES = "work,raises,exits,too-large,not-serialisable,celery"
APP = "tests.chaos.witness,tests.chaos.poison_app"


def start(stage: Stage, agent_id: str, capabilities: str = TYPES) -> None:
    """An agent with the harmful types."""
    notes = str(stage.folder / "notes")
    stage.start(agent_id, capabilities=capabilities, include=APP, POISON_NOTES=notes)


def heard(stage: Stage) -> list[str]:
    """Which failures the error callback was told of."""
    notes = stage.folder / "notes"
    return notes.read_text().split() if notes.exists() else []


def with_callback(stage: Stage, task_type: str, queue: str) -> tuple[str, str]:
    """(id of a task with an error callback, id of the task that should follow it), published by Celery's own calls."""
    app = Celery("producer", set_as_current=False)
    settings = dataclasses.replace(Settings.load(), redis_url=stage.redis_url, namespace=stage.namespace)
    install(app, settings)
    first, second = new_id(), new_id()
    calls = chain(
        signature(
            task_type,
            app=app,
            immutable=True,
            options={
                "task_id": first,
                "queue": queue,
                "link_error": [signature("hears", app=app, queue="celery")],
            },
        ),
        signature("follows", app=app, options={"task_id": second, "queue": "celery"}),
    )
    calls.apply_async()
    app.close()
    return first, second


def ended(stage: Stage, task_id: str, timeout_s: float = 60.0) -> float:
    """Wait for its end; the moment when it was seen."""

    def over() -> bool:
        record = stage.mesh.store.tasks.record(task_id)
        return record is not None and record.ended_already

    return stage.until(over, f"{task_id} to end", timeout_s)


@fault(
    "poison",
    "a task raises an exception, each time",
    expect="tried again as often as its type says, then a dead letter with each attempt's error; other tasks go on",
    tier="test",
)
def test_it_raises(stage: Stage) -> None:
    start(stage, "a1")
    stage.ready("a1")
    bad = stage.mesh.submit("raises")
    stage.load(10)
    ended(stage, bad.id)
    stage.all_end()
    record = stage.record(bad)
    assert (record.state, record.reason, record.error) == ("dead_lettered", "ValueError", "ValueError: never")
    assert (record.attempt, record.failures, record.crashes) == (3, 2, 0)
    assert [(one.how, one.error) for one in record.past] == [("failed", "ValueError: never")] * 2
    stage.check({bad.id: State.DEAD_LETTERED})


@fault(
    "poison",
    "a task ends its pool process (os._exit), each time",
    expect="stopped after 3 crashes, which its error tells; its error callback is called once; agent and other tasks go on",
    tier="test",
    bound_s=20,
)
def test_it_exits(stage: Stage, recovery: Recovery) -> None:
    start(stage, "a1")
    stage.ready("a1")
    pid = stage.processes["a1"].pid
    published = time.time()
    bad, following = with_callback(stage, "exits", "exits")
    stage.load(10)
    recovery.took(ended(stage, bad) - published)
    stage.all_end()
    record = stage.record(stage.mesh.handle(bad))
    assert (record.state, record.reason, record.crashes, record.failures) == ("dead_lettered", "poison", 3, 0)
    assert (record.error or "").startswith("it killed its pool process on a1, a1 and a1; the last time ")
    assert [one.how for one in record.past] == ["crashed", "crashed"]
    stage.until(lambda: heard(stage) == [bad], "its error callback to be called")
    assert stage.record(stage.mesh.handle(following)).state is State.FAILED
    assert stage.processes["a1"].poll() is None and stage.processes["a1"].pid == pid
    assert heard(stage) == [bad]


@fault(
    "poison",
    "a task's result is too large, or no JSON",
    expect="it fails at once, with a sentence that says so; nothing is stored; the same process goes on",
    tier="test",
)
def test_its_result_cannot_be_recorded(stage: Stage) -> None:
    start(stage, "a1")
    stage.ready("a1")
    bad = {name: stage.mesh.submit(name) for name in ("too-large", "not-serialisable")}
    stage.load(10)
    for handle in bad.values():
        ended(stage, handle.id)
    stage.all_end()
    large, foreign = stage.record(bad["too-large"]), stage.record(bad["not-serialisable"])
    assert (large.state, large.attempt) == ("failed", 1) == (foreign.state, foreign.attempt)
    assert "MESH_MAX_RESULT_BYTES" in (large.error or "") and "serializable" in (foreign.error or "")


@fault(
    "poison",
    "a task kills every agent that runs it (SIGKILL to all its processes)",
    expect="stopped after 3 agents, which its error names; its error callback is called once, by an agent that lives",
    tier="ci",
    bound_s=3 * 20,
)
def test_it_kills_agents(stage: Stage, recovery: Recovery) -> None:
    victims = ("v1", "v2", "v3", "v4")
    for agent_id in victims:
        start(stage, agent_id, "kills-agents,work")
    start(stage, "steady", "work,celery")
    start(stage, "other", "work,celery")
    stage.ready(*victims, "steady", "other")
    stage.load(10)
    stage.all_end()
    published = time.time()
    bad, following = with_callback(stage, "kills-agents", "kills-agents")
    recovery.took(ended(stage, bad, 90) - published)
    record = stage.record(stage.mesh.handle(bad))
    assert (record.state, record.reason, record.crashes, record.failures) == ("dead_lettered", "poison", 3, 0)
    dead = [one for one in victims if stage.processes[one].poll() is not None]
    killed = [one.agent for one in record.past if one.how == "crashed"] + [record.agent]
    assert sorted(killed, key=str) == sorted(dead), "each of them once, one victim is left"
    assert record.error == f"it killed agents {killed[0]}, {killed[1]} and {killed[2]}"
    stage.until(lambda: heard(stage) == [bad], "its error callback to be called")
    assert stage.record(stage.mesh.handle(following)).state is State.FAILED
    stage.until(
        lambda: not stage.mesh.store.client.execute("ZCARD", stage.mesh.store.keys["poisoned"]),
        "its end to be told",
    )
    last = stage.submit()
    stage.all_end()
    assert stage.record(last).state is State.SUCCEEDED
    assert heard(stage) == [bad], "by one agent only"
