"""What a row of the fault matrix plays on: a Redis of its own, agents, coordinators, and tasks that a witness watches."""

from __future__ import annotations

import dataclasses
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mesh.client import Handle, Mesh
from mesh.core.states import State
from mesh.services.tasks import new_id
from mesh.store.embedded import start_server
from mesh.store.tasks import Record
from mesh.verify.evidence import Observer, collect, read_effects
from mesh.verify.witness import Effect, Evidence, Submission, require
from tests.chaos.fleet import Fleet
from tests.waiting import wait_until

END_S = 60.0


class Stage(Fleet):
    """A fleet with a server of its own, which may be killed, frozen and restarted; leases and time-outs are the defaults.

    `submit` notes what was acknowledged; `all_end` and `check` say what came of it. Moments are `time.time()`, as the witness's.
    """

    def __init__(self, folder: Path, server: Any = None) -> None:
        self.server = server or start_server(folder / "redis")  # or what else has a `url`, and stops
        super().__init__(self.server.url, "stage", folder)
        self.effects_file = folder / "effects"
        self.effects_file.touch()
        self.ledger: dict[str, Submission] = {}
        self.slots: dict[str, int] = {}  # of each agent that was started
        self._writing = threading.Lock()
        self.observer = Observer(self.mesh.store)
        self.observer.__enter__()

    def start(  # type: ignore[override]
        self,
        agent_id: str,
        *,
        pool: str = "prefork",
        concurrency: int = 2,
        capabilities: str = "work",
        include: str = "tests.chaos.witness",
        more: Sequence[str] = (),
        proxied: bool = False,
        python: Sequence[str] = (sys.executable,),
        **environ: str,
    ) -> None:
        """Start an agent with the witness's task type, or those of another module; `python`: what runs modules."""
        words = [*python, "-m", "mesh.workers", "--loglevel", "info", "-I", include]
        words += ["--pool", pool, "--concurrency", str(concurrency), "--capabilities", capabilities]
        words += ["--without-gossip", "--without-mingle", "--agent-id", agent_id, *more]
        self.run(agent_id, words, proxied=proxied, **{"AGENT_ID": agent_id, **environ})
        self.slots[agent_id] = concurrency

    # -- tasks

    def submit(
        self, *, by: Mesh | None = None, options: Mapping[str, Any] | None = None, **payload: Any
    ) -> Handle:
        """One task `work`; see there for what its payload may say. It counts as acknowledged when this returns.

        `by`: another client than the one that goes straight to Redis; `options`: of `Mesh.submit`. Several threads may submit.
        """
        task_id = new_id()
        with self._writing:
            number = len(self.ledger)
            self.ledger[task_id] = Submission(id=task_id, number=number, acknowledged=False)
        body = {"number": number, "effects": str(self.effects_file), **payload}
        handle = (by or self.mesh).submit(
            "work", body, task_id=task_id, unsatisfiable="accept", **(options or {})
        )
        self.ledger[task_id] = Submission(id=task_id, number=number, acknowledged=True)
        self.observer.watch(task_id)
        return handle

    def load(self, tasks: int, seed: int = 0) -> list[Handle]:
        """Tasks of mixed length, up to 0.8 s: some run when a fault comes, some are leased, many wait."""
        dice = random.Random(seed)
        return [self.submit(seconds=dice.choice((0.0, 0.01, 0.05, 0.3, 0.8))) for _ in range(tasks)]

    def busy(self, gate: Path) -> dict[str, list[Handle]]:
        """Let every agent run as many tasks as it can, each until the file `gate` is there; who runs which."""
        tasks = {
            task.id: task for task in [self.submit(gate=str(gate)) for _ in range(sum(self.slots.values()))]
        }

        def running() -> dict[str, list[Handle]]:
            begun: dict[str, list[Handle]] = {name: [] for name in self.slots}
            for one in self.effects(what="begin"):
                if one.id in tasks:
                    begun[one.agent].append(tasks[one.id])
            return begun

        def all_are() -> bool:
            return {name: len(begun) for name, begun in running().items()} == self.slots

        self.until(all_are, f"{self.slots} to be busy")
        return running()

    def gate(self, name: str = "gate") -> Path:
        """A file that tasks wait for; `touch` lets them go on."""
        return self.folder / name

    # -- what is seen

    def record(self, task: Handle) -> Record:
        """What the mesh says of it."""
        found = self.mesh.store.tasks.record(task.id)
        assert found is not None, f"{task.id} is gone"
        return found

    def held_by(self, agent_id: str) -> list[str]:
        """Ids of the tasks that an agent holds now, by the mesh's account."""
        records = self.mesh.store.tasks.records(list(self.ledger))
        return [one.id for one in records if one and one.agent == agent_id and not one.ended_already]

    def effects(self, task: Handle | None = None, what: str | None = None) -> list[Effect]:
        """What the witness saw, of one task or of all: `begin`, `end` or both."""
        lines = read_effects(self.effects_file)
        return [
            one for one in lines if (task is None or one.id == task.id) and (what is None or one.what == what)
        ]

    def began(self, task: Handle, times: int = 1, timeout_s: float = END_S, what: str = "begin") -> Effect:
        """Wait until that many of its attempts have begun (or come to their `end`); the last of them."""
        self.until(lambda: len(self.effects(task, what)) >= times, f"{what} {times} of {task.id}", timeout_s)
        return self.effects(task, what)[times - 1]

    def until(self, predicate: Callable[[], object], what: str, timeout_s: float = END_S) -> float:
        """Wait for it; the moment when it was seen."""
        try:
            wait_until(predicate, timeout_s, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.tails()}") from None
        return time.time()

    def all_end(self, timeout_s: float = END_S) -> float:
        """Wait until every acknowledged task has ended; the moment when that was seen."""
        live = [one.id for one in self.ledger.values() if one.acknowledged]

        def none_left() -> bool:
            live[:] = [
                one
                for one, record in zip(live, self.mesh.store.tasks.records(live), strict=True)
                if record is None or not record.ended_already
            ]
            return not live

        return self.until(none_left, f"all of {len(live)} tasks to end", timeout_s)

    def check(self, others: Mapping[str, State] | None = None) -> Evidence:
        """Every acknowledged task succeeded exactly once; see `mesh.verify.witness.CHECKS` for what that means.

        `others`: tasks that the row submitted by other ways, and how each has to have ended.
        """
        ledger = list(self.ledger.values())
        evidence = collect(self.mesh.store, ledger, self.effects_file, observer=self.observer)
        for task_id, state in (others or {}).items():
            assert evidence.records[task_id].state is state, evidence.records[task_id]
            evidence = _without(evidence, task_id, state)
        require(evidence)
        return evidence

    def close(self) -> None:
        """End everything that was started."""
        self.observer.__exit__(None, None, None)
        super().close()
        self.server.stop()


def _without(evidence: Evidence, task_id: str, state: State) -> Evidence:
    return dataclasses.replace(
        evidence,
        ledger=[one for one in evidence.ledger if one.id != task_id],
        effects=[one for one in evidence.effects if one.id != task_id],
        records={one: record for one, record in evidence.records.items() if one != task_id},
        results={one: result for one, result in evidence.results.items() if one != task_id},
        counters={**evidence.counters, state: evidence.counters[state] - 1},
        pushes=[one for one in evidence.pushes if one.id != task_id],
    )
