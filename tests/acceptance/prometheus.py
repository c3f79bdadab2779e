"""A real Prometheus that scrapes a real mesh."""

from __future__ import annotations

import json
import shutil
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from mesh.store.embedded import free_port
from mesh.telemetry.alerts import AGENTS, COORDINATORS, rules
from tests.acceptance.conftest import Place
from tests.tokens import token


def needs_prometheus() -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed (Debian's package prometheus)")


class Prometheus:
    """A real one that scrapes every second, with the shipped configuration and rules, their times divided by `faster`."""

    def __init__(self, place: Place, coordinators: list[str], folder: Path, *, faster: float) -> None:
        folder.mkdir()
        (folder / "rules.yml").write_text(yaml.safe_dump(rules(faster=faster)))
        (folder / "token").write_text(token("viewer", "prometheus", [place.namespace]))
        config = yaml.safe_load((Path(__file__).parents[2] / "deploy/prometheus/prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        jobs = {one["job_name"]: one for one in config["scrape_configs"]}
        jobs[COORDINATORS]["static_configs"] = [
            {"targets": [one.removeprefix("http://") for one in coordinators]}
        ]
        found = jobs[AGENTS]["http_sd_configs"][0]
        found["url"] = found["url"].replace("http://localhost:3000", coordinators[0])
        found["url"] = found["url"].replace("namespaces/default", f"namespaces/{place.namespace}")
        found["refresh_interval"] = "1s"
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        program = shutil.which("prometheus")
        assert program is not None
        self.process = place.start(
            "--config.file", str(folder / "prometheus.yml"), "--storage.tsdb.path", str(folder / "data"),
            "--web.listen-address", f"127.0.0.1:{port}", command=[program],
        )  # fmt: skip
        place.wait_for(self.process, self.ready, "Prometheus to be ready")

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2):
                return True
        except OSError:
            return False

    def ask(self, expr: str) -> list[dict[str, Any]]:
        query = urllib.parse.urlencode({"query": expr})
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{query}", timeout=10) as answer:
            rows: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return rows

    def value(self, expr: str) -> float | None:
        rows = self.ask(expr)
        return float(rows[0]["value"][1]) if rows else None
