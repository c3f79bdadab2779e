"""How a Celery message becomes a publication: whose it is, and when it is due.

One id may be published again (`self.retry`, callbacks, chords): by the running attempt itself, by another task's attempt,
or from outside; each has its own rule, see `mesh/store/lua/submit.lua` and `retry.lua`.
"""

from __future__ import annotations

import datetime
import logging
import sys
import uuid
from typing import Any

from celery._state import get_current_task
from celery.exceptions import SoftTimeLimitExceeded
from kombu.compression import decompress
from kombu.exceptions import OperationalError

from mesh.bus import runtime
from mesh.bus.documents import one_line
from mesh.bus.messages import ATTEMPT_HEADER, CALL_HEADER, compact, part_index
from mesh.core.places import check_strategy, placing
from mesh.core.requirements import canonical, is_compound
from mesh.core.tracing import TRACEPARENT, TRACESTATE, Trace, parse
from mesh.errors import Invalid
from mesh.store.signing import AgentSigner, sealer, signer_of
from mesh.store.store import Store
from mesh.store.tasks import Entry, Template
from mesh.telemetry.spans import Sending

logger = logging.getLogger(__name__)
DEFAULT_PRIORITY = 4


class TooLate(Exception):
    """A retry that would come after the task's total deadline: nothing was published."""


def _when(value: Any) -> datetime.datetime:
    moment = value if isinstance(value, datetime.datetime) else datetime.datetime.fromisoformat(str(value))
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


def _ms_from_now(value: Any, now: datetime.datetime) -> int:
    """Ms from the producer's own clock: only differences reach the store."""
    return int((_when(value) - now).total_seconds() * 1000)


def _priority(payload: dict[str, Any], call: dict[str, Any], zero_first: bool) -> int:
    value = call.get("priority")
    if value is None:
        value = payload["properties"].get("priority")
    try:
        number = DEFAULT_PRIORITY if value is None else max(0, min(9, int(value)))
    except (TypeError, ValueError):
        number = DEFAULT_PRIORITY
    return 9 - number if zero_first and value is not None else number


def _deadline_ms(deadline_s: Any) -> int | None:
    """`apply_async(deadline_s=...)`: ms from now until the task has to have ended. Raises `Invalid`."""
    if deadline_s is None:
        return None
    if not (isinstance(deadline_s, (int, float)) and 0 <= deadline_s < 10**9):
        raise Invalid(f"deadline_s {deadline_s!r} is not a number of seconds from 0 on.")
    return int(deadline_s * 1000)


def current_attempt() -> tuple[Any, Entry, int] | None:
    """(request, id and fence, run) of the task that this thread runs, if it runs one of the mesh's."""
    task = get_current_task()
    request = task.request if task is not None else None
    attempt = getattr(request, ATTEMPT_HEADER, None) if request is not None else None
    if request is None or not attempt or not request.id:
        return None
    return request, Entry(request.id, attempt["fence"]), int(attempt["run"])


def _problem() -> str:
    """What is being handled: retries are published where the failure was caught."""
    error = sys.exc_info()[1]
    return "" if error is None else one_line(error)


def _is_dropped(entry: Entry) -> bool:
    """Whether this attempt was ended from outside while it ran on, in a pool that cannot stop it: it starts nothing more."""
    holding = runtime.holdings.by_tag.get(f"{entry.id} {entry.fence}") if runtime.holdings else None
    return holding is not None and holding.dropped


def parent_run(attempt: tuple[Any, Entry, int] | None) -> str | None:
    """Names the run that publishes: a complete chord's, or the attempt's; None outside of both."""
    named = runtime.publishing_for.get()
    return named if named is not None or attempt is None else f"{attempt[1].id}:{attempt[2]}"


def publish(store: Store, queue: str, payload: dict[str, Any], *, zero_first: bool = False) -> str:
    """Publish one message as Kombu hands it over; the script's word for it. Raises `Invalid` for one that is too large, or
    that this process has no key for."""
    headers = payload.get("headers") or {}
    task_id, task_type = str(headers.get("id") or uuid.uuid4()), str(headers.get("task") or "")
    attempt = current_attempt()
    trace = parse(headers.get(TRACEPARENT), headers.get(TRACESTATE))
    if attempt is not None and attempt[1].id == task_id:  # what is tried again stays where it was submitted
        return _publish(store, queue, payload, task_id, task_type, zero_first, attempt, trace)
    with Sending(trace) as sending:
        word = _publish(store, queue, payload, task_id, task_type, zero_first, attempt, sending.trace)
        sending.told(queue, task_id, task_type)
    return word


def _publish(
    store: Store,
    queue: str,
    payload: dict[str, Any],
    task_id: str,
    task_type: str,
    zero_first: bool,
    attempt: tuple[Any, Entry, int] | None,
    trace: Trace | None,
) -> str:
    headers = payload.get("headers") or {}
    call = headers.get(CALL_HEADER) or {}
    if trace is not None or TRACEPARENT in headers:
        plain = {name: value for name, value in headers.items() if name not in (TRACEPARENT, TRACESTATE)}
        headers = {**plain, **(trace.headers if trace is not None else {})}
        payload = {**payload, "headers": headers}
    if headers.get("compression") and isinstance(signer_of(store.settings), AgentSigner):
        # Nobody decompresses what an agent has signed: a few bytes could become any number.
        body = decompress(payload["body"], headers["compression"])
        headers = {name: value for name, value in headers.items() if name != "compression"}
        payload = {**payload, "headers": headers, "body": body}
    message = compact(task_id, payload)
    limit = store.settings.max_payload_bytes
    if len(message) > limit:
        raise Invalid(
            f"The message of task {task_type} has {len(message):,} bytes, more than the {limit:,} allowed "
            "(MESH_MAX_PAYLOAD_BYTES): pass a reference to the data instead."
        )
    now = datetime.datetime.now(datetime.UTC)
    delay_ms = _ms_from_now(headers["eta"], now) if headers.get("eta") else None
    if delay_ms is not None and delay_ms <= 0:
        delay_ms = None
    priority = _priority(payload, call, zero_first)
    if attempt is not None and attempt[1].id == task_id:
        request, entry, _ = attempt
        failed = int(headers.get("retries") or 0) > int(request.retries or 0)
        word = store.tasks.retry(
            entry,
            queue=queue,
            task_type=task_type,
            priority=priority,
            message=sealer(store, queue, delay_ms=delay_ms)(task_id, message),
            delay_ms=delay_ms,
            failed=failed,
            timed_out=failed and isinstance(sys.exc_info()[1], SoftTimeLimitExceeded),
            problem=_problem() if failed else "",
        )
        if word == "late":
            raise TooLate(f"its next try would come after its deadline (retry {headers.get('retries') or 0})")
        return word
    if attempt is not None and _is_dropped(attempt[1]):
        logger.info("%s is not published: attempt %s of %s is over", task_id, attempt[1].fence, attempt[1].id)
        return "fenced"
    parent = parent_run(attempt)
    chord = (
        f"{headers.get('group')}|{part_index(headers.get('group_index'), task_id)}"
        if call.get("chord")
        else None
    )
    settings = store.settings
    times = {
        "delay_ms": delay_ms,
        "expires_ms": _ms_from_now(headers["expires"], now) if headers.get("expires") else None,
        "deadline_ms": _deadline_ms(call.get("deadline_s")),
    }
    queue = canonical([queue]) if is_compound(queue) else queue
    template = Template(
        queue=queue,
        type=task_type,
        priority=priority,
        **times,
        kind="child" if parent is not None else "outside",
        placing=placing(
            check_strategy(call.get("strategy") or settings.load_balancing_strategy),
            call.get("region") or settings.agent_region,
        ),
        extra=(*(("chord", chord) if chord else ()), *(("trace", trace.trace_id) if trace else ())),
    )
    token = parent if parent is not None else str(call.get("nonce") or uuid.uuid4().hex)
    sealed = sealer(store, queue, **times)(task_id, message)
    word = store.tasks.submit([template.publication(task_id, sealed, token)])[0]
    if word == "full":
        raise OperationalError(f"No more requirements can be registered (queue {queue}): 10,000 are in use.")
    return word
