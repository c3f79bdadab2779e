"""`mesh discover`: the agents of a namespace."""

from __future__ import annotations

import click

from mesh.cli import complete
from mesh.cli.commands import Command
from mesh.cli.options import open_mesh, output, remote, watch
from mesh.cli.show import rows_text
from mesh.cli.watching import present

STATUSES = ("healthy", "degraded", "unhealthy", "draining", "offline")
COLUMNS = (
    "id", "status", "cordoned", "capabilities", "running", "slots", "region", "address", "port", "silent_ms"
)  # fmt: skip


@click.command("discover", cls=Command)
@click.option(
    "--capability", metavar="NAME", help="Only agents that offer it.", shell_complete=complete.capabilities
)
@click.option("--status", type=click.Choice(STATUSES), help="Only agents that are in this state.")
@click.option("--region", metavar="NAME", help="Only agents of this region.", shell_complete=complete.regions)
@watch
@output
@remote
def command(
    capability: str | None, status: str | None, region: str | None, watch: float | None, output: str
) -> None:
    """List the agents of a namespace, from the live registry.

    The JSON is a list with one object an agent; its fields do not change: `jq '.[].capabilities'`.
    """
    with open_mesh() as mesh:

        def view() -> str:
            agents = mesh.agents(capability=capability, status=status, region=region)
            leaving = ("leaves_in_ms",) if any(one.leaves_in_ms is not None for one in agents) else ()
            return rows_text([one.to_json() for one in agents], output, (*COLUMNS, *leaving))

        present(
            view,
            output,
            watch,
            empty=f"No such agent in namespace {mesh.settings.namespace}.",
        )
