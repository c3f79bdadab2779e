"""The application that the kill tests run: tasks that write what they did into a file, a witness beside the system."""

from __future__ import annotations

import os
import time

from celery import Celery

from mesh import install

app = install(Celery("kill"))
_EFFECTS = os.environ.get("KILL_EFFECTS", "")


@app.task(name="work")
def work(number: int, seconds: float) -> int:
    """Take `seconds`, leave a line, return the square."""
    time.sleep(seconds)
    with open(_EFFECTS, "a", encoding="utf-8") as effects:
        effects.write(f"{number}\n")
    return number * number


@app.task(name="die")
def die(name: str) -> str:
    """Kill the process that runs it, each time."""
    os._exit(1)


@app.task(name="spin")
def spin(seconds: float) -> str:
    """Pure CPU, holding the interpreter's lock, for `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return "spun"
