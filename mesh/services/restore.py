"""Restoring a namespace: the registry from a backup of it, and what becomes of the tasks of a restored Redis.

The backup is the list that `mesh discover -o json` prints. The order makes it safe while agents or coordinators of before still
run: first a new epoch, which ends every lease in one step, so that no old attempt can be renewed, settled or taken back; then
the registry, in which whoever does not beat now is offline; then the tasks that had not ended, page by page. An interrupted
restore is gone on with by running it again.
"""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from mesh.bus import messages
from mesh.core.agents import AgentInfo
from mesh.core.envelopes import peel
from mesh.core.names import check_name
from mesh.core.states import HELD, State
from mesh.errors import Conflict, Invalid
from mesh.services.agents import discover
from mesh.store.restores import Incomplete
from mesh.store.store import Store

__all__ = ["POLICIES", "AgentRow", "read_backup", "restore"]

POLICIES = ("fail", "requeue")
_COMPARED = ("name", "type", "capabilities", "region", "labels", "cordoned")
_KNOWN = frozenset(field.name for field in dataclasses.fields(AgentInfo))
_POLL_S = 0.2


class AgentRow(msgspec.Struct, kw_only=True, frozen=True):
    """One agent of a backup: what is restored of it, and when it was last there."""

    id: str
    name: str
    type: str
    namespace: str
    capabilities: tuple[str, ...]
    region: str | None
    labels: dict[str, str]
    cordoned: bool
    address: str = ""
    port: int = 0
    version: str = ""
    joined_at: datetime.datetime | None = None
    last_beat_at: datetime.datetime | None = None


# -- the backup


def read_backup(raw: bytes, namespace: str, name: str = "The backup") -> list[AgentRow]:
    """The agents of a backup, `name` being what to call it. Raises `Invalid` with one sentence for whatever is wrong with it."""
    try:
        rows = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"{name} is not JSON: {error}.") from None
    if not isinstance(rows, list):
        raise Invalid(f"{name} is not the list of agents that `mesh discover -o json` prints.")
    return check_rows(rows, namespace, name)


def check_rows(rows: Sequence[Any], namespace: str, name: str = "The backup") -> list[AgentRow]:
    """The agents, if they can be restored into this namespace. Raises `Invalid`."""
    agents: dict[str, AgentRow] = {}
    for number, row in enumerate(rows, 1):
        which = f"agent {row['id']!r}" if isinstance(row, dict) and "id" in row else f"entry {number}"
        if isinstance(row, dict) and (unknown := sorted(set(row) - _KNOWN)):
            raise Invalid(
                f"{name}: {which} has the field {unknown[0]!r}, which this version does not know; a newer one wrote it."
            )
        try:
            agent = msgspec.convert(row, AgentRow)
            check_name("agent id", agent.id)
            for capability in agent.capabilities:
                check_name("capability", capability)
        except (msgspec.ValidationError, Invalid) as error:
            raise Invalid(f"{name}: {which} is wrong: {str(error).rstrip('.')}.") from None
        if any(mark in word for pair in agent.labels.items() for word in pair for mark in ",="):
            raise Invalid(f"{name}: {which} has a label with a comma or an equals sign.")
        if agent.namespace != namespace:
            raise Invalid(f"{name}: {which} is of namespace {agent.namespace!r}, not {namespace!r}.")
        if agent.id in agents:
            raise Invalid(f"{name} has {which} twice.")
        agents[agent.id] = agent
    return list(agents.values())


# -- the registry


def beating(store: Store) -> dict[str, bool]:
    """Every registered agent -> whether it beats now. Waits for a beat of those that seem to: a backup may be seconds old."""
    first = {row["id"]: row for row in store.agents.all()}
    now_ms, lease_ms = store.agents.now_ms(), store.settings.lease_ms
    asked = {
        name
        for name, row in first.items()
        if "left" not in row and now_ms - int(row.get("beat", "0")) < lease_ms
    }
    alive: set[str] = set()
    until = time.monotonic() + 1.5 * store.settings.lease_renew_ms / 1000
    while asked - alive and time.monotonic() < until:
        time.sleep(_POLL_S)
        rows = {row["id"]: row for row in store.agents.all()}
        alive = {name for name in asked if name in rows and rows[name].get("beat") != first[name].get("beat")}
    return {name: name in alive for name in first}


def _diff(agents: Sequence[AgentRow], there: dict[str, AgentInfo], alive: dict[str, bool]) -> dict[str, Any]:
    """{add, change, unchanged, live, not_in_file}: ids, and for `change` what changes."""
    found: dict[str, Any] = {"add": [], "change": [], "unchanged": [], "live": [], "not_in_file": []}
    for agent in sorted(agents, key=lambda one: one.id):
        known = there.get(agent.id)
        if alive.get(agent.id):
            found["live"].append(agent.id)
        elif known is None:
            found["add"].append(agent.id)
        else:
            before = {name: getattr(known, name) for name in _COMPARED}
            after = {name: getattr(agent, name) for name in _COMPARED}
            fields = {
                name: {"from": before[name], "to": after[name]}
                for name in _COMPARED
                if before[name] != after[name]
            }
            found["change" if fields else "unchanged"].append(
                {"id": agent.id, "fields": fields} if fields else agent.id
            )
    in_file = {agent.id for agent in agents}
    found["not_in_file"] = sorted(name for name in there if name not in in_file and not alive.get(name))
    found["live"] = sorted({*found["live"], *(name for name, beats in alive.items() if beats)})
    return found


def _ms(moment: datetime.datetime | None) -> int:
    return int(moment.timestamp() * 1000) if moment is not None else 0


def _fields(agent: AgentRow, known: bool) -> dict[str, Any]:
    """The registration fields that a row stands for."""
    fields: dict[str, Any] = {
        "name": agent.name,
        "type": agent.type,
        "namespace": agent.namespace,
        "capabilities": ",".join(agent.capabilities),
        "region": agent.region or "",
        "labels": ",".join(f"{name}={value}" for name, value in sorted(agent.labels.items())),
    }
    if not known:
        fields |= {"address": agent.address, "port": agent.port, "version": agent.version}
        fields |= {"joined": _ms(agent.joined_at), "beat": _ms(agent.last_beat_at)}
    return fields


def _enlist(store: Store, agents: Sequence[AgentRow], alive: dict[str, bool]) -> None:
    """Everybody who does not beat is offline from now on, with the fields of the backup if that has them."""
    beats = {row["id"]: row.get("beat", "") for row in store.agents.all()}
    rows = {agent.id: agent for agent in agents}
    for name in sorted({*rows, *beats}):
        if alive.get(name):
            continue
        row, known = rows.get(name), name in beats
        fields = _fields(row, known) if row is not None else {}
        store.restores.enlist(name, beats.get(name, ""), fields, row.cordoned if row is not None else None)


# -- tasks


def _count(tasks: Iterable[Incomplete]) -> tuple[list[Incomplete], dict[str, int], dict[str, dict[str, int]]]:
    rows = list(tasks)
    types: dict[str, Counter[str]] = {}
    for one in rows:
        types.setdefault(one.type, Counter())[one.state] += 1
    states = dict(sorted(Counter(str(one.state) for one in rows).items()))
    return rows, states, {name: dict(sorted(types[name].items())) for name in sorted(types)}


def _told(one: Incomplete) -> dict[str, str | None]:
    return {
        "id": one.id,
        "type": one.type,
        "state": str(one.state),
        "agent": one.agent or None,
        "now": str(one.now),
    }


def _planned(one: Incomplete, policy: str) -> Incomplete:
    if policy == "fail":
        return one._replace(now=State.FAILED)
    return one._replace(now=State.QUEUED) if one.state in HELD else one


def _tell_chains(store: Store, failed: Sequence[str]) -> None:
    """What was to follow these tasks fails with them, and the chords that wait for it are told, as Celery does it."""
    keys = [store.keys.of("message", task_id) for task_id in failed]
    for task_id, message in zip(failed, store.client.execute("MGET", *keys) if keys else [], strict=True):
        for member in messages.chain_of(peel(message)) if message else []:
            document = messages.failure(
                member.id, f"task {task_id}, which it was to follow, was restored as failed"
            )
            store.tasks.conclude(member.id, State.FAILED, document)
            if member.group is not None:
                store.chords.part(member.group, member.part, document)


def _carry_out(store: Store, tell: Callable[[int], None]) -> list[Incomplete]:
    """Deal with all that was put aside; `tell` hears how many tasks that were."""
    done: list[Incomplete] = []
    more = True
    while more:
        more, rows = store.restores.page()
        _tell_chains(store, [one.id for one in rows if one.now is State.FAILED])
        done += rows
        tell(len(done))
    return done


# -- all of it


def restore(
    store: Store,
    agents: Sequence[AgentRow],
    *,
    tasks: str | None = None,
    dry_run: bool = False,
    tell: Callable[[int], None] = lambda number: None,
) -> dict[str, Any]:
    """Restore the registry to `agents`, and deal with every task that has not ended; `dry_run`: only say what would happen.

    `tasks`: "fail" (the default where no agent is alive) or "requeue" (what was held runs again, what waits stays). `tell` is
    called now and then with the number of tasks dealt with.

    {namespace, dry_run, epoch (ms, None in a dry run), continues (it goes on with an interrupted restore), agents: {add, change:
    [{id, fields: {name: {from, to}}}], unchanged, live, not_in_file}, tasks: {policy, states, types, list: [{id, type, state,
    agent, now}]}}: `states` and `types` count by the state that a task was in, `now` is the one that it is in since.

    Raises `Invalid`; `Conflict` if agents are alive, tasks have not ended, and `tasks` does not say what is to become of them.
    """
    if tasks is not None and tasks not in POLICIES:
        raise Invalid(f"tasks={tasks!r} is not one of {', '.join(POLICIES)}.")
    alive = beating(store)
    there = {agent.id: agent for agent in discover(store)}
    former = store.restores.epoch()
    continues = "raised" in former and "ended" not in former
    policy = former["tasks"] if continues else tasks or "fail"
    report: dict[str, Any] = {
        "namespace": store.settings.namespace,
        "dry_run": dry_run,
        "epoch": None,
        "continues": continues,
        "agents": _diff(agents, there, alive),
    }
    if dry_run:
        done = [_planned(one, policy) for one in store.restores.incomplete()]
    else:
        if tasks is None and not continues:
            _refuse_if_alive(store, alive)
        report["epoch"], policy, report["continues"] = store.restores.begin(policy)
        _enlist(store, agents, alive)
        done = _carry_out(store, tell)
        if policy == "fail" and store.restores.put_parked_aside(report["epoch"]):
            done += _carry_out(store, tell)
        store.restores.end()
    rows, states, types = _count(done)
    report["tasks"] = {
        "policy": policy,
        "states": states,
        "types": types,
        "list": [_told(one) for one in rows],
    }
    return report


def _refuse_if_alive(store: Store, alive: dict[str, bool]) -> None:
    """A mesh that works is not restored by a slip: its tasks would end."""
    number = sum(number for _, _, number in store.tasks.live())
    names = [name for name, beats in alive.items() if beats]
    if names and number:
        raise Conflict(
            f"{len(names)} agents of namespace {store.settings.namespace!r} are alive ({', '.join(names[:3])}"
            f"{', ...' if len(names) > 3 else ''}) and {number} tasks have not ended: say what is to become of these, "
            "fail or requeue."
        )
