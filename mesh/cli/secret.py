"""`mesh secret`: the secret that everything of a mesh is signed with."""

from __future__ import annotations

import secrets

import click

from mesh.cli.commands import Group
from mesh.cli.options import common
from mesh.core.keyring import LEAST_BYTES


@click.group("secret", cls=Group)
def group() -> None:
    """Make the secret of a mesh."""


@group.command("generate")
@click.option("--bytes", "size", type=click.IntRange(LEAST_BYTES, 1024), metavar="N", default=LEAST_BYTES,
              show_default=True, help="How many random bytes.")  # fmt: skip
@common
def generate_command(size: int) -> None:
    """Print a new random secret, in hexadecimal digits. It is kept nowhere.

    export MESH_JWT_SECRET=$(mesh secret generate)
    """
    click.echo(secrets.token_hex(size))
