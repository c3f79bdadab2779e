"""A node whose clock is wrong: `python -m tests.chaos.shifted SECONDS -m MODULE ...` runs a module that much in the future.

What tells the date is shifted, for the module and all that it forks. What measures durations stays right, as on such a node.
"""

from __future__ import annotations

import datetime
import runpy
import sys
import time
from typing import Any


def shift(seconds: float) -> None:
    """From now on this process believes in another time."""
    true_time, true_time_ns, true_datetime = time.time, time.time_ns, datetime.datetime

    class Like(type):
        def __instancecheck__(cls, one: object) -> bool:
            return isinstance(one, true_datetime)

    class Shifted(true_datetime, metaclass=Like):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return true_datetime.now(tz) + datetime.timedelta(seconds=seconds)

        @classmethod
        def utcnow(cls) -> Any:
            return cls.now(datetime.UTC).replace(tzinfo=None)

    time.time = lambda: true_time() + seconds
    time.time_ns = lambda: true_time_ns() + int(seconds * 1e9)
    datetime.datetime = Shifted  # type: ignore[misc]


if __name__ == "__main__":
    shift(float(sys.argv[1]))
    del sys.argv[:3]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
