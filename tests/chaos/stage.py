"""What a row of the fault matrix plays on: a Redis of its own, agents, coordinators, and tasks that a witness watches."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mesh.client import Handle
from mesh.core.states import State
from mesh.store.embedded import start_server
from mesh.store.tasks import Record
from tests.chaos import witness
from tests.chaos.fleet import Fleet
from tests.chaos.witness import Effect
from tests.waiting import wait_until

END_S = 60.0


class Stage(Fleet):
    """A fleet with a server of its own, which may be killed, frozen and restarted; leases and time-outs are the defaults.

    `submit` notes what was acknowledged; `all_end` and `check` say what came of it.
    """

    def __init__(self, folder: Path) -> None:
        self.server = start_server(folder / "redis")
        self.effects_file = folder / "effects"
        environment = {witness.EFFECTS: str(self.effects_file)}
        super().__init__(self.server.url, "stage", folder, **environment)
        self.acknowledged: dict[str, int] = {}  # task id -> its number

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
        **environ: str,
    ) -> None:
        """Start an agent with the witness's task types, or those of another module."""
        words = [sys.executable, "-m", "mesh.workers", "--loglevel", "info", "-I", include]
        words += ["--pool", pool, "--concurrency", str(concurrency), "--capabilities", capabilities]
        words += ["--without-gossip", "--without-mingle", "--agent-id", agent_id, *more]
        self.run(agent_id, words, proxied=proxied, **{"AGENT_ID": agent_id, **environ})

    # -- tasks

    def submit(self, **payload: Any) -> Handle:
        """One task `work`; see there for what its payload may say. It counts as acknowledged when this returns."""
        number = len(self.acknowledged)
        handle = self.mesh.submit("work", {"number": number, **payload})
        self.acknowledged[handle.id] = number
        return handle

    def load(self, tasks: int, seed: int = 0) -> list[Handle]:
        """Tasks of mixed length, up to 0.8 s: some run when a fault comes, some are leased, many wait."""
        dice = random.Random(seed)
        return [self.submit(seconds=dice.choice((0.0, 0.01, 0.05, 0.3, 0.8))) for _ in range(tasks)]

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
        """Ids of the acknowledged tasks that an agent holds now, by the mesh's account."""
        records = self.mesh.store.tasks.records(list(self.acknowledged))
        return [one.id for one in records if one and one.agent == agent_id and not one.ended_already]

    def effects(self, task: Handle | None = None, what: str | None = None) -> list[Effect]:
        """What the witness saw, of one task or of all."""
        lines = witness.effects(self.effects_file)
        return [
            one for one in lines if (task is None or one.id == task.id) and (what is None or one.what == what)
        ]

    def began(self, task: Handle, times: int = 1, timeout_s: float = END_S) -> Effect:
        """Wait until that many attempts of it have begun; the last of them."""
        self.until(
            lambda: len(self.effects(task, "begin")) >= times, f"attempt {times} of {task.id}", timeout_s
        )
        return self.effects(task, "begin")[times - 1]

    def until(self, predicate: Callable[[], object], what: str, timeout_s: float = END_S) -> float:
        """Wait for it; the monotonic moment when it was seen."""
        try:
            wait_until(predicate, timeout_s, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.tails()}") from None
        return time.monotonic()

    def all_end(self, timeout_s: float = END_S) -> float:
        """Wait until every acknowledged task has ended; the monotonic moment when that was seen."""
        live = list(self.acknowledged)

        def none_left() -> bool:
            live[:] = [
                one
                for one, record in zip(live, self.mesh.store.tasks.records(live), strict=True)
                if record is None or not record.ended_already
            ]
            return not live

        return self.until(none_left, f"all of {len(self.acknowledged)} tasks to end", timeout_s)

    def check(self) -> None:
        """Every acknowledged task succeeded exactly once, with the result of an attempt that the witness saw end."""
        succeeded = sum(queue.get("succeeded", 0) for queue in self.mesh.store.tasks.counts().values())
        assert succeeded == len(self.acknowledged), f"{succeeded} recorded of {len(self.acknowledged)}"
        ended = {(one.id, one.fence) for one in self.effects(what="end")}
        for record in self.mesh.store.tasks.records(list(self.acknowledged)):
            assert record is not None and record.state is State.SUCCEEDED, (record, self.tails())
            result = self.mesh.handle(record.id).result(timeout_s=5)
            assert result["square"] == self.acknowledged[record.id] ** 2
            assert (record.id, result["fence"]) in ended, f"{record} was recorded and never ran"
            attempt = int(result["fence"].partition("-")[0])
            assert attempt == record.attempt, f"{record} has a stale attempt's result: {result}"

    def close(self) -> None:
        """End everything that was started."""
        super().close()
        self.server.stop()
