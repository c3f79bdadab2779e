"""`mesh discover`: the agents of a namespace."""

from __future__ import annotations

import click

from mesh.cli.options import OUTPUTS, common, load_settings
from mesh.cli.show import say, show_rows

STATUSES = ("healthy", "degraded", "unhealthy", "draining", "offline")
COLUMNS = ("id", "status", "capabilities", "running", "slots", "region", "address", "port", "silent_ms")


@click.command("discover")
@click.option("--capability", metavar="NAME", help="Only agents that offer it.")
@click.option("--status", type=click.Choice(STATUSES), help="Only agents that are in this state.")
@click.option("--region", metavar="NAME", help="Only agents of this region.")
@click.option(
    "-o", "--output", "--format", "output", type=click.Choice(OUTPUTS), default="table", show_default=True,
    help="How to print.",
)  # fmt: skip
@common
def command(capability: str | None, status: str | None, region: str | None, output: str) -> None:
    """List the agents of a namespace, from the live registry.

    The JSON is a list with one object an agent; its fields do not change: `jq '.[].capabilities'`.
    """
    from mesh.client import Mesh

    with Mesh(settings=load_settings()) as mesh:
        agents = mesh.agents(capability=capability, status=status, region=region)
    if not agents and output == "table":
        say(f"No such agent in namespace {mesh.settings.namespace}.")
        return
    show_rows([agent.to_json() for agent in agents], output, COLUMNS)
