"""How much capacity work needs: slots from what waits, what runs, and how long a task takes; and coordinators.

By Little's law: with S slots that are busy for m ms a task, S / m tasks start each ms, so that a backlog of b has started after
b * m / S. A mesh that follows this with new work still arriving settles where a task waits about as long as was asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mesh.core.durations import duration
from mesh.core.requirements import capabilities_of

__all__ = ["Advice", "Fleet", "Need", "agents_for", "coordinators", "judge", "slots_wanted"]

LONG_RUN_MS = 300_000
LONG_QUEUE = 1000
#: Agents of a coordinator up to which -> the size.
SIZES = ((50, "small"), (200, "medium"), (500, "large"))
_LARGEST = SIZES[-1][0]
_AVAILABLE_FROM, _AVAILABLE = 50, 3  # from so many agents on, so many coordinators, so that one may fail


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


@dataclass(frozen=True, kw_only=True)
class Need:
    """What one requirement has and needs.

    `agents` take such work now, with `slots`; `resting` offer it, but take none. `backlog`: tasks that have not started, also
    those that an agent has fetched ahead; `busy`: slots that its tasks hold; `mean_run_ms`: of recent attempts, None: not known.
    """

    requirement: str
    backlog: int
    busy: int
    mean_run_ms: float | None
    agents: int
    resting: int
    slots: int
    free_slots: int
    slots_per_agent: float


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What to do: so many more, and why as a sentence; None: nothing."""

    to_add: int
    why: str | None
    slots_wanted: int = 0


def judge(need: Need, within_ms: float) -> Advice:
    """What a requirement needs so that what waits has started within that time.

    It has its own busy slots and those that are free: others that the same agents serve hold the rest, and want them as well.
    """
    wanted = slots_wanted(
        backlog=need.backlog, busy=need.busy, mean_run_ms=need.mean_run_ms, within_ms=within_ms
    )
    short = max(0, wanted - need.busy - need.free_slots)
    long_run = (need.mean_run_ms or 0) > LONG_RUN_MS and (need.backlog or need.busy)
    add = max(agents_for(short, need.slots_per_agent), 1 if long_run else 0)
    offers = ",".join(sorted(capabilities_of(need.requirement)))
    start = f"start {_agents(add)} with --capabilities {offers}"
    slots = "1 slot" if wanted == 1 else f"{wanted} slots"
    runs = duration(need.mean_run_ms or 0)
    rows = (
        (need.backlog and not need.agents and need.resting,
         f"{_agents(need.resting)} with it take no work (cordoned, draining or silent): bring these back, or {start}."),
        (need.backlog and not need.agents, f"No agent takes it: {start}."),
        (short, f"{slots} would start what waits within {duration(within_ms)}: {start}."),
        (long_run, f"A task runs for {runs}, over {duration(LONG_RUN_MS)}: {start}."),
    )  # fmt: skip
    why = next((sentence for holds, sentence in rows if holds), None)
    return Advice(to_add=add, why=why, slots_wanted=wanted)


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """What coordinators have to do with: agents that are there, tasks that wait."""

    coordinators: int
    agents: int
    backlog: int

    @property
    def agents_each(self) -> int:
        """Agents a coordinator."""
        return math.ceil(self.agents / max(1, self.coordinators))

    @property
    def size(self) -> str:
        """small | medium | large | too large, by the agents a coordinator."""
        return next((name for most, name in SIZES if self.agents_each <= most), "too large")


def coordinators(fleet: Fleet) -> Advice:
    """How many coordinators to add."""
    now = fleet.coordinators
    rows = (
        (math.ceil(fleet.agents / _LARGEST) - now if fleet.agents_each > _LARGEST else 0,
         f"there are {fleet.agents_each} agents a coordinator, over {_LARGEST}"),
        (_AVAILABLE - now if fleet.agents > _AVAILABLE_FROM else 0,
         f"{fleet.agents} agents, over {_AVAILABLE_FROM}, want {_AVAILABLE} of them, so that one may fail"),
        (1 if fleet.backlog > LONG_QUEUE else 0, f"{fleet.backlog} tasks wait, over {LONG_QUEUE}"),
    )  # fmt: skip
    holding = [(number, why) for number, why in rows if number > 0]
    if not holding:
        return Advice(to_add=0, why=None)
    add = max(number for number, _ in holding)
    more = "a coordinator" if add == 1 else f"{add} coordinators"
    return Advice(to_add=add, why=f"Add {more}: {'; '.join(why for _, why in holding)}.")


def _agents(number: int) -> str:
    return "1 agent" if number == 1 else f"{number} agents"
