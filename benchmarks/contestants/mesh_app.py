"""The same Celery application as `stock_app`, made an agent's by `install`: the tasks are plain Celery tasks."""

from __future__ import annotations

from celery import Celery

from benchmarks.contestants import base
from mesh import install

app = Celery("bench")
install(app)


@app.task(name="noop", ignore_result=True)
def noop(payload: object = None) -> None:
    """Nothing."""


@app.task(name="noop-stored", ignore_result=False)
def noop_stored(payload: object = None) -> int:
    """Nothing, with a result."""
    return 1


@app.task(name="mark", ignore_result=True)
def mark(payload: object = None) -> None:
    """Say which process this is."""
    base.mark()
