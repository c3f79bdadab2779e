"""`mesh config`: the settings of this place, and whether a configuration file is right."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from mesh.cli.commands import Group
from mesh.cli.options import common, load_settings, output
from mesh.cli.show import rows_text
from mesh.errors import Invalid

COLUMNS = ("setting", "value", "source", "unit")


@click.group("config", cls=Group)
def group() -> None:
    """Show the settings, check a configuration file."""


@group.command("show")
@click.option("--set-only", is_flag=True, help="Only those that are not at their default.")
@output
@common
def show_command(set_only: bool, output: str) -> None:
    """Show every setting as a process started here would have it, and where it came from. Secrets are masked.

    JSON: setting (the variable), path (in the file), value, source (default, a variable, or a place in the file),
    unit, default, why.
    """
    settings = load_settings()
    rows: list[dict[str, Any]] = [
        {
            "setting": row.env[0],
            "path": row.path,
            "value": value,
            "source": source,
            "unit": row.unit,
            "default": row.default,
            "why": row.why,
        }
        for row, value, source in settings.described()
        if source != "default" or not set_only
    ]
    text = rows_text(rows, output, COLUMNS, key="setting")
    if text:
        click.echo(text)


@group.command("check")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@common
def check_command(file: Path | None) -> None:
    """Check FILE as MESH_CONFIG, together with the environment and the policies; without it, what is in force here.

    Exit code 0, or 2 with what is wrong, a line for each: where, what, and what to do.
    """
    from mesh.settings import DEFAULT_FILE

    if file is not None:
        os.environ["MESH_CONFIG"] = str(file)
    settings = load_settings()
    named = os.environ.get("MESH_CONFIG") or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    in_file = sum(source.startswith(f"{named}:") for source in settings.sources.values()) if named else 0
    if file is not None and not settings.sources:
        raise Invalid(f"{file} sets nothing.")
    where = f"{named} sets {in_file}, " if named else "no configuration file, "
    policies = settings.policies
    rows = f"policies: {policies.source}, {len(policies.rows)} rows"
    click.echo(f"ok: {where}the environment {len(settings.sources) - in_file}; {rows}.")
