"""Celery's request with an eye on its attempt: what starts, what ends, and what an acknowledgement means."""

from __future__ import annotations

import time
from typing import Any

from billiard.exceptions import WorkerLostError
from celery.exceptions import Ignore, Reject, Retry, TaskRevokedError, TimeLimitExceeded
from celery.utils.log import get_logger
from celery.worker import state as worker_state
from celery.worker.request import Request as CeleryRequest
from celery.worker.state import task_ready

from mesh.bus import runtime
from mesh.bus.documents import one_line
from mesh.bus.holdings import Holding
from mesh.bus.limits import hard_limit_s, try_again
from mesh.core.states import State
from mesh.store.tasks import Entry

logger = get_logger(__name__)
REPLACED = "Replaced by"  # how Celery's Task.replace begins its Ignore


class Request(CeleryRequest):  # type: ignore[misc]
    """One delivered attempt in the agent's main process."""

    def __init__(self, message: Any, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        # Redis's clock has decided about both already; the headers keep them for the task.
        self._eta = self._expires = None
        self._again: bool | None = None  # whether it is tried again after its hard time limit
        self.holding: Holding | None = getattr(message, "holding", None)
        if self.holding is not None:
            self.holding.request = self
            if message.plain:
                # The pool gets what was read already, as it does with Celery's first protocol.
                self._body, self._content_type, self._content_encoding = self._payload, None, None

    @property
    def records_result(self) -> bool:
        """Whether the process that runs it records its end; otherwise the acknowledgement does."""
        return not self.ignore_result or self.chord is not None

    def revoked(self) -> bool:
        """Skip what was given back or lost meanwhile."""
        if self.holding is not None and self.holding.dropped:
            task_ready(self)
            return True
        return bool(super().revoked())

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """Remote control revokes it while it runs: a greenlet that is ended looks like one that returned."""
        if self.holding is not None and self.time_start:
            self.holding.seen = "revoke"
        super().terminate(pool, signal)

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """The pool takes it up."""
        holdings = runtime.holdings
        if self.holding is not None and holdings is not None:
            self.holding.limit_s = hard_limit_s(self)
            if not holdings.accepted(self.holding, pid):
                if not holdings.isolated:  # this is the thread that would run it: stop here
                    task_ready(self)
                    raise TaskRevokedError(self.id)
                self.worker_pid, self.time_start = pid, time.time()
                holdings.stop(self)
                return
        super().on_accepted(pid, time_accepted)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """The pool's time limit."""
        if soft or not self._tried_again(timeout):
            super().on_timeout(soft, timeout)

    def _tried_again(self, limit_s: float) -> bool:
        """The hard limit: whether this attempt needs no more than to be stopped (pools tell it once or twice)."""
        holding, holdings = self.holding, runtime.holdings
        if holding is None or holdings is None or worker_state.should_terminate:
            return False
        if self._again is None:
            holding.seen, error, word = "time-out", TimeLimitExceeded(limit_s), "fenced"
            if not holding.ended:
                backend = self.task.backend
                word = backend._patiently(lambda: try_again(backend.store, self, error))
            self._again = word is not None
            if self._again:
                logger.warning(
                    "Hard time limit (%ss) exceeded for %s[%s]: %s", limit_s, self.name, self.id, word
                )
                holdings.end(holding, None)
                holdings.forget(holding)
                self.acknowledged = True
                task_ready(self)
                self.send_event("task-retried", exception=one_line(error), traceback="")
        return self._again

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """The pool says that it failed: Celery acknowledges before it records some of these."""
        exc = getattr(exc_info.exception, "exc", exc_info.exception)
        holding = self.holding
        if holding is not None:
            if isinstance(exc, Ignore):
                self._ignored(holding, exc)
            elif (
                isinstance(exc, (WorkerLostError, SystemExit, KeyboardInterrupt))
                and not self._stopped_by_us()
            ):
                return self._process_lost(holding, exc_info, exc)
            elif isinstance(exc, TimeLimitExceeded) and self._tried_again(exc.args[0]):
                return None
            elif not isinstance(exc, (Reject, Retry)):
                holding.seen = "failure"
        return super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def _stopped_by_us(self) -> bool:
        return bool(self._already_cancelled or self._already_revoked)

    def _ignored(self, holding: Holding, exc: Ignore) -> None:
        """A task that replaced itself by a canvas waits for the canvas's last task, which has its id."""
        if str(exc).startswith(REPLACED):
            holding.seen = "replaced"
            holdings = runtime.holdings
            if holdings is not None:
                holdings.store.tasks.retry(
                    Entry(holding.id, holding.fence),
                    queue=holding.queue,
                    task_type=self.type,
                    priority=holding.priority or 0,
                    message=b"",
                    delay_ms="parked",
                    failed=False,
                )
        elif self.records_result and holding.seen is None:
            holdings = runtime.holdings
            if holdings is not None:
                holdings.end(holding, holdings.settlement(holding, State.SUCCEEDED))

    def _process_lost(self, holding: Holding, exc_info: Any, exc: BaseException) -> None:
        """A pool child died under it: counted; queued again, or put aside at the limit."""
        holding.seen = "crash"
        task_ready(self)
        holdings = runtime.holdings
        if holdings is None or holding.ended:
            return
        sentence = (
            f"its pool process died: {exc}"
            if not isinstance(exc, SystemExit)
            else "it ended its pool process"
        )
        backend = self.task.backend
        state = backend.crashed(holding, sentence)
        holdings.end(holding, None)
        holdings.forget(holding)
        self.acknowledged = True
        self.send_event(
            "task-failed" if state != "queued" else "task-rejected", exception=sentence, requeue=True
        )

    def send_event(self, type: str, **fields: Any) -> None:
        """Tell it as an event, which says of which attempt: another agent's of the next one may arrive before."""
        if self.holding is not None:
            fields["attempt"] = self.holding.attempt
        super().send_event(type, **fields)

    def acknowledge(self) -> None:
        """Straight to the outbox: Celery's own way leads through the event loop, which stops before the pool does."""
        if self.holding is None or runtime.holdings is None:
            super().acknowledge()
        elif not self.acknowledged:
            self.acknowledged = True
            runtime.holdings.acknowledge(
                self.holding, recorded_elsewhere=runtime.holdings.isolated and self.records_result
            )

    def reject(self, requeue: bool = False) -> None:
        """Back to its queue; or, not requeued, ended (Celery has recorded the failure)."""
        if self.holding is None or runtime.holdings is None:
            super().reject(requeue)
        elif not self.acknowledged:
            self.acknowledged = True
            if requeue:
                runtime.holdings.release([self.holding])
            else:
                if not self.holding.ended:
                    runtime.holdings.end(
                        self.holding, runtime.holdings.settlement(self.holding, State.FAILED)
                    )
                runtime.holdings.forget(self.holding)
            self.send_event("task-rejected", requeue=requeue)
