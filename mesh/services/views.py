"""What people are shown of a namespace and of a task: plain values, times in UTC ISO 8601."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from typing import Any

from mesh.core.states import State
from mesh.services.agents import discover
from mesh.store.coordinators import Coordinators
from mesh.store.store import Store
from mesh.store.tasks import Record

_TIMES = ("created", "queued", "leased", "started", "ended", "crashed")


def iso(ms: int | None) -> str | None:
    """Milliseconds since 1970 as text; None stays None."""
    if ms is None:
        return None
    return datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC).isoformat(timespec="milliseconds")


def task(record: Record) -> dict[str, Any]:
    """A task's record."""
    return {
        "id": record.id,
        "state": str(record.state),
        "type": record.type,
        "queue": record.queue,
        "priority": record.priority,
        "run": record.run,
        "attempt": record.attempt,
        "failures": record.failures,
        "crashes": record.crashes,
        "agent": record.agent,
        "error": record.error,
        "reason": record.reason,
        "labels": json.loads(record.other.get("labels", "{}")),
        **{f"{name}_at": iso(getattr(record, name)) for name in _TIMES},
        "expires_at": iso(record.expires_at),
    }


def namespace(store: Store) -> dict[str, Any]:
    """Agents by health, tasks by queue and state, coordinators and who leads them.

    `queues`: queue -> state -> tasks, now in it for live states, ever ended in it for the others; `states`: all names.
    """
    health = Counter(str(agent.status) for agent in discover(store))
    coordinators = Coordinators(store.client, store.keys)
    term, leader = coordinators.leader()
    return {
        "namespace": store.settings.namespace,
        "coordinators": coordinators.all(),
        "leader": {"id": leader, "term": term} if leader else None,
        "agents": dict(sorted(health.items())),
        "queues": {
            name: {state: number for state, number in states.items() if number}
            for name, states in sorted(store.tasks.counts().items())
            if any(states.values())
        },
        "states": [str(state) for state in State],
    }
