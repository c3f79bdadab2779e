"""What waits would be with other agents: recorded arrivals and run times, replayed by the mesh's own rules of who takes what.

A discrete-event simulation (ends, spills and arrivals in order of time). What runs where is decided as agents and scripts do: a
task waits in its requirement's queue, or in that of its region while that is served; a slot that becomes free takes the task with
the lowest score of all queues that its agent serves; what has waited in a region for too long is offered to all.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from mesh.core.places import regional
from mesh.core.requirements import capabilities_of, satisfies
from mesh.errors import Invalid

__all__ = ["LEAVES_OUT", "Change", "Pool", "Run", "Start", "alike", "changed", "quantile", "replay"]

LEAVES_OUT = (
    "Tasks that have not ended or whose records are gone, and earlier attempts of those that were tried again.",
    "Strategies that choose an agent: whoever is free takes such a task.",
    "What agents fetch ahead, and the time from the end of a task to the next start in its slot.",
    "Callers that wait for a result before they submit more: tasks arrive when they did.",
    "Agents that have come or left meanwhile: those that take work now stand for all the time.",
)


class Run(NamedTuple):
    """A task as it was recorded. `arrived_ms`: when it could be taken; `score`: its order in a queue, the lowest first."""

    requirement: str
    arrived_ms: int
    run_ms: int
    score: float
    region: str | None = None


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The slots of the agents that offer the same in the same region."""

    capabilities: frozenset[str]
    region: str | None
    agents: int
    slots: int


@dataclass(frozen=True, kw_only=True)
class Change:
    """What is to be different: so many agents or slots of those that offer `requires` (all of them if that is empty), or a region
    gone. None: as it is."""

    agents: int | None = None
    slots: int | None = None
    without_region: str | None = None
    requires: frozenset[str] = frozenset()


class Start(NamedTuple):
    """Where and when a task has started: `pool` is an index."""

    at_ms: int
    pool: int


def changed(pools: Sequence[Pool], change: Change) -> list[Pool]:
    """The pools with the change: slots are shared out as they are now. Raises `Invalid`."""
    if change.agents is not None and change.slots is not None:
        raise Invalid("Say how many agents or how many slots, not both.")
    if change.requires and change.agents is None and change.slots is None:
        raise Invalid("Say how many agents or slots there are to be of those that offer what is required.")
    found = [pool for pool in pools if change.without_region is None or pool.region != change.without_region]
    if len(found) == len(pools) and change.without_region is not None:
        regions = sorted({pool.region for pool in pools if pool.region})
        raise Invalid(
            f"No agent of region {change.without_region!r} takes work: {', '.join(regions) or 'none has a region'}."
        )
    if change.agents is None and change.slots is None:
        return found
    chosen = [pool for pool in found if change.requires <= pool.capabilities]
    others = [pool for pool in found if not change.requires <= pool.capabilities]
    if not chosen and not change.requires:
        raise Invalid("No agent takes work now: say with --requires what the agents are to offer.")
    chosen = chosen or [Pool(capabilities=change.requires, region=None, agents=1, slots=1)]
    now = sum(pool.slots for pool in chosen)
    agents = sum(pool.agents for pool in chosen)
    if change.slots is None:
        wanted = round((change.agents or 0) * now / agents)
    else:
        wanted = change.slots
    given = [wanted * pool.slots // now for pool in chosen]
    rests = sorted(range(len(chosen)), key=lambda at: -(wanted * chosen[at].slots % now))
    for at in rests[: wanted - sum(given)]:
        given[at] += 1
    return others + [replace(pool, slots=slots) for pool, slots in zip(chosen, given, strict=True)]


def alike(pools: Sequence[Pool], runs: Sequence[Run]) -> list[Pool]:
    """The pools with those together that differ in nothing that one of these tasks needs."""
    needed = frozenset().union(*(capabilities_of(name) for name in {run.requirement for run in runs}))
    found: dict[tuple[frozenset[str], str | None], Pool] = {}
    for pool in pools:
        kind = pool.capabilities & needed, pool.region
        before = found.get(kind)
        agents, slots = (before.agents, before.slots) if before else (0, 0)
        found[kind] = replace(
            pool, capabilities=kind[0], agents=agents + pool.agents, slots=slots + pool.slots
        )
    return list(found.values())


class _Mesh:
    """The slots and queues of a replay."""

    def __init__(self, runs: Sequence[Run], pools: Sequence[Pool]) -> None:
        self.runs, self.pools = runs, pools
        self.free = [pool.slots for pool in pools]
        self.starts: list[Start | None] = [None] * len(runs)
        self.place = [""] * len(runs)  # where each waits; '' where it does not
        self._servers: dict[str, list[int]] = {}
        self._places: defaultdict[int, list[str]] = defaultdict(list)  # pool -> places that it serves
        self._queues: dict[str, list[tuple[float, int]]] = {}

    def servers(self, requirement: str, region: str | None) -> tuple[str, list[int]]:
        """(a place, the pools that serve it)."""
        place = regional([requirement], region)[0]
        if place not in self._servers:
            found = [
                at
                for at, pool in enumerate(self.pools)
                if pool.slots
                and satisfies(pool.capabilities, requirement)
                and place in regional([requirement], pool.region)
            ]
            self._servers[place], self._queues[place] = found, []
            for at in found:
                self._places[at].append(place)
        return place, self._servers[place]

    def offer(self, task: int, now_ms: int, region: str | None) -> int | None:
        """Give a task to a pool, or have it wait; the pool. Where a slot is free, nothing else waits for it."""
        run = self.runs[task]
        place, servers = self.servers(run.requirement, region)
        idle = [at for at in servers if self.free[at]]
        if not idle:
            self.place[task] = place
            heapq.heappush(self._queues[place], (run.score, task))
            return None
        pool = max(idle, key=lambda at: self.free[at] / self.pools[at].slots)
        self._start(task, pool, now_ms)
        return pool

    def take(self, pool: int, now_ms: int) -> int | None:
        """The task that a free slot takes."""
        heads = []
        for place in self._places[pool]:
            queue = self._queues[place]
            while queue and self.place[queue[0][1]] != place:
                heapq.heappop(queue)  # it was offered to all, and may have started
            if queue:
                heads.append((queue[0], place))
        if not heads:
            return None
        (_, task), place = min(heads)
        heapq.heappop(self._queues[place])
        self._start(task, pool, now_ms)
        return task

    def _start(self, task: int, pool: int, now_ms: int) -> None:
        self.free[pool] -= 1
        self.place[task] = ""
        self.starts[task] = Start(at_ms=now_ms, pool=pool)


_END, _SPILL, _ARRIVAL = range(3)


def replay(runs: Sequence[Run], pools: Sequence[Pool], *, spill_ms: int) -> list[Start | None]:
    """Where and when each would have started; None: nobody takes it. `spill_ms`: after so long another region is offered it."""
    mesh = _Mesh(runs, pools)
    # (time, kind, score, task)
    events = [(run.arrived_ms, _ARRIVAL, run.score, task) for task, run in enumerate(runs)]
    heapq.heapify(events)
    while events:
        now_ms, kind, score, task = heapq.heappop(events)
        run = runs[task]
        begun: int | None = task
        if kind == _END:
            start = mesh.starts[task]
            assert start is not None
            mesh.free[start.pool] += 1
            begun = mesh.take(start.pool, now_ms)
        elif kind == _ARRIVAL:
            region = run.region if run.region and mesh.servers(run.requirement, run.region)[1] else None
            if mesh.offer(task, now_ms, region) is None:
                begun = None
                if region:
                    heapq.heappush(events, (now_ms + spill_ms, _SPILL, score, task))
        elif not mesh.place[task] or mesh.offer(task, now_ms, None) is None:
            begun = None
        if begun is not None:
            heapq.heappush(events, (now_ms + runs[begun].run_ms, _END, runs[begun].score, begun))
    return mesh.starts


def quantile(values: Sequence[int], share: float) -> int | None:
    """The least of the sorted values that this share of them does not exceed, None of none."""
    return values[max(0, math.ceil(share * len(values)) - 1)] if values else None
