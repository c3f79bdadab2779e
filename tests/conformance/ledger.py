"""What tasks tell the tests, and the tests tell the tasks: notes and gates in Redis.

It uses a client of its own, so that it works the same over any Celery transport and result backend.
A note is written when a task's body runs; a gate holds a running body until the test opens it.
"""

from __future__ import annotations

import functools
import json
import os
import time
from typing import Any

import redis

from tests.waiting import wait_until

PREFIX = "conformance:"
TTL_S = 3600


@functools.lru_cache(maxsize=4)
def _client(url: str, pid: int) -> redis.Redis:
    """One client for each server and process: prefork children must not share their parent's sockets."""
    return redis.Redis.from_url(url, decode_responses=True, socket_timeout=10)


def client() -> redis.Redis:
    return _client(os.environ["REDIS_URL"], os.getpid())


def write_note(key: str, **facts: Any) -> None:
    """Append `facts` (JSON values) to the notes of `key`, with this process's id and the time in seconds."""
    note = json.dumps({"pid": os.getpid(), "at_s": time.time(), **facts})
    with client().pipeline() as pipe:
        pipe.rpush(f"{PREFIX}notes:{key}", note)
        pipe.expire(f"{PREFIX}notes:{key}", TTL_S)
        pipe.execute()


def read_notes(key: str) -> list[dict[str, Any]]:
    """The notes of `key`, oldest first."""
    return [json.loads(note) for note in client().lrange(f"{PREFIX}notes:{key}", 0, -1)]  # type: ignore[union-attr]


def open_gate(key: str) -> None:
    client().set(f"{PREFIX}gate:{key}", "open", ex=TTL_S)


def pass_gate(key: str, timeout_s: float = 60) -> None:
    """Hold the caller until the gate of `key` is open; raises when it stays shut for `timeout_s`."""
    name = f"{PREFIX}gate:{key}"
    wait_until(lambda: client().exists(name), timeout_s=timeout_s, description=f"gate {key} to open")
