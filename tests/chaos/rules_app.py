"""The application of the rules' tests: Celery tasks, and task types of the mesh, whose outcomes tell what happened."""

from __future__ import annotations

import os
import time
from pathlib import Path

from celery import Celery
from celery.exceptions import Ignore

from mesh import install, task

app = install(Celery("rules"))


@app.task(name="hold")
def hold(gate: str) -> str:
    """Run until the file `gate` is there."""
    while not Path(gate).exists():
        time.sleep(0.01)
    return "held"


@app.task(name="quick", ignore_result=True)
def quick() -> None:
    """Nothing."""


@app.task(name="fail-ignored", ignore_result=True)
def fail_ignored() -> None:
    """Fail although nobody wants the result."""
    raise ValueError("on purpose")


@app.task(name="exit")
def leave_process() -> None:
    """End the pool process."""
    os._exit(3)


@app.task(name="skip")
def skip() -> None:
    """End without a result."""
    raise Ignore


@app.task(name="route", bind=True)
def route(self, key: str) -> str:  # type: ignore[no-untyped-def]
    """Tell the queue that this attempt came from, after one retry."""
    if not self.request.retries:
        raise self.retry(countdown=0)
    return str(self.request.delivery_info["routing_key"])


@app.task(name="note")
def note(line: str, path: str) -> str:
    """Leave a line in a file."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")
    return line


@app.task(name="total")
def total(numbers: list[int]) -> int:
    """The body of a chord."""
    return sum(numbers)


@app.task(name="same")
def same(number: int) -> int:
    """The header of a chord."""
    return number


@task("mesh-fails", retries=1)
def mesh_fails() -> None:
    """A type of the mesh that never succeeds."""
    raise RuntimeError("never")


@task("mesh-refuses", no_retry_for=(KeyError,))
def mesh_refuses() -> None:
    """A type of the mesh whose failure is not to be tried again."""
    raise KeyError("final")
