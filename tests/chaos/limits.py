"""Too little memory, by the kernel's own means."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.waiting import wait_until

MB = 1 << 20
_GROUPS = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def limited_memory(mb: int) -> Iterator[Callable[[int], None]]:
    """A control group of so much memory; hands out what puts a process into it. Skips where there is none."""
    try:
        folder, limit = _own_group()
        group = folder / f"mesh-{uuid.uuid4().hex[:8]}"
        group.mkdir()
    except OSError as error:
        pytest.skip(f"needs the right to make a control group for memory: {error}")
    try:
        try:
            (group / limit).write_text(str(mb * MB))
        except OSError as error:
            pytest.skip(f"needs control groups that limit memory: {error}")
        yield lambda pid: (group / "cgroup.procs").write_text(str(pid)) and None
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            (folder / "cgroup.procs").write_text(pid)
        wait_until(lambda: not (group / "cgroup.procs").read_text(), 10, "the control group to be empty")
        group.rmdir()


def _own_group() -> tuple[Path, str]:
    """This process's group and the name of the file with its limit, in either version of control groups."""
    lines = Path("/proc/self/cgroup").read_text(encoding="utf-8")
    if found := re.search(r"^\d+:(?:[^:]*,)?memory(?:,[^:]*)?:(.*)$", lines, flags=re.M):
        return _GROUPS / "memory" / found[1].lstrip("/"), "memory.limit_in_bytes"
    if found := re.search(r"^0::(.*)$", lines, flags=re.M):
        return _GROUPS / found[1].lstrip("/"), "memory.max"
    raise FileNotFoundError("there are no control groups")


def limit_address_space(pid: int, *, more_mb: int) -> None:
    """Let a process take only so much more than it has: Python raises MemoryError then."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGESIZE") + more_mb * MB
    resource.prlimit(pid, resource.RLIMIT_AS, (most, most))
