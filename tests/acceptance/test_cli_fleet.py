"""Every verb of `mesh` on a running mesh: a coordinator, an agent, and the same answers over Redis and over HTTP."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh.store.embedded import start_server
from tests.acceptance.conftest import Place, Running, make_place
from tests.acceptance.terminal import on_terminal
from tests.acceptance.test_coordinator import start
from tests.waiting import wait_until

WORK = """
from pydantic import BaseModel
from mesh import current, task

class Page(BaseModel):
    path: str
    dpi: int = 300

@task("scan")
def scan(payload: Page) -> dict:
    "Scans a page."
    return {"path": payload.path, "dpi": payload.dpi}

@task("half")
def half(payload: dict):
    current.progress(0.5, "half \\x1b[31mway")
    with open(payload["fifo"]) as fifo:
        return fifo.read()

@task("broken", retries=0)
def broken(payload: dict):
    raise ValueError("bad \\x1b[31mthing")
"""


@pytest.fixture(scope="module")
def fleet(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with make_place(redis_url, "cli-fleet", tmp_path_factory.mktemp("fleet")) as place:
        (place.folder / "work.py").write_text(WORK)
        start(place, "c1")
        place.agent("w1", "-I", "work", "--pool", "threads", "--concurrency", "4", "--region", "eu")
        wait_until(lambda: place.mesh.overview()["leader"], 30, "a leader")
        yield place


@pytest.fixture(scope="module")
def url(fleet: Place) -> str:
    (coordinator,) = [one for one in fleet.mesh.overview()["coordinators"] if one["id"] == "c1"]
    return f"http://127.0.0.1:{coordinator['port']}"


def answer(done: subprocess.CompletedProcess[str], code: int = 0) -> Any:
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("Error: ")]


def execute(fleet: Place, task_type: str, payload: Any, *words: str) -> subprocess.CompletedProcess[str]:
    return fleet.call("execute", "--task-type", task_type, "--payload", json.dumps(payload), *words)


def begin(fleet: Place, name: str, *words: str) -> tuple[Path, str]:
    """A task `half` that runs until something is written into the FIFO: (FIFO, id)."""
    gate = fleet.gate(name)
    done = execute(fleet, "half", {"fifo": str(gate.fifo)}, "-o", "name", *words)
    assert done.returncode == 0, done.stderr
    task_id = done.stdout.strip()
    wait_until(lambda: fleet.mesh.handle(task_id).progress(), 30, f"task {task_id} to tell of its progress")
    return gate.fifo, task_id


def test_a_task_from_its_submission_to_its_end(fleet: Place) -> None:
    fifo, task_id = begin(fleet, "life", "--labels", "kind=test,urgent=no", "--priority", "7")
    row = answer(
        fleet.call("task", "list", "--state", "running", "--agent", "w1", "--type", "half", "-o", "json")
    )[0]
    assert (row["id"], row["labels"], row["priority"]) == (task_id, {"kind": "test", "urgent": "no"}, 7)
    assert task_id in fleet.call("agent", "describe", "w1").stdout
    assert [one["id"] for one in answer(fleet.call("agent", "describe", "w1", "-o", "json"))["tasks"]] == [
        task_id
    ]
    assert "It is being run by agent w1." in fleet.call("task", "why", task_id).stdout
    assert answer(fleet.call("task", "get", task_id, "-o", "json"))["progress"]["fraction"] == 0.5

    watching = fleet.start("task", "watch", task_id)
    fleet.wait_for(watching, lambda: "running" in watching.output(), "the state to be shown")
    fifo.write_text("done")
    assert watching.wait() == 0
    assert watching.output().splitlines() == [r"running, on w1, 50% half \x1b[31mway", "succeeded, on w1"]

    assert answer(fleet.call("task", "get", task_id, "-o", "json"))["result"] == "done"
    shown = fleet.call("task", "get", task_id).stdout
    assert re.search(r"^result +done$", shown, flags=re.M) and re.search(r"^ended +\S+Z$", shown, flags=re.M)
    listed = fleet.call("task", "list", "--since", "10m", "--limit", "1000", "-o", "name").stdout.split()
    assert (
        task_id in listed and fleet.call("task", "list", "--since", "2999-01-01", "-o", "name").stdout == ""
    )


def test_waiting_prints_the_result(fleet: Place) -> None:
    done = execute(fleet, "scan", {"path": "a.png"}, "--wait")
    assert (answer(done), done.stderr) == ({"path": "a.png", "dpi": 300}, "")
    whole = answer(execute(fleet, "scan", {"path": "a.png"}, "--wait", "-o", "jsonl"))
    assert set(whole) == {"id", "state", "result"} and whole["state"] == "succeeded"


def test_long_work_shows_its_progress(fleet: Place) -> None:
    gate = fleet.gate("progress")
    words = ("execute", "--task-type", "half", "--payload", json.dumps({"fifo": str(gate.fifo)}))
    shown = on_terminal(fleet, *words, "--wait", columns=120)
    wait_until(lambda: "running, on w1, 50% half \\x1b[31mway" in shown.text(), 60, "the progress")
    gate.open("done")
    assert shown.end() == 0
    assert "━" in shown.text() and shown.text().endswith('"done"\n')


def test_a_payload_that_does_not_fit_is_refused(fleet: Place) -> None:
    before = fleet.mesh.queues()
    done = execute(fleet, "scan", {"path": "a.png", "dpi": "many"})
    assert (done.returncode, done.stdout, len(errors(done))) == (2, "", 1)
    assert "dpi" in done.stderr and "many" in done.stderr
    assert fleet.mesh.queues() == before


def test_types_are_shown_without_their_code(fleet: Place) -> None:
    rows = {row["name"]: row for row in answer(fleet.call("type", "list", "-o", "json"))}
    assert {"scan", "half", "broken", "data-processing"} <= set(rows)
    assert rows["scan"]["payload_schema"]["required"] == ["path"]
    assert answer(fleet.call("type", "show", "scan", "-o", "json")) == rows["scan"]
    assert "Scans a page." in fleet.call("type", "list").stdout
    wrong = fleet.call("type", "show", "scann")
    assert wrong.returncode == 3 and "Did you mean scan?" in errors(wrong)[0]


def test_a_dead_letter_is_shown_replayed_and_discarded(fleet: Place) -> None:
    failed = execute(fleet, "broken", {}, "--wait", "--task-id", "dead-1")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert r"ValueError: bad \x1b[31mthing" in errors(failed)[0]  # a terminal must not obey it
    assert answer(fleet.call("dead-letter", "list", "--type", "broken", "-o", "json"))[0]["id"] == "dead-1"
    assert fleet.call("dead-letter", "list", "--reason", "poison", "-o", "name").stdout == ""
    shown = answer(fleet.call("dead-letter", "show", "dead-1", "-o", "json"))
    assert shown["failure"]["type"] == "ValueError" and "Traceback" in shown["failure"]["traceback"]
    assert fleet.call("task", "get", "dead-1").returncode == 0

    again = fleet.call("dead-letter", "replay", "dead-1", "no-such", "-o", "jsonl")
    assert (again.returncode, len(errors(again))) == (3, 1)
    assert answer(subprocess.CompletedProcess([], 0, again.stdout, ""))["id"] == "dead-1"
    fleet.call("task", "watch", "dead-1")
    assert answer(fleet.call("task", "get", "dead-1", "-o", "json"))["run"] == 2
    assert fleet.call("task", "retry", "dead-1", "-o", "name").stdout == "dead-1\n"
    assert fleet.call("task", "watch", "dead-1").returncode == 1

    unsure = fleet.call("dead-letter", "discard", "--type", "broken")
    assert unsure.returncode == 2 and "This would discard 1 dead letter: add --yes." in errors(unsure)[0]
    gone = fleet.call("dead-letter", "discard", "--type", "broken", "--yes", "-o", "name")
    assert (gone.returncode, gone.stdout) == (0, "dead-1\n")
    none = fleet.call("dead-letter", "discard", "--all", "--yes")
    assert (none.returncode, none.stdout, none.stderr) == (0, "", "There is no such dead letter.\n")


def test_tasks_are_cancelled_each_for_itself(fleet: Place) -> None:
    fifo, running = begin(fleet, "cancelled")
    waiting = execute(fleet, "scan", {"path": "x"}, "--countdown", "600", "-o", "name").stdout.strip()
    done = fleet.call("task", "cancel", "no-such", running, waiting, "-o", "name")
    assert (done.returncode, done.stdout.split()) == (3, [running, waiting])
    assert len(errors(done)) == 1 and "'no-such'" in done.stderr
    late = fleet.call("task", "cancel", running)
    assert late.returncode == 7 and "had ended before: it is cancelled" in errors(late)[0]
    assert fleet.call("task", "watch", running).returncode == 1
    fifo.write_text("go")  # its agent cannot stop it, and is degraded as long as it runs
    wait_until(lambda: fleet.discover("--status", "healthy"), 20, "the agent to be rid of it")


def test_who_could_take_it(fleet: Place) -> None:
    could = answer(execute(fleet, "scan", {"path": "x"}, "--explain", "-o", "json"))
    assert (could["queue"], could["capable"]) == ("scan", ["w1"])
    nobody = execute(fleet, "scan", {"path": "x"}, "--requires", "gpu", "--explain")
    assert nobody.returncode == 7
    assert "it does not offer gpu" in nobody.stdout and "No agent offers gpu" in nobody.stderr
    near = fleet.call("execute", "--task-type", "scn", "--reject-unsatisfiable")
    assert near.returncode == 7 and "Did you mean scan?" in errors(near)[0]
    assert [one["queue"] for one in fleet.mesh.queues() if "gpu" in one["queue"]] == []


@pytest.mark.ci
def test_an_agent_is_cordoned_restarted_and_drained(fleet: Place) -> None:
    second = fleet.agent("w2", "-I", "work")
    assert fleet.call("cordon", "w1", "w9").returncode == 3
    assert [one["cordoned"] for one in fleet.discover("--region", "eu")] == [False]  # nothing half-done
    (cordoned,) = answer(fleet.call("agent", "cordon", "w1", "-o", "json"))
    assert (cordoned["id"], cordoned["cordoned"]) == ("w1", True)
    assert "it is cordoned" in execute(fleet, "scan", {"path": "x"}, "--explain").stdout
    assert re.search(r"^w1 +healthy +no", fleet.call("uncordon", "w1").stdout, flags=re.M)
    near = fleet.call("drain", "w22")
    assert near.returncode == 3 and "Did you mean w2?" in errors(near)[0]
    (before,) = [one["incarnation"] for one in fleet.discover() if one["id"] == "w2"]
    second.process.send_signal(signal.SIGHUP)  # it starts itself anew, in the same process
    fleet.wait_for(
        second,
        lambda: [
            one
            for one in fleet.discover("--status", "healthy")
            if one["id"] == "w2" and one["incarnation"] > before
        ],
        "w2 to be there again",
    )
    left = fleet.call("drain", "w2", "--grace", "30s", "--wait", "--timeout", "30")
    assert left.returncode == 0 and re.search(r"^w2 +offline", left.stdout, flags=re.M), left.stderr
    assert second.wait() == 0


LISTS = {
    "agents": ("discover",),
    "agents of a capability": ("agent", "list", "--capability", "scan", "--status", "healthy"),
    "no agents": ("discover", "--region", "us"),
    "tasks": ("task", "list", "--type", "scan", "--state", "succeeded", "--limit", "5"),
    "a task": ("task", "get", "both-ways"),
    "why": ("task", "why", "both-ways"),
    "dead letters": ("dead-letter", "list"),
    "queues": ("queue", "list"),
    "types": ("type", "list"),
    "explained": ("execute", "--task-type", "scan", "--explain"),
    "status": ("status",),
}
CHANGING = {
    "silent_ms",
    "last_beat_at",
    "oldest_age_ms",
    "beats",
    "running",
    "held",
    "free_slots",
    "expected_start_at",
}


def still(value: Any) -> Any:
    """Without what changes from moment to moment."""
    if isinstance(value, dict):
        return {name: still(part) for name, part in value.items() if name not in CHANGING}
    return [still(part) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", LISTS)
def test_redis_and_http_say_the_same(fleet: Place, url: str, name: str) -> None:
    execute(fleet, "scan", {"path": "a.png"}, "--task-id", "both-ways", "--wait")
    words = LISTS[name]
    direct = answer(fleet.call(*words, "-o", "json"))
    assert still(answer(fleet.call(*words, "-o", "json", "--url", url))) == still(direct)
    table = fleet.call("--url", url, *words)
    assert table.returncode == 0 and (table.stdout or table.stderr.startswith("No such "))
    lines = fleet.call(*words, "-o", "jsonl").stdout.splitlines()
    assert len(lines) == (len(direct) if isinstance(direct, list) else 1) and all(map(json.loads, lines))


def test_over_http_as_over_redis(fleet: Place, url: str) -> None:
    environ = {"REDIS_URL": None, "COORDINATOR_URL": url}
    words = ("execute", "--task-type", "scan", "--payload", '{"path": "b.png"}')
    assert answer(fleet.call(*words, "--wait", **environ))["path"] == "b.png"
    wrong = fleet.call("execute", "--task-type", "scan", "--payload", "{}", **environ)
    assert wrong.returncode == 2 and "path is missing" in errors(wrong)[0]
    assert fleet.call("task", "get", "nope", **environ).returncode == 3
    assert fleet.call("task", "cancel", "both-ways", **environ).returncode in (3, 7)
    assert (
        fleet.call("cordon", "w1", **environ).returncode,
        fleet.call("uncordon", "w1", **environ).returncode,
    ) == (0, 0)


FIELDS = {
    "id", "name", "type", "namespace", "status", "capabilities", "region", "labels", "slots", "running", "address",
    "port", "version", "incarnation", "joined_at", "last_beat_at", "silent_ms", "cordoned",
}  # fmt: skip


def test_the_fields_of_discover_do_not_change(fleet: Place) -> None:
    """People pipe them to jq, and `mesh restore` reads them."""
    (agent,) = [one for one in fleet.discover() if one["id"] == "w1"]
    assert set(agent) >= FIELDS and agent["capabilities"] == [
        "broken",
        "data-processing",
        "half",
        "scan",
        "task-execution",
    ]
    assert [one["id"] for one in answer(fleet.call("discover", "--format", "json", "--region", "eu"))] == [
        "w1"
    ]
    named = fleet.call("agent", "list", "--status", "healthy", "-o", "name")
    assert named.stdout == "w1\n"


def test_the_doctor_finds_a_healthy_mesh(fleet: Place) -> None:
    rows = answer(fleet.call("doctor", "-o", "json"))
    assert {row["status"] for row in rows} <= {"ok", "warn"}
    found = {row["check"]: row for row in rows}
    assert {
        "python",
        "packages",
        "redis",
        "durability",
        "memory",
        "clients",
        "clock",
        "coordinators",
        "agents",
    } <= set(found)
    assert "c1 leads" in found["coordinators"]["finding"] and found["coordinator c1"]["status"] == "ok"
    assert found["durability"]["finding"].startswith("appendonly yes, appendfsync everysec")
    for row in rows:
        assert (row["status"] == "ok") == (row["advice"] is None), row
    line = next(line for line in fleet.call("doctor").stdout.splitlines() if " memory " in line)
    assert re.match(r"ok +memory +noeviction, ", line)


def test_the_doctor_says_what_loses_tasks(place: Place, closed_port: int) -> None:
    with start_server() as server:
        there = {"REDIS_URL": server.url, "COORDINATOR_URL": f"http://127.0.0.1:{closed_port}"}
        place.call("execute", "--task-type", "ocr", **there)
        client = type(place.mesh.store.client)(server.url)
        for words in (("maxmemory-policy", "allkeys-lru"), ("appendonly", "no"), ("maxclients", "50")):
            client.execute("CONFIG", "SET", *words)
        client.close()
        done = place.call("doctor", "-o", "json", **there)
    found = {row["check"]: row for row in answer(done, 5)}
    wrong = {name for name, row in found.items() if row["status"] != "ok"}
    assert found["memory"]["status"] == "fail" and "noeviction" in found["memory"]["advice"]
    assert wrong >= {
        "memory",
        "durability",
        "clients",
        "coordinators",
        "agents",
        "queue ocr",
        "COORDINATOR_URL",
    }
    assert "No agent offers ocr" in found["queue ocr"]["finding"]
    assert all(row["advice"] for row in found.values() if row["status"] != "ok")


def test_the_doctor_without_redis(place: Place, closed_port: int) -> None:
    done = place.call("doctor", REDIS_URL=f"redis://me:hidden@127.0.0.1:{closed_port}")
    assert done.returncode == 5 and "hidden" not in done.stdout
    assert re.search(r"^fail +redis .*cannot be reached", done.stdout, flags=re.M)
    assert "set REDIS_URL" in done.stdout.splitlines()[-1]


def views(process: Running) -> list[str]:
    return [line for line in process.output().splitlines() if line.startswith("{")]


def test_watching_goes_on_through_an_outage_and_ends_with_ctrl_c(place: Place) -> None:
    with start_server() as server:
        watching = place.start(
            "status", "--watch=0.1", "-o", "jsonl", REDIS_URL=server.url, MESH_REDIS_SOCKET_TIMEOUT_MS="500"
        )
        place.wait_for(watching, lambda: len(views(watching)) >= 2, "two views")
        server.kill()
        place.wait_for(watching, lambda: "Warning: " in watching.output(), "a warning")
        seen = len(views(watching))
        server.restart()
        place.wait_for(watching, lambda: len(views(watching)) >= seen + 2, "two more views")
        watching.process.send_signal(signal.SIGINT)
        assert watching.wait() == 130
    assert "Traceback" not in watching.output()
    assert watching.output().count("Trying again every 0.1 s.") == 1
