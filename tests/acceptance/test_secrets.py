"""The secret of a mesh: nothing starts without one, programs make their own, and nothing that a task starts inherits it."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import sys
from pathlib import Path

import pytest

from mesh.core.keyring import check_secret, key_id
from mesh.settings import Settings, give_back, withhold
from tests.acceptance.conftest import CELERY, Place
from tests.conftest import SECRET
from tests.waiting import wait_until

WORKER = ["worker", "--without-gossip", "--without-mingle"]
DUMP = """
import glob, os, subprocess, sys
from mesh import Mesh, task

def environments():
    "All that any process of this agent shows of its environment."
    yield repr(dict(os.environ))
    yield subprocess.run([sys.executable, "-c", "import os; print(dict(os.environ))"], capture_output=True, text=True).stdout
    for pid in {os.getpid(), os.getppid()}:
        with open(f"/proc/{pid}/environ", "rb") as block:
            yield block.read().decode(errors="replace")

@task("dump")
def dump(payload):
    with Mesh() as mesh:  # it still finds its way
        agents = [agent.id for agent in mesh.agents()]
    return {"environments": list(environments()), "agents": agents, "parent": os.getppid()}
"""
SHOP = """
from celery import Celery
from mesh import install
app = install(Celery("shop"))
"""


# -- without one


@pytest.mark.parametrize(
    "words",
    [
        ["mesh", "coordinator", "--host", "127.0.0.1"],
        ["mesh", "deploy", "--agent-id", "w1"],
        ["celery", "-A", "shop", *WORKER],
        [sys.executable, "-m", "mesh.workers", "--pool", "solo"],
    ],
    ids=["coordinator", "deploy", "install(app)", "mesh.workers"],
)
def test_nothing_starts_without_a_secret(place: Place, words: list[str]) -> None:
    (place.folder / "shop.py").write_text(SHOP)
    place.environ["PATH"] = f"{Path(sys.executable).parent}:{place.environ['PATH']}"
    if words[0] == "mesh":
        done = place.call(*words[1:], MESH_JWT_SECRET=None)
    else:
        done = place.run(*words, command=[], MESH_JWT_SECRET=None)
    assert done.returncode == 2, done.stderr
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert "MESH_JWT_SECRET is not set" in told and "`mesh secret generate` makes one" in told
    assert "Traceback" not in done.stderr and place.keys() == []


@pytest.mark.parametrize(
    "words",
    [
        ["celery", "-A", "mesh", *WORKER],
        ["celery", "-A", "shop", *WORKER],
        [sys.executable, "-m", "celery", "-A", "mesh", *WORKER],
        [sys.executable, "-m", "mesh.workers", "--pool", "solo"],
        ["mesh", "config", "check"],
    ],
    ids=["celery", "install(app)", "python -m celery", "mesh.workers", "mesh"],
)
def test_bad_settings_stop_each_with_a_line_for_each(place: Place, words: list[str]) -> None:
    (place.folder / "shop.py").write_text(SHOP)
    place.environ["PATH"] = f"{Path(sys.executable).parent}:{place.environ['PATH']}"
    done = place.run(*words, command=[], MAX_TASK_RETRIES="many", MESH_LEASE_MS="soon")
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["Error:", "MAX_TASK_RETRIES"],
        ["Error:", "MESH_LEASE_MS"],
    ]
    assert place.keys() == []


@pytest.mark.parametrize("role", ["coordinator", "deploy", "up", "demo", "verify"])
def test_nothing_starts_with_one_that_can_be_guessed(place: Place, role: str) -> None:
    done = place.call(role, MESH_JWT_SECRET="your-256-bit-secret-change-me-please")
    assert done.returncode == 2 and "sample" in done.stderr and "change-me" not in done.stderr


def test_a_secret_from_a_file(place: Place) -> None:
    (place.folder / "secret").write_text(SECRET + "\n")
    agent = place.agent("w1", MESH_JWT_SECRET=None, MESH_JWT_SECRET_FILE="secret")
    assert agent.process.poll() is None


def test_reading_needs_none(place: Place) -> None:
    for words in (["discover"], ["status"], ["task", "list"], ["queue", "list"]):
        assert place.call(*words, MESH_JWT_SECRET=None).returncode == 0


# -- making one


def test_a_secret_is_made(place: Place) -> None:
    made = [place.call("secret", "generate").stdout.strip() for _ in range(2)]
    assert made[0] != made[1] and all(re.fullmatch(r"[0-9a-f]{64}", one) for one in made)
    check_secret(made[0], where="MESH_JWT_SECRET", lenient=False)
    assert len(place.call("secret", "generate", "--bytes", "64").stdout.strip()) == 128
    assert place.call("secret", "generate", "--bytes", "31").returncode == 2


def test_the_doctor_shows_the_names_of_the_keys_and_never_the_secret(place: Place) -> None:
    new = secrets.token_hex(32)

    def finding(**environ: str | None) -> dict[str, str]:
        done = place.call("doctor", "-o", "json", **environ)
        assert SECRET not in done.stdout + done.stderr and new not in done.stdout + done.stderr
        (found,) = [one for one in json.loads(done.stdout) if one["check"] == "secret"]
        return dict(found)

    kids = [key_id(one.encode()) for one in (SECRET, new)]
    assert (finding()["status"], finding()["finding"]) == ("ok", f"keys {kids[0]}")
    both = finding(MESH_JWT_SECRET_NEW=new)
    assert both["status"] == "ok" and f"{kids[0]}, {kids[1]}" in both["finding"]
    assert finding(MESH_JWT_SECRET=None)["status"] == "warn"
    assert finding(MESH_JWT_SECRET="x" * 40)["status"] == "fail"


@pytest.mark.ci
def test_up_makes_its_own_and_hands_it_over(place: Place) -> None:
    up = place.start("up", "--agents", "1", "--no-flower", MESH_JWT_SECRET=None)
    place.wait_for(up, lambda: "export REDIS_URL=" in up.output(), "mesh up")
    (made,) = re.findall(r"MESH_JWT_SECRET=([0-9a-f]{64})$", up.output(), flags=re.M)
    payload = json.dumps({"operation": "sql", "query": "SELECT 42"})
    words = ("execute", "--task-type", "data-processing", "--payload", payload, "--wait")
    done = place.run(*words, MESH_JWT_SECRET=made)
    assert done.returncode == 0, done.stderr
    up.terminate()
    assert up.wait() == 0


@pytest.mark.ci
def test_up_uses_the_secret_that_is_there(place: Place) -> None:
    (place.folder / "secret").write_text(SECRET)
    up = place.start("up", "--agents", "0", MESH_JWT_SECRET=None, MESH_JWT_SECRET_FILE="secret")
    place.wait_for(up, lambda: "export REDIS_URL=" in up.output(), "mesh up")
    assert up.output().count(SECRET) == 1
    told = {name: environment_of(pid) for name, pid in children_of(up.process.pid).items()}
    assert SECRET in told["coordinator"] and SECRET not in told["flower"]
    up.terminate()
    assert up.wait() == 0


def children_of(parent: int) -> dict[str, int]:
    """What `mesh up` has started: role -> process id."""
    found: dict[str, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"PPid:\t{parent}\n" in (folder / "status").read_text():
                words = (folder / "cmdline").read_text().split("\0")
                found["flower" if "flower" in words else "coordinator"] = int(folder.name)
        except OSError:
            continue
    return found


def environment_of(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_text(errors="replace")


# -- keeping it


@pytest.mark.parametrize(
    ("pool", "start"), [("prefork", "celery"), pytest.param("threads", "deploy", marks=pytest.mark.ci)]
)
def test_no_task_finds_a_secret_in_any_environment(place: Place, pool: str, start: str) -> None:
    (place.folder / "dumps.py").write_text(DUMP)
    new = secrets.token_hex(32)
    command = [*CELERY, *WORKER] if start == "celery" else None
    words = ("-I", "dumps", "--pool", pool, "--concurrency", "1")
    agent = place.agent("w1", *words, command=command, MESH_JWT_SECRET_NEW=new)
    answer = place.mesh.submit("dump", {}).result(timeout_s=60)
    assert answer["agents"] == ["w1"]
    for text in answer["environments"]:
        assert "PATH" in text and SECRET not in text and new not in text
    if pool == "prefork":
        assert answer["parent"] == agent.process.pid
    assert SECRET not in environment_of(agent.process.pid)
    assert SECRET not in agent.output()


@pytest.mark.ci
def test_an_agent_that_celery_starts_anew_has_its_secret_again(place: Place) -> None:
    """On SIGHUP: the same process, another program."""
    agent = place.agent("w1", "--pool", "prefork", "--concurrency", "1")
    before = int((place.mesh.store.agents.get("w1") or {})["incarnation"])
    os.kill(agent.process.pid, signal.SIGHUP)

    def again() -> bool:
        row = place.mesh.store.agents.get("w1") or {}
        return int(row.get("incarnation", 0)) > before and bool(row.get("queues"))

    wait_until(again, 60, "the agent to join again")
    assert place.pid_of("w1") == agent.process.pid


def test_what_is_masked_when_it_is_shown_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://w1:hidden@localhost/0")
    monkeypatch.setenv("MESH_JWT_SECRET_NEW", SECRET[::-1])
    before = Settings.load()
    try:
        assert set(withhold()) == {"REDIS_URL", "MESH_JWT_SECRET", "MESH_JWT_SECRET_NEW"}
        assert not {"REDIS_URL", "MESH_JWT_SECRET", "MESH_JWT_SECRET_NEW"} & set(os.environ)
        assert Settings.load() == before and before.redis_url == "redis://w1:hidden@localhost/0"
        monkeypatch.setenv("REDIS_URL", "redis://localhost/1")
        assert withhold() == () and Settings.load().redis_url == "redis://localhost/1"
    finally:
        give_back()
    assert os.environ["MESH_JWT_SECRET"] == SECRET
