"""How many tasks an agent may fetch now.

An agent leases what it will start within about `WINDOW_S` by its recent run times, never less than its free slots, and of
long tasks never more: short tasks then travel in batches, while no task waits behind a long one on a busy agent.
"""

from __future__ import annotations

from dataclasses import dataclass

WINDOW_S = 0.1  # what is fetched beyond the free slots should start within this time
MAX_BATCH = 256  # leases an agent may hold beyond its slots: bounds the reply of one fetch and what one death sends back
_SMOOTHING = 0.2  # weight of one fast run in the average


@dataclass(slots=True)
class RunTime:
    """Recent run time of an agent's tasks, in seconds; rises at once with a slow task, falls slowly with fast ones."""

    average_s: float = 1.0  # unknown counts as long: the first fetches take the free slots only

    def observe(self, run_s: float) -> None:
        """Take one finished run of `run_s` seconds into account."""
        if run_s > self.average_s:
            # One slow task among fast ones moves the average by a quarter of the way, two by half.
            self.average_s += (run_s - self.average_s) * 0.25
        else:
            self.average_s += (run_s - self.average_s) * _SMOOTHING


def goal(*, slots: int, average_s: float) -> int:
    """How many tasks an agent wants to hold, given `slots` (concurrency) and the average run time in seconds."""
    window = int(slots * WINDOW_S / max(average_s, 1e-4))
    return max(slots, min(window, slots + MAX_BATCH))


def refill_at(*, slots: int, average_s: float) -> int:
    """Down to how many held tasks an agent does not fetch: half of the goal, so that short tasks travel in batches.

    A free slot is always filled at once.
    """
    return max(slots - 1, goal(slots=slots, average_s=average_s) // 2)


def room(*, slots: int, held: int, average_s: float) -> int:
    """How many more tasks may be leased now, given `held` leases."""
    if held > refill_at(slots=slots, average_s=average_s):
        return 0
    return goal(slots=slots, average_s=average_s) - held
