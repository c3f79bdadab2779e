"""`mesh agent`: list, describe, cordon, uncordon and drain agents. `mesh cordon A` and so on are short for these."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from mesh.cli import complete, discover
from mesh.cli.commands import Command, Group
from mesh.cli.options import open_mesh, output, remote
from mesh.cli.show import one_text, rows_text, table
from mesh.errors import NotFound, ResultTimeout

if TYPE_CHECKING:
    from mesh.client import Mesh
    from mesh.services.agents import AgentInfo

_LOOK_S = 0.25
_SHOWN_TASKS = 20


def agent_ids(function: Any) -> Any:
    """One or several agent ids."""
    return click.argument(
        "agent_ids", nargs=-1, required=True, metavar="AGENT...", shell_complete=complete.agents
    )(function)


def find(mesh: Mesh, ids: Sequence[str]) -> list[AgentInfo]:
    """These agents. Raises `NotFound`, with what is near, before anything is done."""
    there = {one.id: one for one in mesh.agents()}
    for name in ids:
        if name not in there:
            near = difflib.get_close_matches(name, there, n=2)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise NotFound(f"There is no agent {name!r} in namespace {mesh.settings.namespace!r}.{hint}")
    return [there[name] for name in dict.fromkeys(ids)]


def _steer(
    act: Callable[[Mesh, str], Any], agent_ids: Sequence[str], output: str, wait_s: float = 0.0
) -> None:
    with open_mesh() as mesh:
        ids = [one.id for one in find(mesh, agent_ids)]
        for name in ids:
            act(mesh, name)
        if wait_s:
            _wait_until_gone(mesh, ids, wait_s)
        rows = [one.to_json() for one in find(mesh, ids)]
    click.echo(rows_text(rows, output, ("id", "status", "cordoned", "running")))


def _wait_until_gone(mesh: Mesh, ids: Sequence[str], wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while left := [one.id for one in find(mesh, ids) if one.status != "offline"]:
        if time.monotonic() > deadline:
            raise ResultTimeout(f"{', '.join(left)} did not leave within {wait_s:g} s; the drain goes on.")
        time.sleep(_LOOK_S)


@click.command("cordon", cls=Command)
@agent_ids
@output
@remote
def cordon(agent_ids: tuple[str, ...], output: str) -> None:
    """Give agents no new work; what they run goes on, what waits for them alone goes to others."""
    _steer(lambda mesh, name: mesh.cordon(name), agent_ids, output)


@click.command("uncordon", cls=Command)
@agent_ids
@output
@remote
def uncordon(agent_ids: tuple[str, ...], output: str) -> None:
    """Give agents new work again."""
    _steer(lambda mesh, name: mesh.uncordon(name), agent_ids, output)


@click.command("drain", cls=Command)
@agent_ids
@click.option("--wait", is_flag=True, help="Wait until they have left.")
@click.option("--wait-timeout", type=click.FloatRange(min=0.1), metavar="S", default=600, show_default=True,
              help="... but S seconds at most.")  # fmt: skip
@output
@remote
def drain(agent_ids: tuple[str, ...], wait: bool, wait_timeout: float, output: str) -> None:
    """Let agents finish what they run, and leave; what they have not started goes to others."""
    _steer(lambda mesh, name: mesh.drain(name), agent_ids, output, wait_timeout if wait else 0.0)


@click.command("describe", cls=Command)
@click.argument("agent_id", metavar="AGENT", shell_complete=complete.agents)
@output
@remote
def describe(agent_id: str, output: str) -> None:
    """Show all that is known of an agent, and the tasks that it has.

    JSON: the fields of `mesh discover`, and `tasks`: the records of those that it holds.
    """
    with open_mesh() as mesh:
        (agent,) = find(mesh, [agent_id])
        held = [
            one
            for state in ("running", "leased")
            for one in mesh.tasks(agent=agent_id, state=state, limit=_SHOWN_TASKS)
        ]
    if output != "table":
        click.echo(one_text({**agent.to_json(), "tasks": held}, output))
        return
    click.echo(one_text(agent.to_json(), output))
    if held:
        click.echo("\n" + table(held, ("id", "state", "type", "attempt", "started_at"), key="id"))


@click.group("agent", cls=Group)
def group() -> None:
    """List, describe, cordon, uncordon and drain agents."""


group.add_command(discover.command, "list")
for _one in (describe, cordon, uncordon, drain):
    group.add_command(_one)
