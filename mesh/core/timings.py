"""How long attempts wait and run, as the scripts count it: in buckets, a requirement and a kind each, and a recent mean of runs.

What is counted where it happens is exact, survives restarts, and is the same whoever asks for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["BOUNDS_MS", "RECENT_RUNS", "Kind", "Timing"]

#: Upper bounds of the buckets; what is above the last one is in one more.
BOUNDS_MS = (
    *(5, 10, 25, 50, 100, 250, 500),
    *(1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 120_000, 300_000, 600_000, 1_800_000, 3_600_000),
)

#: Of so many attempts, about, is the recent mean: each new one then weighs 1 %.
RECENT_RUNS = 100


class Kind(StrEnum):
    """What is measured of an attempt."""

    WAIT = "wait"  # from when it could be taken to its start
    RUN = "run"  # from its start to its end, if an agent told that


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One histogram. `buckets`: attempts in each, one more than bounds; `sum_ms`: of all of them; `recent_ms`: the mean of about
    the last 100, None where that is not kept."""

    buckets: tuple[int, ...]
    sum_ms: int
    recent_ms: float | None = None

    @classmethod
    def together(cls, timings: Sequence[Timing]) -> Timing:
        """Of several at once; at least one."""
        columns = zip(*(one.buckets for one in timings), strict=True)
        return cls(buckets=tuple(map(sum, columns)), sum_ms=sum(one.sum_ms for one in timings))

    def since(self, before: Timing) -> Timing | None:
        """What has come to it since an earlier look at it; None if that was none: what is counted has been lost."""
        columns = zip(self.buckets, before.buckets, strict=True)
        buckets = tuple(now - then for now, then in columns)
        return None if min(buckets) < 0 else Timing(buckets=buckets, sum_ms=self.sum_ms - before.sum_ms)

    @property
    def count(self) -> int:
        """How many attempts."""
        return sum(self.buckets)

    @property
    def mean_ms(self) -> float | None:
        """The average, None of nothing."""
        return self.sum_ms / self.count if self.count else None

    @property
    def lately_ms(self) -> float | None:
        """The recent mean, that of all where it is not kept, None of nothing."""
        return self.mean_ms if self.recent_ms is None else self.recent_ms

    def quantile_ms(self, share: float) -> float | None:
        """The time that this share of the attempts did not exceed, by the line between the bounds of its bucket, None of nothing.

        In the last bucket it is its lower bound: more is not known (as in Prometheus).
        """
        rank, passed = share * self.count, 0
        for index, number in enumerate(self.buckets):
            if number and passed + number >= rank:
                low = BOUNDS_MS[index - 1] if index else 0
                if index == len(BOUNDS_MS):
                    return float(low)
                return low + (BOUNDS_MS[index] - low) * (rank - passed) / number
            passed += number
        return None
