"""The figures of one namespace for its metrics, read from what the scripts count and from the agents' registrations."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from mesh.core.agents import AgentInfo, Health
from mesh.core.requirements import capabilities_of
from mesh.core.states import LIVE, TERMINAL, State
from mesh.core.timings import Kind, Timing
from mesh.services.agents import discover
from mesh.services.listing import oldest_ages
from mesh.store.coordinators import Coordinators
from mesh.store.store import Store
from mesh.telemetry.metrics import Sample

__all__ = ["of_namespace"]

_MOST = 500  # requirements that are told apart: a label must not grow with whatever somebody asks for
_OTHERS = "(others)"  # all the rest together; no capability can have this name
_REASONS = {"agent_lost": "reassigned", "process_died": "process_died"}  # -> the name of its counter
_COUNTED = {"retries_total": "retries", "refused_results_total": "late", "refused_messages_total": "refused"}


def of_namespace(store: Store) -> list[Sample]:
    """All rows of `mesh.telemetry.metrics.TABLE` that are figures of a namespace. Raises `StoreUnavailable`."""
    namespace = store.keys.namespace
    agents = discover(store)
    counts = store.tasks.counts()
    offered = {name for agent in agents if agent.status is not Health.OFFLINE for name in agent.capabilities}
    shown = _shown(counts, offered)
    dead, scheduled = store.client.pipeline(("ZCARD", store.keys["dead"]), ("ZCARD", store.keys["scheduled"]))
    health = Counter(agent.status for agent in agents)
    samples = [Sample("agents", (namespace, str(status)), health[status]) for status in Health]
    samples += [
        Sample("agents_cordoned", (namespace,), sum(agent.cordoned for agent in agents)),
        Sample("dead_letters", (namespace,), int(dead)),
        Sample("scheduled", (namespace,), int(scheduled)),
        Sample("coordinators", (namespace,), len(Coordinators(store.client, store.keys).all())),
    ]
    samples += _tasks(namespace, _folded(counts, shown))
    samples += _ages(namespace, shown, oldest_ages(store))
    samples += _timings(store, shown)
    samples += _slots(namespace, shown, agents)
    return samples


def _shown(counts: Mapping[str, Mapping[str, int]], offered: set[str]) -> set[str]:
    """The requirements that have a label of their own: the busiest."""
    names = {name for name, states in counts.items() if any(states.values())} | offered
    if len(names) <= _MOST:
        return names
    return set(sorted(names, key=lambda name: (-sum(counts.get(name, {}).values()), name))[:_MOST])


def _folded(counts: Mapping[str, Mapping[str, int]], shown: set[str]) -> dict[str, Counter[str]]:
    folded = {name: Counter(counts.get(name, {})) for name in shown}
    for name, states in counts.items():
        if name not in shown and any(states.values()):
            folded.setdefault(_OTHERS, Counter()).update(states)
    return folded


def _tasks(namespace: str, counts: Mapping[str, Counter[str]]) -> Iterator[Sample]:
    for capability, states in sorted(counts.items()):
        where = (namespace, capability)
        for state in State:
            if state in TERMINAL:
                yield Sample("tasks_total", (*where, str(state)), states[state])
            elif state in LIVE:
                yield Sample("tasks", (*where, str(state)), states[state])
        yield Sample("queue_depth", where, states[State.QUEUED])
        for reason, field in _REASONS.items():
            yield Sample("reassignments_total", (*where, reason), states[field])
        for name, field in _COUNTED.items():
            yield Sample(name, where, states[field])


def _ages(namespace: str, shown: set[str], ages: Mapping[str, int]) -> Iterator[Sample]:
    oldest = dict.fromkeys(sorted(shown), 0)
    for name, age_ms in ages.items():
        key = name if name in shown else _OTHERS
        oldest[key] = max(oldest.get(key, 0), age_ms)
    for capability, age_ms in oldest.items():
        yield Sample("queue_oldest_age_seconds", (namespace, capability), age_ms / 1000)


def _timings(store: Store, shown: set[str]) -> Iterator[Sample]:
    found: defaultdict[tuple[str, Kind], list[Timing]] = defaultdict(list)
    for (queue, kind), timing in store.tasks.timings().items():
        found[queue if queue in shown else _OTHERS, kind].append(timing)
    names = {Kind.WAIT: "task_queue_wait_seconds", Kind.RUN: "task_run_seconds"}
    for (capability, kind), timings in sorted(found.items()):
        yield Sample(names[kind], (store.keys.namespace, capability), Timing.together(timings))


def _slots(namespace: str, shown: set[str], agents: list[AgentInfo]) -> Iterator[Sample]:
    """Agents that offer the same are looked at once."""
    groups: defaultdict[frozenset[str], list[AgentInfo]] = defaultdict(list)
    for agent in agents:
        if agent.takes_work:
            groups[frozenset(agent.capabilities)].append(agent)
    totals = [
        (
            offered,
            len(members),
            sum(one.slots for one in members),
            sum(min(one.running, one.slots) for one in members),
        )
        for offered, members in groups.items()
    ]
    for capability in sorted(shown):
        needed = capabilities_of(capability)
        found = [figures for offered, *figures in totals if needed <= offered]
        number, slots, busy = (sum(column) for column in zip(*found, strict=True)) if found else (0, 0, 0)
        where = (namespace, capability)
        yield Sample("capable_agents", where, number)
        yield Sample("slots", (*where, "busy"), busy)
        yield Sample("slots", (*where, "free"), slots - busy)
