"""How much capacity work needs: slots from what waits, what runs, and how long a task takes.

By Little's law: with S slots that are busy for m ms a task, S / m tasks start each ms, so that a backlog of b has started after
b * m / S. A mesh that follows this with new work still arriving settles where a task waits about as long as was asked for.
"""

from __future__ import annotations

import math

__all__ = ["agents_for", "slots_wanted"]


def slots_wanted(*, backlog: int, busy: int, mean_run_ms: float | None, within_ms: float) -> int:
    """Slots with which a backlog has started within that time.

    Never fewer than the `busy` ones, whose tasks would be cut off, nor more than a slot for each task. While it is not known how
    long a task runs, one slot is enough to find out.
    """
    needed = math.ceil(backlog * (mean_run_ms or 0) / within_ms)
    return max(busy, min(needed, busy + backlog), 1 if backlog else 0)


def agents_for(slots: int, slots_per_agent: float) -> int:
    """Agents that have so many slots together."""
    return math.ceil(slots / max(1.0, slots_per_agent))
