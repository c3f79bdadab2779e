"""The checker on evidence made by hand: good evidence passes, and each thing that can be wrong turns its own check red."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from mesh.core.states import State
from mesh.store.tasks import Record
from mesh.verify.witness import (
    CHECKS,
    Effect,
    Evidence,
    Fault,
    Look,
    Push,
    Submission,
    check,
    percentile,
    recoveries,
    require,
)


def effect(what: str, task_id: str = "a", attempt: int = 1, at_s: float = 0.0, **more: Any) -> Effect:
    fields = {"number": 7, "run": 1, "fence": f"{attempt}-x", "agent": "one", "pid": 1, **more}
    return Effect(what=what, id=task_id, attempt=attempt, at_ms=at_s * 1000, **fields)


def record(task_id: str = "a", state: State = State.SUCCEEDED, attempt: int = 1, **more: Any) -> Record:
    return Record(id=task_id, state=state, type="t", queue="t", attempt=attempt, **more)


def result(attempt: int = 1, number: int = 7) -> dict[str, Any]:
    return {"number": number, "attempt": attempt, "fence": f"{attempt}-x"}


GOOD = Evidence(
    ledger=[Submission(id="a", number=7, acknowledged=True)],
    effects=[effect("begin"), effect("end")],
    records={"a": record()},
    results={"a": result()},
    counters={"succeeded": 1, "reassigned": 5, "queued": 0},
    left={"leases": []},
    pushes=[Push(id="a", status="SUCCESS", result=result())],
    looks=[
        Look(id="a", state=State.QUEUED, run=1, attempt=0),
        Look(id="a", state=State.SUCCEEDED, run=1, attempt=1),
    ],
)
KILL = Fault(kind="kill-agent", target="one", at_ms=1000, held=(("a", 1),))


def red(**changes: Any) -> set[str]:
    """The checks that fail for the good evidence with these changes."""
    return {one.name for one in check(dataclasses.replace(GOOD, **changes)) if not one.passed}


def test_good_evidence_passes() -> None:
    require(GOOD)
    assert [one.name for one in check(GOOD)] == [name for name, _, _ in CHECKS]


def test_a_task_may_run_twice_and_is_recorded_once() -> None:
    """At-least-once execution is no fault: the first attempt even came to its end, unrecorded."""
    effects = [*GOOD.effects, effect("begin", attempt=2), effect("end", attempt=2)]
    again = {"effects": effects, "records": {"a": record(attempt=2)}, "results": {"a": result(2)}}
    assert red(**again, pushes=[Push(id="a", status="SUCCESS", result=result(2))], looks=()) == set()


def test_a_task_that_vanished_is_lost() -> None:
    assert red(records={}, results={}, counters={}, pushes=()) == {"lost"}


def test_a_task_that_never_ends_is_lost_and_stuck() -> None:
    waits = {"records": {"a": record(state=State.QUEUED)}, "results": {}, "counters": {"queued": 1}}
    assert red(**waits, pushes=(), looks=(), left={"queue t": ["a"]}) == {"lost", "stuck"}


def test_an_end_recorded_twice() -> None:
    assert red(pushes=[*GOOD.pushes, *GOOD.pushes]) == {"twice"}


def test_a_result_that_changed_afterwards() -> None:
    assert red(pushes=[Push(id="a", status="SUCCESS", result=result(number=8))]) == {"twice"}


def test_a_state_that_changed_afterwards() -> None:
    assert red(pushes=[Push(id="a", status="FAILURE")]) == {"twice"}


@pytest.mark.parametrize(
    "counters", [{"succeeded": 2}, {"succeeded": 1, "failed": 1}, {"succeeded": 1, "queued": 1}]
)
def test_counters_that_do_not_add_up(counters: dict[str, int]) -> None:
    assert red(counters=counters) == {"twice"}


def test_a_second_run() -> None:
    assert red(records={"a": record(run=2)}) == {"twice"}


def test_a_wrong_result() -> None:
    other = result(number=8)
    assert red(results={"a": other}, pushes=[Push(id="a", status="SUCCESS", result=other)]) == {"wrong"}


def test_a_failed_task() -> None:
    failed = {"records": {"a": record(state=State.FAILED)}, "results": {}, "counters": {"failed": 1}}
    assert red(**failed, pushes=(), looks=()) == {"wrong"}


def test_a_stale_result() -> None:
    """Attempt 2 has the task, and the result of attempt 1 was taken."""
    assert red(records={"a": record(attempt=2)}) == {"stale"}


def test_a_result_out_of_nowhere() -> None:
    assert red(effects=[effect("begin")]) == {"stale"}


def test_an_attempt_that_began_twice() -> None:
    assert red(effects=[*GOOD.effects, effect("begin", pid=2)]) == {"attempts"}


def test_an_attempt_with_two_holders() -> None:
    assert red(effects=[*GOOD.effects, effect("begin", fence="1-y")]) == {"attempts"}


def test_an_attempt_that_its_record_does_not_know() -> None:
    assert red(effects=[*GOOD.effects, effect("begin", attempt=2)]) == {"attempts"}


@pytest.mark.parametrize(
    "last",
    [
        Look(id="a", state=State.RUNNING, run=1, attempt=0),
        Look(id="a", state=State.QUEUED, run=1, attempt=1),
    ],
)
def test_a_task_that_went_back(last: Look) -> None:
    assert red(looks=[*GOOD.looks, last]) == {"attempts"}


def test_a_task_that_nobody_submitted() -> None:
    assert red(records={"a": record(), "b": record("b")}, counters={"succeeded": 2}) == {"unknown"}
    assert red(effects=[*GOOD.effects, effect("begin", "b")]) == {"unknown"}


@pytest.mark.parametrize("there", [True, False])
def test_a_failed_submission_is_there_and_ended_or_is_not_there(there: bool) -> None:
    failed = {"ledger": [Submission(id="a", number=7, acknowledged=False, tries=3)]}
    gone = {"records": {}, "results": {}, "counters": {}, "pushes": (), "effects": (), "looks": ()}
    assert red(**failed, **({} if there else gone)) == set()


def test_a_failed_submission_that_is_half_there() -> None:
    failed = {"ledger": [Submission(id="a", number=7, acknowledged=False)]}
    waits = {"records": {"a": record(state=State.QUEUED)}, "results": {}, "counters": {"queued": 1}}
    assert red(**failed, **waits, pushes=(), looks=()) == {"unacknowledged"}
    assert red(**failed, records={}, results={}, counters={}, pushes=()) == {"unacknowledged"}


def test_what_is_left_behind() -> None:
    assert red(left={"leases": ["a"]}) == {"stuck"}


def recovered(after_s: float) -> dict[str, Any]:
    effects = [
        effect("begin"),
        effect("begin", attempt=2, at_s=1 + after_s),
        effect("end", attempt=2, at_s=2 + after_s),
    ]
    pushes = [Push(id="a", status="SUCCESS", result=result(2))]
    return {
        "effects": effects,
        "records": {"a": record(attempt=2)},
        "results": {"a": result(2)},
        "pushes": pushes,
        "looks": (),
        "faults": [KILL],
    }


def test_recovery_is_from_the_fault_to_the_next_begin() -> None:
    assert red(**recovered(12.5)) == set()
    (one,) = recoveries(dataclasses.replace(GOOD, **recovered(12.5)))
    assert (one.id, one.fault, one.seconds) == ("a", KILL, 12.5)
    assert red(**recovered(21)) == {"recovery"}


def test_an_attempt_that_survived_its_fault_is_no_recovery() -> None:
    assert recoveries(dataclasses.replace(GOOD, faults=[KILL])) == []


def test_of_two_faults_the_later_counts() -> None:
    later = dataclasses.replace(KILL, at_ms=4000)
    (one,) = recoveries(dataclasses.replace(GOOD, **{**recovered(12), "faults": [KILL, later]}))
    assert (one.fault, one.seconds) == (later, 9)


def test_offenders_say_who_and_why() -> None:
    with pytest.raises(
        AssertionError, match=r"stale: .* Not so: a: the result is of attempt 1, the last was 2"
    ):
        require(dataclasses.replace(GOOD, records={"a": record(attempt=2)}))


@pytest.mark.parametrize(("share", "value"), [(0.5, 2), (0.99, 4), (1.0, 4), (0.0, 1)])
def test_percentile(share: float, value: float) -> None:
    assert percentile([3, 1, 4, 2], share) == value
    assert percentile([], share) == 0
