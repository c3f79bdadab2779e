"""Task types that do harm, each in its way, and the callbacks that should hear of it."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from celery import shared_task

from mesh import task


@task("raises", retries=2, retry_delay_s=0.2)
def raises() -> None:
    """Fail, each time."""
    raise ValueError("never")


@task("exits")
def exits() -> None:
    """End the process that runs it, each time."""
    os._exit(3)


@task("too-large")
def too_large() -> str:
    """Give back more than any task may."""
    return "x" * 3_000_000


@task("not-serialisable")
def not_serialisable():  # type: ignore[no-untyped-def]
    """Give back what JSON cannot say."""
    return object()


@shared_task(name="kills-agents")
def kills_agents() -> None:
    """Kill the whole agent that runs it, all processes of its group, once its start is known for sure.

    One that kills within milliseconds may cost another agent: nothing told that it had started, so nothing is counted.
    """
    time.sleep(1.0)
    os.killpg(os.getpgrp(), signal.SIGKILL)


@shared_task(name="follows")
def follows(given: Any) -> None:
    """The next task of a chain."""


@shared_task(name="hears")
def hears(failed_id: str) -> None:
    """An error callback: leave a line."""
    with open(os.environ["POISON_NOTES"], "a", encoding="utf-8") as notes:
        notes.write(f"{failed_id}\n")
