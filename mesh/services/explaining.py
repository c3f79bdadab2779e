"""Why a task waits, and how a task would: the facts for `mesh.core.explaining`, and its answers as plain values.

About ten round trips to Redis, whatever waits: two lengths are asked of each place that the agents in question serve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mesh.core import explaining
from mesh.core.agents import AgentInfo
from mesh.core.durations import duration
from mesh.core.explaining import Before, Expected, Task, Verdict
from mesh.core.places import parse_place, regional
from mesh.core.requirements import capabilities_of
from mesh.core.states import State
from mesh.core.timings import Kind
from mesh.services import tasks as task_services
from mesh.services import views
from mesh.services.agents import discover, unmet_warning
from mesh.services.tasks import DEFAULTS, Options
from mesh.store.keys import BAND, BANDS
from mesh.store.store import Store
from mesh.store.tasks import Record

__all__ = ["explain", "why"]


def explain(
    store: Store, task_type: str, options: Options = DEFAULTS, *, only: str | None = None
) -> dict[str, Any]:
    """How such a task would wait; nothing is submitted. Raises `Invalid`.

    {queue, capable: [ids], not_capable: [{agent, why}], ahead, free_slots, warning, and what `why` tells of the start}: `ahead`
    tasks wait in its queue and would be served before it; `warning` is None if somebody could take it. `only`: see `why`.
    """
    queue = task_services.requirement(store, task_type, options.requires)
    region = options.region or store.settings.agent_region
    place = queue
    if region and store.agents.consumers(regional([queue], region)[0]):
        place = regional([queue], region)[0]
    end = (BANDS - options.priority) * BAND
    agents, means = discover(store), _run_means(store)
    task = Task(
        needs=capabilities_of(queue),
        priority=options.priority,
        region=region if place != queue else None,
        spills_in_ms=store.settings.region_spill_ms if place != queue else None,
        due_in_ms=_ms(options.countdown_s),
        expires_in_ms=_ms(options.expires_s),
        mean_run_ms=means.get(queue),
    )
    before = _before(store, agents, means, place, end)
    told = _told(store, task, agents, before, only)
    return {
        "queue": queue,
        "capable": [row["agent"] for row in told["agents"] if row["capable"]],
        "not_capable": _not_capable(told),
        "ahead": next(one.tasks for one in before if one.place == place),
        "free_slots": sum(row["free_slots"] for row in told["agents"] if row["capable"]),
        "warning": unmet_warning(store, task_type, queue, "warn"),
        **told,
    }


def _ms(seconds: float | None) -> int | None:
    return int(seconds * 1000) if seconds else None


def why(store: Store, task_id: str, *, only: str | None = None) -> dict[str, Any]:
    """Why a task is where it is. Raises `NotFound`.

    {id, state, queue, detail, position, capable, not_capable, agents, expected_start_ms, expected_start_at, expected_start_how,
    advice}: `detail` is the answer as a sentence; `position`: how many tasks of its queue are served before it, None if it does
    not wait in one; `agents`: {agent, capable, why (None: nothing keeps it from it), slots, free_slots} each; the expected
    start is ms from now, None if it does not wait or that is not known, and `_how` a sentence; `advice`: what would have it
    start sooner.
    `only`: the one agent whose id is told, '' stands for those of others; None: all are told.
    """
    record = task_services.get(store, task_id)
    agents, means, now_ms = discover(store), _run_means(store), store.agents.now_ms()
    position, score, before = None, None, list[Before]()
    place = record.other.get("place", record.queue)
    if record.state is State.QUEUED:
        key = store.keys.of("queue", place)
        position, score = store.client.pipeline(("ZRANK", key, task_id), ("ZSCORE", key, task_id))
        before = _before(store, agents, means, place, float(score)) if score is not None else []
    due = None
    if record.state is State.SCHEDULED:
        due = store.client.execute("ZSCORE", store.keys["scheduled"], task_id)
    _, region, agent = parse_place(place)
    spills_at = (record.queued or now_ms) + store.settings.region_spill_ms
    task = Task(
        needs=capabilities_of(record.queue),
        priority=record.priority,
        agent=agent,
        region=region,
        spills_in_ms=max(0, spills_at - now_ms) if region else None,
        due_in_ms=None if due is None else int(float(due)) - now_ms,
        expires_in_ms=None if record.expires_at is None else record.expires_at - now_ms,
        mean_run_ms=means.get(record.queue),
    )
    waits = record.state in (State.QUEUED, State.SCHEDULED)
    told = _told(store, task, agents, before, only, waits=waits)
    capable = [row["agent"] for row in told["agents"] if row["capable"]]
    return {
        "id": task_id,
        "state": str(record.state),
        "queue": record.queue,
        "detail": _sentence(record, position, len(capable), told["expected_start_ms"]),
        "position": position,
        "capable": capable,
        "not_capable": _not_capable(told),
        **told,
    }


def _told(
    store: Store,
    task: Task,
    agents: Sequence[AgentInfo],
    before: Sequence[Before],
    only: str | None,
    *,
    waits: bool = True,
) -> dict[str, Any]:
    def shown(agent: str) -> bool:
        return only in (None, agent)

    verdicts = [explaining.judge(task, agent, shown) for agent in agents]
    start = explaining.expected(task, agents, before) if waits else Expected(start_ms=None, how="")
    at_ms = None if start.start_ms is None else store.now_ms() + start.start_ms
    return {
        "agents": [_row(verdict) for verdict in verdicts],
        "expected_start_ms": start.start_ms,
        "expected_start_at": views.iso(at_ms),
        "expected_start_how": start.how or None,
        "advice": explaining.advice(task, verdicts, start) if waits else [],
    }


def _row(verdict: Verdict) -> dict[str, Any]:
    return {
        "agent": verdict.agent,
        "capable": verdict.capable,
        "why": verdict.why,
        "slots": verdict.slots,
        "free_slots": verdict.free_slots,
    }


def _not_capable(told: dict[str, Any]) -> list[dict[str, str]]:
    return [{"agent": row["agent"], "why": row["why"]} for row in told["agents"] if not row["capable"]]


def _run_means(store: Store) -> dict[str, float | None]:
    """Queue -> ms that its attempts have run on average lately."""
    timings = store.tasks.timings()
    return {queue: timing.lately_ms for (queue, kind), timing in timings.items() if kind is Kind.RUN}


def _before(
    store: Store,
    agents: Sequence[AgentInfo],
    means: Mapping[str, float | None],
    place: str,
    score: float,
) -> list[Before]:
    """What is served before a task with this score in this place: here, and elsewhere by the same agents."""
    working = [agent for agent in agents if agent.takes_work]
    takers = [agent for agent in working if explaining.serves(agent, place)]
    ready = {name.decode() for name in store.client.execute("SMEMBERS", store.keys["ready"])}
    # Agents that offer the same in the same region serve the same places, but for their own queues.
    kinds = {(agent.capabilities, agent.region): agent for agent in takers}.values()
    own = {agent.id for agent in takers}
    places = [place]
    for name in sorted(ready - {place}):
        owner = parse_place(name)[2]
        if owner in own if owner else any(explaining.serves(agent, name) for agent in kinds):
            places.append(name)
    until = f"({score:.0f}"
    asked = [
        ("ZCOUNT", store.keys.of("queue", name), "-inf", end)
        for name in places
        for end in (until, f"({min(score, BAND):.0f}")
    ]
    found = [int(number) for number in store.client.pipeline(*asked)]
    return [
        Before(
            place=name,
            tasks=tasks,
            urgent=urgent,
            mean_run_ms=means.get(parse_place(name)[0]),
            elsewhere=name != place,
        )
        for name, tasks, urgent in zip(places, found[::2], found[1::2], strict=True)
    ]


def _sentence(record: Record, position: int | None, capable: int, start_ms: int | None) -> str:
    where = f"agent {record.agent}" if record.agent else "an agent"
    when = "" if start_ms is None else " now" if start_ms == 0 else f" in about {duration(start_ms)}"
    if record.state is State.QUEUED:
        if not capable:
            return f"It waits for an agent that offers {' and '.join(sorted(capabilities_of(record.queue)))}: none is there."
        others = (
            "no other task"
            if not position
            else "1 other task"
            if position == 1
            else f"{position} other tasks"
        )
        could = "1 agent" if capable == 1 else f"{capable} agents"
        expects = f" It is expected to start{when}." if when else ""
        return f"It waits in queue {record.queue} behind {others}; {could} could take it.{expects}"
    if record.state is State.SCHEDULED:
        again = f" after {record.failures} failures" if record.failures else ""
        return f"It waits for its time{again}{f', which comes{when}' if when else ''}."
    if record.state in (State.LEASED, State.RUNNING):
        return f"It is {'being run by' if record.state is State.RUNNING else 'delivered to'} {where}."
    said = record.error or record.reason
    return f"It has ended: {record.state}" + (f" ({said})." if said else ".")
