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
        _, url = start(place, "c1")
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
    row = ask(f"{url}/v1/namespaces/{place.namespace}/capabilities/nap+hold")
    assert (row["capability"], row["agents"], row["slots"], row["free_slots"]) == ("hold+nap", 1, 2, 0)
    assert all(isinstance(value, int | float) for name, value in row.items() if name != "capability")
    for one in [*waiting, *more]:
        one.cancel()
    gate.open()
    for one in held:
        one.result(timeout_s=30)
