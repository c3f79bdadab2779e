"""What can be listed of a namespace: tasks, dead letters, queues, capabilities.

Everything here is read: from the index of the newest tasks (capped at 10,000), the set of dead letters, the counters that the
scripts keep, and the registrations of the agents.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mesh.core.agents import AgentInfo, Health
from mesh.core.requirements import capabilities_of
from mesh.core.states import LIVE, State
from mesh.core.timings import Kind, Timing
from mesh.errors import Invalid
from mesh.services import views
from mesh.services.agents import discover
from mesh.store.keys import BAND, BANDS
from mesh.store.store import Store

__all__ = ["Filter", "capabilities", "capability_rows", "dead_letters", "oldest_ages", "queues", "tasks"]

_PAGE = 500  # tasks looked at in one round trip


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

    @property
    def fields(self) -> tuple[str, ...]:
        """Those of a record that say whether it is among them."""
        asked = {
            "type": self.type, "queue": self.capability if self.type is None else self.type,
            "agent": self.agent, "reason": self.reason, "by": self.by,
        }  # fmt: skip
        return ("state", *(name for name, value in asked.items() if value is not None))

    def takes(self, stored: Mapping[str, bytes | None]) -> bool:
        """Whether a task with these `fields` is among them; the time is looked at elsewhere. One that is not there is not."""

        def text(name: str) -> str:
            return (stored[name] or b"").decode()

        return (
            stored["state"] is not None
            and (self.state is None or text("state") == self.state)
            and (self.type is None or (text("type") or text("queue")) == self.type)
            and (self.agent is None or text("agent").partition("#")[0] == self.agent)
            and (self.reason is None or text("reason") == self.reason)
            and (self.by is None or text("by") == self.by)
            and (self.capability is None or self.capability in capabilities_of(text("queue")))
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
    matching: list[str] = []
    last = following = None
    for stamp, task_id in _walk(store, index, wanted, cursor):
        if len(matching) == limit:
            following = last
            break
        matching.append(task_id)
        last = f"{stamp}.{task_id}"
    records = store.tasks.records(matching) if matching else []
    return [views.task(record) for record in records if record is not None], following


def _walk(store: Store, index: str, wanted: Filter, cursor: str | None) -> Iterator[tuple[int, str]]:
    """(time, id) of an index's tasks that are wanted from the newest on, or from behind the cursor `<ms>.<id>`.

    Redis orders equal times by id, backwards here: the cursor stays right when tasks come and go around it.
    """
    newest = "+inf"
    passed: tuple[int, bytes] | None = None
    if cursor is not None:
        newest, dot, task_id = cursor.partition(".")
        if not (dot and newest.isascii() and newest.isdigit() and len(newest) < 16):
            raise Invalid(f"{cursor!r} is not a cursor: use `next_cursor` of the page before, as it is.")
        passed = (int(newest), task_id.encode())
    oldest = "-inf" if wanted.since_ms is None else wanted.since_ms
    names, offset = wanted.fields, 0
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
        rows = store.tasks.fields([name for _, name in fresh], names) if fresh else []
        for one, row in zip(fresh, rows, strict=True):
            if wanted.takes(dict(zip(names, row, strict=True))):
                yield one
        if len(page) < _PAGE:
            return
        offset += _PAGE


# -- queues and capabilities


def queues(store: Store) -> list[dict[str, Any]]:
    """The queues that tasks have been in, by name: {queue, capabilities, depth, oldest_age_ms, states, crashes}.

    `depth`: tasks that wait for an agent; `oldest_age_ms`: how long the one that waits longest does, None if none;
    `states`: state -> tasks, now in it for live states, ever ended in it for the others.
    """
    ages = oldest_ages(store)
    return [
        {
            "queue": name,
            "capabilities": sorted(capabilities_of(name)),
            "depth": counts.get(State.QUEUED, 0),
            "oldest_age_ms": ages.get(name),
            "states": views.by_state(counts),
            "crashes": counts.get("crashes", 0),
        }
        for name, counts in sorted(store.tasks.counts().items())
        if any(counts.values())
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
        if first and last and float(first[1]) // BAND != float(last[1]) // BAND:
            mixed.append(key)
        elif first:
            ids.append(first[0].decode())
    heads = [
        ("ZRANGE", key, band * BAND, f"({(band + 1) * BAND}", "BYSCORE", "LIMIT", 0, 1)
        for key in mixed
        for band in range(BANDS)
    ]
    return ids + [one[0].decode() for one in (store.client.pipeline(*heads) if heads else []) if one]


def capabilities(store: Store) -> list[dict[str, Any]]:
    """What is offered or asked for, by name; an autoscaler reads this.

    {capability, agents, slots, free_slots, backlog, scheduled, running, oldest_age_ms, p95_run_ms}: `agents` that take work now,
    and their slots; `backlog`: tasks that wait for an agent in all queues that need the capability; `oldest_age_ms`: see
    `queues`; `p95_run_ms`: 95 % of all its attempts ran no longer, None if none did.
    """
    return capability_rows(discover(store), queues(store), store.tasks.timings())


def capability_rows(
    agents: Iterable[AgentInfo],
    queues: Iterable[Mapping[str, Any]],
    timings: Mapping[tuple[str, Kind], Timing],
) -> list[dict[str, Any]]:
    """`capabilities`, of what was read before."""
    rows: dict[str, dict[str, Any]] = {}

    def row(name: str) -> dict[str, Any]:
        empty = {"agents": 0, "slots": 0, "free_slots": 0, "backlog": 0, "scheduled": 0, "running": 0}
        return rows.setdefault(name, {"capability": name, **empty, "oldest_age_ms": None, "p95_run_ms": None})

    for agent in agents:
        if agent.status is not Health.OFFLINE:
            for name in agent.capabilities:
                one = row(name)
                if agent.takes_work:
                    one["agents"] += 1
                    one["slots"] += agent.slots
                    one["free_slots"] += max(0, agent.slots - agent.running)
    for queue in queues:
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
    for (where, kind), timing in timings.items():
        if kind is Kind.RUN:
            for name in capabilities_of(where) & rows.keys():
                ran.setdefault(name, []).append(timing)
    for name, several in ran.items():
        rows[name]["p95_run_ms"] = Timing.together(several).quantile_ms(0.95)
    return [rows[name] for name in sorted(rows)]
