"""Coordinators as processes: health, election, loops, Redis going away, a clean stop."""

from __future__ import annotations

import dataclasses
import json
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from mesh.client import Mesh
from mesh.store.coordinators import Coordinators
from mesh.store.embedded import start_server
from mesh.store.signing import body_sealer
from tests.acceptance.conftest import Place, Running, make_place
from tests.tokens import bearer
from tests.waiting import wait_until


def start(place: Place, coordinator_id: str, *words: str, **environ: str | None) -> tuple[Running, str]:
    """A coordinator that runs, and its URL."""
    process = place.start("coordinator", "--id", coordinator_id, "--host", "127.0.0.1", *words, **environ)
    place.wait_for(
        process, lambda: pid_of(place, coordinator_id) == process.process.pid, f"{coordinator_id} to run"
    )
    port = (registry(place).get(coordinator_id) or {})["port"]
    return process, f"http://127.0.0.1:{port}"


def registry(place: Place) -> Coordinators:
    return Coordinators(place.mesh.store.client, place.mesh.store.keys)


def pid_of(place: Place, coordinator_id: str) -> int:
    return int((registry(place).get(coordinator_id) or {}).get("pid", 0))


def leader(place: Place) -> str | None:
    return registry(place).leader()[1]


def ask(url: str, timeout_s: float = 5) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=bearer()), timeout=timeout_s
        ) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_health_and_a_clean_stop(place: Place) -> None:
    process, url = start(place, "c1")
    wait_until(lambda: leader(place) == "c1", 5, "c1 to lead")
    wait_until(lambda: ask(f"{url}/health")[1]["loops"]["tick"]["runs"] > 0, 5, "the loops to run")
    status, body = ask(f"{url}/health")
    assert (status, body["status"], body["id"], body["leads"], body["namespace"]) == (
        200, "healthy", "c1", True, place.namespace,
    )  # fmt: skip
    assert body["term"] == 1 and body["redis_latency_ms"] > 0 and body["agents"] == {}
    assert set(body["loops"]) >= {"reap", "tick", "health"}
    assert ask(f"{url}/health/live") == (200, {"status": "ok"})
    assert ask(f"{url}/health/ready") == (200, {"status": "ready"})
    assert "leader        c1 (term 1)" in place.call("status").stdout
    process.terminate()
    assert process.wait() == 0
    assert leader(place) is None and registry(place).get("c1") is None


def test_the_loops_promote_expire_and_take_back(place: Place) -> None:
    """Without any agent: nobody else could have done it."""
    mesh, submit = place.mesh, place.mesh.submit
    start(place, "c1", MESH_LEASE_MS="1000", MESH_LEASE_RENEW_MS="400")
    later = submit("data-processing", 1, countdown_s=1, unsatisfiable="accept")
    stale = submit("stale", 1, expires_s=0.5, unsatisfiable="accept")
    lost = submit("lost", 1, unsatisfiable="accept")
    with Mesh(settings=dataclasses.replace(mesh.settings, lease_ms=1000, lease_renew_ms=400)) as agent:
        (held,) = agent.store.tasks.fetch(
            holder="nobody#1", isolated=False, nonce="n", limit=1, held=0, queues=["lost"]
        )
    assert held.id == lost.id and lost.status() == "leased"
    wait_until(lambda: later.status() == "queued", 10, "the countdown to end")
    wait_until(lambda: stale.status() == "expired", 10, "the expiry")
    wait_until(lambda: lost.status() == "queued", 30, "the lease to end")


@pytest.mark.ci
def test_the_leader_says_when_the_health_of_an_agent_changes(place: Place) -> None:
    intervals = {
        "HEARTBEAT_INTERVAL_MS": "500",
        "UNHEALTHY_THRESHOLD_MS": "5000",
        "HEALTH_CHECK_INTERVAL_MS": "100",
    }
    process, url = start(place, "c1", LOG_FORMAT="text", **intervals)
    wait_until(lambda: leader(place) == "c1", 5, "c1 to lead")
    place.mesh.store.agents.join("silent", {"name": "silent"})
    for said in ("agent silent is degraded, was ", "agent silent is unhealthy, was degraded: last heard of "):
        wait_until(lambda: said in process.output(), 20, said)  # noqa: B023
    found = ask(f"{url}/v1/namespaces/{place.namespace}/agents")[1]
    assert found["counts"] == ask(f"{url}/health")[1]["agents"] == {"unhealthy": 1}
    wait_until(lambda: ask(f"{url}/health")[1]["loops"]["health"]["runs"] > 3, 5, "the loop to go on")
    assert process.output().count("agent silent is unhealthy") == 1


@pytest.mark.ci
def test_a_second_with_the_same_id_is_refused_a_next_life_is_not(place: Place) -> None:
    first, _ = start(place, "c1")
    second = place.run("coordinator", "--id", "c1", "--host", "127.0.0.1")
    assert second.returncode == 7
    assert f"Error: Coordinator id 'c1' is already running (pid {first.process.pid} on" in second.stderr
    first.kill()
    again, _ = start(place, "c1")
    assert pid_of(place, "c1") == again.process.pid


@pytest.mark.parametrize("asked", [True, False])
def test_a_taken_port(place: Place, taken_port: int, asked: bool) -> None:
    """In the environment it was asked for; 3000 by default is not, whoever has it."""
    if asked:
        done = place.run("coordinator", "--host", "127.0.0.1", MESH_COORDINATOR_PORT=str(taken_port))
        assert done.returncode == 7 and f"Error: Port {taken_port} is taken" in done.stderr
    else:
        urls = {start(place, name)[1] for name in ("c1", "c2")}
        assert len(urls) == 2


def test_redis_goes_away_and_comes_back(tmp_path: Path, namespace: str) -> None:
    (tmp_path / "server").mkdir()
    with start_server(tmp_path / "server") as server, make_place(server.url, namespace, tmp_path) as place:
        process, url = start(place, "c1", LOG_FORMAT="text")
        wait_until(lambda: leader(place) == "c1", 5, "c1 to lead")
        first = place.mesh.submit("x", 1, countdown_s=999, unsatisfiable="accept")
        tasks = f"{url}/v1/namespaces/{namespace}/tasks"
        waited: list[tuple[int, dict[str, Any]]] = []
        wait = threading.Thread(target=lambda: waited.append(ask(f"{tasks}/{first.id}/result?wait_s=60", 70)))
        wait.start()
        channel = place.mesh.store.keys.of("result", first.id)
        execute = place.mesh.store.client.execute
        wait_until(lambda: execute("PUBSUB", "NUMSUB", channel)[1] == 1, 10, "somebody to wait")
        server.kill()
        wait_until(lambda: ask(f"{url}/health/ready")[0] == 503, 10, "it to notice")
        submission = urllib.request.Request(tasks, data=b'{"type": "x"}', headers=bearer())
        with pytest.raises(urllib.error.HTTPError, match="503") as refused:
            urllib.request.urlopen(submission, timeout=10)
        problem = json.load(refused.value)
        assert problem["code"] == "StoreUnavailable" and "cannot be reached" in problem["detail"]
        assert refused.value.headers["Retry-After"] == "1"
        wait_until(lambda: "Redis is away" in process.output(), 10, "its loops to notice")
        assert ask(f"{url}/health/live")[0] == 200
        status, body = ask(f"{url}/health")
        assert status == 503 and "cannot be reached" in body["detail"]
        server.restart()
        wait_until(lambda: ask(f"{url}/health")[1]["leads"], 10, "it to lead again")
        later = place.mesh.submit("x", 1, countdown_s=0.2, unsatisfiable="accept")
        wait_until(lambda: later.status() == "queued", 10, "the loops to go on")
        wait_until(
            lambda: execute("PUBSUB", "NUMSUB", channel)[1] == 1, 10, "the subscription to be made anew"
        )
        assert not waited and place.mesh.handle(first.id).cancel()
        wait.join(10)
        assert waited == [(200, {"id": first.id, "state": "cancelled", "error": waited[0][1]["error"]})]
        output = process.output()
        assert output.count("Redis is away") == 1 and "Redis is back" in output and "Traceback" not in output


def test_a_chord_that_a_dead_process_left_is_completed(place: Place) -> None:
    """Its header is complete, and nobody lives who knows: the coordinator publishes its body."""
    body = {
        "task": "sum-up", "args": [], "kwargs": {}, "options": {"task_id": "body-1"}, "subtask_type": None,
        "immutable": False,
    }  # fmt: skip
    part = {"status": "SUCCESS", "result": 42, "traceback": None, "children": [], "task_id": "part-1"}
    chords = place.mesh.store.chords
    sealed = body_sealer(place.mesh.store)("chord-1", json.dumps(body).encode())
    chords.arm("chord-1", body=sealed)
    assert chords.arm("chord-1", size=1) is False
    assert chords.part("chord-1", "0", json.dumps(part).encode()) is True
    start(place, "c1")
    wait_until(lambda: place.mesh.store.tasks.record("body-1") is not None, 20, "the body to be published")
    assert place.mesh.handle("body-1").status() == "queued"
    assert b"[42]" in (place.mesh.store.tasks.message("body-1") or b"")
