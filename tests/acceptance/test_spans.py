"""Spans of requests, submissions, waiting and attempts, as a real collector gets them."""

import json
from collections.abc import Iterator

import httpx2
import pytest

from mesh.core.tracing import trace_id_of
from tests.acceptance.collector import Collector, Span, collecting
from tests.acceptance.conftest import START_S, Place
from tests.acceptance.test_coordinator import start
from tests.acceptance.test_traces import TASKS, S, T
from tests.waiting import wait_until

pytestmark = pytest.mark.ci


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


def shape(spans: list[Span], parent_id: str = "") -> list[object]:
    """The tree below a span: names and what is below."""
    return [
        (one.name, *shape(spans, one.span_id)) if shape(spans, one.span_id) else one.name
        for one in spans
        if one.parent_id == parent_id
    ]


def spans_of(collector: Collector, trace_id: str, many: int) -> list[Span]:
    wait_until(lambda: len(collector.of(trace_id)) >= many, START_S, f"{many} spans")
    return collector.of(trace_id)


def submit(place: Place, url: str, **headers: str) -> str:
    token = place.call("auth", "--agent-id", "me", "--agent-type", "admin").stdout.strip()
    answer = httpx2.post(
        f"{url}/v1/namespaces/{place.namespace}/tasks",
        headers={"authorization": f"Bearer {token}", **headers},
        json={"type": "root", "payload": "delay"},
    )
    return str(answer.json()["id"])


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads", "gevent"])
def test_one_trace_from_the_request_to_the_last_task(place: Place, collector: Collector, pool: str) -> None:
    otel = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "LOG_FORMAT": "json",
    }
    (place.folder / "shop_tasks.py").write_text(TASKS)
    agent = place.agent("a1", "-I", "shop_tasks", "--pool", pool, **otel)
    _, url = start(place, "c1", **otel)
    task_id = submit(place, url, traceparent=f"00-{T}-{S}-01")
    spans = spans_of(collector, T, 7)
    leaf = "process leaf"
    route = "POST /v1/namespaces/{namespace}/tasks"
    assert shape(spans, S) == [
        (route, ("send root", "wait root", ("process root", ("send leaf", "wait leaf", leaf))))
    ]
    by_name = {one.name: one for one in spans}
    request, sent, waited, ran = (by_name[name] for name in (route, "send root", "wait root", "process root"))
    assert (request.kind, sent.kind, waited.kind, ran.kind) == ("SERVER", "PRODUCER", "CONSUMER", "CONSUMER")
    assert request.attributes["http.response.status_code"] == 202
    assert request.resource["service.name"] == "agent-mesh-coordinator"
    assert (ran.resource["service.name"], ran.resource["service.instance.id"]) == ("agent-mesh-agent", "a1")
    for one, kind in ((sent, "send"), (waited, "receive"), (ran, "process")):
        assert one.attributes["messaging.system"] == "agent_mesh"
        assert one.attributes["messaging.operation.type"] == kind
        assert one.attributes["messaging.destination.name"] == "root"
        assert one.attributes["messaging.message.id"] == task_id
    assert ran.attributes["agent_mesh.task.attempt"] == 1 and not ran.failed
    assert ran.attributes["agent_mesh.task.outcome"] == "success"
    assert waited.begun <= ran.begun <= waited.ended
    # What logs say of an attempt is what its span is called.
    said = [
        json.loads(line) for line in agent.output().splitlines() if '"root"' in line and "span_id" in line
    ]
    assert {(one["trace_id"], one["span_id"]) for one in said} == {(T, ran.span_id)}
    # Without a caller's trace, and tried again: one trace, which everybody can derive.
    handle = place.mesh.submit("again", 1)
    spans = spans_of(collector, trace_id_of(handle.id), 4)
    assert [one.name for one in spans if not one.parent_id] == ["process again"] * 2
    first, second = [one for one in spans if one.name == "process again"]
    assert [one.attributes["agent_mesh.task.attempt"] for one in (first, second)] == [1, 2]
    assert first.failed and first.events == ("exception",) and first.attributes["error.type"] == "ValueError"
    assert first.attributes["agent_mesh.task.outcome"] == "retry" and not second.failed
    # What a caller does not sample, nobody records.
    other = T[::-1]
    handle_id = submit(place, url, traceparent=f"00-{other}-{S}-00")
    wait_until(lambda: f'"task":"{handle_id}"' in agent.output() and agent.output().count('"leaf"'), START_S)
    agent.terminate()
    assert agent.wait() == 0
    assert not collector.of(other)
