"""The store against its model: the same random events to both, the same answers and the same state after each.

`test_it_fails_without_fences` tests the test: scripts that forget to compare fences must be found out.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from mesh.core.states import HELD, LIVE, RULES, TERMINAL, State, Verb
from mesh.store.store import Store
from mesh.store.tasks import Entry, Settlement
from tests.integration import stores
from tests.integration.model import MAX_CRASHES, REPLAYABLE, Model, Task

IDS, QUEUES = ("x", "y"), ("one", "two")
HOLDERS = {"shared#1": False, "isolated#1": True}  # whether each task runs in a process of its own
ID, QUEUE = st.sampled_from(IDS), st.sampled_from(QUEUES)
PRIORITY = st.sampled_from([4, 9])
TOKENS = {
    "create": ["digest-a", "digest-b"],
    "outside": ["call-1", "call-2", "call-3"],
    "child": ["p:1", "p:2", "q:1"],
}
PUBLICATION = st.sampled_from([(kind, token) for kind, tokens in TOKENS.items() for token in tokens])
ENDS = st.sampled_from(sorted(RULES[Verb.SETTLE].targets))
CONCLUSIONS = st.sampled_from([State.SUCCEEDED, State.FAILED, State.DEAD_LETTERED])
LATER_MS = 10_000_000
_names = itertools.count(1)


class Life(RuleBasedStateMachine):
    """Two ids, two queues, two holders; fences stay in the bundle when they are out of date."""

    open_store: Callable[[str], Store]
    fences = Bundle("fences")

    def __init__(self) -> None:
        super().__init__()
        self.store = type(self).open_store(f"m{uuid.uuid4().hex}")
        self.model = Model()

    # -- producers

    @rule(
        task_id=ID,
        queue=QUEUE,
        priority=PRIORITY,
        publication=PUBLICATION,
        later=st.booleans(),
        expires=st.booleans(),
        deadline=st.booleans(),
    )
    def publish(
        self,
        task_id: str,
        queue: str,
        priority: int,
        publication: Any,
        later: bool,
        expires: bool,
        deadline: bool,
    ) -> None:
        kind, token = publication
        message = b"m%d" % next(_names)
        (word,) = self.store.tasks.submit(
            [
                stores.publication(
                    task_id,
                    queue,
                    message=message,
                    priority=priority,
                    delay_ms=LATER_MS if later else None,
                    expires_ms=LATER_MS if expires else None,
                    deadline_ms=LATER_MS if deadline else None,
                    kind=kind,
                    token=token,
                )
            ]
        )
        state = State.SCHEDULED if later else State.QUEUED
        assert word == self.model.submit(
            task_id, kind, Task(state, queue, priority, 0, token, message, expires=expires, deadline=deadline)
        )

    @rule(task_id=ID)
    def cancel(self, task_id: str) -> None:
        word, was, _ = self.store.tasks.cancel(task_id, "not needed")
        assert (word, was) == self.model.cancel(task_id)

    @rule(task_id=ID, behind=st.sampled_from([0, 0, 0, 1]))
    def replay(self, task_id: str, behind: int) -> None:
        known = self.model.tasks.get(task_id)
        run, message = (known.run if known else 1) - behind, b"m%d" % next(_names)
        assert self.store.tasks.replay(task_id, run, message) == self.model.replay(task_id, run, message)

    @rule(task_id=ID, end=CONCLUSIONS)
    def conclude(self, task_id: str, end: State) -> None:
        assert self.store.tasks.conclude(task_id, end, b"{}")[0] == self.model.conclude(task_id, end)

    # -- holders

    @rule(
        target=fences,
        queues=st.sampled_from([["one"], ["two"], ["one", "two"], ["two", "one"]]),
        holder=st.sampled_from(sorted(HOLDERS)),
        limit=st.integers(1, 2),
        patient=st.booleans(),
    )
    def fetch(self, queues: list[str], holder: str, limit: int, patient: bool) -> Any:
        nonce = f"n{next(_names)}"
        idle = all(task.holder != holder for task in self.model.tasks.values())
        taken = self.store.tasks.fetch(
            holder=holder,
            isolated=HOLDERS[holder],
            nonce=nonce,
            limit=limit,
            held=int(not idle),
            queues=queues,
            patience_ms=LATER_MS if patient else 0,
        )
        messages = [self.model.tasks[one.id].message for one in taken]
        assert [one.message for one in taken] == messages
        got = [(one.id, one.fence, one.run, one.redelivered, one.watched) for one in taken]
        assert got == self.model.fetch(
            queues, holder=holder, isolated=HOLDERS[holder], patient=patient, limit=limit, nonce=nonce
        )
        return multiple(*[(one.id, one.fence) for one in taken])

    @rule(attempt=fences)
    def start(self, attempt: tuple[str, str]) -> None:
        assert self.store.tasks.start([(*attempt, 0)]) == [self.model.start(*attempt)]

    @rule(attempt=fences, end=ENDS, keep=st.booleans())
    def settle(self, attempt: tuple[str, str], end: State, keep: bool) -> None:
        words, due = self.store.tasks.settle([Settlement(*attempt, end, b"{}", keep)])
        assert (words, due) == ([self.model.settle(*attempt, end, keep=keep)], [])

    @rule(attempt=fences)
    def release(self, attempt: tuple[str, str]) -> None:
        assert self.store.tasks.release([Entry(*attempt)]) == [self.model.release(*attempt)]

    @rule(
        attempt=fences,
        queue=QUEUE,
        priority=PRIORITY,
        delay_ms=st.sampled_from([None, LATER_MS, "parked"]),
        failed=st.booleans(),
    )
    def retry(self, attempt: tuple[str, str], queue: str, priority: int, delay_ms: Any, failed: bool) -> None:
        parked = delay_ms == "parked"
        message = b"" if parked else b"m%d" % next(_names)
        word = self.store.tasks.retry(
            Entry(*attempt),
            queue=queue,
            task_type="t",
            priority=priority,
            message=message,
            delay_ms=delay_ms,
            failed=failed,
        )
        state = State.QUEUED if delay_ms is None else State.SCHEDULED
        fresh = Task(state, queue, priority, 0, "", message, parked=parked)
        assert word == self.model.retry(*attempt, fresh, failed=failed)

    @rule(attempt=fences)
    def crash(self, attempt: tuple[str, str]) -> None:
        crashed = self.store.tasks.crash(Entry(*attempt), "its process died")
        assert crashed[:2] == self.model.crash(*attempt)

    @rule(attempt=fences, by_outsider=st.booleans())
    def annotate(self, attempt: tuple[str, str], by_outsider: bool) -> None:
        task_id, fence = attempt[0], "" if by_outsider else attempt[1]
        assert self.store.tasks.annotate(task_id, fence, b"{}") == self.model.annotate(task_id, fence)

    @rule(attempts=st.lists(fences, max_size=3))
    def renew(self, attempts: list[tuple[str, str]]) -> None:
        beat = self.store.agents.renew("nobody", 1, {}, [Entry(*attempt) for attempt in attempts])
        assert beat.known == "unknown"
        self.model.overdue()
        assert beat.words == [self.model.renew(*attempt) for attempt in attempts]

    # -- time

    @rule(lost=st.sets(ID, min_size=1))
    def lose_holders(self, lost: set[str]) -> None:
        held = [
            one for one in sorted(lost) if one in self.model.tasks and self.model.tasks[one].state in HELD
        ]
        for task_id in held:
            stores.lose_lease(self.store, task_id)
        stores.calm(self.store)
        again, aside, _, due, _ = self.store.tasks.reap()
        assert (again, len(aside), due) == (*self.model.reap(held), [])

    @rule(task_id=ID)
    def fall_due(self, task_id: str) -> None:
        stores.fall_due(self.store, task_id)
        task = self.model.tasks.get(task_id)
        if task is not None and task.state is State.SCHEDULED and not task.parked:
            task.due = True

    @rule(task_id=ID)
    def lapse(self, task_id: str) -> None:
        task = self.model.tasks.get(task_id)
        if task is not None and task.state in LIVE and task.expires:
            stores.lapse(self.store, task_id)
            task.lapsed = True

    @rule(task_id=ID)
    def pass_deadline(self, task_id: str) -> None:
        task = self.model.tasks.get(task_id)
        if task is not None and task.state in LIVE and task.deadline:
            stores.pass_deadline(self.store, task_id)
            task.passed = True

    @rule()
    def tick(self) -> None:
        promoted, expired, forgotten, due, _, timed_out = stores.tick(self.store)
        assert (promoted, expired, timed_out, forgotten, due) == (*self.model.tick(), 0, [])

    # -- what must be so after every step

    @invariant()
    def both_agree(self) -> None:
        assert self.seen() == self.expected()

    def seen(self) -> dict[str, Any]:
        """What the store holds."""
        keys, pipeline = self.store.keys, self.store.client.pipeline
        sets = ("scheduled", "leases", "deadlines", "dead")
        queues = ("", *QUEUES)
        answers = iter(
            pipeline(
                *[("ZRANGE", keys[name], 0, -1) for name in sets],
                *[("ZRANGE", keys.of("queue", queue), 0, -1) for queue in queues],
                *[("LLEN", keys.of("bell", queue)) for queue in QUEUES],
                ("SMEMBERS", keys["ready"]),
                *[("PTTL", keys.of(kind, one)) for one in IDS for kind in ("task", "message", "result")],
            )
        )
        view: dict[str, Any] = {name: {one.decode() for one in next(answers)} for name in sets}
        view["queues"] = {queue: [one.decode() for one in next(answers)] for queue in queues}
        bells = {queue: next(answers) for queue in QUEUES}
        assert all(number <= 1 for number in bells.values()), bells
        view["ready"] = {one.decode() for one in next(answers)}
        silent = [queue for queue, number in bells.items() if not number and queue in view["ready"]]
        assert not silent, f"work in {silent}, and no bell rung"
        view["lives"] = {
            one: tuple(lives(next(answers)) for _ in ("task", "message", "result")) for one in IDS
        }
        view["records"] = {
            one.id: (
                (one.state, one.queue, one.run, one.attempt, one.failures, one.crashes, one.fence),
                [(attempt.run, attempt.attempt, attempt.how) for attempt in one.past],
            )
            for one in self.store.tasks.records(IDS)
            if one is not None
        }
        view["counters"] = {
            (queue, state): number
            for queue, states in self.store.tasks.counts().items()
            for state, number in states.items()
            if number
        }
        return view

    def expected(self) -> dict[str, Any]:
        """The same of the model."""
        tasks = self.model.tasks
        queues = {queue: self.model.queued(queue) for queue in ("", *QUEUES)}
        return {
            "scheduled": {
                one for one, task in tasks.items() if task.state is State.SCHEDULED and not task.parked
            },
            "leases": {one for one, task in tasks.items() if task.state in HELD},
            "deadlines": {
                one
                for one, task in tasks.items()
                if task.can_expire or (task.deadline and task.state in LIVE)
            },
            "dead": {one for one, task in tasks.items() if task.dead},
            "queues": queues,
            "ready": {queue for queue, ids in queues.items() if ids},
            "lives": {one: expected_lives(tasks.get(one)) for one in IDS},
            "records": {
                one: (
                    (task.state, task.queue, task.run, task.attempt, task.failures, task.crashes, task.fence),
                    task.past,
                )
                for one, task in tasks.items()
            },
            "counters": self.model.counters(),
        }


def lives(ttl_ms: int) -> str:
    """A key's TTL as a word."""
    return {-2: "gone", -1: "kept"}.get(ttl_ms, "ends")


def expected_lives(task: Task | None) -> tuple[str, str, str]:
    """How long record, message and result should live."""
    if task is None:
        return "gone", "gone", "gone"
    result = "ends" if task.result else "gone"
    if task.state not in TERMINAL:
        return "kept", "kept", result
    return "ends", "ends" if task.message and task.state in REPLAYABLE else "gone", result


def machine(redis_url: str, prepare: Callable[[Store], Store]) -> type[Life]:
    """The machine on this server; all its examples share one connection."""
    first = stores.open_store(redis_url, "any")

    def open_one(namespace: str) -> Store:
        settings = stores.open_store(
            redis_url, namespace, max_crashes=MAX_CRASHES, lease_ms=600_000, lease_renew_ms=60_000
        ).settings
        return prepare(Store(settings, client=first.client))

    return type("LifeHere", (Life,), {"open_store": staticmethod(open_one)})


def play(life: type[Life], **more: Any) -> None:
    """Run it for about ten seconds."""
    run_state_machine_as_test(
        life,
        settings=settings(
            **{
                "max_examples": 100,
                "stateful_step_count": 40,
                "deadline": None,
                "print_blob": True,
                "suppress_health_check": list(HealthCheck),
                **more,
            }
        ),
    )


@pytest.mark.timeout(200)
def test_the_store_does_what_the_table_of_states_says(redis_url: str) -> None:
    play(machine(redis_url, lambda store: store))


@pytest.mark.timeout(200)
def test_it_fails_without_fences(redis_url: str) -> None:
    with pytest.raises(AssertionError):
        play(
            machine(redis_url, stores.without_fences),
            derandomize=True,
            database=None,
            print_blob=False,
            phases=[Phase.generate],
            max_examples=1000,  # it ends with the first failure
            stateful_step_count=60,
        )
