"""An OTLP/HTTP collector: what OpenTelemetry's exporters send, decoded."""

import gzip
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Sent
from opentelemetry.proto.trace.v1.trace_pb2 import Status


@dataclass(frozen=True, kw_only=True)
class Span:
    """One span; times in ns."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    begun: int
    ended: int
    attributes: dict[str, Any]
    resource: dict[str, Any]
    failed: bool
    events: tuple[str, ...]


@dataclass
class Collector:
    """What came so far."""

    url: str
    spans: list[Span] = field(default_factory=list)

    def of(self, trace_id: str) -> list[Span]:
        """Of one trace, by their beginning."""
        return sorted((one for one in self.spans if one.trace_id == trace_id), key=lambda one: one.begun)


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


def _decoded(body: bytes) -> Iterator[Span]:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        told = _values(resource.resource.attributes)
        for one in (span for scope in resource.scope_spans for span in scope.spans):
            yield Span(
                name=one.name, kind=Sent.SpanKind.Name(one.kind).removeprefix("SPAN_KIND_"), trace_id=one.trace_id.hex(),
                span_id=one.span_id.hex(), parent_id=one.parent_span_id.hex(), begun=one.start_time_unix_nano,
                ended=one.end_time_unix_nano, attributes=_values(one.attributes), resource=told,
                failed=one.status.code == Status.STATUS_CODE_ERROR, events=tuple(event.name for event in one.events),
            )  # fmt: skip


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that runs."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.path == "/v1/traces", self.path
            collector.spans.extend(_decoded(body))
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
