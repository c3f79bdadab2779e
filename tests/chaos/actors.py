"""Agents played by hand on a store, in a directed order; they write effects as tasks do, and the witness judges them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from mesh.core.states import State
from mesh.store.store import Store
from mesh.store.tasks import Fetched, Settlement
from mesh.verify.evidence import Observer, collect
from mesh.verify.task import TYPE
from mesh.verify.witness import Evidence, Submission
from tests.integration.stores import begin, calm, fetch, lose_lease, publish
from tests.waiting import wait_until

NUMBER = 7


def note(path: Path, what: str, one: Fetched, agent: str = "one") -> None:
    """The line that a running task writes."""
    attempt = int(one.fence.partition("-")[0])
    line = {
        "what": what,
        "id": one.id,
        "number": NUMBER,
        "run": one.run,
        "attempt": attempt,
        "fence": one.fence,
    }
    with path.open("ab") as file:
        file.write(
            msgspec.json.encode({**line, "agent": agent, "pid": 1, "at_ms": time.time() * 1000}) + b"\n"
        )


def document(one: Fetched) -> bytes:
    """Celery's document of the result that the task gives back."""
    result: dict[str, Any] = {
        "number": NUMBER,
        "attempt": int(one.fence.partition("-")[0]),
        "fence": one.fence,
    }
    return msgspec.json.encode({"status": "SUCCESS", "result": result, "task_id": one.id})


class Actors:
    """One namespace, its observer and its ledger. A context manager; `evidence` afterwards, or at any time."""

    def __init__(self, store: Store, effects: Path) -> None:
        self.store, self.effects = store, effects
        effects.touch()
        self.ledger: dict[str, Submission] = {}
        self.observer = Observer(store)

    def __enter__(self) -> Actors:
        self.observer.__enter__()
        return self

    def __exit__(self, *_: Any) -> None:
        self.observer.__exit__(None, None, None)

    def submit(self, task_id: str) -> None:
        """Submit with an id; again, it is the same task."""
        tries = self.ledger[task_id].tries + 1 if task_id in self.ledger else 1
        publish(self.store, task_id, TYPE, token="content", type=TYPE)
        self.ledger[task_id] = Submission(id=task_id, number=NUMBER, acknowledged=True, tries=tries)
        self.observer.watch(task_id)

    def take(self, agent: str, store: Store | None = None) -> Fetched | None:
        """Fetch a task and begin it; None if there is none."""
        found = fetch(store or self.store, TYPE, holder=f"{agent}#1")
        if not found:
            return None
        begin(store or self.store, found[0])
        note(self.effects, "begin", found[0], agent)
        return found[0]

    def finish(self, one: Fetched | None, agent: str) -> None:
        """Come to the end of an attempt, and have it recorded."""
        if one is not None:
            note(self.effects, "end", one, agent)
            self.store.tasks.settle(
                [
                    Settlement(
                        id=one.id, fence=one.fence, state=State.SUCCEEDED, document=document(one), keep=True
                    )
                ]
            )

    def reap_silent(self, one: Fetched, reap: Callable[[], Any] | None = None) -> None:
        """Its holder was silent for a lease, unless it has ended before; somebody takes it back."""
        if self.store.client.execute("ZSCORE", self.store.keys["leases"], one.id) is not None:
            lose_lease(self.store, one.id)
        calm(self.store)
        (reap or self.store.tasks.reap)()

    def evidence(self) -> Evidence:
        """Once the observer has heard of what has ended."""
        tasks = self.store.tasks

        def heard() -> bool:
            ended = {one.id for one in tasks.records(list(self.ledger)) if one and one.ended_already}
            return ended <= {push.id for push in self.observer.pushes}

        wait_until(heard, description="the ends to be told")
        return collect(self.store, list(self.ledger.values()), self.effects, observer=self.observer)
