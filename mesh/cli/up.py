"""`mesh up`: a mesh on this machine, until Ctrl-C."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import click

from mesh.cli.commands import Command
from mesh.cli.deploy import check_modules
from mesh.cli.options import common, load_settings
from mesh.cli.show import say


@click.command("up", cls=Command)
@click.option(
    "--agents", type=click.IntRange(0, 50), metavar="N", default=3, show_default=True, help="How many agents."
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 100),
    metavar="N",
    default=2,
    show_default=True,
    help="Tasks at once, each.",
)
@click.option(
    "-I", "--include", multiple=True, metavar="MODULE", help="A module with task types; may be repeated."
)
@click.option("--flower/--no-flower", default=True, help="With the dashboard, or without.")
@common
def command(agents: int, concurrency: int, include: tuple[str, ...], flower: bool) -> None:
    """Start a coordinator, agents and Flower, and Redis unless REDIS_URL names one; stop them on Ctrl-C.

    What other shells need to reach it is printed as a line that they can evaluate, the secret among it; without
    MESH_JWT_SECRET one is made for this run. A Redis started here, and what is in it, is gone afterwards.
    """
    from mesh.cli.fleet import Fleet, stoppable
    from mesh.store.client import safe_url

    check_modules(include)
    settings = load_settings()
    fleet = Fleet(settings=settings, namespace=settings.namespace, folder=Path.cwd())
    with stoppable(), fleet:
        coordinator = fleet.start_coordinator()
        names = [f"agent-{number + 1}" for number in range(agents)]
        members = fleet.start_agents(names, concurrency=concurrency, include=include)
        dashboard = fleet.start_flower() if flower else None
        url = fleet.coordinator_url(coordinator)
        say(f"coordinator  {url}")
        say(f"status page  {url}/ (with the token that `mesh auth --agent-id me --agent-type viewer` prints)")
        fleet.wait_for_agents(members)
        if names:
            say(f"agents       {', '.join(names)}, {concurrency} slots each")
        if dashboard is not None:
            say(f"Flower       {fleet.flower_url(dashboard)}")
        say(
            f"Redis        {safe_url(fleet.redis_url)}; logs in {fleet.directory}; Ctrl-C (or SIGTERM) stops everything"
        )
        variables = {"REDIS_URL": fleet.redis_url, "MESH_NAMESPACE": fleet.namespace, "COORDINATOR_URL": url}
        variables |= fleet.secret_variables
        click.echo("export " + " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items()))
        try:
            while True:
                for member in [one for one in fleet.members if one.process.poll() is not None]:
                    say(f"Warning: {member.name} has ended with {member.process.returncode}.")
                    fleet.members.remove(member)
                time.sleep(0.5)
        except KeyboardInterrupt:
            say("stopping everything")
