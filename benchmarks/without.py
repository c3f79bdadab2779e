"""The benchmark's application without one thing, which is replaced by nothing: what that costs is the difference. Never for use.

`BENCH_WITHOUT` names it: `security` (sealing and opening), `telemetry` (what is measured of attempts and beats).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from mesh.store import scripts

__all__ = ["app"]

_NOTHING = "local function measure() end\nlocal function write_timings() end\n"


def _without_timings() -> None:
    """From now on scripts measure nothing: before they are made, with `mesh.store.tasks`."""
    read = scripts._read
    scripts._read = lambda name: _NOTHING if name == "lib/timings.lua" else read(name)


def _without_pulse() -> None:
    from mesh.telemetry.metrics import Pulse

    @contextlib.contextmanager
    def beat(self: Pulse) -> Iterator[None]:
        yield

    Pulse.beat = beat  # type: ignore[assignment]


def _without_signing() -> None:
    """From now on this process seals and opens nothing."""
    from mesh.bus import publishing, transport
    from mesh.core.envelopes import Opened
    from mesh.services import tasks

    def as_it_is(task_id: str, message: bytes) -> bytes:
        return message

    def sealer(*_: Any, **__: Any) -> Any:
        return as_it_is

    def opened(keys: Any, queue: str, task_id: str, sealed: bytes, now_ms: int | None) -> Opened:
        return Opened(sealed, b"", 0, None)

    tasks.sealer = publishing.sealer = sealer
    transport.open_task = opened


_WHAT = os.environ["BENCH_WITHOUT"]
if _WHAT == "telemetry":
    _without_timings()
    _without_pulse()

from benchmarks.contestants.mesh_app import app  # noqa: E402  (it makes the scripts)

if _WHAT == "security":
    _without_signing()
