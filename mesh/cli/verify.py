"""`mesh verify`: does this mesh keep its promises while things break?"""

from __future__ import annotations

import random
from pathlib import Path

import click

from mesh.cli.commands import Command
from mesh.cli.deploy import POOLS
from mesh.cli.options import colored, common, load_settings
from mesh.cli.show import to_json


class Seconds(click.ParamType[float]):
    """`90`, `90s` or `10m`, as seconds."""

    name = "seconds"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number of seconds."""
        text = str(value).strip()
        unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:], 0)
        try:
            seconds = float(text[:-1] if unit else text) * (unit or 1)
        except ValueError:
            self.fail(f"{value!r} is not a time like 90s or 10m.", param, ctx)
        if not 1 <= seconds <= 86_400:
            self.fail(f"{value!r} is not between 1s and 24h.", param, ctx)
        return seconds


@click.command("verify", cls=Command)
@click.option("--tasks", type=click.IntRange(1, 100_000), metavar="N", default=300, show_default=True,
              help="How many tasks to submit, evenly over the duration.")  # fmt: skip
@click.option("--duration", type=Seconds(), metavar="TIME", default="60s", show_default=True,
              help="How long to submit and to break things, like 90s or 10m.")  # fmt: skip
@click.option("--agents", type=click.IntRange(2, 50), metavar="N", default=3, show_default=True,
              help="How many agents; one at a time is always spared.")  # fmt: skip
@click.option("--coordinators", type=click.IntRange(0, 10), metavar="N", default=2, show_default=True,
              help="How many coordinators.")  # fmt: skip
@click.option("--pool", type=click.Choice(POOLS), default="prefork", show_default=True,
              help="How the agents run tasks.")  # fmt: skip
@click.option("--chaos", metavar="A,B|all|none", default="all", show_default=True,
              help="What to break: kill-agent, pause-agent, kill-coordinator, restart-redis, partition.")  # fmt: skip
@click.option("--seed", type=int, metavar="N", help="Makes a run repeatable; chosen and told if not given.")
@click.option("-o", "--output", type=click.Choice(("table", "json")), default="table", show_default=True,
              help="How to print.")  # fmt: skip
@click.option("--report", type=click.Path(dir_okay=False, writable=True, path_type=Path), metavar="FILE",
              help="Write all of it as JSON too.")  # fmt: skip
@click.option("--keep", is_flag=True, help="Leave the logs, the effects file and the namespace.")
@common
def command(
    tasks: int,
    duration: float,
    agents: int,
    coordinators: int,
    pool: str,
    chaos: str,
    seed: int | None,
    output: str,
    report: Path | None,
    keep: bool,
) -> None:
    """Break a mesh on purpose, and check that no task was lost and no result recorded twice.

    Starts agents and coordinators in a namespace of its own, submits numbered tasks, kills, pauses and cuts off what it
    started, heals it all, waits, and compares what the mesh says with what the tasks wrote into a file of their own.

    On the Redis of REDIS_URL, which is not restarted then; else on one that is started for it. Exit code 0: all checks
    passed, 1: one failed.
    """
    from rich.console import Console

    from mesh.cli.verify_run import Run, Verify
    from mesh.verify.plan import choose_faults

    settings = load_settings()
    faults = choose_faults(chaos, coordinators=coordinators)
    if chaos == "all" and settings.was_set("redis_url"):
        faults = tuple(name for name in faults if name != "restart-redis")
    run = Run(
        tasks=tasks,
        duration_s=duration,
        agents=agents,
        coordinators=coordinators,
        pool=pool,
        faults=faults,
        seed=random.SystemRandom().randrange(1_000_000) if seed is None else seed,
        keep=keep,
    )
    console = Console(stderr=True, no_color=not colored(), highlight=False)
    outcome = Verify(settings, console, run).run()
    text = to_json(outcome.to_json())
    if report is not None:
        report.write_text(text + "\n", encoding="utf-8")
    click.echo(text if output == "json" else outcome.table())
    if not outcome.good:
        raise click.exceptions.Exit(1)
