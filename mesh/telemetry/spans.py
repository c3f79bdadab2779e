"""Spans, sent over OTLP/HTTP where OTEL_EXPORTER_OTLP_ENDPOINT is set and the extra `otel` is installed.

Otherwise nothing of OpenTelemetry is loaded. Its own variables say all the rest: headers, sampler, name of the service,
attributes of the resource.

Names and attributes are those of its semantic conventions for messaging and for HTTP. A process makes its exporter when it has
its first span: a pool's processes after they were forked.
"""

from __future__ import annotations

import atexit
import importlib.metadata
import logging
import os
import threading
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Any

from mesh.core.tracing import Trace
from mesh.telemetry.logging import process_fields
from mesh.telemetry.redacting import redact
from mesh.telemetry.tracing import current, remote_span, trace_of

__all__ = ["Exporter", "Sending", "attributes", "close", "exporter", "wanted"]

logger = logging.getLogger(__name__)
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_SYSTEM = "agent_mesh"
_CLOSE_S = 2.0
_own: ContextVar[Trace | None] = ContextVar("mesh_own_ids", default=None)


def wanted() -> bool:
    """Whether somebody has said where spans go."""
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not off and any(os.environ.get(name) for name in _ENDPOINTS)


def attributes(operation: str, kind: str, queue: str, **more: Any) -> dict[str, Any]:
    """Of a span of a task. `kind`: send, receive, process; `more`: of the mesh's own, None left out."""
    return {
        "messaging.system": _SYSTEM,
        "messaging.operation.name": operation,
        "messaging.operation.type": kind,
        "messaging.destination.name": queue,
        **{f"{_SYSTEM}.{name}": value for name, value in more.items() if value is not None},
    }


class Exporter:
    """Makes spans, and sends them in batches from a thread of its own."""

    def __init__(self) -> None:
        from opentelemetry import trace as api
        from opentelemetry.context import Context
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

        class Ids(RandomIdGenerator):
            """What everybody can derive of an attempt is its name here, too; see `mesh.core.tracing`."""

            def generate_span_id(self) -> int:
                own = _own.get()
                return super().generate_span_id() if own is None else int(own.span_id, 16)

            def generate_trace_id(self) -> int:
                own = _own.get()
                return super().generate_trace_id() if own is None else int(own.trace_id, 16)

        fields = process_fields()
        role = next((one for one in ("coordinator", "agent") if one in fields), "client")
        ours = {SERVICE_NAME: f"agent-mesh-{role}", SERVICE_INSTANCE_ID: fields.get(role, "")}
        said = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        if os.environ.get("OTEL_SERVICE_NAME"):
            said += f",{SERVICE_NAME}="
        resource = Resource.create(
            {name: one for name, one in ours.items() if one and f"{name}=" not in said}
        )
        self._api, self._empty = api, Context()
        self.provider = TracerProvider(resource=resource, id_generator=Ids(), shutdown_on_exit=False)
        atexit.register(self.close)
        self.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self.provider.get_tracer("mesh", importlib.metadata.version("agent-mesh"))
        if isinstance(api.get_tracer_provider(), api.ProxyTracerProvider):
            api.set_tracer_provider(self.provider)  # spans that a task makes go there, too

    def start(
        self,
        name: str,
        kind: str,
        parent: Trace | None,
        told: Mapping[str, Any],
        *,
        own: Trace | None = None,
        since_ns: int | None = None,
    ) -> Any:
        """A span that has begun. `kind`: of OpenTelemetry's SpanKind; `own`: the ids that it is to have."""
        context = self.context(remote_span(self._api, parent)) if parent is not None else self._empty
        token = _own.set(own)
        try:
            return self._tracer.start_span(
                name, context, self._api.SpanKind[kind], dict(told), start_time=since_ns
            )
        finally:
            _own.reset(token)

    def context(self, span: Any) -> Any:
        """A context with this span as the current one."""
        return self._api.set_span_in_context(span, self._empty)

    def use(self, span: Any) -> Any:
        """A context manager in which the span is the current one; it does not end it."""
        return self._api.use_span(span, record_exception=False, set_status_on_exception=False)

    def fail(self, span: Any, error: object) -> None:
        """What the span is of has failed."""
        said = redact(str(error))
        if isinstance(error, BaseException):
            told = {
                "exception.type": type(error).__qualname__,
                "exception.message": said,
                "exception.stacktrace": redact("".join(traceback.format_exception(error))),
            }
            span.add_event("exception", told)
            span.set_attribute("error.type", told["exception.type"])
        span.set_status(self._api.StatusCode.ERROR, said)

    def close(self) -> None:
        """Send what is left, unless that takes long: a stop must not wait for a collector that is gone."""
        atexit.unregister(self.close)
        thread = threading.Thread(target=self.provider.shutdown, daemon=True, name="mesh-spans")
        try:
            thread.start()
        except RuntimeError:  # newer Pythons start none while they end
            self.provider.shutdown()
        else:
            thread.join(_CLOSE_S)


_made: Exporter | None = None
_decided = False


def exporter() -> Exporter | None:
    """That of this process; None: nobody wants spans, or they cannot be made."""
    global _made, _decided
    if not _decided:
        _decided = True
        if wanted():
            try:
                _made = Exporter()
            except ImportError as error:
                logger.warning(
                    "no spans are sent: %s; pip install 'agent-mesh[otel]' brings what they need", error
                )
            except Exception as error:  # what a variable says cannot be: no reason not to work
                logger.warning("no spans are sent: %s", error)
    return _made


def close() -> None:
    """This process stops."""
    if _made is not None:
        _made.close()


def _forked() -> None:
    global _made, _decided
    _made, _decided = None, False


os.register_at_fork(after_in_child=_forked)


class Sending:
    """`with Sending() as sending:` around a submission: `trace` is where it belongs, `told` names what was submitted.

    Without an exporter it only looks for the trace. `trace`: that of the submission, if it brings one.
    """

    __slots__ = ("_exporter", "_span", "trace")

    def __init__(self, trace: Trace | None = None) -> None:
        self.trace = trace
        self._exporter = None if _decided and _made is None else exporter()
        self._span: Any = None

    def __enter__(self) -> Sending:
        if self.trace is None:
            self.trace = current()
        if self._exporter is not None:
            self._span = self._exporter.start("send", "PRODUCER", self.trace, {})
            self.trace = trace_of(self._span.get_span_context())
        return self

    def told(self, queue: str, task_id: str | None, task_type: str, many: int = 1) -> None:
        """What was submitted. `task_id` None: many."""
        if self._span is not None:
            self._span.update_name(f"send {queue}")
            self._span.set_attributes(attributes("send", "send", queue, **{"task.type": task_type}))
            if task_id is None:
                self._span.set_attribute("messaging.batch.message_count", many)
            else:
                self._span.set_attribute("messaging.message.id", task_id)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._exporter is not None:
            if error is not None:
                self._exporter.fail(self._span, error)
            self._span.end()
