"""`mesh execute`: submit a task, and wait for its end if asked to."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, BinaryIO

import click

from mesh.cli.options import common, load_settings, output
from mesh.cli.show import show_one, to_json
from mesh.errors import Invalid

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


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a value of JSON")  # Python reads it, other languages do not


def _decode(data: bytes, where: str) -> Any:
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise Invalid(
            f"The payload in {where} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from error
    except (ValueError, RecursionError) as error:
        raise Invalid(f"The payload in {where} is not JSON: {error}.") from error


@click.command("execute")
@click.option(
    "--task-type", required=True, metavar="NAME", help="What is to be done, for example data-processing."
)
@click.option("--payload", metavar="JSON|@FILE|-", help="Its argument: JSON, @file, or - for standard input.")
@click.option("--task-id", metavar="ID", help="Makes it idempotent: the same id is the same task.")
@click.option("--requires", metavar="A,B", default="", help="Capabilities that it needs beside its type's.")
@click.option("--priority", type=click.IntRange(0, 9), default=4, show_default=True, help="9 is first.")
@click.option(
    "--countdown", type=click.FloatRange(min=0), metavar="S", help="Start it no sooner than in S seconds."
)
@click.option(
    "--expires", type=click.FloatRange(min=0), metavar="S", help="Drop it unless started within S seconds."
)
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="S",
              help="Bounds one attempt, in seconds.")  # fmt: skip
@click.option("--wait", is_flag=True, help="Wait for its end, print its result; exit code 1 if it fails.")
@click.option("--wait-timeout", type=click.FloatRange(min=0), metavar="S", help="... but S seconds at most.")
@click.option(
    "--reject-unsatisfiable", is_flag=True, help="Refuse it if no agent can take it now (else it waits)."
)
@output
@common
def command(
    task_type: str,
    payload: str | None,
    task_id: str | None,
    requires: str,
    priority: int,
    countdown: float | None,
    expires: float | None,
    timeout: float | None,
    wait: bool,
    wait_timeout: float | None,
    reject_unsatisfiable: bool,
    output: str,
) -> None:
    """Submit a task; prints its id, or with --wait its result."""
    from mesh.client import Mesh

    settings = load_settings()
    value = read_payload(payload, settings.max_payload_bytes)
    with Mesh(settings=settings) as mesh:
        handle = mesh.submit(
            task_type,
            value,
            requires=[name.strip() for name in requires.split(",") if name.strip()],
            priority=priority,
            countdown_s=countdown,
            expires_s=expires,
            timeout_s=timeout,
            task_id=task_id,
            unsatisfiable="reject" if reject_unsatisfiable else "warn",
        )
        if not wait:
            show_one({"id": handle.id, "state": handle.status()}, output)
            return
        result = handle.result(timeout_s=wait_timeout)
    if output == "table":
        click.echo(to_json(result))
    else:
        show_one({"id": handle.id, "state": "succeeded", "result": result}, output)
