"""The independent record of a run, and what has to be true of it: values in, verdicts out.

The system is not its own witness. The tasks write an *effect* when they begin and when they end (`mesh.verify.task`), whoever
submits keeps a *ledger*, and an observer notes each end when it is told of it. Only then the records of the mesh are compared
with these. Every check is one row of `CHECKS`: a name, the sentence that holds if it passes, and a function that yields the
tasks that break it, each with the reason.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mesh.core.states import CELERY_STATUS, TERMINAL, State
from mesh.store.tasks import Record

__all__ = [
    "CHECKS",
    "RECOVERY_S",
    "Check",
    "Effect",
    "Evidence",
    "Fault",
    "Look",
    "Push",
    "Recovery",
    "Submission",
    "check",
    "percentile",
    "recoveries",
    "require",
]

RECOVERY_S = 20.0  # what an interrupted task may take to begin elsewhere, p99: two leases


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One line of the ledger. `acknowledged`: the mesh has said yes to one of the tries, all with this id."""

    id: str
    number: int  # what the task has to give back
    acknowledged: bool
    tries: int = 1


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What a task wrote beside the system: one attempt's `begin` or `end`. Times are ms of this machine's clock."""

    what: str
    id: str
    number: int
    run: int
    attempt: int
    fence: str
    agent: str
    pid: int
    at_ms: float


@dataclass(frozen=True, kw_only=True)
class Push:
    """An end that was told when it was recorded: Celery's status and the result."""

    id: str
    status: str
    result: Any = None


@dataclass(frozen=True, kw_only=True)
class Look:
    """Where a task was when somebody looked."""

    id: str
    state: State
    run: int
    attempt: int


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What was done to whom, and the attempts that it held then: (id, attempt). Times as in `Effect`."""

    kind: str
    target: str
    at_ms: float
    held: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that is known after a run. `records`: every record of the namespace; `counters`: its counters by state;
    `left`: place -> ids that are still there. Pushes and looks are in the order of their time."""

    ledger: Sequence[Submission]
    effects: Sequence[Effect]
    records: Mapping[str, Record]
    results: Mapping[str, Any]
    counters: Mapping[str, int]
    left: Mapping[str, Sequence[str]] = field(default_factory=dict)
    pushes: Sequence[Push] = ()
    looks: Sequence[Look] = ()
    faults: Sequence[Fault] = ()
    surprises: Sequence[str] = ()  # what no fault explains: a process that ended, a submission refused
    bound_s: float = RECOVERY_S


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """A task that a fault interrupted: `seconds` from the fault to its next begin."""

    id: str
    fault: Fault
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Check:
    """A verdict. `offenders`: '<task id>: <why>' of those that break the sentence."""

    name: str
    sentence: str
    offenders: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing breaks it."""
        return not self.offenders

    def to_json(self) -> dict[str, Any]:
        """For `-o json` and reports."""
        return {
            "check": self.name,
            "passed": self.passed,
            "sentence": self.sentence,
            "offenders": list(self.offenders),
        }


def _lost(evidence: Evidence) -> Iterator[str]:
    for one in evidence.ledger:
        record = evidence.records.get(one.id)
        if one.acknowledged and record is None:
            yield f"{one.id}: acknowledged, and there is no record of it"
        elif one.acknowledged and record and record.state not in TERMINAL:
            yield f"{one.id}: acknowledged, and still {record.state}"


def _unacknowledged(evidence: Evidence) -> Iterator[str]:
    began = {effect.id for effect in evidence.effects}
    for one in evidence.ledger:
        record = evidence.records.get(one.id)
        if one.acknowledged:
            continue
        if record is None and one.id in began:
            yield f"{one.id}: it ran, but there is no record of it"
        elif record and record.state not in TERMINAL:
            yield f"{one.id}: it was taken, and is still {record.state}"


def _twice(evidence: Evidence) -> Iterator[str]:
    ended: dict[str, list[Push]] = defaultdict(list)
    for push in evidence.pushes:
        ended[push.id].append(push)
    for task_id, told in ended.items():
        record = evidence.records.get(task_id)
        if len(told) > 1:
            yield f"{task_id}: its end was recorded {len(told)} times"
        elif record is None or CELERY_STATUS[record.state] != told[0].status:
            yield f"{task_id}: its end was {told[0].status}, now it is {record.state if record else 'gone'}"
        elif told[0].status == "SUCCESS" and told[0].result != evidence.results.get(task_id):
            yield f"{task_id}: the result it ended with is not the one that is kept"
    for record in evidence.records.values():
        if record.run != 1:
            yield f"{record.id}: submitted once, and ran as run {record.run}"
    is_in = Counter(str(record.state) for record in evidence.records.values())
    for state in State:
        counted = evidence.counters.get(state, 0)
        if counted != is_in[state]:
            yield f"{state}: {counted} counted, {is_in[state]} records"


def _wrong(evidence: Evidence) -> Iterator[str]:
    for one in evidence.ledger:
        record = evidence.records.get(one.id)
        if record is None or record.state not in TERMINAL:
            continue
        result = evidence.results.get(one.id)
        if record.state is not State.SUCCEEDED:
            yield f"{one.id}: {record.state} ({record.reason or record.error or 'no reason'})"
        elif not isinstance(result, Mapping) or result.get("number") != one.number:
            yield f"{one.id}: its result is {result!r}, not that of number {one.number}"


def _stale(evidence: Evidence) -> Iterator[str]:
    ends = {(one.id, one.attempt, one.fence) for one in evidence.effects if one.what == "end"}
    for task_id, result in evidence.results.items():
        record = evidence.records.get(task_id)
        if record is None or record.state is not State.SUCCEEDED or not isinstance(result, Mapping):
            continue
        attempt = result.get("attempt")
        if attempt != record.attempt:
            yield f"{task_id}: the result is of attempt {attempt}, the last was {record.attempt}"
        elif (task_id, attempt, result.get("fence")) not in ends:
            yield f"{task_id}: attempt {attempt} gave a result, and never came to its end"


def _attempts(evidence: Evidence) -> Iterator[str]:
    begins: dict[tuple[str, int, int], list[Effect]] = defaultdict(list)
    for effect in evidence.effects:
        if effect.what == "begin":
            begins[effect.id, effect.run, effect.attempt].append(effect)
    for (task_id, _, attempt), lines in begins.items():
        if len({line.fence for line in lines}) > 1:
            yield f"{task_id}: attempt {attempt} was given to two holders"
        elif len(lines) > 1:
            yield f"{task_id}: attempt {attempt} began {len(lines)} times"
        record = evidence.records.get(task_id)
        if record is not None and (record.run, record.attempt) < (lines[0].run, attempt):
            yield f"{task_id}: attempt {attempt} began, its record says {record.attempt}"
    last: dict[str, Look] = {}
    for look in evidence.looks:
        before = last.get(look.id)
        if before and (look.run, look.attempt) < (before.run, before.attempt):
            yield f"{look.id}: went back from attempt {before.attempt} to {look.attempt}"
        elif before and before.state in TERMINAL and look != before:
            yield f"{look.id}: had ended {before.state}, and was {look.state} later"
        last[look.id] = look


def _unknown(evidence: Evidence) -> Iterator[str]:
    known = {one.id for one in evidence.ledger}
    for task_id in evidence.records:
        if task_id not in known:
            yield f"{task_id}: there is a record of it, and nobody submitted it"
    for task_id in {effect.id for effect in evidence.effects} - known:
        yield f"{task_id}: it ran, and nobody submitted it"


def _stuck(evidence: Evidence) -> Iterator[str]:
    for place, ids in evidence.left.items():
        for task_id in ids:
            yield f"{task_id}: still in {place}"


def _surprising(evidence: Evidence) -> Iterator[str]:
    yield from evidence.surprises


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least this share (0 to 1) of the values does not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def recoveries(evidence: Evidence) -> list[Recovery]:
    """For each attempt that a fault interrupted: how long until the task's next attempt began. An attempt that went on in
    spite of the fault, and one after which the task was not begun again, are none."""
    begins: dict[str, list[Effect]] = defaultdict(list)
    for effect in evidence.effects:
        if effect.what == "begin":
            begins[effect.id].append(effect)
    found = {}
    for fault in evidence.faults:
        for task_id, attempt in fault.held:
            after = [
                one.at_ms for one in begins[task_id] if one.attempt > attempt and one.at_ms >= fault.at_ms
            ]
            if after:
                # of two faults that hit one attempt, the later one is what the mesh had to recover from
                found[task_id, attempt] = Recovery(
                    id=task_id, fault=fault, seconds=(min(after) - fault.at_ms) / 1000
                )
    return list(found.values())


def _slow(evidence: Evidence) -> Iterator[str]:
    all_of_them = recoveries(evidence)
    if percentile((one.seconds for one in all_of_them), 0.99) > evidence.bound_s:
        for one in all_of_them:
            if one.seconds > evidence.bound_s:
                yield f"{one.id}: began again {one.seconds:.1f} s after {one.fault.kind} of {one.fault.target}"


#: Name, the sentence that holds if it passes, what breaks it.
CHECKS: tuple[tuple[str, str, Callable[[Evidence], Iterator[str]]], ...] = (
    ("lost", "Every acknowledged task has ended.", _lost),
    ("twice", "Each end was recorded once, and stayed what it was.", _twice),
    ("wrong", "Every task that ended succeeded, with its own result.", _wrong),
    ("stale", "Every result is of the task's last attempt, which came to its end.", _stale),
    ("attempts", "Attempts only grow, and each was begun once.", _attempts),
    ("unknown", "Nothing ran or was recorded that nobody submitted.", _unknown),
    (
        "unacknowledged",
        "A submission that failed is not there, or came to its end like the others.",
        _unacknowledged,
    ),
    ("stuck", "Nothing is left in a queue, in the schedule or leased.", _stuck),
    ("recovery", "What a fault interrupted began again within two leases, 20 s by default (p99).", _slow),
    ("surprises", "No process ended and no submission was refused but by a fault.", _surprising),
)


def check(evidence: Evidence) -> list[Check]:
    """The verdicts, in the order of `CHECKS`."""
    return [
        Check(name=name, sentence=sentence, offenders=tuple(sorted(offenders(evidence))))
        for name, sentence, offenders in CHECKS
    ]


def require(evidence: Evidence) -> None:
    """AssertionError that names what is broken, for tests."""
    broken = [one for one in check(evidence) if not one.passed]
    lines = [f"{one.name}: {one.sentence} Not so: {'; '.join(one.offenders[:5])}" for one in broken]
    if lines:
        raise AssertionError("\n".join(lines))
