"""`mesh status`: how a namespace or one task is doing."""

from __future__ import annotations

from typing import Any

import click

from mesh.cli.options import common, load_settings, output
from mesh.cli.show import show_one, table, to_json


@click.command("status")
@click.argument("task_id", required=False)
@output
@common
def command(task_id: str | None, output: str) -> None:
    """Show the record of TASK_ID; without it, the agents, queues and coordinators of the namespace."""
    from mesh.client import Mesh
    from mesh.services import views

    with Mesh(settings=load_settings()) as mesh:
        if task_id is not None:
            show_one(views.task(mesh.handle(task_id).record()), output)
        else:
            _show_namespace(views.namespace(mesh.store), output)


def _show_namespace(view: dict[str, Any], output: str) -> None:
    if output == "name":
        click.echo(view["namespace"])
        return
    if output != "table":
        click.echo(to_json(view, compact=output == "jsonl"))
        return
    leader = view["leader"]
    agents = ", ".join(f"{number} {status}" for status, number in view["agents"].items()) or "none"
    click.echo(f"namespace     {view['namespace']}")
    click.echo(f"coordinators  {', '.join(one['id'] for one in view['coordinators']) or 'none'}")
    click.echo(f"leader        {leader['id'] + ' (term ' + str(leader['term']) + ')' if leader else 'none'}")
    click.echo(f"agents        {agents}")
    if view["queues"]:
        states = [state for state in view["states"] if any(state in row for row in view["queues"].values())]
        rows = [
            {"queue": name, **{state: row.get(state, 0) for state in states}}
            for name, row in view["queues"].items()
        ]
        click.echo("\n" + table(rows, ["queue", *states]))
