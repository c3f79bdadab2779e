"""`mesh flower`: the dashboard, on this host's loopback unless it asks who is there."""

from __future__ import annotations

import os
import sys

import click

from mesh.cli.commands import Command
from mesh.cli.options import common, load_settings


def flower_command(*, address: str | None = None, port: int | None = None) -> list[str]:
    """The command line of Flower; what is None is left to FLOWER_ADDRESS and FLOWER_PORT, and to its defaults."""
    command = [sys.executable, "-m", "celery", "-A", "mesh", "flower"]
    command += [f"--address={address}"] if address else []
    command += [f"--port={port}"] if port else []
    return command


@click.command("flower", cls=Command)
@click.option("--address", metavar="IP",
              help="Where it listens [FLOWER_ADDRESS]; 127.0.0.1, or everywhere if it asks for a password.")  # fmt: skip
@click.option("--port", type=click.IntRange(1, 65535), help="Its port [FLOWER_PORT]; by default 5555.")
@click.argument("more", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTIONS OF FLOWER]")
@common
def command(address: str | None, port: int | None, more: tuple[str, ...]) -> None:
    """Start Flower, the dashboard, for this namespace.

    Whoever reaches it may stop agents and cancel tasks: beyond this host it wants FLOWER_BASIC_AUTH=user:password
    (or -- --basic-auth=..., or one of Flower's own logins).
    """
    load_settings()
    os.execv(sys.executable, [*flower_command(address=address, port=port), *more])
