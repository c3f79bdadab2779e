"""`mesh dead-letter`: tasks that were put aside because their retries were used up, or because they killed agents."""

from __future__ import annotations

import sys
from typing import Any

import click

from mesh.cli import complete
from mesh.cli.commands import Group
from mesh.cli.options import open_mesh, output, remote, watch
from mesh.cli.show import one_text, rows_text, say
from mesh.cli.task import Since, task_id, whole
from mesh.cli.watching import present
from mesh.core.states import State
from mesh.errors import NotFound

_MOST = 10_000
COLUMNS = ("id", "type", "queue", "failures", "crashes", "reason", "ended_at")


@click.group("dead-letter", cls=Group)
def group() -> None:
    """Tasks that were put aside: their retries are used up, or they killed agents. List, show, replay, discard."""


def _filters(function: Any) -> Any:
    for decorate in (
        click.option(
            "--since",
            type=Since(),
            metavar="TIME",
            help="Only those put aside since then: 30m, 2h, 1d ago, or ISO 8601.",
        ),
        click.option(
            "--reason", metavar="NAME", help="Only those put aside for it: poison, or the name of an error."
        ),
        click.option(
            "--capability",
            metavar="NAME",
            help="Only those that need it.",
            shell_complete=complete.capabilities,
        ),
        click.option(
            "--type",
            "task_type",
            metavar="NAME",
            help="Only those of this type.",
            shell_complete=complete.types,
        ),
    ):
        function = decorate(function)
    return function


@group.command("list")
@_filters
@click.option(
    "--limit",
    type=click.IntRange(1, 1000),
    metavar="N",
    default=50,
    show_default=True,
    help="At most so many.",
)
@watch
@output
@remote
def list_command(
    task_type: str | None, capability: str | None, reason: str | None, since: int | None, limit: int,
    watch: float | None, output: str,
) -> None:  # fmt: skip
    """List dead letters, the newest first. JSON has all fields of the records; the ids alone: -o name."""
    with open_mesh() as mesh:

        def view() -> str:
            rows = mesh.dead_letters(
                type=task_type, capability=capability, reason=reason, since_ms=since, limit=limit
            )
            return rows_text(list(rows), output, COLUMNS)

        empty = f"No such dead letter in namespace {mesh.settings.namespace}."
        present(view, output, watch, empty=empty)


@group.command("show")
@task_id
@output
@remote
def show_command(task_id: str, output: str) -> None:
    """Show a dead letter: its record, and why it failed, with the traceback."""
    with open_mesh() as mesh:
        row = whole(mesh.handle(task_id))
        if row["state"] != State.DEAD_LETTERED:
            raise NotFound(f"Task {task_id} is no dead letter: it is {row['state']}.")
        click.echo(one_text(row, output))


def _selection(function: Any) -> Any:
    for decorate in (
        click.option("-y", "--yes", is_flag=True, help="Do not ask."),
        click.option("--all", "everything", is_flag=True, help="All of the namespace."),
        _filters,
        click.argument("task_ids", nargs=-1, metavar="[TASK...]", shell_complete=complete.dead_letters),
    ):
        function = decorate(function)
    return function


@group.command("replay")
@_selection
@output
@remote
def replay_command(**given: Any) -> None:
    """Run dead letters again, as new runs of the same ids: those named, or those that the options select."""
    _act("replay", **given)


@group.command("discard")
@_selection
@output
@remote
def discard_command(**given: Any) -> None:
    """Take dead letters off the list for good: those named, or those that the options select."""
    _act("discard", **given)


def _act(
    verb: str, *, task_ids: tuple[str, ...], task_type: str | None, capability: str | None, reason: str | None,
    since: int | None, everything: bool, yes: bool, output: str,
) -> None:  # fmt: skip
    filters: dict[str, Any] = {
        "type": task_type,
        "capability": capability,
        "reason": reason,
        "since_ms": since,
    }
    selected = everything or any(value is not None for value in filters.values())
    if bool(task_ids) == selected:
        raise click.UsageError(
            f"Name the dead letters to {verb}, or select them with --type, --capability, --reason, --since or --all.",
            click.get_current_context(),
        )
    with open_mesh() as mesh:
        ids = list(dict.fromkeys(task_ids))
        if selected:
            ids = [one["id"] for one in mesh.dead_letters(**filters, limit=_MOST)]
            if not _is_sure(verb, len(ids), yes):
                say("Nothing was changed.")
                return
        done, refused = (mesh.replay if verb == "replay" else mesh.discard)(ids)
    if selected and len(ids) == _MOST:
        say(f"These were the newest {_MOST:,}; there may be more: say it again.")
    text = rows_text([{"id": one, "done": f"{verb}ed"} for one in done], output, ("id", "done"))
    if text:
        click.echo(text)
    elif not refused:
        say("There is no such dead letter.")
    for _, error in refused:
        say(f"Error: {error}")
    if refused:
        raise click.exceptions.Exit(refused[0][1].exit_code)


def _is_sure(verb: str, number: int, yes: bool) -> bool:
    """Ask a person; a script has to say --yes."""
    if yes or not number:
        return True
    what = f"{number} dead letter{'' if number == 1 else 's'}"
    if not sys.stdin.isatty():
        raise click.UsageError(f"This would {verb} {what}: add --yes.", click.get_current_context())
    return click.confirm(f"{verb.capitalize()} {what}?", err=True)
