"""`mesh audit`: who did or was refused what."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping
from typing import Any

import click

from mesh.cli.commands import Command
from mesh.cli.options import open_mesh, output, remote
from mesh.cli.show import clean, rows_text, say, to_json
from mesh.cli.task import Since
from mesh.errors import MeshError, StoreUnavailable

COLUMNS = ("time", "subject", "source", "action", "object", "allowed", "many", "why")
_EVERY_S = 1.0
_MOST = 1000


@click.command("audit", cls=Command)
@click.option("--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("--denied", is_flag=True, help="Only what was refused.")
@click.option("--subject", metavar="NAME", help="Only what this subject did or asked for.")
@click.option("--action", metavar="NAME", help="Only this: cancel, drain, submit, authenticate ...")
@click.option("--since", type=Since(), metavar="TIME", help="Only since then: 30m, 2h, 1d ago, or ISO 8601.")
@click.option("--limit", type=click.IntRange(1, 10_000), metavar="N", default=50, show_default=True,
              help="At most so many.")  # fmt: skip
@output
@remote
def command(
    follow: bool,
    denied: bool,
    subject: str | None,
    action: str | None,
    since: int | None,
    limit: int,
    output: str,
) -> None:
    """Read the audit log of a namespace, the newest entry first (with --follow the oldest).

    Who (subject), from where (source), what (action), on what (object), allowed or not, and why. It has no payloads and no
    tokens. On Redis it says who worked there as `user@host`.
    """
    filters: dict[str, Any] = {"subject": subject, "action": action, "allowed": False if denied else None}
    with open_mesh() as mesh:
        rows = mesh.audit(**filters, since_ms=since, limit=limit)
        if not follow:
            text = rows_text(rows, output, COLUMNS)
            if text:
                click.echo(text)
            elif output == "table":
                say(f"No such entry in the audit log of namespace {mesh.settings.namespace}.")
            return
        known: set[str] = set()
        while True:
            for row in reversed(rows):
                if row["id"] not in known:
                    click.echo(_line(row, output))
            sys.stdout.flush()
            known = {row["id"] for row in rows} or known
            newest = int(rows[0]["id"].partition("-")[0]) if rows else since
            since = newest if newest is not None else int(time.time() * 1000)
            time.sleep(_EVERY_S)
            try:
                rows = mesh.audit(**filters, since_ms=since, limit=_MOST)
            except MeshError as error:
                if error.exit_code != StoreUnavailable.exit_code:
                    raise
                rows = []


def _line(row: Mapping[str, Any], output: str) -> str:
    if output == "name":
        return str(row["id"])
    if output != "table":
        return to_json(row, compact=True)
    at = re.sub(r"\.\d+\+00:00$", "Z", row["time"])
    word = "allowed" if row["allowed"] else "denied"
    many = f" x{row['many']}" if row["many"] > 1 else ""
    said = f"{at}  {word:<7}  {row['subject'] or '-'}  {row['source'] or '-'}  {row['action']}  {row['object']}{many}"
    return clean(f"{said}  {row['why']}".rstrip())
