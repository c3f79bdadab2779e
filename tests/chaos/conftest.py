"""The fault matrix's runs: which rows, what they stand on, and where their figures go."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.matrix import TIERS, Fault, row_of
from tests.chaos.stage import Stage

TOOK = "took_s"  # a row's figures travel with the test's report, also from one process to another


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the rows of the chosen tier and of those below; what runs longest starts first."""
    chosen = TIERS.index(config.getoption("chaos"))
    kept, left_out = [], []
    for item in items:
        row = row_of(item)
        (kept if row is None or TIERS.index(row.tier) <= chosen else left_out).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


@dataclass(kw_only=True)
class Recovery:
    """Takes a row's figures."""

    row: Fault
    item: pytest.Item

    def took(self, seconds: float) -> None:
        """From the fault to the moment when all was as before; in seconds. At most the row's bound."""
        assert self.row.bound_s is not None, f"the row {self.row.key!r} has no bound_s"
        self.item.user_properties.append((TOOK, round(seconds, 2)))
        assert seconds <= self.row.bound_s, f"recovery took {seconds:.1f} s, bound is {self.row.bound_s} s"


@pytest.fixture
def recovery(request: pytest.FixtureRequest) -> Recovery:
    """How long the mesh took to get over the row's fault."""
    row = row_of(request.node)
    assert row is not None, "only rows of the matrix measure recovery"
    return Recovery(row=row, item=request.node)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A mesh of this row's own, without agents yet."""
    made = Stage(tmp_path)
    try:
        yield made
    finally:
        made.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failed row shows what its processes said last."""
    report = yield
    stage = getattr(item, "funcargs", {}).get("stage")
    if report.failed and isinstance(stage, Stage):  # type: ignore[attr-defined]
        report.sections.append(("processes", stage.tails(20)))  # type: ignore[attr-defined]
    row = row_of(item)
    if row is not None:
        report.chaos_row = row.key  # type: ignore[attr-defined]
    return report


# -- the report of a run, for the table in the documentation

_found: dict[str, dict[str, Any]] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note outcome and figures of a row, here or told by a process of xdist."""
    key = getattr(report, "chaos_row", None)
    if key is None or (report.when != "call" and report.passed):
        return
    row = _found.setdefault(key, {"outcome": "passed", "reason": "", TOOK: []})
    row[TOOK] += [value for name, value in report.user_properties if name == TOOK]
    if report.failed:
        row["outcome"] = "failed"
    elif report.skipped and row["outcome"] == "passed":
        row["outcome"], row["reason"] = "skipped", report.longrepr[2]  # type: ignore[index]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write it, where it was asked for."""
    path = session.config.getoption("chaos_report")
    if not path or hasattr(session.config, "workerinput"):
        return
    about = {
        "when": datetime.now(UTC).date().isoformat(),
        "where": f"{platform.system()}, {platform.machine()}, Python {platform.python_version()}",
    }
    text = json.dumps({**about, "rows": dict(sorted(_found.items()))}, indent=1)
    Path(path).write_text(text + "\n", encoding="utf-8")
