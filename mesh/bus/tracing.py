"""The trace of an attempt: told in the headers of its message, or derived from the task's id; its spans, where wanted."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any

from celery._state import get_current_task
from celery.signals import (
    task_postrun,
    task_prerun,
    worker_process_init,
    worker_process_shutdown,
    worker_shutdown,
)

from mesh.bus.messages import ATTEMPT_HEADER
from mesh.core.tracing import TRACEPARENT, TRACESTATE, Trace, parse, span_id_of, trace_id_of
from mesh.errors import StoreUnavailable
from mesh.telemetry.spans import Exporter, attributes, close, exporter, wanted
from mesh.telemetry.tracing import continuing, trace_of

__all__ = ["of_attempt", "of_request", "parent_of", "watch"]


def parent_of(request: Any) -> Trace | None:
    """Where the task of a Celery request was submitted; None: nobody has said so."""
    return parse(getattr(request, TRACEPARENT, None), getattr(request, TRACESTATE, None))


def of_request(request: Any) -> Trace:
    """Where what an attempt does belongs: the task's trace, and a span of the attempt's own."""
    parent = parent_of(request)
    fence = (getattr(request, ATTEMPT_HEADER, None) or {}).get("fence") or ""
    span_id = span_id_of(request.id, fence)
    return Trace(trace_id_of(request.id), span_id) if parent is None else parent._replace(span_id=span_id)


def of_attempt() -> Trace | None:
    """That of the attempt that this thread runs."""
    task = get_current_task()
    request = task.request if task is not None else None
    if request is None or not request.id or not getattr(request, ATTEMPT_HEADER, None):
        return None
    return of_request(request)


def watch(*, forks: bool) -> None:
    """OpenTelemetry sees the attempts of this agent, if somebody uses it here: their spans are sent, or at least what a task's
    code does with it belongs there. Costs nothing otherwise. `forks`: the exporters are made in the pool's processes."""
    if wanted() or "opentelemetry.sdk.trace" in sys.modules:
        task_prerun.connect(_begin, weak=False, dispatch_uid="mesh-spans-begin")
        task_postrun.connect(_end, weak=False, dispatch_uid="mesh-spans-end")
        if forks:
            worker_process_init.connect(_open, weak=False, dispatch_uid="mesh-spans-open")
        else:
            exporter()  # now, and not in the first attempt's time
        for signal in (worker_process_shutdown, worker_shutdown):
            signal.connect(_close, weak=False, dispatch_uid="mesh-spans-close")


def _begin(task: Any, **_: Any) -> None:
    request = task.request
    if not getattr(request, ATTEMPT_HEADER, None):
        return
    stack, own, makes = contextlib.ExitStack(), of_request(request), exporter()
    request.mesh_span = makes, None, stack
    if makes is None:
        stack.enter_context(continuing(own))
        return
    parent, queue = parent_of(request), request.delivery_info["routing_key"]
    more = _described(task, request)
    span = makes.start(
        f"process {queue}", "CONSUMER", parent, {**attributes("process", "process", queue, **more), **_message(request)},
        own=own,
    )  # fmt: skip
    request.mesh_span = makes, span, stack
    if span.is_recording():
        _waited(makes, task, queue, parent or trace_of(span.get_span_context()), more)
    stack.enter_context(makes.use(span))


def _described(task: Any, request: Any) -> dict[str, Any]:
    attempt = getattr(request, ATTEMPT_HEADER)
    number = int(attempt["fence"].partition("-")[0] or 0)
    namespace = task.app.conf.broker_transport_options.get("namespace")
    return {
        "task.type": task.name,
        "task.attempt": number,
        "task.run": attempt["run"],
        "namespace": namespace,
    }


def _message(request: Any) -> dict[str, Any]:
    return {"messaging.message.id": request.id}


def _waited(makes: Exporter, task: Any, queue: str, parent: Trace, more: dict[str, Any]) -> None:
    """The span from when this attempt could be taken. Only Redis knows that, and is asked only here."""
    store, request = task.backend.store, task.request
    with contextlib.suppress(StoreUnavailable):
        queued, created = store.client.execute(
            "HMGET", store.keys.of("task", request.id), "queued", "created"
        )
        since_ms = float(queued or created or 0)
        if since_ms:
            told = {**attributes("wait", "receive", queue, **more), **_message(request)}
            span = makes.start(f"wait {queue}", "CONSUMER", parent, told, since_ns=int(since_ms * 1e6))
            span.end(max(time.time_ns(), int(since_ms * 1e6)))


def _end(task: Any, retval: Any = None, state: str | None = None, **_: Any) -> None:
    makes, span, stack = task.request.__dict__.pop("mesh_span", (None, None, None))
    if stack is None:
        return
    stack.close()
    if makes is not None and span is not None:
        span.set_attribute("agent_mesh.task.outcome", str(state).lower())
        if state in ("FAILURE", "RETRY"):
            makes.fail(span, getattr(retval, "exc", None) or retval)
        span.end()


def _open(**_: Any) -> None:
    exporter()


def _close(**_: Any) -> None:
    close()
