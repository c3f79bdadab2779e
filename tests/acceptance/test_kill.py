"""Agents and pool processes killed by SIGKILL under load: nothing is lost, nothing recorded twice, recovery in time.

One kill for each pool here; `python -m tests.chaos.kills` repeats them as often as one likes.
"""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from mesh.core.states import State
from mesh.services.tasks import new_id
from tests.acceptance.test_rules import ended, publish
from tests.chaos.fleet import Fleet
from tests.chaos.kills import repetition
from tests.waiting import wait_until


@pytest.mark.timeout(150)
@pytest.mark.parametrize(("pool", "coordinator"), [("prefork", True), ("threads", False)])
def test_kill_of_a_whole_agent(redis_url: str, tmp_path: Path, pool: str, coordinator: bool) -> None:
    """Tasks running, leased, waiting and being fetched; recovered by a coordinator, and by the other agent alone."""
    effects = tmp_path / "effects"
    fleet = Fleet(redis_url, f"kill-{new_id()[:8]}", tmp_path, KILL_EFFECTS=str(effects))
    try:
        if coordinator:
            fleet.start_coordinator()
        fleet.start("steady", pool=pool)
        fleet.start("victim", pool=pool)
        fleet.ready("steady", "victim")
        repetition(fleet, effects, random.Random(), "victim")
    finally:
        fleet.close()


def _children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_kill_of_a_pool_process(redis_url: str, tmp_path: Path) -> None:
    """Its task is counted as crashed, at once, and runs again; the agent and its other tasks go on."""
    fleet = Fleet(redis_url, f"child-{new_id()[:8]}", tmp_path)
    try:
        fleet.start("parent", pool="prefork", concurrency=2, app="tests.chaos.rules_app")
        fleet.ready("parent")
        gate = tmp_path / "gate"
        held = [publish(fleet, "hold", f'["{gate}"]') for _ in range(2)]
        handles = [fleet.mesh.handle(one) for one in held]
        wait_until(lambda: all(one.status() == "running" for one in handles), 20, "both to run")
        os.kill(_children(fleet.processes["parent"].pid)[0], signal.SIGKILL)
        records = fleet.mesh.store.tasks.records
        wait_until(
            lambda: (
                sorted(one.crashes for one in records(held) if one) == [0, 1]
                and all(one.status() == "running" for one in handles)
            ),
            20,
            f"the crashed one to run again: {records(held)} {fleet.tails()}",
        )
        gate.touch()
        for one in held:
            assert ended(fleet, one).state is State.SUCCEEDED
        assert fleet.processes["parent"].poll() is None
    finally:
        fleet.close()


def test_a_stopped_agent_gives_back_what_it_has_not_started(redis_url: str, tmp_path: Path) -> None:
    """SIGTERM: what runs is finished and recorded, the rest is queued again at once, uncounted."""
    fleet = Fleet(redis_url, f"stop-{new_id()[:8]}", tmp_path)
    try:
        fleet.start("leaving", pool="prefork", concurrency=1, app="tests.chaos.rules_app")
        fleet.ready("leaving")
        gate = tmp_path / "gate"
        held = [publish(fleet, "hold", f'["{gate}"]') for _ in range(3)]
        wait_until(lambda: fleet.mesh.handle(held[0]).status() == "running", 20, "the first to run")
        fleet.processes["leaving"].terminate()
        records = fleet.mesh.store.tasks.records
        wait_until(
            lambda: [str(one.state) for one in records(held) if one] == ["running", "queued", "queued"],
            20,
            f"the rest to be queued: {records(held)}",
        )
        gate.touch()
        assert fleet.processes["leaving"].wait(30) == 0
        assert [str(one.state) for one in records(held) if one] == ["succeeded", "queued", "queued"]
        assert all(one is not None and one.crashes == 0 for one in records(held))
        assert [str(agent.status) for agent in fleet.mesh.agents()] == ["offline"]
    finally:
        fleet.close()
