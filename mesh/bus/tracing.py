"""The trace of an attempt: told in the headers of its message, or derived from the task's id."""

from __future__ import annotations

from typing import Any

from celery._state import get_current_task

from mesh.bus.messages import ATTEMPT_HEADER
from mesh.core.tracing import TRACEPARENT, TRACESTATE, Trace, parse, span_id_of, trace_id_of

__all__ = ["of_attempt", "of_request", "parent_of"]


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
