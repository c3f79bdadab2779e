"""`mesh queue`: what waits, and for how long."""

from __future__ import annotations

import click

from mesh.cli.commands import Group
from mesh.cli.options import open_mesh, output, remote, watch
from mesh.cli.show import rows_text
from mesh.cli.watching import present

COLUMNS = ("queue", "depth", "oldest_age_ms")


@click.group("queue", cls=Group)
def group() -> None:
    """Queues: what waits, and for how long. A queue's name is what it requires: `ocr`, or `gpu+ocr`."""


@group.command("list")
@watch
@output
@remote
def list_command(watch: float | None, output: str) -> None:
    """List the queues: how many tasks wait in each, and since when the oldest.

    JSON: queue, depth, oldest_age_ms, and states: how many tasks are in each live state, and ever ended in each other.
    """
    with open_mesh() as mesh:

        def view() -> str:
            return rows_text(mesh.queues(), output, COLUMNS, key="queue")

        empty = f"No task was ever submitted to namespace {mesh.settings.namespace}."
        present(view, output, watch, empty=empty)
