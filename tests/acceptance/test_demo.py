"""`mesh demo` on a folder of moderate size: the right totals, an agent killed, nothing lost, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sysconfig
from pathlib import Path

import pytest

from tests.acceptance.conftest import MESH, Place
from tests.conformance.cluster import list_process_tree
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


@pytest.mark.timeout(120)
@pytest.mark.parametrize("own_redis", [True, False])
def test_the_demo(place: Place, sources: Path, own_redis: bool) -> None:
    """With a server that it starts itself and Flower, and in a server that others use."""
    before = place.mesh.store.client.execute("DBSIZE")
    words = ["--folder", str(sources), "--parts", "24", "-o", "json", *([] if own_redis else ["--no-flower"])]
    done = place.run("demo", *words, timeout_s=100, **({"REDIS_URL": None} if own_redis else {}))
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["equal"] and outcome["lost"] == 0 and outcome["tasks"] >= 25
    assert (outcome["totals"]["files"], outcome["totals"]["unparsable"]) == (24, 0)
    assert outcome["killed"] in ("agent-1", "agent-2", "agent-3") and outcome["taken_over"] >= 1
    assert f"{outcome['killed']} killed with SIGKILL (pid" in done.stderr
    assert "taken over by agent-" in done.stderr and "Everything that was started is stopped." in done.stderr
    assert ("Flower       http://127.0.0.1:" in done.stderr) is own_redis
    assert place.keys() == [] and place.mesh.store.client.execute("DBSIZE") <= before + 2  # mesh-wide indexes


def test_an_interrupted_demo_leaves_no_process(place: Place, sources: Path) -> None:
    demo = place.start("demo", "--folder", str(sources), "--no-flower", command=MESH, REDIS_URL=None)
    place.wait_for(demo, lambda: "agents       agent-1 (pid" in demo.output(), "the agents to join")
    started = list_process_tree(demo.process.pid)
    assert len(started) >= 6  # itself, Redis, a coordinator, three agents and their children
    os.kill(demo.process.pid, signal.SIGINT)
    assert demo.wait(30) == 130
    wait_until(lambda: not [pid for pid in started if Path(f"/proc/{pid}/exe").exists()], 10, "all to have ended")


def test_a_killed_demo_leaves_no_process(place: Place, sources: Path) -> None:
    demo = place.start("demo", "--folder", str(sources), "--no-flower", command=MESH, REDIS_URL=None)
    place.wait_for(demo, lambda: "coordinator  http" in demo.output(), "the coordinator to run")
    started = list_process_tree(demo.process.pid)
    demo.kill()
    wait_until(lambda: not [pid for pid in started if Path(f"/proc/{pid}/exe").exists()], 30, "all to have ended")


def test_a_folder_without_files(place: Place, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = place.call("demo", "--folder", str(tmp_path / "empty"))
    assert (done.returncode, done.stdout) == (2, "")
    assert f"Error: There are no files below {tmp_path / 'empty'}" in done.stderr
