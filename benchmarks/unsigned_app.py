"""The benchmark's application with sealing and opening replaced by nothing: what they cost is the difference. Never for use."""

from __future__ import annotations

from typing import Any

from benchmarks.contestants.mesh_app import app
from mesh.bus import publishing, transport
from mesh.core.envelopes import Opened
from mesh.services import tasks

__all__ = ["app", "without_signing"]


def _as_it_is(task_id: str, message: bytes) -> bytes:
    return message


def _sealer(*_: Any, **__: Any) -> Any:
    return _as_it_is


def _open(keys: Any, queue: str, task_id: str, sealed: bytes, now_ms: int | None) -> Opened:
    return Opened(sealed, b"", 0, None)


def without_signing() -> None:
    """From now on this process seals and opens nothing."""
    tasks.sealer = publishing.sealer = _sealer
    transport.open_task = _open


without_signing()
