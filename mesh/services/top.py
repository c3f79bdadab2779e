"""What `mesh top` shows of a namespace, counted so far: one bounded answer, read in about fifteen round trips, whatever is there.

The work grows with the agents (one record each) and the queues (their counters), not with the tasks: those that wait are counted,
and of the newest 1000 the states are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mesh.core.agents import AgentInfo, Health
from mesh.core.states import TERMINAL, State
from mesh.core.timings import BOUNDS_MS, Kind, Timing
from mesh.services import agents as agent_services
from mesh.services import listing, views
from mesh.store.store import Store

__all__ = ["counted"]

_MOST = 200  # rows of a list
_MOST_FAILURES = 10
_LOOKED_AT = 1000  # newest tasks
_FAILED = (State.FAILED, State.TIMED_OUT, State.DEAD_LETTERED)
_ENDS = {str(state).encode() for state in _FAILED}
_NOTHING = Timing(buckets=(0,) * (len(BOUNDS_MS) + 1), sum_ms=0)


def counted(store: Store) -> dict[str, Any]:
    """{namespace, at_ms, health, cordoned, slots, busy, totals, all, queues, capabilities, agents, failures}.

    `health`: agents by it; `slots` and `busy`: of the agents that take work. `all` and each of `queues`: {queue, depth,
    oldest_age_ms, running, scheduled, ended, failed, wait, run}: `ended`, `failed`, and the histograms {buckets, sum_ms} of
    attempts are of all time. `capabilities`: as `listing.capabilities`. Lists have what needs looking after first, at most 200
    rows; `totals`: how many there would be. `failures`: {ended_at, state, type, agent, id, error}, the newest first.
    Raises `StoreUnavailable`.
    """
    at_ms = store.agents.now_ms()
    agents = agent_services.discover(store)
    rows = listing.queues(store)
    timings = store.tasks.timings()
    queues = [_queue(row, timings) for row in rows]
    capabilities = listing.capability_rows(agents, rows, timings)
    there = [agent for agent in agents if agent.status is not Health.OFFLINE]
    working = [agent for agent in there if agent.takes_work]
    lists: dict[str, list[Any]] = {
        "queues": sorted(
            queues, key=lambda row: (-row["depth"], -row["running"], -row["ended"], row["queue"])
        ),
        "capabilities": sorted(
            capabilities, key=lambda row: (-row["backlog"], row["free_slots"], row["capability"])
        ),
        "agents": sorted(there, key=_first_the_unwell),
    }
    return {
        "namespace": store.settings.namespace,
        "at_ms": at_ms,
        "health": agent_services.counts(agents),
        "cordoned": sum(agent.cordoned for agent in there),
        "slots": sum(agent.slots for agent in working),
        "busy": sum(min(agent.running, agent.slots) for agent in working),
        "totals": {name: len(found) for name, found in lists.items()},
        "all": _together(queues, timings.items()),
        **{name: found[:_MOST] for name, found in lists.items()},
        "agents": [_agent(agent) for agent in lists["agents"][:_MOST]],
        "failures": _failures(store),
    }


def _queue(row: Mapping[str, Any], timings: Mapping[tuple[str, Kind], Timing]) -> dict[str, Any]:
    states: Mapping[str, int] = row["states"]
    return {
        "queue": row["queue"],
        "depth": row["depth"],
        "oldest_age_ms": row["oldest_age_ms"],
        "running": states.get(State.RUNNING, 0),
        "scheduled": states.get(State.SCHEDULED, 0),
        "ended": sum(states.get(state, 0) for state in TERMINAL),
        "failed": sum(states.get(state, 0) for state in _FAILED),
        **{str(kind): _plain(timings.get((row["queue"], kind), _NOTHING)) for kind in Kind},
    }


def _together(
    queues: Iterable[Mapping[str, Any]], timings: Iterable[tuple[tuple[str, Kind], Timing]]
) -> dict[str, Any]:
    found = list(queues)
    ages = [row["oldest_age_ms"] for row in found if row["oldest_age_ms"] is not None]
    of: dict[Kind, list[Timing]] = {kind: [_NOTHING] for kind in Kind}
    for (_, kind), timing in timings:
        of[kind].append(timing)
    return {
        "queue": "",
        "oldest_age_ms": max(ages, default=None),
        **{
            name: sum(row[name] for row in found)
            for name in ("depth", "running", "scheduled", "ended", "failed")
        },
        **{str(kind): _plain(Timing.together(several)) for kind, several in of.items()},
    }


def _plain(timing: Timing) -> dict[str, Any]:
    return {"buckets": list(timing.buckets), "sum_ms": timing.sum_ms}


def _first_the_unwell(agent: AgentInfo) -> tuple[bool, float, str]:
    return agent.status is Health.HEALTHY, -agent.running / max(1, agent.slots), agent.id


def _agent(agent: AgentInfo) -> dict[str, Any]:
    row = agent.to_json()
    names = ("id", "status", "cordoned", "running", "slots", "region", "capabilities", "silent_ms")
    return {name: row[name] for name in names}


def _failures(store: Store) -> list[dict[str, Any]]:
    """Dead letters have an index of their own; others that failed are found among the newest tasks."""
    found = store.client.pipeline(
        ("ZRANGE", store.keys["dead"], 0, _MOST_FAILURES - 1, "REV"),
        ("ZRANGE", store.keys["recent"], 0, _LOOKED_AT - 1, "REV"),
    )
    ids = list(dict.fromkeys(one.decode() for several in found for one in several))
    rows = store.tasks.fields(ids, ("state", "ended")) if ids else []
    failed = [(int(ended or 0), one) for one, (state, ended) in zip(ids, rows, strict=True) if state in _ENDS]
    newest = [one for _, one in sorted(failed, reverse=True)[:_MOST_FAILURES]]
    records = [one for one in store.tasks.records(newest) if one is not None] if newest else []
    return [
        {
            "ended_at": views.iso(record.ended),
            "state": str(record.state),
            "type": record.type,
            "agent": record.agent,
            "id": record.id,
            "error": record.error or record.reason,
        }
        for record in records
    ]
