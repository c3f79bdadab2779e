"""`mesh demo`: real work on three agents, one of which is killed on the way."""

from __future__ import annotations

from pathlib import Path

import click

from mesh.cli.commands import Command
from mesh.cli.options import colored, common, load_settings
from mesh.cli.show import to_json


@click.command("demo", cls=Command)
@click.option("--folder", type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
              help="Process the files below it; by default the sources of Python's standard library.")  # fmt: skip
@click.option(
    "--parts",
    type=click.IntRange(3, 5000),
    metavar="N",
    default=48,
    show_default=True,
    help="How many tasks to make.",
)
@click.option("--flower/--no-flower", default=True, help="With the dashboard, or without.")
@click.option("-o", "--output", type=click.Choice(("table", "json")), default="table", show_default=True,
              help="How to print.")  # fmt: skip
@common
def command(folder: Path | None, parts: int, flower: bool, output: str) -> None:
    """Real work on three agents, one of which is killed on the way.

    Starts a mesh in a namespace of its own, counts what is in a folder of files by map and reduce, kills an agent
    with SIGKILL meanwhile, compares the result with a single process's, and stops everything.

    Exit code 0 only if the results are equal and no task was lost. Redis comes from REDIS_URL, else one is started.
    """
    from rich.console import Console

    from mesh.cli.demo_run import Demo

    console = Console(stderr=True, no_color=not colored(), highlight=False)
    outcome = Demo(load_settings(), console, folder=folder, parts=parts, with_flower=flower).run()
    click.echo(to_json(outcome.to_json()) if output == "json" else outcome.table())
    if not outcome.good:
        raise click.exceptions.Exit(1)
