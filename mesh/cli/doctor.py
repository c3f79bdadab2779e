"""`mesh doctor`: what is wrong with the set-up, and what to do."""

from __future__ import annotations

import click

from mesh.cli.commands import Command
from mesh.cli.options import common, load_settings, output
from mesh.cli.show import line, rows_text
from mesh.errors import StoreUnavailable


@click.command("doctor", cls=Command)
@output
@common
def command(output: str) -> None:
    """Look at Python, the ports of this machine, Redis, coordinators, agents and what waits.

    One line each: ok, warn or fail, and below it what to do. Fields of the JSON: check, status, finding, advice.

    Exit code 0, or 5 if something fails.
    """
    from mesh.cli.checks import FAIL, examine

    findings = []
    for one in examine(load_settings()):
        findings.append(one)
        if output == "table":
            click.echo(line(one.status, one.check, one.finding))
            if one.advice:
                click.echo(line("", "", one.advice))
    if output != "table":
        click.echo(rows_text([one.to_json() for one in findings], output, (), key="check"))
    if any(one.status == FAIL for one in findings):
        raise click.exceptions.Exit(StoreUnavailable.exit_code)
