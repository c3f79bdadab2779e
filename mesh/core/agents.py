"""How healthy an agent is, from what its record says. Tasks of a dead agent do not wait for this: leases decide about them."""

from __future__ import annotations

from enum import StrEnum


class Health(StrEnum):
    """What people and routing see of an agent."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"  # missed its heartbeat, lost its leases (its tasks run elsewhere), or says what is wrong with it
    UNHEALTHY = "unhealthy"  # silent for longer than the threshold
    DRAINING = "draining"  # takes no new work and leaves when it has finished
    OFFLINE = "offline"  # has left


def health(
    *,
    silent_ms: int,
    left: bool,
    absent: bool,
    draining: bool,
    condition: bool = False,
    heartbeat_interval_ms: int,
    unhealthy_threshold_ms: int,
) -> Health:
    """`silent_ms`: time since its last beat; `absent`: its leases have ended by silence; `condition`: it says itself that
    something is wrong with it. The other times are the settings of the same names.
    """
    if left:
        return Health.OFFLINE
    if silent_ms > unhealthy_threshold_ms:
        return Health.UNHEALTHY
    if absent or silent_ms > heartbeat_interval_ms:
        return Health.DEGRADED
    if draining:
        return Health.DRAINING
    return Health.DEGRADED if condition else Health.HEALTHY


def condition(*, overran: int, taken: int) -> str:
    """What an agent says of tasks that it cannot stop: `overran` past their time limit, `taken` from it; "" if none."""
    parts = []
    if overran:
        parts.append(
            "1 task runs past its time limit"
            if overran == 1
            else f"{overran} tasks run past their time limits"
        )
    if taken:
        which = "1 task runs on" if taken == 1 else f"{taken} tasks run on"
        parts.append(
            f"{which} that was cancelled or lost" if taken == 1 else f"{which} that were cancelled or lost"
        )
    return f"{' and '.join(parts)} and cannot be stopped" if parts else ""
