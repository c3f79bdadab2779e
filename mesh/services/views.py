"""What people are shown of a namespace and of a task: plain values, times in UTC ISO 8601."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec

from mesh.bus import documents
from mesh.core.places import parse_placing
from mesh.core.states import State
from mesh.core.tracing import trace_id_of
from mesh.services.agents import discover
from mesh.store.client import ResponseError
from mesh.store.coordinators import Coordinators
from mesh.store.durability import durability
from mesh.store.rotation import known_kids
from mesh.store.store import Store
from mesh.store.tasks import Attempt, Record

_TIMES = ("created", "queued", "leased", "started", "ended", "crashed")


def iso(ms: int | None) -> str | None:
    """Milliseconds since 1970 as text; None stays None."""
    if ms is None:
        return None
    return datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC).isoformat(timespec="milliseconds")


def task(record: Record) -> dict[str, Any]:
    """A task's record; `strategy` and `region`: those that it was submitted with; `by`: the subject of who did, over HTTP."""
    strategy, region = parse_placing(record.other.get("placing", ""))
    return {
        "id": record.id,
        "state": str(record.state),
        "type": record.type,
        "queue": record.queue,
        "strategy": strategy,
        "region": region,
        "priority": record.priority,
        "run": record.run,
        "attempt": record.attempt,
        "failures": record.failures,
        "crashes": record.crashes,
        "agent": record.agent,
        "error": record.error,
        "reason": record.reason,
        "labels": json.loads(record.other.get("labels", "{}")),
        "by": record.other.get("by"),
        "trace_id": record.other.get("trace") or trace_id_of(record.id),
        **{f"{name}_at": iso(getattr(record, name)) for name in _TIMES},
        "expires_at": iso(record.expires_at),
        "deadline_at": iso(record.deadline_at),
        "past": [_ended(one) for one in record.past],
    }


def _ended(attempt: Attempt) -> dict[str, Any]:
    """An attempt that did not end its task."""
    return {
        "attempt": attempt.attempt,
        "run": attempt.run,
        "agent": attempt.agent,
        "how": attempt.how,
        **{f"{name}_at": iso(getattr(attempt, name)) for name in ("leased", "started", "ended")},
        "error": attempt.error,
    }


def _decoded(document: bytes | None) -> dict[str, Any]:
    if not document:
        return {}
    try:
        return documents.decode(document)
    except msgspec.DecodeError:  # what only Python's reader takes: NaN, half a surrogate pair
        meta: dict[str, Any] = json.loads(document)
        return meta


def failure(meta: dict[str, Any]) -> dict[str, Any]:
    """{type, message, traceback} of a result document that tells of a failure."""
    result = meta.get("result")
    error: dict[str, Any] = result if isinstance(result, dict) else {}
    words = error.get("exc_message") or []
    said = ", ".join(str(word) for word in words) if isinstance(words, (list, tuple)) else str(words)
    return {"type": error.get("exc_type"), "message": said, "traceback": meta.get("traceback")}


def end(task_id: str, state: State, document: bytes | None) -> dict[str, Any]:
    """A task that has ended: {id, state, result} if it succeeded, else {id, state, error: {type, message, traceback}}."""
    meta = _decoded(document)
    if state is State.SUCCEEDED:
        return {"id": task_id, "state": str(state), "result": meta.get("result")}
    return {"id": task_id, "state": str(state), "error": failure(meta)}


def progress(document: bytes | None) -> dict[str, Any] | None:
    """What a task last told of its progress, {fraction, note}, from its result document; None if nothing."""
    meta = _decoded(document)
    told = meta.get("result") if meta.get("status") == "PROGRESS" else None
    return told if isinstance(told, dict) else None


def attempts(record: Record) -> dict[str, Any]:
    """How often a task was tried: the attempts that did not end it, and the one that did, or is under way, if any."""
    past = [_ended(one) for one in record.past]
    latest = None
    if record.leased and not (past and past[-1]["attempt"] == record.attempt):
        started = None if record.state is State.LEASED else record.started
        latest = {
            "attempt": record.attempt,
            "run": record.run,
            "agent": record.agent,
            "how": str(record.state),
            "leased_at": iso(record.leased),
            "started_at": iso(started),
            "ended_at": iso(record.ended),
            "error": record.error,
        }
    return {
        "id": record.id,
        "state": str(record.state),
        "run": record.run,
        "attempts": record.attempt,
        "failures": record.failures,
        "crashes": record.crashes,
        "past": past,
        "latest": latest,
    }


def namespace(store: Store) -> dict[str, Any]:
    """Agents by health, tasks by queue and state, coordinators and who leads them, the last restore (see `epoch`).

    `queues`: queue -> state -> tasks, now in it for live states, ever ended in it for the others; `states`: all names.
    """
    health = Counter(str(agent.status) for agent in discover(store))
    coordinators = Coordinators(store.client, store.keys)
    term, leader = coordinators.leader()
    return {
        "namespace": store.settings.namespace,
        "coordinators": coordinators.all(),
        "leader": {"id": leader, "term": term} if leader else None,
        "epoch": epoch(store),
        "keys": signing_keys(store),
        "agents": dict(sorted(health.items())),
        "queues": {
            name: by_state(counts)
            for name, counts in sorted(store.tasks.counts().items())
            if any(counts.values())
        },
        "states": [str(state) for state in State],
    }


def by_state(counts: Mapping[str, int]) -> dict[str, int]:
    """Of what a queue counts only tasks by their states, the events left out: state -> tasks, none that has none."""
    return {str(state): counts[state] for state in State if counts.get(state)}


def signing_keys(store: Store) -> dict[str, Any]:
    """What is signed with, by the names of the keys: {in_force, known, sealed_otherwise}.

    `in_force`: as the leader says, None while there is none; `known`: kid -> {coordinators, agents}, how many say that they know
    it; `sealed_otherwise`: how many tasks that wait are sealed with another key, as the leader last counted, None if it has not.
    """
    running = Coordinators(store.client, store.keys).all()
    first = next((row for row in running if row.get("leads")), running[0] if running else {})
    coordinators, agents = known_kids(store.client, store.keys)
    known: dict[str, dict[str, int]] = {}
    for kind, lists in (("coordinators", coordinators), ("agents", agents)):
        for kid in (one for kids in lists for one in kids):
            row = known.setdefault(kid, {"coordinators": 0, "agents": 0})
            row[kind] += 1
    return {
        "in_force": first.get("signs"),
        "known": known,
        "sealed_otherwise": first.get("sealed_otherwise"),
    }


def epoch(store: Store) -> dict[str, Any]:
    """The last restore, and whether Redis was seen to hold less than before: {restored_at, unfinished, gone_back}.

    `unfinished`: the restore was interrupted, run it again. `gone_back`: {noticed_at, by, lost_ms (None: not known)} or None.
    """
    fields = store.restores.epoch()
    raised, rewound = fields.get("raised"), fields.get("rewound")
    gone_back = None
    if rewound:
        lost_ms = int(fields.get("lost", 0)) or None
        gone_back = {"noticed_at": iso(int(rewound)), "by": fields.get("by"), "lost_ms": lost_ms}
    return {
        "restored_at": iso(int(raised)) if raised else None,
        "unfinished": raised is not None and "ended" not in fields,
        "gone_back": gone_back,
    }


def cluster(store: Store, version: str) -> dict[str, Any]:
    """{namespace, coordinators, leader, epoch, keys, regions, durability, versions}: what the mesh stands on. `version`: the
    caller's.

    `regions`: region -> {agents, coordinators} that are there; `durability`: Redis's own settings, None where it does not tell.
    """
    coordinators = Coordinators(store.client, store.keys)
    term, leader = coordinators.leader()
    running = coordinators.all()
    agents = [agent for agent in discover(store) if agent.status != "offline"]
    regions: dict[str, dict[str, int]] = {}
    for kind, names in (
        ("agents", [agent.region for agent in agents]),
        ("coordinators", [one.get("region") for one in running]),
    ):
        for name, number in Counter(names).items():
            regions.setdefault(name or "", {"agents": 0, "coordinators": 0})[kind] = number
    return {
        "namespace": store.settings.namespace,
        "coordinators": running,
        "leader": {"id": leader, "term": term} if leader else None,
        "epoch": epoch(store),
        "keys": signing_keys(store),
        "regions": regions,
        "durability": durability(store.client).settings,
        "versions": {
            "coordinator": version,
            "redis": _redis_version(store),
            "agents": dict(Counter(agent.version for agent in agents)),
        },
    }


def _redis_version(store: Store) -> str | None:
    try:
        lines = store.client.execute("INFO", "server").decode().splitlines()
    except ResponseError:
        return None
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    if "valkey_version" in facts:
        return f"Valkey {facts['valkey_version']}"
    return f"Redis {facts.get('redis_version', '?')}"
