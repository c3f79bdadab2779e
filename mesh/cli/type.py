"""`mesh type`: the task types that agents advertise."""

from __future__ import annotations

import click

from mesh.cli import complete
from mesh.cli.commands import Group
from mesh.cli.options import open_mesh, output, remote
from mesh.cli.show import one_text, rows_text
from mesh.cli.watching import present
from mesh.errors import NotFound

COLUMNS = ("name", "requires", "timeout_s", "retries", "description")


@click.group("type", cls=Group)
def group() -> None:
    """Task types that agents advertise."""


@group.command("list")
@output
@remote
def list_command(output: str) -> None:
    """List the task types. JSON has their schemas and examples too."""
    with open_mesh() as mesh:
        empty = f"No agent has advertised a task type in namespace {mesh.settings.namespace}."
        rows = [one.to_json() for one in mesh.types()]
        present(lambda: rows_text(rows, output, COLUMNS, key="name"), output, None, empty=empty)


@group.command("show")
@click.argument("name", metavar="TYPE", shell_complete=complete.types)
@output
@remote
def show_command(name: str, output: str) -> None:
    """Show one type: what it requires beyond its name, its limits, its schemas (JSON Schema) and examples."""
    import difflib

    with open_mesh() as mesh:
        types = {one.name: one for one in mesh.types()}
        if name not in types:
            near = difflib.get_close_matches(name, types, n=2)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise NotFound(f"No agent has advertised task type {name!r}.{hint}")
        click.echo(one_text(types[name].to_json(), output, key="name"))
