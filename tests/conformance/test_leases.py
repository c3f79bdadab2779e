"""Long tasks keep their leases, whatever they do: pure CPU under the interpreter's lock, in each pool, for three leases."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.core.states import State
from mesh.services.tasks import new_id
from mesh.store.embedded import start_server
from tests.acceptance.test_rules import ended, publish
from tests.chaos.fleet import Fleet

POOLS = ("prefork", "threads", "gevent", "solo")
SPIN_S = 30


@pytest.mark.timeout(180)
def test_pure_cpu_keeps_its_lease(tmp_path: Path) -> None:
    """All four at once, on leases of 10 s: the beat runs in a thread of its own, which the interpreter lets in."""
    with start_server() as server:
        fleet = Fleet(server.url, f"spin-{new_id()[:8]}", tmp_path)
        try:
            for pool in POOLS:
                fleet.start(pool, pool=pool, concurrency=1, capabilities=f"on-{pool}")
            fleet.ready(*POOLS)
            spun = [publish(fleet, "spin", f"[{SPIN_S}]", queue=f"on-{pool}") for pool in POOLS]
            for task_id in spun:
                record = ended(fleet, task_id, 120)
                assert (record.state, record.attempt, record.crashes) == (State.SUCCEEDED, 1, 0), record
        finally:
            fleet.close()
