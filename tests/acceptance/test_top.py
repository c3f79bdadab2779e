"""`mesh top` on a running mesh: its figures, its keys, over Redis and over HTTP."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.conftest import Place, make_place
from tests.acceptance.terminal import ESCAPE, on_terminal
from tests.acceptance.test_coordinator import start
from tests.waiting import wait_until

WORK = """
import time
from mesh import task

@task("nap")
def nap(seconds: float) -> None:
    time.sleep(seconds)

@task("broken", retries=0)
def broken(payload):
    raise ValueError("bad \\x1b[31mthing")

@task("refused", no_retry_for=[ValueError])
def refused(payload):
    raise ValueError("no")
"""


@pytest.fixture(scope="module")
def fleet(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, str]]:
    with make_place(redis_url, "top", tmp_path_factory.mktemp("top")) as place:
        (place.folder / "work.py").write_text(WORK)
        _, url = start(place, "c1")
        place.agent("w1", "-I", "work", "--pool", "threads", "--concurrency", "3", "--region", "eu")
        yield place, url


@pytest.fixture(params=["redis", "http"])
def way(fleet: tuple[Place, str], request: pytest.FixtureRequest) -> tuple[str, ...]:
    return ("--url", fleet[1]) if request.param == "http" else ()


def top(place: Place, *words: str) -> dict[str, Any]:
    done = place.call("top", "--once", "-o", "json", *words)
    assert done.returncode == 0, done.stderr
    frame: dict[str, Any] = json.loads(done.stdout)
    return frame


def test_a_frame_has_what_happens_within_its_interval(fleet: tuple[Place, str], way: tuple[str, ...]) -> None:
    place, _ = fleet
    for one in place.mesh.submit_many("nap", [0.0] * 20):
        one.result(timeout_s=30)
    failed = [place.mesh.submit(name, 1) for name in ("refused", "broken")]
    waiting = place.mesh.submit_many("nap", [0.0], requires=["gpu"], unsatisfiable="accept")
    naps = place.mesh.submit_many("nap", [0.1] * 200)
    ends = ["failed", "dead_lettered"]
    wait_until(lambda: [one.status() for one in failed] == ends, 30, "the failures")
    frame = top(place, "--interval", "1", *way)
    for one in [*waiting, *naps]:
        one.cancel()
    assert frame["namespace"] == "top" and 1000 <= frame["interval_ms"] < 10_000
    assert frame["health"] == {"healthy": 1} and frame["slots"] == 3
    rows = {row["queue"]: row for row in frame["queues"]}
    busy = rows["nap"]
    assert (
        1 <= busy["ended_per_s"] <= 100 and busy["failed_per_s"] == 0
    )  # about 30: three at a time, 0.1 s each
    assert 70 <= busy["run_mean_ms"] < 1000 and busy["wait_p95_ms"] > 0
    assert busy["run_p95_ms"] >= 50  # those that took no time have run before
    alone = rows["gpu+nap"]
    assert (alone["depth"], alone["ended_per_s"], alone["run_mean_ms"]) == (1, 0, None)
    assert frame["all"]["depth"] == sum(row["depth"] for row in frame["queues"])
    assert [row["id"] for row in frame["agents"]] == ["w1"] and frame["totals"]["agents"] == 1
    offered = {row["capability"]: row for row in frame["capabilities"]}
    assert (offered["nap"]["slots"], offered["gpu"]["agents"], offered["gpu"]["backlog"]) == (3, 0, 1)
    newest = {row["id"]: row for row in frame["failures"][:2]}
    assert [newest[one.id]["state"] for one in failed] == ends
    assert {row["agent"] for row in newest.values()} == {"w1"} and "ValueError" in newest[failed[0].id][
        "error"
    ]


def test_it_is_drawn_until_q_is_pressed(fleet: tuple[Place, str], way: tuple[str, ...]) -> None:
    place, _ = fleet
    place.mesh.submit("nap", 0.0).result(timeout_s=30)
    shown = on_terminal(place, "top", "--interval", "0.2", *way, columns=110)
    wait_until(lambda: shown.text().count("in the last") >= 2, 60, "frames with rates")
    assert "1 healthy; " in shown.text() and re.search(r"^nap +0 +- ", shown.text(), flags=re.M)
    assert f"{ESCAPE}1A" in shown.text() and "q: quit" in shown.text()
    shown.type(b"x")  # no key of its
    frames = shown.text().count("in the last")
    wait_until(lambda: shown.text().count("in the last") > frames + 1, 30, "it to go on")
    shown.type(b"q")
    assert shown.end() == 0
    assert "Traceback" not in shown.text() and shown.text().rstrip().endswith(f"{ESCAPE}?25h")


@pytest.mark.ci
def test_a_small_terminal_is_not_overrun(fleet: tuple[Place, str]) -> None:
    place, _ = fleet
    for number in range(40):
        place.mesh.store.agents.join(f"also-{number}", {"id": f"also-{number}", "state": "ready", "slots": 1})
    shown = on_terminal(place, "top", "--once", "--interval", "0.2", columns=70)
    assert shown.end() == 0
    lines = shown.text().splitlines()
    assert (
        len(lines) <= 24 and max(len(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line)) for line in lines[5:]) <= 70
    )
    assert re.search(r"^\.\.\. and \d+ more$", shown.text(), flags=re.M)
    whole = place.call("top", "--once", "--interval", "0.1").stdout
    assert whole.count("\nalso-") == 40 and "more" not in whole


@pytest.mark.ci
def test_it_ends_with_ctrl_c_and_in_a_pipe_frame_follows_frame(fleet: tuple[Place, str]) -> None:
    place, _ = fleet
    piped = place.start("top", "--interval", "0.2", "-o", "jsonl")
    place.wait_for(piped, lambda: piped.output().count("\n") >= 3, "three frames")
    piped.kill()
    frames = [json.loads(line) for line in piped.output().splitlines()[:3]]
    assert frames[0]["interval_ms"] is None and frames[2]["interval_ms"] >= 200
    shown = on_terminal(place, "top")
    wait_until(lambda: "slots busy" in shown.text(), 60, "a frame")
    shown.type(b"\x03")
    assert shown.end() == 130 and "Traceback" not in shown.text()
