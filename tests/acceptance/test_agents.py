"""Agents as processes: they join, are unique, take over, drain, and never meet those of another namespace."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh.services import namespaces
from mesh.store.embedded import start_server
from mesh.store.tasks import Record
from mesh.workers.health import TOUCHED_EVERY_S
from tests.acceptance.conftest import CELERY, START_S, Place, make_place
from tests.waiting import wait_until

HELD_UP = """
from pathlib import Path
import time
from celery import bootsteps
from celery.worker.consumer.tasks import Tasks
from mesh.bus.app import app

class HeldUp(bootsteps.StartStopStep):
    requires = ("celery.worker.consumer.connection:Connection",)

    def start(self, consumer):
        Path("waits").touch()
        while not Path("go").exists():
            time.sleep(0.01)

app.steps["consumer"].add(HeldUp)
Tasks.requires = (*Tasks.requires, HeldUp)
"""
LONG_LEASE = {"MESH_LEASE_MS": "120000", "MESH_LEASE_RENEW_MS": "1000"}
"""Longer than any test: what is taken over within it was not waited for."""
WORKER = [*CELERY, "worker", "--pool", "solo", "--without-gossip", "--without-mingle"]


def record(place: Place, task_id: str) -> Record:
    found = place.mesh.store.tasks.record(task_id)
    assert found is not None
    return found


def test_an_agent_works_is_listed_and_leaves(place: Place) -> None:
    agent = place.agent(
        "w1",
        "--capabilities",
        "data-processing,spare",
        command=WORKER,
        AGENT_REGION="eu",
        AGENT_LABELS="disk=ssd",
    )
    (row,) = place.discover("--capability", "spare", "--status", "healthy", "--region", "eu")
    assert {name: row[name] for name in ("id", "namespace", "status", "slots", "labels", "type")} == {
        "id": "w1", "namespace": place.namespace, "status": "healthy", "slots": 1, "type": "worker",
        "labels": {"disk": "ssd"},
    }  # fmt: skip
    assert row["capabilities"] == ["data-processing", "spare"]
    assert place.discover("--capability", "gpu") == []
    with urllib.request.urlopen(f"http://127.0.0.1:{row['port']}/health", timeout=5) as answer:
        assert json.load(answer)["agent"] == "w1"

    (place.folder / "numbers.csv").write_text("n\n1\n2\n39\n")
    query = {
        "operation": "sql",
        "query": "SELECT sum(n) AS total FROM numbers",
        "tables": {"numbers": {"file": "numbers.csv"}},
    }
    (place.folder / "query.json").write_text(json.dumps(query))
    done = place.run("execute", "--task-type", "data-processing", "--payload", "@query.json", "--wait")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == [[42]]

    query["tables"] = {"numbers": {"file": "letters.csv"}}
    failed = place.call("execute", "--task-type", "data-processing", "--payload", json.dumps(query), "--wait")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "Invalid: file 'letters.csv' does not exist" in failed.stderr

    agent.terminate()
    assert agent.wait() == 0
    assert [(row["id"], row["status"]) for row in place.discover()] == [("w1", "offline")]


def test_deploy_takes_every_flag(place: Place) -> None:
    place.agent(
        "worker-1", "--agent-name", "Worker 1", "--agent-type", "builder", "--namespace", place.namespace,
        "--capabilities", "task-execution,data-processing", "--region", "us", "--labels", "zone=a,disk=ssd",
        "--log-level", "warning", "--pool", "threads", "--concurrency", "3",
        MESH_NAMESPACE=None,
    )  # fmt: skip
    (row,) = place.discover()
    assert (row["name"], row["type"], row["region"], row["slots"]) == ("Worker 1", "builder", "us", 3)
    assert row["capabilities"] == ["task-execution", "data-processing"]
    assert row["labels"] == {"zone": "a", "disk": "ssd"}


def test_queues_given_to_celery_are_capabilities(place: Place) -> None:
    place.agent("w1", "-Q", "alpha,beta", command=WORKER)
    assert place.discover()[0]["capabilities"] == ["alpha", "beta"]


def test_a_requirement_that_is_new_while_an_agent_starts_reaches_it(place: Place) -> None:
    (place.folder / "held_up.py").write_text(HELD_UP)
    words = ("--capabilities", "data-processing,gpu", "-I", "held_up")
    place.agent("w1", *words, command=WORKER, MESH_LEASE_RENEW_MS="100")
    wait_until((place.folder / "waits").exists, START_S, "it to connect")
    handle = place.mesh.submit("data-processing", {"data": [1, 2]}, requires=["gpu"])
    beats: set[str] = set()

    def has_heard() -> bool:
        beats.add((place.mesh.store.agents.get("w1") or {})["beat"])
        return len(beats) > 3

    wait_until(has_heard, 10, "its beats to have heard of it")
    (place.folder / "go").touch()
    assert handle.result(timeout_s=20)["items"] == 2


def test_a_second_live_agent_with_the_same_id_is_refused(place: Place) -> None:
    first = place.agent("w1", "--capabilities", "data-processing")
    second = place.run("deploy", "--agent-id", "w1", "--capabilities", "data-processing", "--pool", "solo")
    assert second.returncode == 7
    (line,) = [line for line in second.stderr.splitlines() if line.startswith("Error: ")]
    assert (
        f"Agent id 'w1' is already running in namespace '{place.namespace}' (pid {first.process.pid} on"
        in line
    )
    assert "Traceback" not in second.stderr
    assert place.mesh.submit("data-processing", {"data": [1, 2]}).result(timeout_s=20)["items"] == 2
    assert first.process.poll() is None


def test_a_killed_agents_next_life_takes_its_tasks_over_at_once(place: Place) -> None:
    """From a folder that holds a user's tasks.py, with a pool whose children die with it."""
    words = ("--capabilities", "gate", "-I", "tasks", "--pool", "prefork", "--concurrency", "1")
    gate = place.gate()
    handle = place.mesh.submit("gate", gate.payload, unsatisfiable="accept")
    first = place.agent("w1", *words, **LONG_LEASE)
    gate.wait_until_started()
    wait_until(lambda: handle.status() == "running", 10, "the start to be recorded")
    first.kill()
    place.agent("w1", *words, **LONG_LEASE)
    gate.wait_until_started(2)
    gate.open("second life")
    assert handle.result(timeout_s=20) == "second life"
    assert (record(place, handle.id).crashes, record(place, handle.id).agent) == (1, "w1")


def test_sigterm_drains(place: Place) -> None:
    """What runs finishes; what has not started goes back at once; then the agent leaves."""
    gate, other = place.gate("first"), place.gate("second")
    running = place.mesh.submit("gate", gate.payload, unsatisfiable="accept")
    agent = place.agent(
        "w1", "--capabilities", "gate", "-I", "tasks", "--pool", "prefork", "--concurrency", "1", **LONG_LEASE
    )
    gate.wait_until_started()
    waiting = place.mesh.submit_many("gate", [other.payload] * 5)
    agent.terminate()
    wait_until(lambda: place.discover()[0]["status"] == "draining", 20, "the agent to drain")
    assert [handle.status() for handle in waiting] == ["queued"] * 5
    assert running.status() == "running"
    gate.open("finished")
    assert running.result(timeout_s=20) == "finished"
    assert agent.wait() == 0
    assert place.discover()[0]["status"] == "offline"
    assert [handle.status() for handle in waiting] == ["queued"] * 5 and other.starts() == []
    assert record(place, running.id).crashes == 0


@pytest.fixture
def two_places(place: Place, redis_url: str, tmp_path: Path) -> Iterator[tuple[Place, Place]]:
    folder = tmp_path / "other"
    folder.mkdir()
    with make_place(redis_url, f"{place.namespace}-other", folder) as other:
        yield place, other


def test_two_namespaces_never_meet(two_places: tuple[Place, Place]) -> None:
    for number, one in enumerate(two_places):
        one.agent(f"w{number}", "--capabilities", "data-processing")
    for number, one in enumerate(two_places):
        assert [row["id"] for row in one.discover()] == [f"w{number}"]
    here, there = two_places
    done = here.run("inspect", "--timeout", "3", "--json", "ping", command=CELERY)
    assert [name.partition("@")[0] for name in json.loads(done.stdout)] == ["w0"]
    handle = here.mesh.submit("data-processing", {"data": "x"})
    assert handle.result(timeout_s=20)["type"] == "string"
    assert record(here, handle.id).agent == "w0"
    missing = there.call("status", handle.id)
    assert missing.returncode == 3 and there.mesh.queues() == []


def test_dropping_a_namespace_leaves_the_others(two_places: tuple[Place, Place]) -> None:
    here, there = two_places
    for one in two_places:
        one.mesh.submit("data-processing", {"data": 1}, unsatisfiable="accept")
    assert namespaces.drop(there.mesh.store) > 0
    assert there.keys() == [] and here.mesh.store.tasks.counts() == {"data-processing": {"queued": 1}}


def probe(row: dict[str, Any], path: str) -> int:
    """The status of an agent's answer; 0 if there is none in time."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{row['port']}{path}", timeout=2) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return 0


def test_a_drained_agent_is_alive_but_not_ready_and_takes_its_file_with_it(place: Place) -> None:
    alive, gate = place.folder / "alive", place.gate()
    words = ("--capabilities", "gate", "-I", "tasks", "--pool", "threads", "--concurrency", "1")
    agent = place.agent("w1", *words, MESH_HEARTBEAT_FILE=str(alive))
    (row,) = place.discover()
    wait_until(lambda: probe(row, "/health/ready") == 200, 20, "the agent to be ready")
    assert alive.exists()
    handle = place.mesh.submit("gate", gate.payload)
    gate.wait_until_started()
    agent.terminate()
    wait_until(lambda: probe(row, "/health/ready") == 503, 20, "the agent to take no more work")
    assert probe(row, "/health/live") == 200
    assert alive.exists()
    gate.open()
    assert handle.result(timeout_s=20) == "through"
    assert agent.wait() == 0
    assert not alive.exists()
    done = place.run("deploy", "--agent-id", "w1", MESH_HEARTBEAT_FILE=str(place.folder / "no" / "alive"))
    assert (done.returncode, "correct MESH_HEARTBEAT_FILE" in done.stderr) == (2, True)


@pytest.mark.ci
@pytest.mark.parametrize("hung", ["stopped", "held up by its task"])
def test_the_heartbeat_file_gets_old_when_the_loop_hangs(place: Place, hung: str) -> None:
    """With the solo pool a task stands in the loop's way, whereas beat and health port go on."""
    alive, gate = place.folder / "alive", place.gate()
    agent = place.agent("w1", "--capabilities", "gate", "-I", "tasks", MESH_HEARTBEAT_FILE=str(alive))
    (row,) = place.discover()

    def touched_since(moment: float) -> bool:
        return alive.stat().st_mtime > moment

    wait_until(lambda: touched_since(time.time() - 1), 20, "the loop to touch its file again")
    if hung == "stopped":
        os.kill(agent.process.pid, signal.SIGSTOP)
        assert probe(row, "/health/live") == 0
    else:
        place.mesh.submit("gate", gate.payload)
        gate.wait_until_started()
    stopped = time.time()
    wait_until(lambda: time.time() > stopped + 2 * TOUCHED_EVERY_S, 30, "two touches to be due")
    assert not touched_since(stopped)
    if hung == "stopped":
        os.kill(agent.process.pid, signal.SIGCONT)
    else:
        assert (probe(row, "/health/live"), probe(row, "/health")) == (200, 200)
        gate.open()
    wait_until(lambda: touched_since(stopped), 20, "the loop to turn again")


@pytest.mark.ci
@pytest.mark.parametrize("pool", ["threads", "prefork", "gevent"])
def test_the_heartbeat_file_stays_young_while_redis_is_away(
    namespace: str, tmp_path: Path, pool: str
) -> None:
    """An outage of Redis restarts nobody."""
    with start_server(tmp_path / "redis") as server, make_place(server.url, namespace, tmp_path) as place:
        alive = tmp_path / "alive"
        words = ("--capabilities", "gate", "-I", "tasks", "--pool", pool)
        agent = place.agent("w1", *words, MESH_HEARTBEAT_FILE=str(alive))
        server.kill()
        gone = time.time()
        wait_until(
            lambda: alive.stat().st_mtime > gone + 2 * TOUCHED_EVERY_S, 60, "touches long after it went"
        )
        assert agent.process.poll() is None
        server.start()
        assert (
            place.mesh.submit("gate", {"started": str(tmp_path / "s"), "fifo": os.devnull}).result(
                timeout_s=60
            )
            == ""
        )
