"""The task that the rows of the fault matrix run: it tells a witness beside the system what it does, and waits if told to."""

from __future__ import annotations

import os
import time
from typing import Any

from mesh import current, task
from mesh.verify.task import effect


def wait_for(gate: str | None) -> None:
    """Return once this file is there."""
    while gate and not os.path.exists(gate):
        time.sleep(0.01)


def compute(seconds: float) -> None:
    """Keep the interpreter busy for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))


@task("work")
def work(payload: dict[str, Any]) -> dict[str, Any]:
    """Begin, take `seconds`, compute for `computes` seconds, wait for the file `gate`, end, wait for the file `after`.

    `hoards`: its first attempt takes memory until that is its end.
    """
    effect(payload["effects"], "begin", payload["number"])
    hoard = []
    while payload.get("hoards") and current.attempt == 1:
        hoard.append(os.urandom(1 << 20))
    time.sleep(payload.get("seconds", 0.0))
    compute(payload.get("computes", 0.0))
    wait_for(payload.get("gate"))
    effect(payload["effects"], "end", payload["number"])
    wait_for(payload.get("after"))
    return {"number": payload["number"], "attempt": current.attempt, "fence": current.fence}
