"""`mesh execute`: submit a task, and wait for its end if asked to."""

from __future__ import annotations

import os
import sys
from typing import Any, BinaryIO

import click

from mesh.cli import complete
from mesh.cli.commands import Command
from mesh.cli.explaining import explained
from mesh.cli.options import names, open_mesh, output, pairs, remote
from mesh.cli.show import one_text, say, to_json
from mesh.core.places import Strategy
from mesh.errors import Invalid, Unsatisfiable

_SLACK = 4  # payload texts may be so much longer than what they say: indentation and the like


def read_payload(given: str | None, limit: int) -> Any:
    """The value of --payload: JSON text, `@file` or `-`; `limit` in bytes. Raises `Invalid`."""
    if given is None:
        return None
    if given == "-":
        return _decode(_read(sys.stdin.buffer, "standard input", limit), "standard input")
    if given.startswith("@"):
        try:
            with open(given[1:], "rb") as file:
                return _decode(_read(file, given[1:], limit), given[1:])
        except OSError as error:
            raise Invalid(
                f"The payload file {given[1:]} cannot be read: {error.strerror or error}."
            ) from error
    return _decode(os.fsencode(given), "--payload")


def _read(file: BinaryIO, where: str, limit: int) -> bytes:
    data = file.read(limit * _SLACK + 1)
    if len(data) > limit * _SLACK:
        raise Invalid(
            f"The payload in {where} is larger than the {limit:,} bytes allowed (MESH_MAX_PAYLOAD_BYTES): "
            "pass a reference to the data instead."
        )
    return data


def _decode(data: bytes, where: str) -> Any:
    import msgspec  # with the next one: not for `--help`

    from mesh.core import strict_json

    what = f"The payload in {where}"
    strict_json.check(data, what)
    try:
        return msgspec.json.decode(data)
    except msgspec.MsgspecError as error:  # 1e999
        raise Invalid(f"{what} is not JSON: {error}.") from None


# fmt: off
@click.command("execute", cls=Command)
@click.option("--task-type", required=True, metavar="NAME", shell_complete=complete.types,
              help="What is to be done, for example data-processing.")
@click.option("--payload", metavar="JSON|@FILE|-", help="Its argument: JSON, @file, or - for standard input.")
@click.option("--task-id", metavar="ID", help="Makes it idempotent: the same id is the same task.")
@click.option("--requires", metavar="A,B", help="Capabilities that it needs beside its type's.",
              shell_complete=complete.capabilities)
@click.option("--priority", type=click.IntRange(0, 9), metavar="N", default=4, show_default=True, help="9 is first.")
@click.option("--countdown", type=click.FloatRange(min=0), metavar="S", help="Start it no sooner than in S seconds.")
@click.option("--expires", type=click.FloatRange(min=0), metavar="S", help="Drop it unless started within S seconds.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="S",
              help="Bounds one attempt, in seconds.")
@click.option("--deadline", type=click.FloatRange(min=0, min_open=True), metavar="S",
              help="End it in S seconds, wherever it is by then: running, queued, scheduled.")
@click.option("--retries", type=click.IntRange(0, 1000), metavar="N",
              help="Retries after a failure; else what its type says, or MAX_TASK_RETRIES.")
@click.option("--strategy", type=click.Choice([str(one) for one in Strategy]),
              help="Who gets it; else LOAD_BALANCING_STRATEGY.")
@click.option("--region", metavar="NAME", shell_complete=complete.regions,
              help="Where to run it if that can be; else this process's region.")
@click.option("--labels", metavar="A=B,C=D", help="Marks, kept in its record.")
@click.option("--reject-unsatisfiable", is_flag=True, help="Refuse it if no agent can take it now (else it waits).")
@click.option("--explain", is_flag=True, help="Submit nothing: say who could take it, when, and what would change that.")
@click.option("--wait", is_flag=True, help="Wait for its end, print its result; exit code 1 if it fails.")
@click.option("--wait-timeout", type=click.FloatRange(min=0), metavar="S", help="... but S seconds at most.")
@output
@remote
def command(
    task_type: str, payload: str | None, task_id: str | None, explain: bool, wait: bool,
    wait_timeout: float | None, output: str, **given: Any,
) -> None:
    # fmt: on
    """Submit a task; prints its id, or with --wait its result.

    JSON: id, state, and with --wait `result`. With --explain: what `mesh task why` tells of agents, start and advice, and queue,
    ahead (tasks before it), free_slots, warning; exit code 7 if nobody could take it now.
    """
    with open_mesh() as mesh:
        value = read_payload(payload, mesh.settings.max_payload_bytes)
        options = _options(**given)
        if explain:
            _explain(mesh.explain(task_type, **options), output)
            return
        unsatisfiable = "reject" if given["reject_unsatisfiable"] else "warn"
        handle = mesh.submit(task_type, value, task_id=task_id, unsatisfiable=unsatisfiable, **options)
        if not wait:
            click.echo(one_text({"id": handle.id, "state": handle.status()}, output))
            return
        from mesh.cli.waiting import wait_for

        result = wait_for(handle, wait_timeout)
    if output == "table":
        click.echo(to_json(result))
    else:
        click.echo(one_text({"id": handle.id, "state": "succeeded", "result": result}, output))


def _options(
    *, requires: str | None, priority: int, countdown: float | None, expires: float | None, timeout: float | None,
    deadline: float | None, labels: str | None, retries: int | None, strategy: str | None, region: str | None, **_: Any,
) -> dict[str, Any]:
    """The options of `Mesh.submit`."""
    return {
        "requires": names(requires),
        "priority": priority,
        "countdown_s": countdown,
        "expires_s": expires,
        "timeout_s": timeout,
        "deadline_s": deadline,
        "retries": retries,
        "strategy": strategy,
        "region": region,
        "labels": pairs("--labels", labels),
    }


def _explain(answer: dict[str, Any], output: str) -> None:
    if output == "table":
        click.echo(explained(answer, f"It would wait in queue {answer['queue']}, behind {answer['ahead']} tasks of it."))
    else:
        click.echo(one_text(answer, output, key="queue"))
    if not answer["capable"]:
        say(f"Warning: {answer['warning']}")
        raise click.exceptions.Exit(Unsatisfiable.exit_code)
