"""The options that agents add to `celery worker`; each may also come from the environment (see `mesh.settings`)."""

from __future__ import annotations

import click

_OPTIONS = (
    ("--agent-id", "ID of this agent, unique among live agents of its namespace [AGENT_ID]."),
    ("--agent-name", "Name that people read [AGENT_NAME]."),
    ("--agent-type", "Type that policies are written for [AGENT_TYPE]."),
    ("--capabilities", "What this agent can do, comma-separated [AGENT_CAPABILITIES]."),
    ("--region", "Region of this agent [AGENT_REGION]."),
    ("--labels", "Marks of this agent, a=b,c=d [AGENT_LABELS]."),
    ("--health-port", "Port of /health; without it a taken port gives way to a free one [AGENT_PORT]."),
)


def worker_options() -> list[click.Option]:
    """One click option each."""
    return [click.Option([name], help=meaning, default=None) for name, meaning in _OPTIONS]
