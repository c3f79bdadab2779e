"""`mesh demo` on a folder of moderate size: the right totals, an agent killed, nothing lost, nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import sysconfig
from pathlib import Path

import pytest

from tests.acceptance.conftest import Place
from tests.conformance.cluster import is_alive, list_process_tree
from tests.waiting import wait_until


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Copies of large modules: a file takes long enough for an agent to be killed over it."""
    folder = tmp_path / "sources"
    (folder / "inner").mkdir(parents=True)
    library = Path(sysconfig.get_paths()["stdlib"])
    for name in ("argparse.py", "inspect.py", "typing.py", "tarfile.py"):
        for number in range(6):
            shutil.copy(library / name, folder / "inner" / f"m{number}_{name}")
    return folder


def test_the_demo(place: Place, sources: Path) -> None:
    """In a server that others use: nothing of it is left there."""
    before = place.mesh.store.client.execute("DBSIZE")
    done = place.run("demo", "--folder", str(sources), "--parts", "24", "-o", "json", timeout_s=100)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["equal"] and outcome["lost"] == 0 and outcome["tasks"] >= 25
    assert (outcome["totals"]["files"], outcome["totals"]["unparsable"]) == (24, 0)
    assert outcome["killed"] in ("agent-1", "agent-2", "agent-3") and outcome["taken_over"] >= 1
    assert f"{outcome['killed']} killed with SIGKILL (pid" in done.stderr
    assert "taken over by agent-" in done.stderr and "Everything that was started is stopped." in done.stderr
    assert re.search(r"Flower       http://127\.0\.0\.1:\d+", done.stderr)
    assert place.keys() == [] and place.mesh.store.client.execute("DBSIZE") <= before + 2  # mesh-wide indexes


@pytest.mark.ci
def test_an_interrupted_demo_leaves_no_process(place: Place, sources: Path) -> None:
    demo = place.start("demo", "--folder", str(sources), "--no-flower", REDIS_URL=None)
    place.wait_for(demo, lambda: "coordinator  http" in demo.output(), "the coordinator to run")
    started = list_process_tree(demo.process.pid)
    assert len(started) >= 6  # itself, Redis, a coordinator, three agents
    os.kill(demo.process.pid, signal.SIGINT)
    assert demo.wait() == 130
    wait_until(lambda: not living(started), 10, "all to have ended")


def living(pids: list[int]) -> list[int]:
    return [pid for pid in pids if is_alive(pid)]


@pytest.mark.ci
def test_up_serves_other_shells_and_leaves_no_process_when_it_is_killed(place: Place) -> None:
    up = place.start(
        "up", "--agents", "1", "--concurrency", "1", "--no-flower", "-I", "tasks", REDIS_URL=None
    )
    place.wait_for(up, lambda: "export REDIS_URL=" in up.output(), "everything to run")
    (line,) = [line for line in up.output().splitlines() if line.startswith("export ")]
    variables = dict(word.split("=", 1) for word in shlex.split(line)[1:])
    assert variables["MESH_NAMESPACE"] == place.namespace
    gate = place.gate()
    done = place.start(
        "execute", "--task-type", "gate", "--payload", json.dumps(gate.payload), "--wait", **variables
    )
    gate.wait_until_started()
    gate.open("through")
    assert (done.wait(), json.loads(done.output())) == (0, "through")
    started = list_process_tree(up.process.pid)
    os.kill(up.process.pid, signal.SIGKILL)
    wait_until(lambda: not living(started), 30, "all to have ended")


def test_a_folder_without_files(place: Place, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = place.call("demo", "--folder", str(tmp_path / "empty"))
    assert (done.returncode, done.stdout) == (2, "")
    assert f"Error: There are no files below {tmp_path / 'empty'}" in done.stderr
