"""What can be listed of a namespace, and why a task waits: tasks, dead letters, queues, capabilities.

Everything here is read: from the index of the newest tasks (capped at 10,000), the set of dead letters, the counters that the
scripts keep, and the registrations of the agents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mesh.core.agents import Health
from mesh.core.requirements import capabilities_of
from mesh.core.states import LIVE, State
from mesh.core.timings import Kind, Timing
from mesh.errors import Invalid
from mesh.services import tasks as task_services
from mesh.services import views
from mesh.services.agents import AgentInfo, discover, unmet_warning
from mesh.services.tasks import DEFAULTS, Options
from mesh.store.store import Store
from mesh.store.tasks import Record

__all__ = ["Filter", "capabilities", "dead_letters", "explain", "oldest_ages", "queues", "tasks", "why"]

_PAGE = 250  # records read in one round trip
_BANDS = 10  # priorities
_BAND = 2**49  # width of a priority in the score of a queue, see `mesh.store.keys`


# -- tasks and dead letters


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which tasks; None: any. `since_ms`: submitted (of dead letters: put aside) at that time or later."""

    state: State | str | None = None
    type: str | None = None
    capability: str | None = None
    agent: str | None = None
    reason: str | None = None
    by: str | None = None
    since_ms: int | None = None

    def takes(self, record: Record) -> bool:
        """Whether a task is among them; the time is looked at elsewhere."""
        return (
            (self.state is None or record.state == self.state)
            and (self.type is None or record.type == self.type)
            and (self.agent is None or record.agent == self.agent)
            and (self.reason is None or record.reason == self.reason)
            and (self.by is None or record.other.get("by") == self.by)
            and (self.capability is None or self.capability in capabilities_of(record.queue))
        )


def tasks(
    store: Store,
    *,
    state: State | str | None = None,
    type: str | None = None,
    capability: str | None = None,
    agent: str | None = None,
    by: str | None = None,
    since_ms: int | None = None,
    cursor: str | None = None,
    limit: int = 100,
) -> tuple[list[dict[str, Any]], str | None]:
    """(views of the newest tasks, newest first; the cursor of the next page or None). Raises `Invalid`."""
    if state is not None and state not in set(State):
        raise Invalid(f"{state!r} is not a state: {', '.join(State)}.")
    wanted = Filter(state=state, type=type, capability=capability, agent=agent, by=by, since_ms=since_ms)
    return _listed(store, "recent", wanted, cursor, limit)


def dead_letters(
    store: Store,
    *,
    type: str | None = None,
    capability: str | None = None,
    reason: str | None = None,
    by: str | None = None,
    since_ms: int | None = None,
    cursor: str | None = None,
    limit: int = 100,
) -> tuple[list[dict[str, Any]], str | None]:
    """(views of the tasks that were put aside, newest first; the cursor of the next page or None). Raises `Invalid`."""
    wanted = Filter(type=type, capability=capability, reason=reason, by=by, since_ms=since_ms)
    return _listed(store, "dead", wanted, cursor, limit)


def _listed(
    store: Store, index: str, wanted: Filter, cursor: str | None, limit: int
) -> tuple[list[dict[str, Any]], str | None]:
    if not 1 <= limit <= 1000:
        raise Invalid(f"limit is {limit}, but must be from 1 to 1000.")
    found: list[dict[str, Any]] = []
    last = None
    for stamp, record in _walk(store, index, wanted.since_ms, cursor):
        if wanted.takes(record):
            if len(found) == limit:
                return found, last
            found.append(views.task(record))
            last = f"{stamp}.{record.id}"
    return found, None


def _walk(store: Store, index: str, since_ms: int | None, cursor: str | None) -> Iterator[tuple[int, Record]]:
    """(time, record) of an index from the newest on, or from behind the cursor `<ms>.<id>`.

    Redis orders equal times by id, backwards here: the cursor stays right when tasks come and go around it.
    """
    newest = "+inf"
    passed: tuple[int, bytes] | None = None
    if cursor is not None:
        newest, dot, task_id = cursor.partition(".")
        if not (dot and newest.isascii() and newest.isdigit() and len(newest) < 16):
            raise Invalid(f"{cursor!r} is not a cursor: use `next_cursor` of the page before, as it is.")
        passed = (int(newest), task_id.encode())
    oldest = "-inf" if since_ms is None else since_ms
    offset = 0
    while True:
        words = (
            "ZRANGE",
            store.keys[index],
            newest,
            oldest,
            "BYSCORE",
            "REV",
            "LIMIT",
            offset,
            _PAGE,
            "WITHSCORES",
        )
        flat = store.client.execute(*words)
        page = [(int(float(score)), name) for name, score in zip(flat[::2], flat[1::2], strict=True)]
        fresh = [(stamp, name.decode()) for stamp, name in page if passed is None or (stamp, name) < passed]
        records = store.tasks.records([name for _, name in fresh]) if fresh else []
        for (stamp, _), record in zip(fresh, records, strict=True):
            if record is not None:
                yield stamp, record
        if len(page) < _PAGE:
            return
        offset += _PAGE


# -- queues and capabilities


def queues(store: Store) -> list[dict[str, Any]]:
    """The queues that tasks have been in, by name: {queue, capabilities, depth, oldest_age_ms, states, crashes}.

    `depth`: tasks that wait for an agent; `oldest_age_ms`: how long the one that waits longest does, None if none;
    `states`: state -> tasks, now in it for live states, ever ended in it for the others.
    """
    counts = store.tasks.counts()
    ages = oldest_ages(store)
    return [
        {
            "queue": name,
            "capabilities": sorted(capabilities_of(name)),
            "depth": states.get(State.QUEUED, 0),
            "oldest_age_ms": ages.get(name),
            "states": {str(state): states[state] for state in State if states.get(state)},
            "crashes": states.get("crashes", 0),
        }
        for name, states in sorted(counts.items())
        if any(states.values())
    ]


def oldest_ages(store: Store) -> dict[str, int]:
    """Queue -> ms for which its oldest task has waited."""
    oldest = _oldest_of_each(store)
    now_ms = store.agents.now_ms()
    ages: dict[str, int] = {}
    for record in store.tasks.records(oldest) if oldest else ():
        if record is not None:
            since = record.queued or record.created or now_ms
            ages[record.queue] = max(ages.get(record.queue, 0), now_ms - since)
    return ages


def _oldest_of_each(store: Store) -> list[str]:
    """Ids that were first in each place and priority: within these, order is arrival."""
    keys = [
        store.keys.of("queue", place.decode())
        for place in store.client.execute("SMEMBERS", store.keys["ready"])
    ]
    ends = [("ZRANGE", key, at, at, "WITHSCORES") for key in keys for at in (0, -1)]
    found = store.client.pipeline(*ends) if ends else []
    ids: list[str] = []
    mixed: list[str] = []
    for key, first, last in zip(keys, found[::2], found[1::2], strict=True):
        if first and last and float(first[1]) // _BAND != float(last[1]) // _BAND:
            mixed.append(key)
        elif first:
            ids.append(first[0].decode())
    heads = [
        ("ZRANGE", key, band * _BAND, f"({(band + 1) * _BAND}", "BYSCORE", "LIMIT", 0, 1)
        for key in mixed
        for band in range(_BANDS)
    ]
    return ids + [one[0].decode() for one in (store.client.pipeline(*heads) if heads else []) if one]


def capabilities(store: Store) -> list[dict[str, Any]]:
    """What is offered or asked for, by name; an autoscaler reads this.

    {capability, agents, slots, free_slots, backlog, scheduled, running, oldest_age_ms, p95_run_ms}: `agents` that take work now,
    and their slots; `backlog`: tasks that wait for an agent in all queues that need the capability; `oldest_age_ms`: see
    `queues`; `p95_run_ms`: 95 % of all its attempts ran no longer, None if none did.
    """
    rows: dict[str, dict[str, Any]] = {}

    def row(name: str) -> dict[str, Any]:
        empty = {"agents": 0, "slots": 0, "free_slots": 0, "backlog": 0, "scheduled": 0, "running": 0}
        return rows.setdefault(name, {"capability": name, **empty, "oldest_age_ms": None, "p95_run_ms": None})

    for agent in discover(store):
        if agent.status is not Health.OFFLINE:
            for name in agent.capabilities:
                one = row(name)
                if agent.takes_work:
                    one["agents"] += 1
                    one["slots"] += agent.slots
                    one["free_slots"] += max(0, agent.slots - agent.running)
    for queue in queues(store):
        states = queue["states"]
        if not any(states.get(state) for state in LIVE):
            continue
        for name in queue["capabilities"]:
            one = row(name)
            one["backlog"] += queue["depth"]
            one["scheduled"] += states.get(State.SCHEDULED, 0)
            one["running"] += states.get(State.RUNNING, 0)
            ages = [age for age in (one["oldest_age_ms"], queue["oldest_age_ms"]) if age is not None]
            one["oldest_age_ms"] = max(ages, default=None)
    ran: dict[str, list[Timing]] = {}
    for (where, kind), timing in store.tasks.timings().items():
        if kind is Kind.RUN:
            for name in capabilities_of(where) & rows.keys():
                ran.setdefault(name, []).append(timing)
    for name, timings in ran.items():
        rows[name]["p95_run_ms"] = Timing.together(timings).quantile_ms(0.95)
    return [rows[name] for name in sorted(rows)]


# -- why


def _obstacle(agent: AgentInfo, needed: frozenset[str]) -> str | None:
    """Why an agent takes no task that needs these capabilities; None if it does."""
    missing = sorted(needed - set(agent.capabilities))
    if agent.status is Health.OFFLINE:
        return "it has left"
    if missing:
        return f"it does not offer {' and '.join(missing)}"
    if agent.status is Health.DRAINING:
        return "it is draining"
    if agent.absent or agent.status is Health.UNHEALTHY:
        return f"it has been silent for {agent.silent_ms // 1000} s"
    return "it is cordoned" if agent.cordoned else None


def _who(store: Store, queue: str) -> tuple[list[AgentInfo], list[dict[str, str]]]:
    needed = capabilities_of(queue)
    judged = [(agent, _obstacle(agent, needed)) for agent in discover(store)]
    refused = [{"agent": agent.id, "why": why} for agent, why in judged if why is not None]
    return [agent for agent, why in judged if why is None], refused


def unnamed(told: dict[str, Any], but: str) -> dict[str, Any]:
    """What `explain` or `why` told, with '' for each agent's id but this: for who may know how many there are, not which."""
    return {
        **told,
        "capable": [one if one == but else "" for one in told["capable"]],
        "not_capable": [one if one["agent"] == but else {**one, "agent": ""} for one in told["not_capable"]],
    }


def explain(store: Store, task_type: str, options: Options = DEFAULTS) -> dict[str, Any]:
    """Who could take such a task, and why the others would not; nothing is submitted. Raises `Invalid`.

    {queue, capable: [ids], not_capable: [{agent, why}], ahead, free_slots, warning}: `ahead` tasks wait in the queue and would
    be served before it; it starts at once if some of the capable agents' slots are free and nothing is ahead; `warning` is
    None if somebody could take it.
    """
    queue = task_services.requirement(store, task_type, options.requires)
    capable, refused = _who(store, queue)
    ahead = store.client.execute(
        "ZCOUNT", store.keys.of("queue", queue), "-inf", f"({(_BANDS - options.priority) * _BAND}"
    )
    return {
        "queue": queue,
        "capable": [agent.id for agent in capable],
        "not_capable": refused,
        "ahead": int(ahead),
        "free_slots": sum(max(0, agent.slots - agent.running) for agent in capable),
        "warning": unmet_warning(store, task_type, queue, "warn"),
    }


def why(store: Store, task_id: str) -> dict[str, Any]:
    """Why a task is where it is. Raises `NotFound`.

    {id, state, queue, detail, position, capable, not_capable}: `detail` is the answer as a sentence; `position`: how many
    tasks of its queue are served before it, None if it does not wait in one.
    """
    record = task_services.get(store, task_id)
    position = None
    if record.state is State.QUEUED:
        place = record.other.get("place", record.queue)
        position = store.client.execute("ZRANK", store.keys.of("queue", place), task_id)
    capable, refused = _who(store, record.queue)
    return {
        "id": task_id,
        "state": str(record.state),
        "queue": record.queue,
        "detail": _sentence(record, position, capable),
        "position": position,
        "capable": [agent.id for agent in capable],
        "not_capable": refused,
    }


def _sentence(record: Record, position: int | None, capable: Sequence[AgentInfo]) -> str:
    where = f"agent {record.agent}" if record.agent else "an agent"
    if record.state is State.QUEUED:
        if not capable:
            return f"It waits for an agent that offers {' and '.join(sorted(capabilities_of(record.queue)))}: none is there."
        behind = f"{position} other tasks" if position else "no other task"
        return f"It waits in queue {record.queue} behind {behind}; {len(capable)} agents could take it."
    if record.state is State.SCHEDULED:
        again = f" after {record.failures} failures" if record.failures else ""
        return f"It waits for its time{again}."
    if record.state in (State.LEASED, State.RUNNING):
        return f"It is {'being run by' if record.state is State.RUNNING else 'delivered to'} {where}."
    said = record.error or record.reason
    return f"It has ended: {record.state}" + (f" ({said})." if said else ".")
