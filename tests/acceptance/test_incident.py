"""An incident in scenes, watched by a real Prometheus: exactly the alerts fire that are meant for each, and they end with it.

The rules are the shipped ones with all times divided by 30; Prometheus scrapes every second.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh.store.embedded import Server, start_server
from tests.acceptance.conftest import make_place
from tests.acceptance.prometheus import Prometheus, needs_prometheus
from tests.acceptance.test_coordinator import leader, start
from tests.waiting import wait_until

FASTER = 30
TASKS = """
from mesh import task


@task("fine")
def fine(payload):
    return payload


@task("gpu")
def gpu(payload):
    return payload


@task("flaky", retries=0)
def flaky(payload):
    raise ValueError("no")
"""
FAST = {
    "MESH_LEASE_MS": "2000", "MESH_LEASE_RENEW_MS": "500", "MESH_REDIS_SOCKET_TIMEOUT_MS": "2000",
    "HEARTBEAT_INTERVAL_MS": "3000", "UNHEALTHY_THRESHOLD_MS": "600000",
}  # fmt: skip
WITHIN_S = 60


class Watcher(Prometheus):
    """It knows which alerts fire."""

    def firing(self) -> set[str]:
        return {row["metric"]["alertname"] for row in self.ask('ALERTS{alertstate="firing"}')}

    def fired_since(self, began: float) -> set[str]:
        """Every alert that fired at any time since then."""
        window = max(1, int(time.time() - began))
        rows = self.ask(f'count_over_time(ALERTS{{alertstate="firing"}}[{window}s])')
        return {row["metric"]["alertname"] for row in rows}

    def scene(self, *expected: str) -> None:
        """These alerts come to fire, and since it began no other has."""
        began = time.time()
        wait_until(
            lambda: self.firing() >= set(expected), WITHIN_S, f"{expected} to fire; now {self.firing()}"
        )
        assert self.fired_since(began) == set(expected)

    def calm(self) -> None:
        """Nothing fires, nor is about to: what follows from a scene (Redis was away: requests failed) belongs to it."""
        wait_until(lambda: not self.ask("ALERTS"), WITHIN_S, "calm")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with start_server(tmp_path / "redis") as running:
        yield running


@pytest.mark.ci
@pytest.mark.timeout(400)
def test_exactly_the_expected_alerts_fire(server: Server, namespace: str, tmp_path: Path) -> None:
    needs_prometheus()
    with make_place(server.url, namespace, tmp_path) as place:
        (place.folder / "tasks.py").write_text(TASKS)
        _, one = start(place, "c1", **FAST)
        wait_until(lambda: leader(place) == "c1", 10, "c1 to lead")
        _, two = start(place, "c2", **FAST)

        def agent(name: str, capabilities: str) -> Any:
            words = ("-I", "tasks", "--capabilities", capabilities)
            return place.agent(name, *words, **FAST)

        agent("w1", "fine,flaky")
        gpu = agent("w2", "gpu")
        prometheus = Watcher(place, [one, two], tmp_path / "prometheus", faster=FASTER)
        mesh = place.mesh

        # It sees all there is, and calm is calm.
        wait_until(lambda: prometheus.value("sum(up)") == 4, WITHIN_S, "all targets to be scraped")
        for _ in range(30):
            mesh.submit("fine", 1)
        wait_until(
            lambda: prometheus.value('sum(agent_mesh_tasks_total{status="succeeded"})') == 30, 30, "30 tasks"
        )
        began = time.time()
        wait_until(lambda: time.time() > began + 5, 10, "five seconds of calm")
        assert prometheus.fired_since(began) == set()

        # The only agent of a capability is killed, and somebody needs it.
        gpu.kill()
        needed = [mesh.submit("gpu", index, unsatisfiable="accept") for index in range(3)]
        prometheus.scene("AgentMeshNobodyTakes", "AgentMeshAgentsDegraded")
        agent("w2", "gpu")
        assert [handle.result(timeout_s=20) for handle in needed] == [0, 1, 2]
        prometheus.calm()

        # Tasks begin to fail.
        stop = time.monotonic() + WITHIN_S

        def fail_until(expected: set[str]) -> bool:
            mesh.submit("flaky", 1)
            mesh.submit("fine", 1)
            assert time.monotonic() < stop, "no alert"
            return prometheus.firing() >= expected

        began = time.time()
        wait_until(lambda: fail_until({"AgentMeshTasksFailing"}), WITHIN_S, "the failures to be seen")
        assert prometheus.fired_since(began) == {"AgentMeshTasksFailing"}
        prometheus.calm()

        # Redis stops answering, and comes back.
        os.kill(server.pid, signal.SIGSTOP)
        try:
            prometheus.scene("AgentMeshRedisLost")
        finally:
            os.kill(server.pid, signal.SIGCONT)
        prometheus.calm()
        assert mesh.submit("gpu", "well").result(timeout_s=30) == "well"

        # A coordinator is killed: not the leader, since an election takes 3 s, which is long where a minute takes 2.
        first, second, *_ = place.running
        (second if leader(place) == "c1" else first).kill()
        prometheus.scene("AgentMeshCoordinatorDown")
