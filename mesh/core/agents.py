"""How healthy an agent is, from what its record says. Tasks of a dead agent do not wait for this: leases decide about them."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


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


@dataclass(frozen=True, kw_only=True)
class AgentInfo:
    """One agent as it is listed; the field names are those of `mesh discover --format json` and do not change."""

    id: str
    name: str
    type: str
    namespace: str
    status: Health
    capabilities: tuple[str, ...]
    region: str | None
    labels: dict[str, str]
    slots: int
    running: int
    address: str
    port: int
    pid: int
    version: str
    incarnation: int
    joined_at: str  # UTC, ISO 8601
    last_beat_at: str
    silent_ms: int
    cordoned: bool
    absent: bool = False  # its leases have ended by silence: its tasks run elsewhere, and it is given none
    condition: str = ""  # what it says is wrong with it
    status_since: str | None = None  # as the leader saw it; None if it has not looked since the last change
    leaves_in_ms: int | None = None  # what is left of its time while it drains
    held: int = 0  # tasks that it runs or is about to: newer than `running`, which is of its last beat

    @property
    def takes_work(self) -> bool:
        """Whether it takes new tasks at all."""
        return self.status in (Health.HEALTHY, Health.DEGRADED) and not (self.cordoned or self.absent)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**self.__dict__, "status": str(self.status), "capabilities": list(self.capabilities)}


def _iso(ms: str | int) -> str:
    return datetime.datetime.fromtimestamp(int(ms) / 1000, datetime.UTC).isoformat(timespec="milliseconds")


def agent_info(
    row: Mapping[str, str], now_ms: int, *, heartbeat_interval_ms: int, unhealthy_threshold_ms: int
) -> AgentInfo:
    """An agent from its record, as it is at `now_ms` of Redis's clock; the other times are the settings of the same names."""
    beat = int(row.get("beat", "0"))
    labels = row.get("labels", "")
    condition = row.get("condition", "")
    status = health(
        silent_ms=now_ms - beat,
        left="left" in row,
        absent="absent" in row,
        draining=row.get("state") == "draining" or "drain" in row,
        condition=bool(condition),
        heartbeat_interval_ms=heartbeat_interval_ms,
        unhealthy_threshold_ms=unhealthy_threshold_ms,
    )
    return AgentInfo(
        id=row["id"],
        name=row.get("name", row["id"]),
        type=row.get("type", ""),
        namespace=row.get("namespace", ""),
        status=status,
        capabilities=tuple(one for one in row.get("capabilities", "").split(",") if one),
        region=row.get("region") or None,
        labels=dict(pair.split("=", 1) for pair in labels.split(",") if "=" in pair),
        slots=int(row.get("slots", "0")),
        running=int(row.get("running", "0")),
        address=row.get("address", ""),
        port=int(row.get("port", "0")),
        pid=int(row.get("pid", "0")),
        version=row.get("version", ""),
        incarnation=int(row.get("incarnation", "0")),
        joined_at=_iso(row.get("joined", "0")),
        last_beat_at=_iso(beat),
        silent_ms=max(0, now_ms - beat),
        cordoned="cordoned" in row,
        absent="absent" in row,
        condition=condition,
        status_since=_iso(row["judged_at"]) if row.get("judged") == status else None,
        leaves_in_ms=max(0, int(row["drain"]) - now_ms) if "drain" in row and "left" not in row else None,
        held=int(row.get("held", "0")),
    )
