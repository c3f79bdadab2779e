"""Waiting for a condition, instead of for a time."""

from __future__ import annotations

import time
from collections.abc import Callable

PAUSE_S = 0.02


def wait_until(
    predicate: Callable[[], object], timeout_s: float = 10, description: str = "the condition"
) -> None:
    """Return as soon as `predicate()` is true; AssertionError after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not predicate():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s} s for {description}")
        time.sleep(PAUSE_S)
