"""The tasks that the rows of the fault matrix run: they write what they do into a file, a witness beside the system."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from mesh import current, task

EFFECTS = "WITNESS_EFFECTS"
"""The environment variable that names the file."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One line: an attempt began or ended. `at_s`: this machine's monotonic clock, the same in all its processes."""

    what: str  # begin | end
    id: str
    run: int
    attempt: int
    fence: str
    agent: str
    pid: int
    at_s: float


def leave(what: str) -> None:
    """Append a line about the running attempt; lines of several processes do not mix."""
    effect = Effect(
        what=what,
        id=current.task_id,
        run=current.run,
        attempt=current.attempt,
        fence=current.fence,
        agent=os.environ["AGENT_ID"],
        pid=os.getpid(),
        at_s=time.monotonic(),
    )
    line = json.dumps(vars(effect)).encode() + b"\n"
    file = os.open(os.environ[EFFECTS], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, line)
    finally:
        os.close(file)


def effects(path: Path) -> list[Effect]:
    """All lines so far, in the order in which they were written; a last line that is still being written is left out."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [Effect(**json.loads(line)) for line in text.split("\n")[:-1]]


def _wait_for(gate: str | None) -> None:
    while gate and not os.path.exists(gate):
        time.sleep(0.01)


@task("work")
def work(payload: dict) -> dict:  # type: ignore[type-arg]
    """Begin, take `seconds`, wait for the file `gate`, end, wait for the file `after`; gives the square of `number`."""
    leave("begin")
    time.sleep(payload.get("seconds", 0.0))
    _wait_for(payload.get("gate"))
    leave("end")
    _wait_for(payload.get("after"))
    return {
        "square": payload["number"] ** 2,
        "fence": current.fence,
        "agent": os.environ["AGENT_ID"],
    }
