"""Why a task waits, and how one would, asked of running agents: over Redis, over HTTP, on the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from mesh.client import Handle, Mesh
from tests.acceptance.conftest import Place, make_place
from tests.acceptance.test_coordinator import start
from tests.waiting import wait_until

pytestmark = pytest.mark.ci
WORK = """
import time
from mesh import task

@task("nap")
def nap(seconds: float) -> None:
    time.sleep(seconds)

@task("steady")
def steady(seconds: float) -> None:
    time.sleep(seconds)

@task("hold")
def hold(fifo: str) -> str:
    with open(fifo) as opened:
        return opened.read()
"""
NAP_S, SLOTS = 0.2, 2


@pytest.fixture(scope="module")
def fleet(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, str]]:
    """A coordinator; `w1` with two slots; `w2`, cordoned; `other`, which can do something else."""
    with make_place(redis_url, "explaining", tmp_path_factory.mktemp("explaining")) as place:
        (place.folder / "work.py").write_text(WORK)
        _, url = start(place, "c1")
        words = ("-I", "work", "--pool", "threads", "--concurrency", str(SLOTS))
        place.agent("w1", *words)
        place.agent("w2", *words)
        place.mesh.cordon("w2")
        fields = {"id": "other", "capabilities": "elsewhere", "slots": 1, "state": "ready"}
        place.mesh.store.agents.join("other", fields)
        yield place, url


@pytest.fixture
def place(fleet: tuple[Place, str]) -> Place:
    return fleet[0]


@pytest.fixture
def full(place: Place, request: pytest.FixtureRequest) -> Iterator[list[Handle]]:
    """Both slots of `w1` are held until the test ends."""
    gates = [place.gate(f"{request.node.name}-{number}") for number in range(SLOTS)]
    held = [place.mesh.submit("hold", str(gate.fifo)) for gate in gates]
    wait_until(lambda: all(one.status() == "running" for one in held), 30, "w1 to be full")
    yield held
    for gate in gates:
        gate.open()
    for one in held:
        one.result(timeout_s=30)


def keeps(told: dict[str, Any]) -> dict[str, str | None]:
    return {row["agent"]: row["why"] for row in told["agents"]}


def test_what_keeps_each_agent_from_it_and_what_would_change_that(
    fleet: tuple[Place, str], full: list[Handle]
) -> None:
    place, url = fleet
    mesh = place.mesh
    mesh.submit_many("nap", [0.0] * 3, priority=9)
    last = mesh.submit("nap", 0.0)
    wait_until(lambda: last.why()["position"] == 3, 10, "all to wait")
    told = last.why()
    full_up = f"all its slots are full ({SLOTS} of {SLOTS})"
    assert keeps(told) == {"other": "it does not offer nap", "w1": full_up, "w2": "it is cordoned"}
    assert told["capable"] == ["w1"]
    assert told["advice"][0] == "Uncordon w2: mesh agent uncordon w2."
    assert not [one for one in told["advice"] if "priority" in one]  # all three are as urgent as can be
    with Mesh(coordinator_url=url, namespace=place.namespace) as far:
        over_http = far.handle(last.id).why()
        told["expected_start_at"] = over_http["expected_start_at"] = None
        assert over_http == told
        urgent = far.explain("nap", priority=9)
        assert (urgent["ahead"], keeps(urgent)) == (3, keeps(told))
    shown = place.call("task", "why", last.id).stdout
    assert "It waits in queue nap behind 3 other tasks; 1 agent could take it." in shown
    assert re.search(f"^ +1 +{SLOTS} +0  {re.escape(full_up)} +w1$", shown, flags=re.M)
    assert "What would change it:\n- Uncordon w2: mesh agent uncordon w2.\n" in shown
    would = place.call("execute", "--task-type", "nap", "--explain").stdout
    assert "It would wait in queue nap, behind 4 tasks of it." in would and full_up in would
    last.cancel()


def test_it_starts_about_when_it_is_expected_to(place: Place) -> None:
    mesh = place.mesh
    for one in mesh.submit_many("steady", [NAP_S] * 2 * SLOTS):
        one.result(timeout_s=30)
    waiting = mesh.submit_many("steady", [NAP_S] * 20)
    told = waiting[-1].why()
    waiting[-1].result(timeout_s=30)
    record = mesh.store.tasks.record(waiting[-1].id)
    assert record is not None and record.started is not None and record.created is not None
    took_ms = record.started - record.created
    assert took_ms / 2.5 < told["expected_start_ms"] < took_ms * 2.5, (took_ms, told["expected_start_how"])


def test_a_task_that_waits_for_its_time(place: Place) -> None:
    later = place.mesh.submit("nap", 0.0, countdown_s=600)
    told = later.why()
    assert told["expected_start_ms"] == pytest.approx(600_000, abs=30_000)
    assert told["detail"].startswith("It waits for its time, which comes in about ") and told["advice"] == []
    before = place.mesh.explain("nap", countdown_s=600)
    assert before["expected_start_ms"] == 600_000
    later.cancel()
    ended = later.why()
    assert (ended["expected_start_ms"], ended["advice"], ended["position"]) == (None, [], None)


def test_what_nobody_can_do_is_said_before_it_is_submitted(place: Place) -> None:
    done = place.call("execute", "--task-type", "nap", "--requires", "gpu", "--explain", "-o", "json")
    told = json.loads(done.stdout)
    assert done.returncode == 7 and told["expected_start_how"] == "No agent could take it."
    assert told["advice"] == ["Start an agent with --capabilities gpu,nap."]
    now = place.mesh.explain("nap")
    assert (now["expected_start_ms"], keeps(now)["w1"], now["advice"]) == (0, None, [])
