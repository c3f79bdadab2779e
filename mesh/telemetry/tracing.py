"""The trace that is being continued in this thread: OpenTelemetry's, if the process uses it, else ours."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from mesh.core.tracing import Trace, parse

__all__ = ["continue_trace", "continuing", "current", "remote_span", "tell_attempt", "trace_of"]

_continued: ContextVar[Trace | None] = ContextVar("mesh_trace", default=None)


def _no_attempt() -> Trace | None:
    return None


_attempt: Callable[[], Trace | None] = _no_attempt


def tell_attempt(attempt: Callable[[], Trace | None]) -> None:
    """Called for the trace of the attempt that this thread runs."""
    global _attempt
    _attempt = attempt


def _opentelemetry() -> Any:
    """Its API, if somebody here has loaded it: we never do so ourselves."""
    return sys.modules.get("opentelemetry.trace")


def current() -> Trace | None:
    """Where what is submitted now belongs; None: nobody has said so."""
    api = _opentelemetry()
    if api is not None:
        span = api.get_current_span().get_span_context()
        if span.is_valid:
            return trace_of(span)
    return _continued.get() or _attempt()


@contextlib.contextmanager
def continuing(trace: Trace | None) -> Iterator[None]:
    """What is submitted inside belongs to this trace, also for OpenTelemetry; None changes nothing."""
    if trace is None:
        yield
        return
    token = _continued.set(trace)
    api = _opentelemetry()
    try:
        if api is None:
            yield
        else:
            with api.use_span(remote_span(api, trace), record_exception=False, set_status_on_exception=False):
                yield
    finally:
        _continued.reset(token)


def trace_of(span: Any) -> Trace:
    """What OpenTelemetry's context of a span says."""
    state = span.trace_state.to_header() if span.trace_state else ""
    return Trace(f"{span.trace_id:032x}", f"{span.span_id:016x}", int(span.trace_flags), state)


def remote_span(api: Any, trace: Trace) -> Any:
    """The span of somebody else that a trace names, as OpenTelemetry has it."""
    state = api.TraceState.from_header([trace.state]) if trace.state else None
    flags = api.TraceFlags(trace.flags)
    return api.NonRecordingSpan(
        api.SpanContext(int(trace.trace_id, 16), int(trace.span_id, 16), True, flags, state)
    )


def continue_trace(traceparent: str | None, tracestate: str = "") -> contextlib.AbstractContextManager[None]:
    """`with continue_trace(request.headers.get("traceparent")):` what is submitted inside belongs to the caller's trace.

    Not needed where OpenTelemetry has a span already. A malformed or missing `traceparent` changes nothing.
    """
    return continuing(parse(traceparent, tracestate))
