"""Faults of time: tasks that never end, deadlines that pass, cancellations, and long tasks that nothing is wrong with."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from mesh.bus import messages
from mesh.core.states import Reason, State
from mesh.errors import Cancelled, TimedOut
from mesh.services.agents import discover
from mesh.services.tasks import new_id
from mesh.store.signing import sealer
from mesh.store.tasks import Record, Template
from mesh.verify.witness import Submission
from tests.chaos.conftest import Recovery
from tests.chaos.matrix import fault
from tests.chaos.stage import Stage

LIMIT_S = 2.0
STOPS = {"prefork", "gevent"}
STOPPING = ("prefork", pytest.param("gevent", marks=pytest.mark.ci))
HELD_UP = ("threads", pytest.param("solo", marks=pytest.mark.ci))


def endless(stage: Stage, *, retries: int, gate: Path, hard_s: float = LIMIT_S, **more: Any) -> Any:
    """A task that waits for a file, with a hard time limit only: a soft one, which it could see, would come 10 s before it."""
    payload = {"number": 0, "effects": str(stage.effects_file), "gate": str(gate), **more}
    headers = {"timelimit": [hard_s, None], messages.RETRIES_HEADER: retries}
    message = messages.of_arguments("work", json.dumps([payload]).encode(), headers)
    task_id = new_id()
    store = stage.mesh.store
    sealed = sealer(store, "work")(task_id, message)
    store.tasks.submit([Template(queue="work", type="work").publication(task_id, sealed)])
    return noted(stage, stage.mesh.handle(task_id))


def noted(stage: Stage, task: Any) -> Any:
    """A task that was submitted by another way than the stage's own."""
    number = len(stage.ledger)
    stage.ledger[task.id] = Submission(id=task.id, number=number, acknowledged=True)
    return task


def over(stage: Stage, task: Any, timeout_s: float = 60) -> tuple[Record, float]:
    """Its record once it has ended, and when that was seen."""
    at = stage.until(lambda: stage.record(task).ended_already, f"{task.id} to end", timeout_s)
    return stage.record(task), at


def status(stage: Stage, agent_id: str) -> str:
    """Health of an agent."""
    return next(str(one.status) for one in discover(stage.mesh.store) if one.id == agent_id)


def condition(stage: Stage, agent_id: str) -> str:
    """What it says of itself."""
    return (stage.mesh.store.agents.get(agent_id) or {}).get("condition", "")


@pytest.mark.parametrize("pool", STOPPING)
@fault(
    "time",
    "a task never ends, in a pool that can stop it (prefork, gevent)",
    expect="it is stopped at its time limit, tried again by its policy, and ends as timed out; its slot is free at once",
    tier="ci",
    bound_s=8,
)
def test_a_task_never_ends(stage: Stage, recovery: Recovery, pool: str) -> None:
    stage.start("one", pool=pool, concurrency=1)
    stage.ready("one")
    task = endless(stage, retries=1, gate=stage.gate("never"))
    last = stage.began(task, 2)
    record, at = over(stage, task)
    recovery.took(at - last.at_ms / 1000 - LIMIT_S)
    assert (record.state, record.reason, record.attempt, record.failures, record.crashes) == (
        State.TIMED_OUT,
        Reason.ATTEMPT,
        2,
        1,
        0,
    )
    assert [(one.attempt, one.how) for one in record.past] == [(1, "timed_out")]
    with pytest.raises(TimedOut):
        task.result(timeout_s=5)
    stage.submit()
    stage.all_end()
    assert condition(stage, "one") == ""
    stage.check({task.id: State.TIMED_OUT})


@pytest.mark.parametrize("pool", HELD_UP)
@fault(
    "time",
    "a task never ends, in a pool that cannot stop it (threads, solo)",
    expect="its lease ends at its time limit, it runs elsewhere, its late result is refused; its agent says that it is degraded",
    tier="ci",
    bound_s=8,
)
def test_a_task_cannot_be_stopped(stage: Stage, recovery: Recovery, pool: str) -> None:
    stage.start("one", pool=pool, concurrency=1)
    stage.ready("one")
    gate = stage.gate("late")
    task = endless(stage, retries=1, gate=gate)
    first = stage.began(task)
    stage.until(lambda: stage.record(task).failures == 1, "its lease to end")
    recovery.took(time.time() - first.at_ms / 1000 - LIMIT_S)
    stage.until(lambda: status(stage, "one") == "degraded", "it to be degraded", 10)
    assert condition(stage, "one") == "1 task runs past its time limit and cannot be stopped"
    stage.start("other", pool="prefork", concurrency=1)
    second = stage.began(task, 2)
    assert (first.agent, second.agent) == ("one", "other")
    record, _ = over(stage, task)
    assert (record.state, record.reason, record.agent) == (State.TIMED_OUT, Reason.ATTEMPT, "other")
    gate.touch()
    stage.until(lambda: status(stage, "one") == "healthy", "it to be healthy again", 10)
    assert stage.record(task).state is State.TIMED_OUT
    assert [one.agent for one in stage.effects(task, "end")] == ["one"]
    stage.check({task.id: State.TIMED_OUT})


@pytest.mark.parametrize("coordinator", [False, True], ids=["no-coordinator", "coordinator"])
@fault(
    "time",
    "the total deadline of running, queued and scheduled tasks passes, with and without a coordinator",
    expect="all end as timed out within a beat; what runs is stopped; a retry that would come too late is not waited for",
    tier="test",
    bound_s=6,
)
def test_deadlines_pass(stage: Stage, recovery: Recovery, coordinator: bool) -> None:
    stage.start("one", concurrency=1)
    if coordinator:
        stage.start_coordinator("c1")
    stage.ready("one")
    body = {"number": 0, "effects": str(stage.effects_file), "gate": str(stage.gate("never"))}

    def submit(task_type: str, body: Any, **options: Any) -> Any:
        return noted(stage, stage.mesh.submit(task_type, body, **options))

    running = submit("work", body, deadline_s=3)
    stage.began(running)
    waiting = [
        submit("work", body, deadline_s=3),
        submit("work", body, deadline_s=3, countdown_s=600),
        submit("nobody", body, deadline_s=3, unsatisfiable="accept"),
    ]
    submitted = time.time()
    for task in [running, *waiting]:
        record, at = over(stage, task)
        assert (record.state, record.reason) == (State.TIMED_OUT, Reason.DEADLINE)
    recovery.took(at - submitted - 3)
    last = stage.submit()
    stage.all_end(20)
    assert stage.record(last).state is State.SUCCEEDED, "the slot is free again"
    assert stage.effects(running, "end") == []
    stage.check({task.id: State.TIMED_OUT for task in [running, *waiting]})


@pytest.mark.parametrize("pool", [*STOPPING, *HELD_UP])
@fault(
    "time",
    "a running task is cancelled, in each pool",
    expect="it ends as cancelled at once and is stopped where the pool can; else its late result starts and records nothing",
    tier="ci",
    bound_s=6,
)
def test_a_running_task_is_cancelled(stage: Stage, recovery: Recovery, pool: str) -> None:
    stage.start("one", pool=pool, concurrency=1)
    stage.ready("one")
    gate = stage.gate("late")
    task = endless(stage, retries=3, gate=gate, hard_s=600)
    stage.began(task)
    assert task.cancel("enough") is True
    cancelled = time.time()
    with pytest.raises(Cancelled):
        task.result(timeout_s=5)
    if pool in STOPS:
        last = stage.submit()
        recovery.took(stage.began(last).at_ms / 1000 - cancelled)
        gate.touch()
    else:
        stage.until(lambda: status(stage, "one") == "degraded", "it to be degraded", 15)
        recovery.took(time.time() - cancelled)
        assert condition(stage, "one") == "1 task runs on that was cancelled or lost and cannot be stopped"
        gate.touch()
        last = stage.submit()
    stage.all_end()
    stage.until(lambda: status(stage, "one") == "healthy", "it to be healthy again", 10)
    assert stage.record(task).state is State.CANCELLED
    assert len(stage.effects(task, "end")) == (0 if pool in STOPS else 1)
    stage.check({task.id: State.CANCELLED})


@fault(
    "time",
    "a task takes 45 s, with leases of 10 s",
    expect="it runs once: a long task is not run twice because it is long",
    tier="all",
)
def test_a_long_task_runs_once(stage: Stage) -> None:
    stage.start("one")
    stage.start("other")
    stage.ready("one", "other")
    task = stage.submit(seconds=45)
    stage.all_end(120)
    stage.check()
    assert len(stage.effects(task, "begin")) == stage.record(task).attempt == 1


@pytest.mark.parametrize("pool", [*STOPPING, *HELD_UP])
@fault(
    "time",
    "a task computes for 30 s and never lets go of the interpreter's lock for long, in each pool",
    expect="the agent's beat goes on beside it: the task runs once",
    tier="all",
)
def test_thirty_seconds_of_pure_computing(stage: Stage, pool: str) -> None:
    stage.start("one", pool=pool, concurrency=1)
    stage.ready("one")
    task = stage.submit(computes=30)
    stage.all_end(150)
    stage.check()
    assert len(stage.effects(task, "begin")) == stage.record(task).attempt == 1
