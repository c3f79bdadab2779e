"""`mesh verify` as people run it: on a Redis that others use, interrupted, and asked for what cannot be."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from tests.acceptance.conftest import Place
from tests.conformance.cluster import is_alive, list_process_tree
from tests.waiting import wait_until


@pytest.mark.ci
@pytest.mark.timeout(180)
def test_a_short_run_in_a_server_that_others_use(place: Place, tmp_path: Path) -> None:
    """An agent is killed and comes back; everything is checked, told, and nothing is left in the server."""
    before = place.mesh.store.client.execute("DBSIZE")
    report = tmp_path / "report.json"
    done = place.run(
        "verify", "--tasks", "40", "--duration", "8s", "--agents", "2", "--coordinators", "1", "--pool", "threads",
        "--chaos", "kill-agent", "--seed", "3", "--report", str(report), "-o", "json", timeout_s=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    outcome = json.loads(done.stdout)
    assert outcome == json.loads(report.read_text())
    assert outcome["good"] and all(check["passed"] for check in outcome["checks"])
    assert {fault["fault"] for fault in outcome["faults"]} == {"kill-agent"}
    assert outcome["tasks"]["submitted"] == 40
    assert "seed 3" in done.stderr and "healed: kill-agent" in done.stderr
    assert place.keys() == [] and place.mesh.store.client.execute("DBSIZE") <= before + 2  # mesh-wide indexes


@pytest.mark.ci
@pytest.mark.timeout(180)
def test_an_interrupted_run_leaves_no_process(place: Place) -> None:
    run = place.start(
        "verify", "--agents", "2", "--coordinators", "1", "--pool", "threads", "--chaos", "pause-agent",
        "--duration", "60s", "--seed", "1", REDIS_URL=None,
    )  # fmt: skip
    place.wait_for(run, lambda: re.search(r"^ +\d\.\d s  pause-agent", run.output(), re.M), "a fault")
    started = list_process_tree(run.process.pid)
    assert len(started) >= 5  # itself, Redis, a coordinator, two agents
    os.kill(run.process.pid, signal.SIGINT)
    assert run.wait() == 130
    wait_until(lambda: not [pid for pid in started if is_alive(pid)], 20, "all to have ended")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--chaos", "earthquake"), "'earthquake' is no fault: choose of kill-agent, "),
        (
            ("--chaos", "restart-redis"),
            "restart-redis would stop a Redis that others use: leave it out of --chaos",
        ),
        (("--duration", "soon"), "'soon' is not a time like 90s or 10m"),
        (("--duration", "0.1s"), "'0.1s' is not between 1s and 24h"),
        (("--agents", "1"), "1 is not in the range 2<=x<=50"),
        (("--coordinators", "0", "--chaos", "kill-coordinator"), "kill-coordinator needs a coordinator"),
    ],
)
def test_what_cannot_be(place: Place, words: tuple[str, ...], says: str) -> None:
    done = place.call("verify", *words)
    assert done.returncode == 2 and says in done.stderr, done.stderr
    assert place.keys() == []
