"""What a task can ask of the attempt that runs it: `from mesh import current`."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from mesh.bus import runtime
from mesh.bus.messages import ATTEMPT_HEADER
from mesh.core.states import LIVE
from mesh.errors import NotFound, StoreUnavailable
from mesh.telemetry import tracing


class Current:
    """The running attempt: id, number, fence; progress and cancellation."""

    def __init__(self, task: Any) -> None:
        request = task.request
        attempt = getattr(request, ATTEMPT_HEADER, None) or {}
        self._task, self._since = task, time.monotonic()
        self.task_id: str = request.id or ""
        self.fence: str = attempt.get("fence", "")
        self.run: int = int(attempt.get("run", 1))
        self.attempt: int = int(self.fence.partition("-")[0] or 0)

    @property
    def traceparent(self) -> str:
        """Where what it does belongs, for the headers of its requests to others (W3C trace context)."""
        trace = tracing.current()
        return "" if trace is None else trace.parent

    def progress(self, fraction: float, note: str = "") -> None:
        """Tell how far the task is (0 to 1), for people who wait; while Redis is away, nobody is told."""
        meta = {"fraction": max(0.0, min(1.0, float(fraction))), "note": note}
        document = self._task.backend._document(self.task_id, meta, "PROGRESS", None, None)
        with contextlib.suppress(StoreUnavailable):
            self._task.backend.store.tasks.annotate(self.task_id, self.fence, document)

    @property
    def cancelled(self) -> bool:
        """Whether its outcome will be refused: cancelled, or taken from this agent; while Redis is away: `stopped`."""
        try:
            record = self._task.backend.store.tasks.record(self.task_id)
        except StoreUnavailable:
            return self.stopped
        return record is None or record.state not in LIVE or record.fence != self.fence

    @property
    def stopped(self) -> bool:
        """Whether it should stop now, as far as this process has been told; asks nobody, so a loop may ask it often.

        A pool process is killed when its task is cancelled, and so never sees that; but its agent may have died. In the other
        pools nothing but the task itself can end a running task.
        """
        holdings = runtime.holdings
        if not self.fence:
            return False
        if holdings is None:
            return os.getppid() != _parent
        holding = holdings.by_tag.get(f"{self.task_id} {self.fence}")
        return holding is None or holding.dropped

    @property
    def remaining_s(self) -> float | None:
        """What is left of this attempt's soft time limit, in seconds; None without one. Only prefork enforces it by itself."""
        _, asked = getattr(self._task.request, "timelimit", None) or (None, None)
        limit = asked or self._task.soft_time_limit
        return None if limit is None else limit - (time.monotonic() - self._since)


_parent = os.getppid()  # of a pool process: its agent


def _forked() -> None:
    global _parent
    _parent = os.getppid()


os.register_at_fork(after_in_child=_forked)
_current: ContextVar[Current | None] = ContextVar("mesh_current", default=None)


@contextlib.contextmanager
def activate(attempt: Current) -> Iterator[None]:
    """Make `attempt` the current one inside."""
    token = _current.set(attempt)
    try:
        yield
    finally:
        _current.reset(token)


class _Proxy:
    def __getattr__(self, name: str) -> Any:
        attempt = _current.get()
        if attempt is None:
            raise NotFound(
                "No task of the mesh is running here: `mesh.current` works inside a function made with @task."
            )
        return getattr(attempt, name)


current: Any = _Proxy()
