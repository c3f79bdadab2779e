"""An attempt's time limits: who ends an attempt that runs out of its time, and what follows.

The soft limit is an exception in the task, and `mesh.bus.task` retries it like any failure. At the hard limit the attempt can
say nothing any more, so the agent's main process (told by its pool) or its beat (where the pool cannot stop a task, or did not)
does it: both through `try_again`. Types made with `@task` are tried again by their policy; Celery's own tasks end at once.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Any

from celery import states
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from mesh.bus import messages
from mesh.bus.documents import one_line
from mesh.bus.opening import open_stored
from mesh.core.envelopes import Rejected
from mesh.core.retries import decide
from mesh.core.states import RECORDED, Reason, State
from mesh.store.signing import sealer
from mesh.store.store import Store
from mesh.store.tasks import Entry, Settlement

logger = logging.getLogger(__name__)


def hard_limit_s(request: Any) -> float | None:
    """After how long the attempt of a worker's request is to be stopped; None: never."""
    asked, _ = request.time_limits
    return asked or request.task.time_limit or request.app.conf.task_time_limit or None


def try_again(store: Store, request: Any, error: TimeLimitExceeded) -> str | None:
    """Publish the next try of an attempt that ran out of time; None if there is to be none.

    Else the script's word; whatever it is, this attempt is over. Raises `StoreUnavailable`.
    """
    task = request.task
    said = getattr(task, "mesh_retries", None)  # of types made with `@task`, as is `mesh_final`
    if said is None or issubclass(SoftTimeLimitExceeded, task.mesh_final):
        return None
    headers, holding = request.request_dict, request.holding
    policy = said.policy(headers.get(messages.RETRIES_HEADER), store.settings)
    decision = decide(policy, retries=int(headers.get("retries") or 0), dice=random.random())
    stored = store.tasks.message(holding.id) if decision.again else None
    if stored is None:
        return None
    try:  # it has lain in Redis since it was fetched, and this agent is about to sign it
        message = messages.next_try(open_stored(store, holding.queue, holding.id, stored))
    except Rejected as refused:
        logger.error("task %s is not tried again: %s", holding.id, refused.detail)
        return None
    delay_ms = int(decision.delay_s * 1000)
    word = store.tasks.retry(
        Entry(holding.id, holding.fence),
        queue=holding.queue,
        task_type=request.type,
        priority=holding.priority or 0,
        message=sealer(store, holding.queue, delay_ms=delay_ms)(holding.id, message),
        delay_ms=delay_ms,
        failed=True,
        timed_out=True,
        problem=one_line(error),
    )
    return None if word == "late" else word


def end_overrun(store: Store, backend: Any, request: Any) -> Callable[[], None] | None:
    """End an attempt that has run past its hard limit, from outside of the pool: tried again, or timed out.

    Answers what is left to do then (the end of its chain, its errbacks), None if nothing. Raises `StoreUnavailable`; then
    nothing has changed.
    """
    holding = request.holding
    error = TimeLimitExceeded(hard_limit_s(request))
    if try_again(store, request, error) is not None:
        return None
    ran_ms = int((time.monotonic() - (holding.started_at or holding.leased_at)) * 1000)
    words, due = store.tasks.settle(
        [
            Settlement(
                holding.id,
                holding.fence,
                State.TIMED_OUT,
                backend.failure_document(holding.id, error),
                True,
                ran_ms,
                Reason.ATTEMPT,
                one_line(error),
            )
        ]
    )
    if words[0] not in RECORDED:
        return None

    def follow() -> None:
        backend.complete_chords(due)
        backend._after_failure(request._context, error, None, True, True, states.FAILURE)

    return follow
