"""An agent that is stopped by SIGTERM. What kills agents is in the fault matrix, tests/chaos."""

from __future__ import annotations

from pathlib import Path

from mesh.services.tasks import new_id
from tests.acceptance.test_rules import publish
from tests.chaos.fleet import Fleet
from tests.waiting import wait_until


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
