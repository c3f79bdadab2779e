"""The life cycle of a task, as one table.

A task is one record that moves between the states below, and only by the verbs below. The scripts in `mesh.store`
carry the moves out; each is handed its verb's legal source states from this table, so the table is the only place
where the life cycle is written down. Rules of the table:

1. A verb is legal from the states in `sources`; from any other state it is refused and changes nothing.
2. A verb that is `fenced` belongs to the holder of one attempt: it must show that attempt's fence, else it is refused.
3. From a terminal state only a new *run* leads back (`replay`, `resubmit`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """Where a task is."""

    SCHEDULED = "scheduled"  # waits for a time: countdown, eta, back-off of a retry
    QUEUED = "queued"  # waits for an agent
    LEASED = "leased"  # delivered to an agent
    RUNNING = "running"  # the agent's pool has accepted it
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    EXPIRED = "expired"  # nobody started it before its expiry
    DEAD_LETTERED = "dead_lettered"  # put aside: retries used up, poison, or a message that no agent can read


class Verb(StrEnum):
    """What can happen to a task."""

    SUBMIT = "submit"
    RESUBMIT = "resubmit"
    REPLAY = "replay"
    PROMOTE = "promote"
    LEASE = "lease"
    START = "start"
    SETTLE = "settle"
    RETRY = "retry"
    RELEASE = "release"
    CRASH = "crash"
    REAP = "reap"
    CANCEL = "cancel"
    EXPIRE = "expire"
    TIME_OUT = "time_out"
    CONCLUDE = "conclude"
    REVISE = "revise"
    RESTORE = "restore"


class Reason(StrEnum):
    """What a record gives as the reason of an end: that time ended it, or that an agent refused its message.

    Other reasons are the name of the exception that it failed with, or said where they arise.
    """

    NOT_STARTED = "not started in time"  # state expired
    ATTEMPT = "attempt timed out"  # state timed_out: its time limit, and no retry was left
    DEADLINE = "deadline passed"  # state timed_out: the time from its submission to its end
    # State dead_lettered, by the agent that fetched it; nothing of it was run, neither were its callbacks.
    UNSIGNED = "refused: unsigned"
    FORGED = (
        "refused: forged"  # signed without the key, altered, or signed for another id, queue or namespace
    )
    UNKNOWN_KEY = "refused: unknown key"  # signed with a secret that this mesh does not have (any more)
    MOVED = "refused: moved"  # found in a queue that is not its own
    CERTIFICATE = "refused: certificate"  # signed by an agent whose certificate is forged, expired or revoked
    NOT_PERMITTED = "refused: not permitted"  # names a task type that its signer may not submit
    SIGNATURE_EXPIRED = "refused: expired"  # its signature's time is over: MESH_TASK_VALIDITY_S
    UNREADABLE = "refused: unreadable"  # signed as it should be, but no task's message
    REPLAYED = "refused: replayed"  # this very message has been run to its end before


REFUSALS = frozenset(reason for reason in Reason if reason.startswith("refused: "))


class Answer(StrEnum):
    """What a script says of a move."""

    MOVED = "moved"
    MISSING = "missing"  # no such record
    FENCED = "fenced"  # the attempt is somebody else's by now
    STALE = "stale"  # not legal from the state it is in
    REPEATED = "repeated"  # settle: this very end was recorded before, and the reply to it was lost


RECORDED = frozenset({Answer.MOVED, Answer.REPEATED})  # the attempt's end is in its record


TERMINAL = frozenset(
    {State.SUCCEEDED, State.FAILED, State.CANCELLED, State.TIMED_OUT, State.EXPIRED, State.DEAD_LETTERED}
)
WAITING = frozenset({State.SCHEDULED, State.QUEUED})
HELD = frozenset({State.LEASED, State.RUNNING})
LIVE = WAITING | HELD


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One verb: from where, to where, whose, and the sentence that documents its edges."""

    sources: frozenset[State]  # empty: only where there is no record yet
    targets: frozenset[State]
    fenced: bool
    meaning: str


_RETURNED = frozenset({State.QUEUED})
RULES: dict[Verb, Rule] = {
    Verb.SUBMIT: Rule(sources=frozenset(), targets=WAITING, fenced=False, meaning="a producer publishes it"),
    Verb.RESUBMIT: Rule(
        sources=TERMINAL, targets=WAITING, fenced=False, meaning="a producer publishes an ended id: a new run"
    ),
    Verb.REPLAY: Rule(
        sources=frozenset({State.FAILED, State.DEAD_LETTERED, State.TIMED_OUT}),
        targets=_RETURNED,
        fenced=False,
        meaning="an operator runs it again: a new run",
    ),
    Verb.REVISE: Rule(
        sources=LIVE, targets=WAITING, fenced=False, meaning="a newer run of its parent publishes it anew"
    ),
    Verb.PROMOTE: Rule(
        sources=frozenset({State.SCHEDULED}), targets=_RETURNED, fenced=False, meaning="its time has come"
    ),
    Verb.LEASE: Rule(
        sources=frozenset({State.QUEUED}), targets=HELD, fenced=False, meaning="an agent fetches it"
    ),
    Verb.START: Rule(
        sources=frozenset({State.LEASED}),
        targets=frozenset({State.RUNNING}),
        fenced=True,
        meaning="the agent's pool accepts it",
    ),
    Verb.SETTLE: Rule(
        sources=HELD,
        targets=frozenset(
            {
                State.SUCCEEDED,
                State.FAILED,
                State.CANCELLED,
                State.TIMED_OUT,
                State.DEAD_LETTERED,
                State.EXPIRED,
            }
        ),
        fenced=True,
        meaning="the attempt ends and its result is recorded",
    ),
    Verb.RETRY: Rule(
        sources=HELD,
        targets=WAITING,
        fenced=True,
        meaning="the running attempt publishes its id again, or ran out of its own time and is tried again",
    ),
    Verb.RELEASE: Rule(
        sources=HELD, targets=_RETURNED, fenced=True, meaning="the agent gives it back; nothing is counted"
    ),
    Verb.CRASH: Rule(
        sources=HELD,
        targets=frozenset({State.QUEUED, State.DEAD_LETTERED}),
        fenced=True,
        meaning="the process that ran it died; counted, and put aside as poison at the limit",
    ),
    Verb.REAP: Rule(
        sources=HELD,
        targets=frozenset({State.QUEUED, State.DEAD_LETTERED}),
        fenced=False,
        meaning="its lease ended: the agent is lost; counted as a crash only if it had started",
    ),
    Verb.CANCEL: Rule(
        sources=LIVE, targets=frozenset({State.CANCELLED}), fenced=False, meaning="somebody cancels it"
    ),
    Verb.EXPIRE: Rule(
        sources=WAITING,
        targets=frozenset({State.EXPIRED}),
        fenced=False,
        meaning="its expiry passed unstarted",
    ),
    Verb.TIME_OUT: Rule(
        sources=LIVE,
        targets=frozenset({State.TIMED_OUT}),
        fenced=False,
        meaning="its total deadline passed; the agent that runs it stops it",
    ),
    Verb.CONCLUDE: Rule(
        sources=WAITING,
        targets=TERMINAL,
        fenced=False,
        meaning="an outcome is recorded for an id that nobody holds (a chain or chord that failed before it)",
    ),
    Verb.RESTORE: Rule(
        sources=LIVE,
        targets=frozenset({State.FAILED, State.QUEUED}),
        fenced=False,
        meaning="Redis was restored from a backup: what had not ended there is failed, or what was held is queued again",
    ),
}

#: Celery's word for each state (a retried task that is scheduled again shows as RETRY, see `celery_status`).
CELERY_STATUS: dict[State, str] = {
    State.SCHEDULED: "PENDING",
    State.QUEUED: "PENDING",
    State.LEASED: "PENDING",
    State.RUNNING: "STARTED",
    State.SUCCEEDED: "SUCCESS",
    State.FAILED: "FAILURE",
    State.CANCELLED: "REVOKED",
    State.TIMED_OUT: "FAILURE",
    State.EXPIRED: "REVOKED",
    State.DEAD_LETTERED: "FAILURE",
}


def celery_status(state: State, *, failures: int = 0) -> str:
    """Celery's word for `state`; `failures` counts the attempts of this run that failed and were retried."""
    if state is State.SCHEDULED and failures:
        return "RETRY"
    return CELERY_STATUS[state]


class IllegalMove(ValueError):
    """A verb that is not legal from the state a task is in."""


def check(verb: Verb, source: State | None, target: State) -> None:
    """Raise `IllegalMove` unless `verb` leads from `source` (None: no record) to `target`."""
    rule = RULES[verb]
    legal = source in rule.sources if source is not None else verb in (Verb.SUBMIT, Verb.CONCLUDE)
    if not legal or target not in rule.targets:
        raise IllegalMove(f"{verb} does not lead from {source or 'nothing'} to {target}")
