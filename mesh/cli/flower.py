"""`mesh flower`: the dashboard, on this host's loopback unless asked otherwise."""

from __future__ import annotations

import os
import sys

import click

from mesh.cli.options import common, load_settings


def flower_command(*, address: str = "127.0.0.1", port: int = 5555) -> list[str]:
    """The command line of Flower."""
    return [sys.executable, "-m", "celery", "-A", "mesh", "flower", f"--address={address}", f"--port={port}"]


@click.command("flower")
@click.option("--address", default="127.0.0.1", show_default=True,
              help="Where it listens; beyond loopback only with authentication (-- --basic-auth=...).")  # fmt: skip
@click.option("--port", type=click.IntRange(1, 65535), default=5555, show_default=True, help="Its port.")
@click.argument("more", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTIONS OF FLOWER]")
@common
def command(address: str, port: int, more: tuple[str, ...]) -> None:
    """Start Flower for this namespace."""
    load_settings()
    os.execv(sys.executable, [*flower_command(address=address, port=port), *more])
