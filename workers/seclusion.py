"""Secrets stay with the agent's main process: neither its pool's children nor what tasks start inherit them.

`os.environ` is one of three places. The C library's copy follows it; the block of memory that the kernel filled when the
process began does not, and is what `/proc/<pid>/environ` shows to everything that runs as the same user, the children first.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from pathlib import Path

from ..settings import withhold

__all__ = ["keep_secrets"]
_BLOCK = (
    47  # env_start and env_end are fields 50 and 51 of /proc/self/stat; two stand before the name's bracket
)


def keep_secrets() -> None:
    """Take the secrets out of the environment of this process. Before the pool forks."""
    _wipe(withhold())


def _wipe(names: Iterable[str]) -> None:
    """Overwrite their values where the kernel put them. Nothing points there any more: `withhold` has unset them."""
    if sys.platform != "linux":
        return
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        start, end = int(fields[_BLOCK]), int(fields[_BLOCK + 1])
    except (OSError, ValueError, IndexError):
        return
    if not 0 < start < end:
        return
    block = b"\0" + ctypes.string_at(start, end - start)
    for name in names:
        mark = b"\0" + name.encode() + b"="
        at = block.find(mark)
        if at >= 0:
            begin = at + len(mark)
            ctypes.memset(start + begin - 1, 0, block.index(b"\0", begin) - begin)
