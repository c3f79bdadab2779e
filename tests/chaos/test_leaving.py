"""Leaving: agents and coordinators that are asked to stop, drained or cordoned; nothing is lost, nothing counts as a crash."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from mesh.client import Handle, Mesh
from mesh.store.embedded import free_port
from tests.chaos.conftest import Recovery
from tests.chaos.matrix import fault
from tests.chaos.stage import Stage
from tests.chaos.test_coordinators import leader
from tests.programs import HAPROXY, needs_haproxy
from tests.tokens import bearer

AT_ONCE_S = 5.0  # milliseconds, on a machine that has nothing else to do
HURRY = {"MESH_DRAIN_GRACE_MS": "1000"}
OTHER_POOLS = ("threads", "gevent", "solo")


def ask_to_leave(stage: Stage, agent_id: str, how: signal.Signals = signal.SIGTERM) -> float:
    """As a supervisor does: to the main process only; when that was."""
    stage.processes[agent_id].send_signal(how)
    return time.time()


def left_well(stage: Stage, agent_id: str, timeout_s: float = 30) -> None:
    """It ends with 0, has deregistered, and no process of its pool is left."""
    process = stage.processes[agent_id]
    assert process.wait(timeout_s) == 0, stage.tails()
    assert [one.status for one in stage.mesh.agents() if one.id == agent_id] == ["offline"]
    stage.until(lambda: group_of(process.pid) == [], "its pool to be gone", 5)


def group_of(pid: int) -> list[int]:
    """The live processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[2] == str(pid) and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def no_crash(stage: Stage) -> None:
    """Nothing that was given back counts."""
    records = [one for one in stage.mesh.store.tasks.records(list(stage.ledger)) if one]
    assert [one for one in records if one.crashes] == []


def two(stage: Stage, pool: str = "prefork", **environ: str) -> None:
    """An agent that will leave and one that stays."""
    stage.start("leaver", pool=pool, concurrency=1 if pool == "solo" else 2, **environ)
    stage.start("stayer", concurrency=2)
    stage.ready("leaver", "stayer")


def under_load(stage: Stage, recovery: Recovery, pool: str) -> None:
    two(stage, pool)
    stage.load(60)
    stage.until(lambda: stage.held_by("leaver"), "the leaver to hold tasks")
    asked = ask_to_leave(stage, "leaver")
    left_well(stage, "leaver")
    recovery.took(time.time() - asked)
    stage.all_end()
    stage.check()
    no_crash(stage)


@fault(
    "leaving",
    "agent asked to stop (SIGTERM) under load",
    expect="what runs ends and is recorded, the rest goes to others at once; it leaves with exit code 0",
    tier="test",
    bound_s=15,
)
def test_an_agent_is_stopped_under_load(stage: Stage, recovery: Recovery) -> None:
    under_load(stage, recovery, "prefork")


@pytest.mark.parametrize("pool", OTHER_POOLS)
@fault(
    "leaving",
    "agent with threads, greenlets or one process asked to stop (SIGTERM) under load",
    expect="the same",
    tier="ci",
    bound_s=20,
)
def test_an_agent_of_another_pool_is_stopped_under_load(stage: Stage, recovery: Recovery, pool: str) -> None:
    under_load(stage, recovery, pool)


def gives_back(stage: Stage, recovery: Recovery, ask: Callable[[], object], over_s: float) -> None:
    """What the leaver runs when its time is over, `over_s` after the asking, begins elsewhere at once."""
    gate = stage.gate()
    stuck = stage.busy(gate)["leaver"]
    more = stage.submit(gate=str(gate))
    asked = time.time()
    ask()
    left_well(stage, "leaver")
    gone = time.time()
    assert all(stage.record(one).state == "queued" for one in (*stuck, more)), stage.tails()
    assert gone - asked >= over_s
    recovery.took(gone - asked - over_s)
    gate.touch()
    stage.all_end()
    stage.check()
    no_crash(stage)
    assert all(len(stage.effects(one, "begin")) == 2 for one in stuck)
    assert all(stage.effects(one, "end")[-1].agent == "stayer" for one in stuck)


@fault(
    "leaving",
    "the time of grace is over, a task still runs",
    expect="it is queued again at once and not counted; the pool and what it started are ended; exit code 0",
    tier="test",
    bound_s=AT_ONCE_S,
)
def test_the_time_of_grace_is_over(stage: Stage, recovery: Recovery) -> None:
    two(stage, **HURRY)
    gives_back(stage, recovery, lambda: ask_to_leave(stage, "leaver"), 1.0)


@pytest.mark.parametrize("pool", OTHER_POOLS)
@fault(
    "leaving",
    "the time of grace is over, and the pool cannot stop what it runs (threads, greenlets, one process)",
    expect="the same; the agent's own process ends with it",
    tier="ci",
    bound_s=AT_ONCE_S,
)
def test_the_time_of_grace_is_over_in_another_pool(stage: Stage, recovery: Recovery, pool: str) -> None:
    two(stage, pool, **HURRY)
    gives_back(stage, recovery, lambda: ask_to_leave(stage, "leaver"), 1.0)


@pytest.mark.parametrize("pool", ["prefork", "solo"])
@fault(
    "leaving",
    "SIGQUIT, or a second SIGTERM",
    expect="what runs is queued again within a second, not counted; exit code 0",
    tier="ci",
    bound_s=AT_ONCE_S,
)
def test_a_second_signal(stage: Stage, recovery: Recovery, pool: str) -> None:
    two(stage, pool)

    def twice() -> None:
        ask_to_leave(stage, "leaver", signal.SIGTERM if pool == "solo" else signal.SIGINT)
        log = stage.folder / "leaver.log"
        stage.until(lambda: "takes no new work" in log.read_text(), "the first signal to be heard")
        ask_to_leave(stage, "leaver", signal.SIGQUIT)

    gives_back(stage, recovery, twice, 0.0)


@fault(
    "leaving",
    "agent drained with a deadline by an operator",
    expect="it is listed with what is left of its time, is not uncordoned, and leaves when the time is over",
    tier="ci",
    bound_s=AT_ONCE_S,
)
def test_an_agent_is_drained_with_a_deadline(stage: Stage, recovery: Recovery) -> None:
    two(stage)

    def drain() -> None:
        stage.mesh.drain("leaver", grace_s=600)
        (seen,) = [one for one in stage.mesh.agents() if one.id == "leaver"]
        assert seen.status == "draining" and seen.leaves_in_ms is not None and seen.leaves_in_ms > 500_000
        with pytest.raises(Exception, match="is draining: a drain is not taken back"):
            stage.mesh.uncordon("leaver")
        stage.mesh.drain("leaver", grace_s=1)  # the later word counts

    gives_back(stage, recovery, drain, 1.0)


@fault(
    "leaving",
    "agent killed (SIGKILL) while it drains",
    expect="its tasks run on the others when its leases end",
    tier="ci",
    bound_s=20,
)
def test_an_agent_is_killed_while_it_drains(stage: Stage, recovery: Recovery) -> None:
    two(stage)
    gate = stage.gate()
    lost = stage.busy(gate)["leaver"]
    ask_to_leave(stage, "leaver")
    stage.until(lambda: stage.mesh.agents(status="draining"), "it to drain")
    stage.kill("leaver")
    killed = time.time()
    gate.touch()
    stage.began(lost[0], 2)
    recovery.took(time.time() - killed)
    stage.all_end()
    stage.check()


@fault(
    "leaving",
    "agent cordoned and uncordoned under load",
    expect="it gets nothing new meanwhile, what it runs goes on, what waited for it goes to others at once",
    tier="ci",
    bound_s=AT_ONCE_S,
)
def test_an_agent_is_cordoned_under_load(stage: Stage, recovery: Recovery) -> None:
    two(stage)
    stage.load(40)
    stage.until(lambda: stage.held_by("leaver"), "the leaver to hold tasks")
    stage.mesh.cordon("leaver")
    cordoned = time.time()
    stage.until(lambda: not stage.held_by("leaver"), "what it runs to end")
    recovery.took(max(0.0, time.time() - cordoned - 0.8))
    begun = len([one for one in stage.effects(what="begin") if one.agent == "leaver"])
    stage.all_end()
    assert len([one for one in stage.effects(what="begin") if one.agent == "leaver"]) == begun
    stage.mesh.uncordon("leaver")
    gate = stage.gate()
    stage.busy(gate)
    gate.touch()
    stage.all_end()
    stage.check()
    no_crash(stage)


# -- coordinators, and everything at once


def answers(url: str, body: dict[str, Any] | None = None, timeout_s: float = 30) -> int:
    """The status of one request, without any retry."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **bearer()})
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            answer.read()
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


class Bare:
    """Submits by one request each, which is not repeated: what fails is seen."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/v1/namespaces/stage/tasks"

    def submit(self, task_type: str, payload: Any, *, task_id: str, unsatisfiable: str) -> Any:
        """As `Mesh.submit`."""
        body = {"type": task_type, "payload": payload, "task_id": task_id, "unsatisfiable": unsatisfiable}
        status = answers(self._url, body)
        assert status == 202, f"a submission was answered by {status}"
        return type("Submitted", (), {"id": task_id})


@fault(
    "leaving",
    "the coordinator that leads is asked to stop (SIGTERM)",
    expect="another leads within a second; it says that it is not ready and still answers, also who waits; exit code 0",
    tier="ci",
    bound_s=3,
)
def test_the_leader_is_asked_to_stop(stage: Stage, recovery: Recovery) -> None:
    for name in ("c1", "c2"):
        stage.start_coordinator(name, MESH_LAME_DUCK_MS="4000")
    stage.until(lambda: leader(stage)[1], "somebody to lead")
    first = str(leader(stage)[1])
    stage.until(lambda: up(stage, "c1") and up(stage, "c2"), "both to be ready")
    waited: list[int] = []
    task = stage.mesh.submit("work", {"number": 0}, unsatisfiable="accept")
    url = f"{stage.url(first)}/v1/namespaces/stage/tasks/{task.id}/result?wait_s=60"
    poll = threading.Thread(target=lambda: waited.append(answers(url, timeout_s=60)))
    poll.start()
    asked = ask_to_leave(stage, first)
    stage.until(lambda: leader(stage)[1] not in (None, first), "another to lead", 10)
    recovery.took(time.time() - asked)
    stage.until(lambda: answers(f"{stage.url(first)}/health/ready") == 503, "it to say that it stops", 3)
    assert answers(f"{stage.url(first)}/health/live") == 200
    assert answers(f"{stage.url(first)}/v1/namespaces/stage/tasks/{task.id}") == 200
    assert stage.processes[first].wait(20) == 0
    poll.join(10)
    assert waited and waited[0] < 300, f"who waited was answered by {waited}"


def up(stage: Stage, name: str) -> bool:
    """Whether a coordinator is ready."""
    try:
        return answers(f"{stage.url(name)}/health/ready") == 200
    except OSError:
        return False


@contextmanager
def balancer(stage: Stage, names: list[str]) -> Iterator[str]:
    """HAProxy before these coordinators; its URL."""
    port = free_port()
    servers = "\n".join(f"  server {name} 127.0.0.1:{stage.ports[name]}" for name in names)
    config = stage.folder / "haproxy.cfg"
    config.write_text(
        f"""
defaults
  mode http
  timeout connect 3s
  timeout client 90s
  timeout server 90s
  option redispatch
  retries 3
frontend in
  bind 127.0.0.1:{port}
  default_backend coordinators
backend coordinators
  balance roundrobin
  option httpchk GET /health/ready
  default-server check inter 1s fall 2 rise 1
{servers}
"""
    )
    process = subprocess.Popen([str(HAPROXY), "-f", str(config), "-db"], cwd=stage.folder)
    try:
        url = f"http://127.0.0.1:{port}"
        stage.until(lambda: _opens(f"{url}/health/live"), "the balancer to answer")
        yield url
    finally:
        process.terminate()
        process.wait(10)


def _opens(url: str) -> bool:
    try:
        return answers(url) == 200
    except OSError:
        return False


class Load:
    """Submits at a steady pace by several ways, until it is stopped; what failed is in `errors`."""

    def __init__(self, stage: Stage, ways: dict[str, Any], every_s: float) -> None:
        self._stop = threading.Event()
        self.errors: list[str] = []
        self.handles: list[Handle] = []
        self._threads = [
            threading.Thread(target=self._run, args=(stage, name, way, every_s)) for name, way in ways.items()
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self, stage: Stage, name: str, way: Any, every_s: float) -> None:
        while not self._stop.wait(every_s):
            try:
                stage.submit(by=cast("Mesh", way), seconds=0.05)
            except Exception as error:
                self.errors.append(f"{name}: {type(error).__name__}: {error}")


def rolling_restart(stage: Stage, rounds: int, every_s: float) -> int:
    """Restart every agent and every coordinator, one after the other, under load; how many tasks went through."""
    agents, coordinators = ["a1", "a2", "a3"], ["c1", "c2", "c3"]
    duck = {"MESH_LAME_DUCK_MS": "5000"}
    for name in agents:
        stage.start(name, concurrency=2)
    for name in coordinators:
        stage.start_coordinator(name, **duck)
    stage.ready(*agents)
    stage.until(lambda: all(up(stage, name) for name in coordinators), "the coordinators to be ready")
    urls = ",".join(stage.url(name) for name in coordinators)
    with balancer(stage, coordinators) as url, Mesh(coordinator_url=urls, namespace="stage") as by_names:
        ways = {"Redis": stage.mesh, "three URLs": by_names, "HAProxy": Bare(url)}
        with Load(stage, ways, every_s) as load:
            for _, (agent, coordinator) in itertools.product(
                range(rounds), zip(agents, coordinators, strict=True)
            ):
                assert stage.stop(agent) == 0, stage.tails()
                stage.start(agent, concurrency=2)
                stage.ready(agent)
                assert stage.stop(coordinator) == 0, stage.tails()
                stage.start_coordinator(coordinator, **duck)
                stage.until(lambda name=coordinator: up(stage, name), f"{coordinator} to be ready")  # type: ignore[misc]
        assert load.errors == []
        stage.all_end()
    stage.check()
    no_crash(stage)
    return len(stage.ledger)


@needs_haproxy
@fault(
    "leaving",
    "rolling restart of three agents and three coordinators under load",
    expect="nothing is lost or recorded twice; no request fails, by Redis, by three URLs, or through HAProxy",
    tier="ci",
    timeout_s=300,
)
def test_a_rolling_restart(stage: Stage) -> None:
    assert rolling_restart(stage, rounds=1, every_s=0.2) > 50


@needs_haproxy
@fault(
    "leaving",
    "three rolling restarts in a row under more load",
    expect="the same",
    tier="all",
    timeout_s=900,
)
def test_three_rolling_restarts(stage: Stage) -> None:
    assert rolling_restart(stage, rounds=3, every_s=0.05) > 500
