"""Faults of coordinators: the leader gone, frozen or cut off; one killed around a write; none left."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from mesh.client import Mesh
from mesh.errors import CoordinatorUnavailable
from mesh.settings import Settings
from mesh.store.coordinators import Coordinators
from mesh.verify.proxy import Proxy
from tests.chaos.conftest import Recovery
from tests.chaos.matrix import fault
from tests.chaos.stage import Stage
from tests.waiting import wait_until

FAILOVER_S = 4.0
LEASE_S = 20.0
NOBODY = "nobody-offers-this"


def leader(stage: Stage) -> tuple[int, str | None]:
    """(term, id of who leads now by Redis's account)."""
    return Coordinators(stage.mesh.store.client, stage.mesh.store.keys).leader()


def start(stage: Stage, *names: str, proxied: bool = False) -> None:
    """Start coordinators, and wait until they run."""
    registry = Coordinators(stage.mesh.store.client, stage.mesh.store.keys)
    for name in names:
        stage.start_coordinator(name, proxied=proxied)
    for name in names:
        pid = stage.processes[name].pid
        stage.until(
            lambda name=name, pid=pid: (registry.get(name) or {}).get("pid") == pid,  # type: ignore[misc]
            f"{name} to run",
        )


def health(stage: Stage, name: str) -> dict[str, object]:
    """What a coordinator says of itself."""
    with urllib.request.urlopen(f"{stage.url(name)}/health", timeout=10) as answer:
        body: dict[str, object] = json.load(answer)
        return body


def promoted(stage: Stage) -> float:
    """The moment when a leader has queued a task whose time had come: there is no agent that could have done it."""
    due = stage.mesh.submit(NOBODY, 1, countdown_s=0.01, unsatisfiable="accept")
    return stage.until(lambda: due.status() == "queued", "a leader to work")


def fail_over(
    stage: Stage, recovery: Recovery, break_leader: Callable[[str], object], *, proxied: bool = False
) -> tuple[str, str]:
    """Two coordinators, the leader broken: (the former leader, the new one). Another has led, and worked, in time."""
    start(stage, "c1", "c2", proxied=proxied)
    promoted(stage)
    term, first = leader(stage)
    assert first is not None
    second = "c2" if first == "c1" else "c1"
    broken_at = time.time()
    break_leader(first)
    recovery.took(promoted(stage) - broken_at)
    assert leader(stage) == (term + 1, second)
    return first, second


def follows(stage: Stage, first: str, second: str) -> None:
    """Wait until the former leader knows that it is none; the other goes on under its term."""
    term, _ = leader(stage)
    stage.until(lambda: health(stage, first)["leader"] == second, "the former leader to know the new one")
    assert health(stage, first)["leads"] is False and health(stage, second)["leads"] is True
    assert "any more (term" in (stage.folder / f"{first}.log").read_text()
    promoted(stage)
    assert leader(stage) == (term, second)


@fault(
    "coordinators",
    "the leader killed (SIGKILL)",
    expect="another leads, and works, before 4 s have passed",
    tier="test",
    bound_s=FAILOVER_S,
)
def test_the_leader_is_killed(stage: Stage, recovery: Recovery) -> None:
    fail_over(stage, recovery, stage.kill)


@fault(
    "coordinators",
    "the leader stopped (SIGTERM)",
    expect="it gives the lead up; another works within a second",
    tier="test",
    bound_s=1.0,
)
def test_the_leader_is_stopped(stage: Stage, recovery: Recovery) -> None:
    first, _ = fail_over(stage, recovery, lambda name: stage.processes[name].terminate())
    assert stage.processes[first].wait(30) == 0


@fault(
    "coordinators",
    "the leader paused (SIGSTOP), later resumed",
    expect="another leads before 4 s have passed; the former leader starts nothing more, and follows",
    tier="ci",
    bound_s=FAILOVER_S,
)
def test_the_leader_is_paused_and_resumed(stage: Stage, recovery: Recovery) -> None:
    first, second = fail_over(stage, recovery, stage.pause)
    stage.resume(first)
    follows(stage, first, second)


@fault(
    "coordinators",
    "the leader cut off from Redis (nothing is refused, nothing arrives), later reached again",
    expect="another leads before 4 s have passed; what the former leader sent meanwhile arrives late and is refused",
    tier="ci",
    bound_s=FAILOVER_S,
)
def test_the_leader_is_cut_off(stage: Stage, recovery: Recovery) -> None:
    first, second = fail_over(stage, recovery, lambda name: stage.proxy(name).freeze(), proxied=True)
    stage.proxy(first).heal()
    follows(stage, first, second)
    assert "Traceback" not in (stage.folder / f"{first}.log").read_text()


# -- writes


def over_http(stage: Stage, *urls: str, **settings: int) -> Mesh:
    """A client that asks the first of these coordinators, then the next."""
    changed = dataclasses.replace(Settings.load(), **settings)
    return Mesh(coordinator_url=",".join(urls), namespace=stage.namespace, settings=changed)


@fault(
    "coordinators",
    "killed before, during and after a write for a client: nothing stored, stored but not known, answer lost",
    expect="the client submits again elsewhere, under the same id; the task runs once",
    tier="test",
    bound_s=10,
)
def test_a_coordinator_is_killed_around_a_write(stage: Stage, recovery: Recovery) -> None:
    stage.start("w1")
    start(stage, "before", "during", "after", "survivor", proxied=True)
    stage.ready("w1")
    breaks: dict[str, Callable[[Proxy], None]] = {
        "before": lambda way: stage.proxy("before").drop("requests"),
        "during": lambda way: stage.proxy("during").delay(1500),
        "after": lambda way: way.drop("replies"),
    }
    for victim, break_it in breaks.items():
        with (
            Proxy("127.0.0.1", stage.ports[victim]) as way,
            over_http(stage, f"http://127.0.0.1:{way.port}", stage.url("survivor")) as mesh,
            ThreadPoolExecutor(1) as thread,
        ):
            stage.submit(by=mesh)  # all connections are there
            break_it(way)
            known = len(stage.ledger)
            submission = thread.submit(stage.submit, by=mesh)
            wait_until(lambda: len(stage.ledger) > known, 10, "the submission to begin")  # noqa: B023
            task_id = list(stage.ledger)[known]
            if victim != "before":
                wait_until(lambda: stage.mesh.store.tasks.record(task_id), 30, "the write")  # noqa: B023
            assert not submission.done()
            stage.kill(victim)
            way.cut()
            killed = time.time()
            assert submission.result(30).id == task_id
            recovery.took(time.time() - killed)
    stage.all_end()
    stage.check()
    assert all(len(stage.effects(stage.mesh.handle(one), "begin")) == 1 for one in stage.ledger)


# -- none


@fault(
    "coordinators",
    "all killed, then an agent too",
    expect="submission straight to Redis goes on, agents take over what the dead one had; HTTP callers are told at once",
    tier="ci",
    bound_s=LEASE_S,
)
def test_there_is_no_coordinator(stage: Stage, recovery: Recovery) -> None:
    stage.start("steady")
    stage.start("victim")
    start(stage, "c1", "c2")
    stage.ready("steady", "victim")
    for name in ("c1", "c2"):
        stage.kill(name)
    stage.load(40)
    stage.until(lambda: stage.held_by("victim"), "the victim to hold tasks")
    stage.kill("victim")
    killed = time.time()
    stage.load(20, seed=1)
    urls = (stage.url("c1"), stage.url("c2"))
    with over_http(stage, *urls, transport_retries=0) as mesh, pytest.raises(CoordinatorUnavailable) as error:
        mesh.agents()
    assert str(error.value).startswith("No coordinator answers at")
    told = subprocess.run(
        [sys.executable, "-c", "from mesh.cli import main; main()", "status", "--url", ",".join(urls)],
        env={**stage.environ(), "TRANSPORT_RETRIES": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (told.returncode, told.stdout) == (
        CoordinatorUnavailable.exit_code,
        "",
    ) and "Traceback" not in told.stderr
    assert told.stderr.startswith("Error: No coordinator answers at")
    recovery.took(stage.all_end() - killed)
    stage.check()


@fault(
    "coordinators",
    "an agent cut off from the coordinators only",
    expect="it goes on as before: agents need Redis, and ask no coordinator for anything",
    tier="ci",
)
def test_an_agent_is_cut_off_from_the_coordinators(stage: Stage) -> None:
    start(stage, "c1")
    with Proxy("127.0.0.1", stage.ports["c1"]) as way:
        way.cut()
        stage.start("w1", COORDINATOR_URL=f"http://127.0.0.1:{way.port}")
        stage.ready("w1")
        with over_http(stage, stage.url("c1")) as mesh:
            last = [stage.submit(by=mesh, seconds=0.01) for _ in range(50)][-1]
            assert last.result(timeout_s=60)["number"] == 49
            assert [(agent.id, agent.status) for agent in mesh.agents()] == [("w1", "healthy")]
    stage.all_end()
    stage.check()
