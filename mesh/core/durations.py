"""Times for people."""

from __future__ import annotations

import itertools

__all__ = ["duration"]

_UNITS = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s"))


def duration(ms: float) -> str:
    """Milliseconds for people: `350 ms`, `3.2 s`, `5 min 10 s`, `2 h 3 min`."""
    if ms < 1000:
        return f"{ms:.0f} ms"
    if ms < 60_000:
        return f"{ms / 1000:.1f} s"
    for (size, unit), (below, smaller) in itertools.pairwise(_UNITS):
        if ms >= size:
            rest = int(ms % size // below)
            return f"{int(ms // size)} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{ms / 1000:.0f} s"
