"""Who an agent is: its id, its host, and the proof that a former life of the same id is over."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import Conflict
from ..services import audit
from ..settings import Settings
from ..store.agents import Joined
from ..store.store import Store

_POLL_S = 0.25
_MOST_UNNAMED = 1000


def _read(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text(encoding="utf-8").strip()
    return ""


def boot_id() -> str:
    """Names this boot of this kernel and this process table: containers on one host have tables of their own."""
    with contextlib.suppress(OSError):
        return f"{_read('/proc/sys/kernel/random/boot_id')}/{os.readlink('/proc/self/ns/pid')}"
    return ""


def process_start(pid: int) -> str:
    """When a process started, in ticks since boot; '' if there is no such process (or no /proc)."""
    stat = _read(f"/proc/{pid}/stat")
    fields = stat.rpartition(")")[2].split()
    if not fields or fields[0] == "Z":  # a zombie is over
        return ""
    return fields[19] if len(fields) > 19 else ""


@dataclass(frozen=True, kw_only=True)
class Membership:
    """An agent that has joined."""

    agent_id: str
    incarnation: int
    capabilities: tuple[str, ...]
    fields: dict[str, Any]

    @property
    def holder(self) -> str:
        """What its leases carry."""
        return f"{self.agent_id}#{self.incarnation}"


def registration(
    settings: Settings, agent_id: str, capabilities: tuple[str, ...], **more: Any
) -> dict[str, Any]:
    """The fields of an agent's record."""
    from .. import __version__

    labels = ",".join(f"{name}={value}" for name, value in sorted(settings.agent_labels.items()))
    return {
        "name": settings.agent_name or agent_id,
        "type": settings.agent_type,
        "namespace": settings.namespace,
        "capabilities": ",".join(capabilities),
        "region": settings.agent_region or "",
        "labels": labels,
        "address": socket.gethostname(),
        "version": __version__,
        "pid": os.getpid(),
        "boot_id": boot_id(),
        "pid_start": process_start(os.getpid()),
        **more,
    }


def _is_gone(record: dict[str, str]) -> bool:
    """Whether the process behind a record has certainly ended: same boot, and no such process any more."""
    here = boot_id()
    if not here or record.get("boot_id") != here:
        return False
    return process_start(int(record.get("pid", "0"))) != record.get("pid_start")


def _is_here(record: dict[str, str]) -> bool:
    return bool(boot_id()) and record.get("boot_id") == boot_id()


def join(store: Store, settings: Settings, capabilities: tuple[str, ...], **more: Any) -> Membership:
    """Register this process. Raises `Conflict` if another live agent has the id, `StoreUnavailable`."""
    if settings.agent_id:
        return _join_as(store, settings, settings.agent_id, capabilities, more, wait=True)
    host = socket.gethostname().partition(".")[0]
    for number in range(1, _MOST_UNNAMED):
        with contextlib.suppress(Conflict):
            return _join_as(store, settings, f"{host}-{number}", capabilities, more, wait=False)
    raise Conflict(f"{_MOST_UNNAMED} unnamed agents run on {host}: give this one an id with --agent-id.")


def _join_as(
    store: Store,
    settings: Settings,
    agent_id: str,
    capabilities: tuple[str, ...],
    more: dict[str, Any],
    *,
    wait: bool,
) -> Membership:
    fields = registration(settings, agent_id, capabilities, **more)
    first_beat: str | None = None
    while True:
        other = store.agents.get(agent_id)
        gone = int(other["incarnation"]) if other and _is_gone(other) else None
        joined = store.agents.join(agent_id, fields, gone=gone)
        if not joined.taken:
            break
        other = other or {}
        first_beat = first_beat or other.get("beat", "")
        if not wait or _is_here(other) or other.get("beat", "") != first_beat:
            raise Conflict(
                f"Agent id {agent_id!r} is already running in namespace {settings.namespace!r} "
                f"(pid {other.get('pid', '?')} on {other.get('address', '?')}): give this agent another id, or stop that one."
            )
        # Another host had it, and may be dead: its last beat decides within one lease.
        time.sleep(_POLL_S)
    _take_over(store, agent_id, joined)
    offered = f"capabilities {', '.join(capabilities)}"
    audit.tell(
        store,
        subject=agent_id,
        source=fields["address"],
        action="register",
        object=offered,
        key=store.keys["told"],
    )
    return Membership(
        agent_id=agent_id, incarnation=joined.incarnation, capabilities=capabilities, fields=fields
    )


def leave(store: Store, membership: Membership) -> None:
    """Deregister. Raises `StoreUnavailable`."""
    store.agents.leave(membership.agent_id, membership.incarnation)
    source = str(membership.fields["address"])
    audit.tell(
        store,
        subject=membership.agent_id,
        source=source,
        action="leave",
        object=f"agent {membership.agent_id}",
        key=store.keys["told"],
    )


def _take_over(store: Store, agent_id: str, joined: Joined) -> None:
    """A former life of this id is over: its tasks need not wait for the end of their leases."""
    if joined.before and store.agents.evict(f"{agent_id}#{joined.before}"):
        store.tasks.reap()
