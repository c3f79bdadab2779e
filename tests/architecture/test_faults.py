"""docs/faults.md has exactly the rows of the fault matrix; runs none of them."""

from tests.chaos.matrix import rows
from tests.chaos.table import PAGE, UNMEASURED, cells, measured, promise, table


def test_the_page_has_the_rows_of_the_tests() -> None:
    told = [(row[0], row[1], row[2], row[3], row[5]) for row in cells(PAGE.read_text(encoding="utf-8"))]
    assert told == [promise(row) for row in rows()], "run: python -m tests.chaos.table"


def test_every_row_says_what_is_promised() -> None:
    for row in rows():
        assert row.fault and row.expect and "|" not in f"{row.fault}{row.expect}", row


def test_figures_come_from_a_report_and_stay_without_one() -> None:
    row = next(one for one in rows() if one.bound_s is not None)
    report = {"rows": {row.key: {"outcome": "passed", "reason": "", "took_s": [3.0, 1.0, 2.0]}}}
    page = f"<!-- faults -->\n{table([row], report, '')}\n<!-- end of faults -->"
    assert cells(page)[0][4] == "2.0 s, 3.0 s"
    assert table([row], {}, page) in page
    assert UNMEASURED in table([row], {}, "")
    skipped = {"outcome": "skipped", "reason": "Skipped: needs root", "took_s": []}
    assert measured(row, skipped, "") == "skipped: needs root"
