"""What capacity a namespace has and needs, from its agents, its queues, and what the scripts have counted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from mesh.core import capacity
from mesh.core.agents import AgentInfo, Health
from mesh.core.capacity import Fleet, Need, agents_for, slots_wanted
from mesh.core.names import check_name
from mesh.core.requirements import SEPARATOR, canonical, capabilities_of, satisfies
from mesh.core.states import LIVE, State
from mesh.core.timings import Kind
from mesh.services import listing
from mesh.services.agents import discover
from mesh.store.coordinators import Coordinators
from mesh.store.store import Store

__all__ = ["WITHIN_S", "advice", "demand"]

WITHIN_S = 300
_MOST = 200  # rows


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
        backlog=backlog + number(State.LEASED),
        busy=number(State.RUNNING),
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


def advice(store: Store, *, within_s: int = WITHIN_S) -> dict[str, Any]:
    """What to add so that what waits now has started within that time.

    {namespace, within_s, coordinators, agents, agents_each, size, backlog, coordinators_to_add, advice (None: add none), total,
    requirements}; of `requirements`, what lacks most first, at most 200 of `total`: {requirement, backlog, oldest_age_ms,
    scheduled, running, mean_run_ms, agents, slots, free_slots, slots_wanted, agents_to_add, advice}. Each is a queue: what needs
    `gpu+ocr` is not served by an agent with each. `agents` take such work now; `mean_run_ms`: of about the last 100 attempts,
    None if none has ended; coordinators are those of the whole mesh. Told are those with work, and those that agents serve.
    """
    agents = [agent for agent in discover(store) if agent.status is not Health.OFFLINE]
    kinds: defaultdict[frozenset[str], list[AgentInfo]] = defaultdict(list)
    for agent in agents:
        kinds[frozenset(agent.capabilities)].append(agent)
    working = [agent for agent in agents if agent.takes_work]
    timings = store.tasks.timings()
    rows: list[dict[str, Any]] = []
    queues = listing.queues(store)
    for queue in queues:
        able = [
            one for offered, members in kinds.items() if satisfies(offered, queue["queue"]) for one in members
        ]
        takers = [agent for agent in able if agent.takes_work]
        states = queue["states"]
        if not takers and not any(states.get(state) for state in LIVE):
            continue
        ran = timings.get((queue["queue"], Kind.RUN))
        need = Need(
            requirement=queue["queue"],
            backlog=queue["depth"] + states.get(State.LEASED, 0),
            busy=states.get(State.RUNNING, 0),
            mean_run_ms=None if ran is None else ran.lately_ms,
            agents=len(takers),
            resting=len(able) - len(takers),
            slots=sum(agent.slots for agent in takers),
            free_slots=sum(max(0, agent.slots - agent.held) for agent in takers),
            slots_per_agent=usual_slots(takers or able or working),
        )
        told = capacity.judge(need, within_s * 1000)
        rows.append(
            {
                "requirement": need.requirement,
                "backlog": queue["depth"],
                "oldest_age_ms": queue["oldest_age_ms"],
                "scheduled": states.get(State.SCHEDULED, 0),
                "running": states.get(State.RUNNING, 0),
                "mean_run_ms": None if need.mean_run_ms is None else round(need.mean_run_ms, 1),
                "agents": need.agents,
                "slots": need.slots,
                "free_slots": need.free_slots,
                "slots_wanted": told.slots_wanted,
                "agents_to_add": told.to_add,
                "advice": told.why,
            }
        )
    rows.sort(key=lambda row: (-row["agents_to_add"], -row["backlog"], row["requirement"]))
    fleet = Fleet(
        coordinators=len(Coordinators(store.client, store.keys).all()),
        agents=len(agents),
        backlog=sum(queue["depth"] for queue in queues),
    )
    told = capacity.coordinators(fleet)
    return {
        "namespace": store.settings.namespace,
        "within_s": within_s,
        "coordinators": fleet.coordinators,
        "agents": fleet.agents,
        "agents_each": fleet.agents_each,
        "size": fleet.size,
        "backlog": fleet.backlog,
        "coordinators_to_add": told.to_add,
        "advice": told.why,
        "total": len(rows),
        "requirements": rows[:_MOST],
    }


def usual_slots(agents: Sequence[AgentInfo]) -> float:
    """Slots of an agent on average; 1 if there is none."""
    return sum(agent.slots for agent in agents) / len(agents) if agents else 1.0
