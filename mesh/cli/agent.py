"""`mesh agent`: list, describe, cordon, uncordon and drain agents. `mesh cordon A` and so on are short for these."""

from __future__ import annotations

import contextlib
import difflib
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import click

from mesh.cli import complete, discover
from mesh.cli.commands import Command, Group
from mesh.cli.options import colored, open_mesh, output, remote
from mesh.cli.show import clean, duration, one_text, rows_text, table
from mesh.errors import NotFound, ResultTimeout

if TYPE_CHECKING:
    from mesh.client import Mesh
    from mesh.core.agents import AgentInfo

_LOOK_S = 0.25
_SHOWN_TASKS = 20
_NAMED_TASKS = 3


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


class Duration(click.ParamType[float]):
    """A time like 500ms, 30s, 2m, 1h or 30 (seconds); in seconds."""

    name = "duration"
    _UNITS: ClassVar = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(value))
        if found is None or found[2] not in self._UNITS:
            self.fail(f"{value!r} is not a time like 30s, 500ms or 2m.", param, ctx)
        return float(found[1]) * float(self._UNITS[found[2]])


def _steer(
    act: Callable[[Mesh, str], Any],
    agents: Callable[[Mesh], Sequence[AgentInfo]],
    output: str,
    wait_s: float = 0.0,
) -> None:
    with open_mesh() as mesh:
        ids = [one.id for one in agents(mesh)]
        for name in ids:
            act(mesh, name)
        if wait_s:
            _wait_until_gone(mesh, ids, wait_s)
        rows = [one.to_json() for one in find(mesh, ids)]
    columns = ("id", "status", "cordoned", "running")
    leaving = any(row["leaves_in_ms"] is not None for row in rows)
    click.echo(rows_text(rows, output, (*columns, "leaves_in_ms") if leaving else columns))


def _wait_until_gone(mesh: Mesh, ids: Sequence[str], wait_s: float) -> None:
    """Until all are offline; on a terminal, what they still run is shown meanwhile."""
    deadline = time.monotonic() + wait_s
    with _shown() as show:
        while left := [one for one in find(mesh, ids) if one.status != "offline"]:
            if time.monotonic() > deadline:
                raise ResultTimeout(
                    f"{', '.join(f'{one.id} ({one.status}, runs {one.running})' for one in left)} did not leave "
                    f"within {wait_s:g} s; the drain goes on."
                )
            if show is not None:
                show("; ".join(_still(mesh, one) for one in left))
            time.sleep(_LOOK_S)


@contextlib.contextmanager
def _shown() -> Iterator[Callable[[str], None] | None]:
    """A line that changes, on a terminal; elsewhere None."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, no_color=not colored(), highlight=False)
    with console.status("") as status:
        yield lambda line: status.update(Text(clean(line), overflow="ellipsis", no_wrap=True))


def _still(mesh: Mesh, agent: AgentInfo) -> str:
    """What an agent that leaves is at."""
    until = "" if agent.leaves_in_ms is None else f", {duration(agent.leaves_in_ms)} left"
    runs = list(mesh.tasks(agent=agent.id, state="running", limit=_NAMED_TASKS))
    names = ", ".join(f"{one['type']} {one['id']}" for one in runs)
    return f"{agent.id} {agent.status}{until}, runs {names or 'nothing'}{' ...' if agent.running > len(runs) else ''}"


@click.command("cordon", cls=Command)
@agent_ids
@output
@remote
def cordon(agent_ids: tuple[str, ...], output: str) -> None:
    """Give agents no new work; what they run goes on, what waits for them alone goes to others."""
    _steer(lambda mesh, name: mesh.cordon(name), lambda mesh: find(mesh, agent_ids), output)


@click.command("uncordon", cls=Command)
@agent_ids
@output
@remote
def uncordon(agent_ids: tuple[str, ...], output: str) -> None:
    """Give agents new work again. A drain is not taken back: such an agent is to be started again."""

    def chosen(mesh: Mesh) -> list[AgentInfo]:
        from mesh.services.agents import not_taken_back  # `mesh --help` does without

        found = find(mesh, agent_ids)
        if leaving := [one.id for one in found if one.leaves_in_ms is not None]:
            raise not_taken_back(leaving)
        return found

    _steer(lambda mesh, name: mesh.uncordon(name), chosen, output)


@click.command("drain", cls=Command)
@agent_ids
@click.option(
    "--grace",
    type=Duration(),
    metavar="TIME",
    help="What runs may finish for so long (30s, 2m), then others run it. By default the agent's MESH_DRAIN_GRACE_MS.",
)
@click.option(
    "--wait", is_flag=True, help="Wait until they have left; on a terminal, show what they still run."
)
@click.option("--timeout", "--wait-timeout", "wait_timeout", type=click.FloatRange(min=0.1), metavar="S",
              default=600, show_default=True, help="... but S seconds at most.")  # fmt: skip
@output
@remote
def drain(
    agent_ids: tuple[str, ...], grace: float | None, wait: bool, wait_timeout: float, output: str
) -> None:
    """Let agents finish what they run, and leave; what they have not started goes to others.

    Said again, the later time of grace counts.
    """
    _steer(
        lambda mesh, name: mesh.drain(name, grace_s=grace),
        lambda mesh: find(mesh, agent_ids),
        output,
        wait_timeout if wait else 0.0,
    )


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
