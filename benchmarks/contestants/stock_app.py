"""A stock Celery application on Redis, as one that wants no lost tasks is configured: acknowledged after the work.

The prefetch multiplier is Celery's default, written out because it matters for the comparison.
"""

from __future__ import annotations

from celery import Celery

from benchmarks.contestants import base

app = Celery("bench", broker=base.redis_url(), backend=base.redis_url())
app.conf.update(
    task_acks_late=True,
    worker_prefetch_multiplier=4,
    task_default_queue="noop",
    broker_connection_retry_on_startup=True,
    worker_send_task_events=False,
    task_send_sent_event=False,
)


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
