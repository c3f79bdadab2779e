"""The shape of Grafana's dashboard. Its queries are checked in test_alerts.py, and on a real Prometheus in acceptance."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from mesh.telemetry.alerts import ALERTS
from mesh.telemetry.dashboard import ROWS, VARIABLES, dashboard

BOARD: dict[str, Any] = json.loads(json.dumps(dashboard()))
PANELS: list[dict[str, Any]] = [one for one in BOARD["panels"] if one["type"] != "row"]


def datasources(part: Any) -> Iterator[Any]:
    if isinstance(part, dict):
        if "datasource" in part:
            yield part["datasource"]
        part = list(part.values())
    for one in part if isinstance(part, list) else ():
        yield from datasources(one)


def test_panels_have_ids_of_their_own_and_none_lies_on_another() -> None:
    ids = [one["id"] for one in BOARD["panels"]]
    assert len(set(ids)) == len(ids) == len(ROWS) - 1 + len(PANELS)
    taken: set[tuple[int, int]] = set()
    for one in BOARD["panels"]:
        place = one["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert all(0 <= x < 24 for x, _ in cells) and not cells & taken, one["title"]
        taken |= cells
    height = 1 + max(y for _, y in taken)
    assert len(taken) == 24 * height, "no holes"


def test_every_datasource_is_the_variable() -> None:
    found = list(datasources(BOARD))
    assert len(found) == 1 + len(VARIABLES) + len(PANELS) + sum(len(one["targets"]) for one in PANELS)
    assert all(one == {"type": "prometheus", "uid": "${datasource}"} for one in found)
    names = [one["name"] for one in BOARD["templating"]["list"]]
    assert names == ["datasource", "namespace", "capability"]
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(BOARD))) == {*names, "__rate_interval", "__all"}


def test_panels_explain_themselves_and_lead_to_their_alerts() -> None:
    runbooks = {one.name: one for one in ALERTS}
    linked = set()
    for one in PANELS:
        assert one["description"] and one["title"]
        refs = [target["refId"] for target in one["targets"]]
        assert refs and len(set(refs)) == len(refs)
        for link in one["links"]:
            assert link["url"] == f"/alerting/list?search={link['title']}"
            assert all(step in one["description"] for step in runbooks[link["title"]].steps)
            linked.add(link["title"])
    assert linked == set(runbooks), "each alert has a panel that shows what it is about"


def test_limits_are_those_of_the_alerts() -> None:
    steps = {
        one["title"]: one["fieldConfig"]["defaults"]["thresholds"]["steps"]
        for one in PANELS
        if one["type"] == "stat"
    }
    assert steps["Success rate"] == [{"color": "red", "value": None}, {"color": "green", "value": 0.9}]
    assert steps["Healthy agents"] == [{"color": "red", "value": None}, {"color": "green", "value": 1}]
    assert steps["Longest queue"] == [{"color": "green", "value": None}, {"color": "orange", "value": 500}]
    assert steps["Average run time"][1] == {"color": "orange", "value": 300}
    assert steps["Failed requests"][1] == {"color": "orange", "value": 0.05}
