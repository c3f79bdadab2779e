"""`mesh deploy`: an agent, which is a Celery worker: this process becomes it."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence

import click

from mesh.cli.commands import Command
from mesh.cli.options import common, load_settings
from mesh.errors import Invalid

POOLS = ("prefork", "threads", "gevent", "solo")


def worker_command(
    *,
    pool: str | None = None,
    concurrency: int | None = None,
    log_level: str = "info",
    include: tuple[str, ...] = (),
) -> list[str]:
    """The command line of an agent; who it is comes from the environment. The same as `celery -A mesh worker`, sooner."""
    command = [sys.executable, "-m", "mesh.workers", "--loglevel", log_level]
    # Both make every worker hear every other, and the registry says all that they would.
    command += ["--without-gossip", "--without-mingle"]
    command += ["--pool", pool] if pool else []
    command += ["--concurrency", str(concurrency)] if concurrency else []
    command += [word for module in include for word in ("-I", module)]
    return command


def check_modules(include: Sequence[str]) -> None:
    """Raise `Invalid` if a module that an agent should import is not there; what is wrong inside one, Python says."""
    path = list(sys.path)
    sys.path.insert(0, os.getcwd())  # as Celery does
    try:
        for name in (one.strip() for given in include for one in given.split(",")):
            try:
                found = importlib.util.find_spec(name) is not None
            except (ImportError, ValueError):
                found = False
            if not found:
                raise Invalid(f"There is no module {name!r} to include, seen from {os.getcwd()}.")
    finally:
        sys.path[:] = path


@click.command("deploy", cls=Command)
@click.option("--agent-id", metavar="NAME", help="Unique among live agents [AGENT_ID].")
@click.option("--agent-name", metavar="TEXT", help="What people read in lists [AGENT_NAME].")
@click.option("--agent-type", metavar="NAME", help="Its type, for policies [AGENT_TYPE].")
@click.option("--capabilities", metavar="A,B", help="What it can do [AGENT_CAPABILITIES].")
@click.option("--port", type=click.IntRange(1, 65535), metavar="N", help="Port of its /health [AGENT_PORT].")
@click.option("--region", metavar="NAME", help="Its region [AGENT_REGION].")
@click.option("--labels", metavar="A=B,C=D", help="Marks to select it by [AGENT_LABELS].")
@click.option("--pool", type=click.Choice(POOLS), help="How it runs tasks; Celery's prefork if not given.")
@click.option(
    "--concurrency", type=click.IntRange(min=1), metavar="N", help="How many tasks it runs at once."
)
@click.option("--log-level", metavar="LEVEL", help="Least severe line that is logged [LOG_LEVEL].")
@click.option(
    "-I", "--include", multiple=True, metavar="MODULE", help="A module with task types; may be repeated."
)
@click.argument("more", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTIONS OF CELERY WORKER]")
@common
def command(
    agent_id: str | None,
    agent_name: str | None,
    agent_type: str | None,
    capabilities: str | None,
    port: int | None,
    region: str | None,
    labels: str | None,
    pool: str | None,
    concurrency: int | None,
    log_level: str | None,
    include: tuple[str, ...],
    more: tuple[str, ...],
) -> None:
    """Start an agent: the same as `celery -A mesh worker`, with the options that people have scripts for."""
    given = {
        "AGENT_ID": agent_id,
        "AGENT_NAME": agent_name,
        "AGENT_TYPE": agent_type,
        "AGENT_CAPABILITIES": capabilities,
        "AGENT_PORT": port,
        "AGENT_REGION": region,
        "AGENT_LABELS": labels,
        "LOG_LEVEL": log_level,
    }
    if more and not more[0].startswith("-"):
        raise click.UsageError(
            f"Got unexpected argument {more[0]!r}; options of `celery worker` stand behind --.",
            click.get_current_context(),
        )
    os.environ.update({name: str(value) for name, value in given.items() if value is not None})
    if region is not None:
        os.environ.pop("MESH_REGION", None)
    check_modules(include)
    settings = load_settings()  # what is wrong is told before Celery is loaded
    if not settings.joins:
        _ = settings.keyring
    words = worker_command(
        pool=pool, concurrency=concurrency, log_level=settings.log_level, include=tuple(include)
    )
    named = ["--agent-id", settings.agent_id] if settings.agent_id else []  # seen by ps and pgrep
    os.execv(sys.executable, [*words, *named, *more])
