"""Kill -9 of a whole agent, again and again: every task ends exactly once, with the right result, in time.

`python -m tests.chaos.kills --pool threads --repetitions 50` runs it by hand; the fault matrix kills one of each pool.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
import uuid
from pathlib import Path

from mesh.bus import messages
from mesh.core.states import State
from mesh.services.tasks import new_id
from mesh.store.embedded import start_server
from mesh.store.signing import sealer
from mesh.store.tasks import Template
from tests.chaos.fleet import Fleet
from tests.waiting import wait_until

TASKS = 120
BOUND_S = 20.0


def submit_work(fleet: Fleet, dice: random.Random, number: int = TASKS) -> dict[str, int]:
    """Tasks of mixed length: id -> number. Some run when the kill comes, some are leased, many wait."""
    template = Template(queue="celery", type="work")
    seal = sealer(fleet.mesh.store, "celery")
    ids = {}
    publications = []
    for index in range(number):
        seconds = dice.choice((0.0, 0.01, 0.05, 0.3, 0.8))
        task_id = new_id()
        ids[task_id] = index
        body = f'[[{index},{seconds}],{{}},{{"callbacks":null,"errbacks":null,"chain":null,"chord":null}}]'
        message = messages.encode("work", body.encode())
        publications.append(template.publication(task_id, seal(task_id, message)))
    fleet.mesh.store.tasks.submit(publications)
    return ids


def repetition(fleet: Fleet, effects: Path, dice: random.Random, victim: str) -> float:
    """One kill of `victim` at a random moment under load; seconds until all was done, counted from the kill."""
    effects.write_text("")
    before = fleet.mesh.store.tasks.counts().get("celery", {}).get("succeeded", 0)
    ids = submit_work(fleet, dice)
    tasks = fleet.mesh.store.tasks

    def held_by_victim() -> list[str]:
        return [
            one.id
            for one in tasks.records(list(ids))
            if one and one.agent == victim and not one.ended_already
        ]

    wait_until(held_by_victim, 30, f"{victim} to hold tasks")
    moment = time.monotonic() + dice.uniform(0.0, 0.6)
    while time.monotonic() < moment:
        tasks.size("celery")
    lost = held_by_victim()
    fleet.kill(victim)
    killed = time.monotonic()
    wait_until(
        lambda: all(one and one.ended_already for one in tasks.records(list(ids))),
        BOUND_S + 40,
        f"all tasks to end after {victim} was killed with {len(lost)} tasks",
    )
    took = time.monotonic() - killed
    for task_id, number in ids.items():
        record = tasks.record(task_id)
        assert record is not None and record.state is State.SUCCEEDED, (record, fleet.tails())
        assert fleet.mesh.handle(task_id).result(timeout_s=5) == number * number
        # Told by its own record: what was taken from the victim ended within the bound.
    recorded = fleet.mesh.store.tasks.counts()["celery"]["succeeded"] - before
    assert recorded == TASKS, f"{recorded} results recorded for {TASKS} tasks"
    ran = set(effects.read_text().split())
    assert ran == {str(number) for number in ids.values()}, "a task is recorded as done that never ran"
    assert took <= BOUND_S + 3, f"recovery took {took:.1f} s"
    return took


def main() -> None:
    """Run many repetitions and say what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", default="prefork")
    parser.add_argument("--repetitions", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--coordinator", action="store_true")
    chosen = parser.parse_args()
    dice = random.Random(chosen.seed or time.time_ns())
    with tempfile.TemporaryDirectory() as name, start_server() as server:
        folder = Path(name)
        effects = folder / "effects"
        fleet = Fleet(server.url, f"kill-{uuid.uuid4().hex[:8]}", folder, KILL_EFFECTS=str(effects))
        try:
            if chosen.coordinator:
                fleet.start_coordinator()
            fleet.start("a0", pool=chosen.pool)
            took = []
            for turn in range(chosen.repetitions):
                fleet.start(f"b{turn}", pool=chosen.pool)
                fleet.ready("a0", f"b{turn}")
                try:
                    took.append(repetition(fleet, effects, dice, f"b{turn}"))
                except AssertionError:
                    print(fleet.tails(30))
                    raise
                print(
                    f"{turn + 1}/{chosen.repetitions}: all ended {took[-1]:.1f} s after the kill", flush=True
                )
            took.sort()
            print(
                f"{len(took)} of {len(took)}: median {took[len(took) // 2]:.1f} s, longest {took[-1]:.1f} s"
            )
        finally:
            fleet.close()


if __name__ == "__main__":
    main()
