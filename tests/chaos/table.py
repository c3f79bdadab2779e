"""`python -m tests.chaos.table [REPORT]`: writes the rows of the fault matrix into docs/faults.md.

What they promise comes from the tests, what was measured from the report that `make chaos` leaves; a row that it does not have
keeps the figures that the page has.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.chaos.matrix import Fault, rows

PAGE = Path(__file__).resolve().parents[2] / "docs" / "faults.md"
BEGIN, END = "<!-- faults -->", "<!-- end of faults -->"
COLUMNS = (
    "area",
    "what happens",
    "what is promised",
    "at most",
    "recovered within (median, longest)",
    "run by",
)
RUN_BY = {"test": "`make test`", "ci": "`.ci/run`", "all": "`make chaos`"}
UNMEASURED = "not measured yet"


def promise(row: Fault) -> tuple[str, str, str, str, str]:
    """All cells of a row but what was measured, in the order of the columns."""
    bound = "" if row.bound_s is None else f"{row.bound_s:g} s"
    return row.area, row.fault, row.expect, bound, RUN_BY[row.tier]


def cells(page: str) -> list[tuple[str, ...]]:
    """The table's rows, as they stand in the page."""
    lines = page.partition(BEGIN)[2].partition(END)[0].strip().splitlines()[2:]
    return [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in lines]


def measured(row: Fault, seen: Mapping[str, Any] | None, before: str) -> str:
    """What the table says of a row's recovery."""
    if seen is None:
        return before
    if seen["outcome"] != "passed":
        return f"{seen['outcome']}: {seen['reason'].removeprefix('Skipped: ')}".rstrip(": ")
    took = seen["took_s"]
    if not took:
        return "passed"
    return f"{statistics.median(took):.1f} s, {max(took):.1f} s"


def table(found: Iterable[Fault], report: Mapping[str, Any], page: str) -> str:
    """The table in Markdown."""
    before = {(row[0], row[1]): row[4] for row in cells(page)}
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for row in found:
        area, fault, expect, bound, run_by = promise(row)
        figures = measured(row, report.get("rows", {}).get(row.key), before.get((area, fault), UNMEASURED))
        lines.append(f"| {' | '.join((area, fault, expect, bound, figures, run_by))} |")
    return "\n".join(lines)


def main() -> None:
    """Write the page anew."""
    report = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")) if sys.argv[1:] else {}
    page = PAGE.read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    text = table(rows(), report, page)
    PAGE.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
