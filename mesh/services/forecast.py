"""What waits would be with other agents: the recorded history for `mesh.core.replay`, and its answer as plain values."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from mesh.core.places import Strategy, parse_placing
from mesh.core.replay import LEAVES_OUT, Change, Pool, Run, alike, changed, quantile, replay
from mesh.core.states import TERMINAL
from mesh.services import views
from mesh.services.agents import discover
from mesh.store.store import Store

__all__ = ["forecast"]

_PAGE = 500
_TASKS = 3_000  # a coordinator answers within 0.3 s, and others meanwhile
_MOST = 200  # rows
_FIELDS = ("state", "queue", "placing", "score", "created", "queued", "started", "ended", "past")


def forecast(store: Store, change: Change) -> dict[str, Any]:
    """How long the newest tasks (of 3,000 that have been submitted) would have waited with agents that are changed.

    {namespace, from_at, until_at, slots (with the change), tasks, left_out: {gone, unfinished, never_started,
    earlier_attempts, strategies}, leaves_out: sentences, total, requirements}; of `requirements`, what would wait longest first,
    at most 200 of `total`: {requirement, tasks, unserved, was_p50_ms, was_p95_ms, was_max_ms, would_p50_ms, would_p95_ms,
    would_max_ms}; nobody would take those that are `unserved`: they are not in the `would` figures, which are None where there is
    nothing else. Raises `Invalid`.
    """
    pools = changed(_pools(store), change)
    left_out: Counter[str] = Counter(gone=0, unfinished=0, never_started=0, earlier_attempts=0, strategies=0)
    found = list(_runs(store, left_out))
    runs = [run for run, _ in found]
    starts = replay(runs, alike(pools, runs), spill_ms=store.settings.region_spill_ms)
    was: defaultdict[str, list[int]] = defaultdict(list)
    would: defaultdict[str, list[int]] = defaultdict(list)
    for (run, waited_ms), start in zip(found, starts, strict=True):
        was[run.requirement].append(waited_ms)
        if start is not None:
            would[run.requirement].append(start.at_ms - run.arrived_ms)
    rows: list[dict[str, Any]] = [
        {
            "requirement": name,
            "tasks": len(waits),
            "unserved": len(waits) - len(would[name]),
            **_figures("was", waits),
            **_figures("would", would[name]),
        }
        for name, waits in was.items()
    ]
    rows.sort(key=lambda row: (-row["unserved"], -(row["would_p50_ms"] or 0), row["requirement"]))
    arrivals = [run.arrived_ms for run in runs]
    return {
        "namespace": store.settings.namespace,
        "from_at": views.iso(min(arrivals, default=None)),
        "until_at": views.iso(max(arrivals, default=None)),
        "slots": sum(pool.slots for pool in pools),
        "tasks": len(runs),
        "left_out": dict(left_out),
        "leaves_out": list(LEAVES_OUT),
        "total": len(rows),
        "requirements": rows[:_MOST],
    }


def _figures(what: str, waits: list[int]) -> dict[str, int | None]:
    ordered = sorted(waits)
    shares = {"p50": 0.5, "p95": 0.95, "max": 1.0}
    return {f"{what}_{name}_ms": quantile(ordered, share) for name, share in shares.items()}


def _pools(store: Store) -> list[Pool]:
    """The agents that take work now."""
    agents: Counter[tuple[frozenset[str], str | None]] = Counter()
    slots: Counter[tuple[frozenset[str], str | None]] = Counter()
    for agent in discover(store):
        if agent.takes_work:
            kind = frozenset(agent.capabilities), agent.region
            agents[kind] += 1
            slots[kind] += agent.slots
    return [
        Pool(capabilities=offered, region=region, agents=number, slots=slots[offered, region])
        for (offered, region), number in agents.items()
    ]


def _runs(store: Store, left_out: Counter[str]) -> Iterator[tuple[Run, int]]:
    """(what was recorded of the last attempt, ms that it waited) of the newest tasks that have ended."""
    newest = store.client.execute("ZRANGE", store.keys["recent"], 0, _TASKS - 1, "REV")
    for first in range(0, len(newest), _PAGE):
        ids = [one.decode() for one in newest[first : first + _PAGE]]
        for stored in store.tasks.fields(ids, _FIELDS):
            state, queue, placing, score, *times, past = (
                None if one is None else one.decode() for one in stored
            )
            created, queued, started, ended = (None if one is None else int(float(one)) for one in times)
            if state is None or queue is None or score is None:
                left_out["gone"] += 1  # its retention has ended
                continue
            arrived = queued or created
            if state not in TERMINAL:
                left_out["unfinished"] += 1
            elif arrived is None or started is None or ended is None or started < arrived:
                left_out["never_started"] += 1
            else:
                strategy, region = parse_placing(placing or "")
                left_out["strategies"] += strategy != Strategy.CAPABILITY_MATCH
                left_out["earlier_attempts"] += len((past or "").splitlines())
                run = Run(
                    requirement=queue,
                    arrived_ms=arrived,
                    run_ms=max(0, ended - started),
                    score=float(score),
                    region=region,
                )
                yield run, started - arrived
