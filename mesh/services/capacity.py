"""What capacity a namespace has and needs, from its agents, its queues, and what the scripts have counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mesh.core.agents import AgentInfo
from mesh.core.capacity import agents_for, slots_wanted
from mesh.core.names import check_name
from mesh.core.requirements import SEPARATOR, canonical, capabilities_of, satisfies
from mesh.core.states import State
from mesh.core.timings import Kind
from mesh.services import listing
from mesh.services.agents import discover
from mesh.store.store import Store

__all__ = ["demand"]


def demand(store: Store, requirement: str, *, within_s: int) -> dict[str, Any]:
    """What waits for a capability, or several (`gpu+ocr`), alone or with others, and who offers it.

    {capability, agents, slots, free_slots, backlog, scheduled, running, oldest_age_ms, mean_run_ms, within_s, slots_wanted,
    agents_wanted}: flat, and numbers only, 0 where nothing is known, also for a name that was never used, so that an
    autoscaler can start from there. `slots_wanted`: see `mesh.core.capacity`. Raises `Invalid` for what is no name.
    """
    name = canonical(check_name("capability", part) for part in requirement.split(SEPARATOR))
    needed = capabilities_of(name)
    every = [agent for agent in discover(store) if agent.takes_work]
    agents = [agent for agent in every if satisfies(frozenset(agent.capabilities), name)]
    queues = [row for row in listing.queues(store) if needed <= set(row["capabilities"])]
    states = [row["states"] for row in queues]

    def number(state: State) -> int:
        return sum(found.get(state, 0) for found in states)

    runs = [
        timing
        for (queue, kind), timing in store.tasks.timings().items()
        if kind is Kind.RUN and needed <= capabilities_of(queue)
    ]
    counted = sum(timing.count for timing in runs)
    mean_ms = sum((timing.lately_ms or 0) * timing.count for timing in runs) / counted if counted else None
    backlog = number(State.QUEUED)
    wanted = slots_wanted(
        backlog=backlog,
        busy=number(State.LEASED) + number(State.RUNNING),
        mean_run_ms=mean_ms,
        within_ms=within_s * 1000,
    )
    return {
        "capability": name,
        "agents": len(agents),
        "slots": sum(agent.slots for agent in agents),
        "free_slots": sum(max(0, agent.slots - agent.held) for agent in agents),
        "backlog": backlog,
        "scheduled": number(State.SCHEDULED),
        "running": number(State.RUNNING),
        "oldest_age_ms": max((row["oldest_age_ms"] or 0 for row in queues), default=0),
        "mean_run_ms": round(mean_ms or 0.0, 1),
        "within_s": within_s,
        "slots_wanted": wanted,
        "agents_wanted": agents_for(wanted, usual_slots(agents or every)),
    }


def usual_slots(agents: Sequence[AgentInfo]) -> float:
    """Slots of an agent on average; 1 if there is none."""
    return sum(agent.slots for agent in agents) / len(agents) if agents else 1.0
