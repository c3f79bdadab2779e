"""Every query of Grafana's dashboard on a real Prometheus, which scrapes a mesh in which things go well and wrong."""

from __future__ import annotations

import json
import math
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from mesh.telemetry.dashboard import ANNOTATED, ROWS, VARIABLES
from tests.acceptance.conftest import make_place
from tests.acceptance.prometheus import Prometheus, needs_prometheus
from tests.acceptance.test_coordinator import leader, start
from tests.waiting import wait_until

TASKS = """
from mesh import task


@task("fine")
def fine(payload):
    return payload


@task("flaky", retries=1, retry_delay_s=0.01)
def flaky(payload):
    raise ValueError("no")
"""
QUERIES = [(panel.title, *query) for row in ROWS for panel in row.panels for query in panel.queries]


def filled(query: str, namespace: str, capability: str = ".*") -> str:
    """As Grafana sends it."""
    found = query.replace("$__rate_interval", "10s").replace("$namespace", namespace)
    return found.replace("$capability", capability)


def values(prometheus: Prometheus, variable: str, namespace: str) -> list[str]:
    """What a variable offers, as Grafana asks for it."""
    selector, label = VARIABLES[variable].removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
    query = urllib.parse.urlencode({"match[]": filled(selector, namespace)})
    with urllib.request.urlopen(
        f"{prometheus.url}/api/v1/label/{label}/values?{query}", timeout=10
    ) as answer:
        found: list[str] = json.load(answer)["data"]
        return found


@pytest.mark.ci
@pytest.mark.timeout(200)
def test_every_query_of_the_dashboard_gives_figures(redis_url: str, namespace: str, tmp_path: Path) -> None:
    needs_prometheus()
    with make_place(redis_url, namespace, tmp_path) as place:
        (place.folder / "tasks.py").write_text(TASKS)
        _, url = start(place, "c1")
        wait_until(lambda: leader(place) == "c1", 10, "c1 to lead")
        place.agent("w1", "-I", "tasks", "--capabilities", "fine,flaky")
        prometheus = Prometheus(place, [url], tmp_path / "prometheus", faster=30)
        mesh = place.mesh
        mesh.submit("nobody", 1, requires=["gpu"], unsatisfiable="accept")

        def told(query: str, capability: str = ".*") -> list[float]:
            rows = prometheus.ask(filled(query, namespace, capability))
            return [figure for row in rows if not math.isnan(figure := float(row["value"][1]))]

        empty = {query for _, query, _ in QUERIES} | {ANNOTATED}
        empty_of_one = {query for query in empty if "$capability" in query}

        def all_told() -> bool:
            mesh.submit("fine", 1)
            mesh.submit("flaky", 1)
            empty.difference_update([query for query in empty if told(query)])
            empty_of_one.difference_update([query for query in empty_of_one if told(query, "(fine|flaky)")])
            return not empty | empty_of_one

        try:
            wait_until(all_told, 90, "every query to give figures")
        except AssertionError:
            assert sorted(empty | empty_of_one) == []
            raise

        of = {(title, legend): query for title, query, legend in QUERIES}
        wait_until(
            lambda: max(told(of["Retried, reassigned, refused", "retried"])) > 0, 20, "retries to be seen"
        )
        assert max(told(of["Dead letters and scheduled tasks", "dead letters"])) > 0
        assert 0.2 < told(of["Success rate", "succeeded"])[0] < 0.8
        assert told(of["Tasks that nobody takes", "{{capability}}"], r"gpu\\+nobody") == [1]
        assert told(of["Failed requests", "failed"]) == [0], "before the first failure, too"
        assert values(prometheus, "namespace", namespace) == [namespace]
        assert {"fine", "flaky", "gpu+nobody"} <= set(values(prometheus, "capability", namespace))
