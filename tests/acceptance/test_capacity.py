"""What capacity a mesh has and needs: asked of a real coordinator, over Redis, and by the command line."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mesh.core.timings import Kind
from tests.acceptance.conftest import Place, make_place
from tests.acceptance.test_coordinator import start
from tests.tokens import bearer
from tests.waiting import wait_until

WORK = """
import time
from mesh import task

@task("nap")
def nap(seconds: float) -> None:
    time.sleep(seconds)

@task("hold")
def hold(fifo: str) -> None:
    open(fifo).read()
"""
pytestmark = pytest.mark.ci  # agents that run
PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"


@pytest.fixture(scope="module")
def fleet(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, str]]:
    with make_place(redis_url, "capacity", tmp_path_factory.mktemp("capacity")) as place:
        (place.folder / "work.py").write_text(WORK)
        _, url = start(place, "capacity-1")
        place.agent("w1", "-I", "work", "--pool", "threads", "--concurrency", "2")
        yield place, url


@pytest.fixture
def place(fleet: tuple[Place, str]) -> Place:
    return fleet[0]


def ask(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(urllib.request.Request(url, headers=bearer()), timeout=10) as answer:
        found: dict[str, Any] = json.loads(answer.read())
        return found


def triggers() -> list[dict[str, Any]]:
    """The KEDA triggers of the page."""
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), flags=re.S)
    documents = [one for block in blocks for one in yaml.safe_load_all(block)]
    lists = [(one.get("spec") or one).get("triggers", []) for one in documents]
    return [trigger for found in lists for trigger in found]


def test_an_autoscaler_reads_what_waits_from_the_first_task_on(fleet: tuple[Place, str]) -> None:
    place, url = fleet
    assert len(triggers()) == 3

    def read(capability: str) -> dict[str, int]:
        """What each of KEDA's triggers would get."""
        found = {}
        for trigger in triggers():
            said = trigger["metadata"]
            path = said["url"].partition("/v1/namespaces/production/capabilities/ocr")
            assert (
                path[1] and not path[2] and (trigger["type"], said["authMode"]) == ("metrics-api", "bearer")
            )
            assert float(said["targetValue"]) > 0
            where = f"{url}/v1/namespaces/{place.namespace}/capabilities/{capability}"
            found[said["valueLocation"]] = ask(where)[said["valueLocation"]]
        return found

    assert read("not-there") == {"agents_wanted": 0, "backlog": 0, "running": 0}
    waiting = place.mesh.submit_many("not-there", [None] * 3, unsatisfiable="accept")
    assert read("not-there") == {"agents_wanted": 1, "backlog": 3, "running": 0}
    gate = place.gate("held")
    held = place.mesh.submit_many("hold", [str(gate.fifo)] * 2)
    wait_until(lambda: read("hold") == {"agents_wanted": 1, "backlog": 0, "running": 2}, 30, "both to run")
    more = place.mesh.submit_many("hold", [str(gate.fifo)] * 5, requires=["nap"])
    assert read("hold")["backlog"] == read("nap")["backlog"] == read("hold+nap")["backlog"] == 5
    assert read("hold+nap")["running"] == 0 and read("nap+hold+gpu")["backlog"] == 0

    def offered() -> dict[str, Any]:
        return ask(f"{url}/v1/namespaces/{place.namespace}/capabilities/nap+hold")

    wait_until(lambda: offered()["free_slots"] == 0, 30, "a beat to tell it")
    row = offered()
    assert (row["capability"], row["agents"], row["slots"]) == ("hold+nap", 1, 2)
    assert all(isinstance(value, int | float) for name, value in row.items() if name != "capability")
    for one in [*waiting, *more]:
        one.cancel()
    gate.open()
    for one in held:
        one.result(timeout_s=30)


def test_what_to_add(fleet: tuple[Place, str]) -> None:
    place, url = fleet
    for one in place.mesh.submit_many("nap", [0.02] * 20):
        one.result(timeout_s=30)
    gate = place.gate("full")
    held = place.mesh.submit_many("hold", [str(gate.fifo)] * 2)
    wait_until(lambda: [one.status() for one in held] == ["running"] * 2, 30, "the agent to be full")
    naps = place.mesh.submit_many("nap", [0.02] * 2000)
    alone = place.mesh.submit("nap", 0.0, requires=["gpu"], unsatisfiable="accept")
    place.mesh.store.agents.join("w2", {"id": "w2", "capabilities": "gpu", "slots": 4, "state": "ready"})
    told: list[dict[str, Any]] = []

    def figures(number: int) -> list[dict[str, Any]]:
        return [{**row, "oldest_age_ms": 0} for row in told[number]["requirements"]]

    def both_ways_tell_the_same() -> bool:
        """Unless the agent fetches ahead, gives back or beats between the two."""
        told.clear()
        for way in ((), ("--url", url)):
            done = place.call("capacity", "--within", "2s", "-o", "json", *way)
            assert done.returncode == 0, done.stderr
            told.append(json.loads(done.stdout))
        busy = {row["requirement"]: row["free_slots"] for row in told[0]["requirements"]}["nap"] == 0
        return busy and figures(0) == figures(1)

    wait_until(both_ways_tell_the_same, 40, "the same figures from Redis and from a coordinator")
    rows = {row["requirement"]: row for row in told[0]["requirements"]}
    nap = rows["nap"]
    assert (nap["agents"], nap["slots"], nap["free_slots"]) == (1, 2, 0)
    assert 1950 <= nap["backlog"] <= 2000, "the agent has fetched some ahead"
    assert 20 <= nap["mean_run_ms"] < 200
    assert nap["slots_wanted"] == pytest.approx(nap["mean_run_ms"], abs=2), "2000 tasks within 2 s"
    assert nap["agents_to_add"] == -(-nap["slots_wanted"] // 2)
    both = rows["gpu+nap"]
    assert (both["agents"], both["agents_to_add"]) == (0, 1) and "--capabilities gpu,nap" in both["advice"]
    assert (told[0]["coordinators_to_add"], told[0]["backlog"], told[0]["agents"]) == (
        1,
        nap["backlog"] + 1,
        2,
    )
    shown = place.call("capacity", "--within", "2s").stdout
    assert (
        f"- nap: {nap['advice']}" in shown
        and f"- Add a coordinator: {told[0]['backlog']} tasks wait, over 1000." in shown
    )
    assert {*place.call("capacity", "-o", "name").stdout.split()} == set(rows)
    wrong = place.call("capacity", "--within", "soon")
    assert wrong.returncode == 2 and "90s, 5m or 1h" in wrong.stderr
    for one in [*naps, alone]:
        one.cancel()
    gate.open()
    for one in held:
        one.result(timeout_s=30)


def test_a_replay_foretells_what_was_measured(redis_url: str, tmp_path: Path) -> None:
    """120 tasks of 50 to 150 ms come at once to two agents with two slots each: a wait grows to about three seconds."""
    with make_place(redis_url, "replayed", tmp_path) as place:
        (place.folder / "work.py").write_text(WORK)
        for name, region in (("w1", "eu"), ("w2", "us")):
            place.agent(name, "-I", "work", "--pool", "threads", "--concurrency", "2", "--region", region)
        _, url = start(place, "replayed-1")
        tasks = [
            place.mesh.submit("nap", 0.05 + 0.01 * (number % 11), priority=number % 3)
            for number in range(120)
        ]
        for one in tasks:
            one.result(timeout_s=60)

        def replayed(*words: str) -> dict[str, Any]:
            done = place.call("capacity", "--replay", "-o", "json", *words)
            assert done.returncode == 0, done.stderr
            told: dict[str, Any] = json.loads(done.stdout)
            (row,) = told["requirements"]
            return {**told, **row}

        same = replayed()
        measured = place.mesh.store.tasks.timings()["nap", Kind.WAIT]
        assert (same["slots"], same["tasks"], same["unserved"]) == (4, 120, 0)
        assert same["was_p50_ms"] > 500 and same["was_max_ms"] * 120 >= measured.sum_ms
        assert same["was_p50_ms"] / 2 <= same["would_p50_ms"] <= same["was_p50_ms"] * 2
        half, more = replayed("--slots", "2", "--url", url), replayed("--agents", "30")
        assert half["slots"] == 2 and half["would_p50_ms"] > 1.5 * same["would_p50_ms"]
        assert more["slots"] == 60 and more["would_p50_ms"] < 0.2 * same["would_p50_ms"]
        assert replayed("--without-region", "eu")["would_p95_ms"] == half["would_p95_ms"]
        none = replayed("--slots", "0", "--requires", "nap")
        assert (none["unserved"], none["would_p50_ms"]) == (120, None)
        shown = place.call("capacity", "--replay", "--slots", "1").stdout
        assert "Replayed: 120 tasks of " in shown and "Left out:\n- Tasks that have not ended" in shown
        wrong = place.call("capacity", "--replay", "--without-region", "asia", "--url", url)
        assert wrong.returncode == 2 and "No agent of region 'asia'" in wrong.stderr
        assert place.call("capacity", "--slots", "2").returncode == 2
