"""The task type of `mesh verify`: it writes an effect beside the system when it begins and when it ends.

Imported only by agents that are started for it (`-I mesh.verify.task`).
"""

from __future__ import annotations

import os
import time
from typing import Any

import msgspec

from mesh.bus.current import current
from mesh.bus.task import task

__all__ = ["TYPE", "effect", "witness"]
TYPE = "verify-witness"


def effect(path: str, what: str, number: int) -> None:
    """Append one line about the running attempt in one write, so that lines of many processes do not mix.

    The file must exist: a task that is told a wrong path makes none.
    """
    line = msgspec.json.encode(
        {
            "what": what,
            "id": current.task_id,
            "number": number,
            "run": current.run,
            "attempt": current.attempt,
            "fence": current.fence,
            "agent": os.environ.get("AGENT_ID", ""),
            "pid": os.getpid(),
            "at_ms": time.time_ns() / 1_000_000,
        }
    )
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(file, line + b"\n")
    finally:
        os.close(file)


@task(TYPE)
def witness(payload: dict[str, Any]) -> dict[str, Any]:
    """Take `seconds`, with a line in the file `effects` before and after; give back `number` and which attempt did it."""
    effect(payload["effects"], "begin", payload["number"])
    time.sleep(payload["seconds"])
    effect(payload["effects"], "end", payload["number"])
    return {"number": payload["number"], "attempt": current.attempt, "fence": current.fence}
