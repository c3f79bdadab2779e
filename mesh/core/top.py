"""What happened between two looks at a namespace: differences of counters and of histograms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mesh.core.timings import Kind, Timing

__all__ = ["between"]

_COUNTED = ("ended", "failed")


def between(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> dict[str, Any]:
    """What `mesh.services.top.counted` tells, with what has happened since `before` in place of what is counted since ever.

    `interval_ms`: between the two. `all` and each of `queues` lose `ended`, `failed`, `wait` and `run`, and get `ended_per_s`,
    `failed_per_s`, `wait_mean_ms`, `wait_p95_ms`, `run_mean_ms`, `run_p95_ms`: None where there is no `before` to compare with,
    nothing has ended, or what was counted has been lost since.
    """
    interval_ms = None if before is None else now["at_ms"] - before["at_ms"]
    queues = {} if before is None else {row["queue"]: row for row in before["queues"]}
    return {
        **now,
        "interval_ms": interval_ms,
        "all": _row(None if before is None else before["all"], now["all"], interval_ms),
        "queues": [_row(queues.get(row["queue"]), row, interval_ms) for row in now["queues"]],
    }


def _row(before: Mapping[str, Any] | None, now: Mapping[str, Any], interval_ms: int | None) -> dict[str, Any]:
    row = {name: value for name, value in now.items() if name not in (*_COUNTED, *Kind)}
    for name in _COUNTED:
        more = None if before is None else now[name] - before[name]
        known = more is not None and more >= 0 and interval_ms is not None and interval_ms > 0
        row[f"{name}_per_s"] = (
            round(more * 1000 / interval_ms, 1) if known and more is not None and interval_ms else None
        )
    for kind in Kind:
        timing = None if before is None else _timing(now[kind]).since(_timing(before[kind]))
        row[f"{kind}_mean_ms"] = None if timing is None else timing.mean_ms
        row[f"{kind}_p95_ms"] = None if timing is None else timing.quantile_ms(0.95)
    return row


def _timing(plain: Mapping[str, Any]) -> Timing:
    return Timing(buckets=tuple(plain["buckets"]), sum_ms=plain["sum_ms"])
