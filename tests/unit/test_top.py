"""What happened between two looks at a namespace, and how a terminal is divided."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.cli.top import shares
from mesh.core.timings import BOUNDS_MS
from mesh.core.top import between


def timing(fast: int, slow: int = 0) -> dict[str, Any]:
    """Attempts of up to 5 ms, and of 900 ms."""
    buckets = [0] * (len(BOUNDS_MS) + 1)
    buckets[0], buckets[BOUNDS_MS.index(1000)] = fast, slow
    return {"buckets": buckets, "sum_ms": 5 * fast + 900 * slow}


def row(queue: str, ended: int, failed: int = 0, *, fast: int = 0, slow: int = 0) -> dict[str, Any]:
    both = {"wait": timing(fast), "run": timing(fast, slow)}
    return {"queue": queue, "depth": 7, "ended": ended, "failed": failed, **both}


def look(at_ms: int, *rows: dict[str, Any]) -> dict[str, Any]:
    every = row("", sum(one["ended"] for one in rows), fast=100, slow=9)
    return {"at_ms": at_ms, "all": every, "queues": list(rows), "health": {"healthy": 1}}


def test_rates_and_times_are_those_of_the_interval() -> None:
    before = look(10_000, row("ocr", 1000, 3, fast=990, slow=10))
    frame = between(before, look(12_500, row("ocr", 1100, 8, fast=1080, slow=20), row("new", 5)))
    assert frame["interval_ms"] == 2500 and frame["health"] == {"healthy": 1}
    ocr, new = frame["queues"]
    assert (ocr["queue"], ocr["depth"], ocr["ended_per_s"], ocr["failed_per_s"]) == ("ocr", 7, 40, 2)
    assert ocr["run_mean_ms"] == pytest.approx((90 * 5 + 10 * 900) / 100)
    assert ocr["wait_p95_ms"] == pytest.approx(4.75) and 500 < ocr["run_p95_ms"] <= 1000
    assert (new["ended_per_s"], new["run_mean_ms"]) == (None, None)  # it was not seen before
    assert "ended" not in ocr and "run" not in ocr
    assert frame["all"]["ended_per_s"] == 42 and frame["all"]["run_p95_ms"] is None  # nothing has run


@pytest.mark.parametrize(
    "before", [None, look(12_500, row("ocr", 9)), look(10_000, row("ocr", 5000, fast=7))]
)
def test_what_cannot_be_compared_is_not_known(before: dict[str, Any] | None) -> None:
    """No look before; two at one moment; Redis has lost what it had counted."""
    (ocr,) = between(before, look(12_500, row("ocr", 20)))["queues"]
    assert (ocr["ended_per_s"], ocr["run_mean_ms"], ocr["run_p95_ms"]) == (None, None, None)


@pytest.mark.parametrize(
    ("wanted", "room", "given"),
    [
        ([], 9, []),
        ([3, 4], 9, [3, 4]),
        ([3, 90], 10, [3, 7]),
        ([50, 50, 2], 10, [4, 4, 2]),
        ([5, 5], 0, [1, 1]),
    ],
)
def test_those_that_want_most_are_cut_first(wanted: list[int], room: int, given: list[int]) -> None:
    assert shares(wanted, room) == given
