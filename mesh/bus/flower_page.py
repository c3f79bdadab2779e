"""What Flower's pages say of agents beside what Celery knows: their registrations, as HTML that is put into its pages."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from mesh.core.agents import AgentInfo, agent_info
from mesh.store.store import Store

__all__ = ["agents_of", "registration", "registrations"]
_COLOURS = {"healthy": "success", "degraded": "warning", "unhealthy": "danger", "draining": "info"}


def agents_of(store: Store) -> list[AgentInfo]:
    """The agents of the namespace, by id; one that left is there for a day. Raises `StoreUnavailable`."""
    settings, now_ms = store.settings, store.agents.now_ms()
    return [
        agent_info(
            row,
            now_ms,
            heartbeat_interval_ms=settings.heartbeat_interval_ms,
            unhealthy_threshold_ms=settings.unhealthy_threshold_ms,
        )
        for row in store.agents.all()
    ]


def _health(agent: AgentInfo) -> str:
    colour = _COLOURS.get(str(agent.status), "secondary")
    more = " cordoned" if agent.cordoned else ""
    return f'<span class="badge text-bg-{colour}">{escape(agent.status)}</span>{more}'


def _last_beat(agent: AgentInfo) -> str:
    return f"{agent.silent_ms / 1000:.0f} s ago"


def registrations(namespace: str, agents: Sequence[AgentInfo]) -> str:
    """A table of all agents, for the page that lists the workers."""
    head = "".join(
        f'<th scope="col">{name}</th>'
        for name in ("Agent", "Health", "Capabilities", "Region", "Slots", "Last beat", "Version")
    )
    rows = "".join(
        f"<tr><td>{escape(agent.id)}</td><td>{_health(agent)}</td><td>{escape(', '.join(agent.capabilities))}</td>"
        f"<td>{escape(agent.region or '')}</td><td>{agent.running} of {agent.slots}</td><td>{_last_beat(agent)}</td>"
        f"<td>{escape(agent.version)}</td></tr>"
        for agent in agents
    )
    return (
        '<div class="page-section pt-0"><section class="broker-table-card" aria-label="Registered agents" id="mesh-agents">'
        f'<figure class="table-responsive mb-0"><table class="broker-table table table-hover align-middle mb-0 caption-top">'
        f'<caption class="px-3">Agents registered in namespace {escape(namespace)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></figure></section></div>"
    )


def registration(agent: AgentInfo) -> str:
    """What one agent has registered, for its own page."""
    rows = {
        "Health": _health(agent),
        "What is wrong": escape(
            agent.condition or ("silent: its tasks run elsewhere" if agent.absent else "")
        ),
        "Capabilities": escape(", ".join(agent.capabilities)),
        "Namespace": escape(agent.namespace),
        "Region": escape(agent.region or ""),
        "Type": escape(agent.type),
        "Labels": escape(", ".join(f"{name}={value}" for name, value in sorted(agent.labels.items()))),
        "Slots": f"{agent.running} of {agent.slots} run a task",
        "Health port": escape(f"{agent.address}:{agent.port}"),
        "Joined": escape(agent.joined_at),
        "Last beat": _last_beat(agent),
        "Version": escape(agent.version),
    }
    cells = [f'<th scope="row">{name}</th><td>{value}</td>' for name, value in rows.items() if value]
    lines = "".join(f"<tr>{''.join(cells[first : first + 2])}</tr>" for first in range(0, len(cells), 2))
    return (
        '<section class="workers-table-card mb-3" aria-label="Registration" id="mesh-registration">'
        '<table class="table table-sm align-middle w-100 mb-0 caption-top">'
        f'<caption class="px-3">Registration in the mesh</caption><tbody>{lines}</tbody></table></section>'
    )
