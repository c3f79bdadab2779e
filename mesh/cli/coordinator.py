"""`mesh coordinator`: runs the loops of a namespace, and answers for their health."""

from __future__ import annotations

import os

import click

from mesh.cli.commands import Command
from mesh.cli.options import common, load_settings


@click.command("coordinator", cls=Command)
@click.option("--id", "coordinator_id", metavar="NAME", help="Unique among coordinators [COORDINATOR_ID].")
@click.option("--host", default="0.0.0.0", show_default=True, help="The address it listens on.")
@click.option("--port", type=click.IntRange(1, 65535), metavar="N",
              help="Its port [MESH_COORDINATOR_PORT]; 3000, or a free one if that is taken.")  # fmt: skip
@common
def command(coordinator_id: str | None, host: str, port: int | None) -> None:
    """Start a coordinator. Run one, or several: they elect a leader, and another takes over within four seconds."""
    if coordinator_id is not None:
        os.environ["COORDINATOR_ID"] = coordinator_id
    settings = load_settings()
    _ = settings.keyring  # what is wrong with the secret is told before Celery is loaded
    from mesh.coordinator.main import serve  # loads Celery, whose settings come from the environment

    serve(settings, host=host, port=port)
