"""`mesh task`: list, show, watch, cancel and retry tasks; say why one waits."""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from mesh.cli import complete
from mesh.cli.commands import Group
from mesh.cli.explaining import explained
from mesh.cli.options import open_mesh, output, remote, watch
from mesh.cli.show import one_text, rows_text, say
from mesh.cli.watching import present
from mesh.core.states import TERMINAL, State
from mesh.errors import Conflict, MeshError, TaskFailed

if TYPE_CHECKING:
    from mesh.client import Handle, Mesh

COLUMNS = ("id", "state", "type", "queue", "agent", "attempt", "created_at")
_UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_READ_S = 5.0


class Since(click.ParamType[int]):
    """A time: `30m`, `2h`, `1d` ago, or ISO 8601. Converted to milliseconds since 1970."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Milliseconds since 1970."""
        if isinstance(value, int):
            return value
        ago = re.fullmatch(r"(\d{1,9})([smhd])", value)
        if ago:
            return int(time.time() * 1000) - int(ago[1]) * _UNITS_MS[ago[2]]
        try:
            when = datetime.datetime.fromisoformat(value)
        except ValueError:
            self.fail(
                f"{value!r} is not a time: write 30m, 2h or 1d (ago), or 2026-01-31T12:00:00Z.", param, ctx
            )
        return int((when if when.tzinfo else when.replace(tzinfo=datetime.UTC)).timestamp() * 1000)


def task_ids(function: Any) -> Any:
    """One or several task ids."""
    return click.argument(
        "task_ids", nargs=-1, required=True, metavar="TASK...", shell_complete=complete.tasks
    )(function)


def task_id(function: Any) -> Any:
    """One task id."""
    return click.argument("task_id", metavar="TASK", shell_complete=complete.tasks)(function)


@click.group("task", cls=Group)
def group() -> None:
    """List, show, watch, cancel and retry tasks; say why one waits."""


@group.command("list")
@click.option("--state", type=click.Choice([str(state) for state in State]), help="Only tasks in this state.")
@click.option(
    "--type", "task_type", metavar="NAME", help="Only tasks of this type.", shell_complete=complete.types
)
@click.option(
    "--capability", metavar="NAME", help="Only tasks that need it.", shell_complete=complete.capabilities
)
@click.option(
    "--agent", metavar="NAME", help="Only tasks that it has or had.", shell_complete=complete.agents
)
@click.option(
    "--since", type=Since(), metavar="TIME", help="Submitted since then: 30m, 2h, 1d ago, or ISO 8601."
)
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    metavar="N",
    default=50,
    show_default=True,
    help="At most so many.",
)
@watch
@output
@remote
def list_command(
    state: str | None, task_type: str | None, capability: str | None, agent: str | None, since: int | None,
    limit: int, watch: float | None, output: str,
) -> None:  # fmt: skip
    """List tasks, the newest first.

    JSON has all fields of a task's record, as `mesh task get`. The ids alone: -o name.
    """
    with open_mesh() as mesh:

        def view() -> str:
            rows = mesh.tasks(
                state=state, type=task_type, capability=capability, agent=agent, since_ms=since, limit=limit
            )
            return rows_text(list(rows), output, COLUMNS)

        present(
            view,
            output,
            watch,
            empty=f"No such task in namespace {mesh.settings.namespace}.",
        )


@group.command("get")
@task_id
@output
@remote
def get_command(task_id: str, output: str) -> None:
    """Show the record of a task, and its result or failure if it has ended.

    JSON: id, state, type, queue, priority, run, attempt, failures, crashes, agent, error, reason, labels, the
    times of its moves, past (attempts that did not end it: attempt, run, agent, how, times, error), progress
    (fraction, note); `result` if it succeeded, else `failure` with type, message and traceback.
    """
    with open_mesh() as mesh:
        click.echo(one_text(whole(mesh.handle(task_id)), output))


def whole(handle: Handle) -> dict[str, Any]:
    """A task's record with its result or failure, if it has ended."""
    record = {**handle.record(), "progress": handle.progress()}
    if record["state"] in TERMINAL:
        try:
            record["result"] = handle.result(timeout_s=_READ_S)
        except TaskFailed as failure:
            record["failure"] = failure.error
    return record


@group.command("watch")
@task_id
@click.option("--timeout", type=click.FloatRange(min=0), metavar="S", help="... for S seconds at most.")
@output
@remote
def watch_command(task_id: str, timeout: float | None, output: str) -> None:
    """Follow a task until it ends: a line for each change of its state or progress.

    JSON: one object a line (id, state, run, attempt, agent, fraction, note). The exit code tells how it ended: 0 if it
    succeeded, 1 if it failed, 6 if it timed out or --timeout came first.
    """
    from mesh.cli.waiting import changes, state_line

    with open_mesh() as mesh:
        handle = mesh.handle(task_id)
        for change in changes(handle, timeout):
            click.echo(
                state_line(change)
                if output == "table"
                else one_text(change, "name" if output == "name" else "jsonl")
            )
        handle.result(timeout_s=_READ_S)  # a failure is told, and is the exit code


@group.command("why")
@task_id
@output
@remote
def why_command(task_id: str, output: str) -> None:
    """Say why a task waits, what keeps each agent from it, when it is expected to start and what would change that.

    JSON: id, state, queue, detail (a sentence), position (tasks before it in the queue), agents (agent, capable, why, slots,
    free_slots), expected_start_ms (from now), expected_start_at, expected_start_how, advice (sentences), capable (ids),
    not_capable (agent, why).
    """
    with open_mesh() as mesh:
        answer = mesh.handle(task_id).why()
    click.echo(explained(answer, answer["detail"]) if output == "table" else one_text(answer, output))


@group.command("cancel")
@task_ids
@click.option("--reason", metavar="TEXT", default="cancelled", help="Kept in its record.")
@output
@remote
def cancel_command(task_ids: tuple[str, ...], reason: str, output: str) -> None:
    """Cancel tasks, whether they wait or run. One that had ended before is a conflict: exit code 7."""

    def cancel(handle: Handle) -> dict[str, Any]:
        if not handle.cancel(reason):
            raise Conflict(f"Task {handle.id} had ended before: it is {handle.status()}.")
        return {"id": handle.id, "state": handle.status()}

    with open_mesh() as mesh:
        each(mesh, task_ids, cancel, output)


@group.command("retry")
@task_ids
@output
@remote
def retry_command(task_ids: tuple[str, ...], output: str) -> None:
    """Run tasks again that failed: a new run of the same id.

    They failed, timed out or were put aside as dead letters, and are still kept.
    """
    with open_mesh() as mesh:
        each(mesh, task_ids, retry, output)


def retry(handle: Handle) -> dict[str, Any]:
    """Run one task again. Raises `NotFound`, `Conflict`."""
    handle.retry()
    return {"id": handle.id, "state": handle.status()}


def each(mesh: Mesh, ids: tuple[str, ...], act: Callable[[Handle], Mapping[str, Any]], output: str) -> None:
    """Do something with each task; an error of one is told and keeps nothing from the others.

    The exit code is the first error's.
    """
    rows: list[Mapping[str, Any]] = []
    failed: MeshError | None = None
    for one in dict.fromkeys(ids):
        try:
            rows.append(act(mesh.handle(one)))
        except MeshError as error:
            if len(ids) == 1:
                raise
            failed = failed or error
            say(f"Error: {error}")
    text = rows_text(rows, output, ("id", "state"))
    if text:
        click.echo(text)
    if failed is not None:
        raise click.exceptions.Exit(failed.exit_code)
