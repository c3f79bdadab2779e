"""Trace context: what is taken from headers, what is handed on, and the ids of what nobody named."""

import re
import sys

import pytest

from mesh.core.tracing import Trace, parse, span_id_of, trace_id_of
from mesh.telemetry import spans

T, S = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_what_is_told_is_handed_on() -> None:
    trace = parse(f"00-{T}-{S}-01", "a=1, b@c=2,,")
    assert trace == Trace(T, S, 1, "a=1,b@c=2")
    assert trace.headers == {"traceparent": f"00-{T}-{S}-01", "tracestate": "a=1,b@c=2"}
    assert Trace(T, S).headers == {"traceparent": f"00-{T}-{S}-00"}


def test_of_later_versions_what_is_known_is_taken() -> None:
    assert parse(f"cc-{T}-{S}-ff-what-comes-later") == Trace(T, S, 3)


@pytest.mark.parametrize(
    "parent",
    [
        None, 7, "", "00", f"00-{T}-{S}", f"00-{T}-{S}-1", f"00-{T}-{S}-01-more", f"00-{T}-{S}-01-", f"ff-{T}-{S}-01",
        f"00-{'0' * 32}-{S}-01", f"00-{T}-{'0' * 16}-01", f"00-{T.upper()}-{S}-01", f"00-{T[1:]}-{S}-01",
        f"00-{T}-{S}-01\n", f"00-{T}-{S}-0g", f"cc-{T}-{S}-01more", f"00-{T}-{S}-01,00-{T}-{S}-01",
    ],
)  # fmt: skip
def test_a_malformed_parent_is_none(parent: object) -> None:
    assert parse(parent, "a=1") is None


@pytest.mark.parametrize(
    "state",
    [None, "a", "a=", "A=1", "a=1,a=2", "a=\n", "a=é", ",".join(f"k{n}=1" for n in range(33)), "a=1=2"],
)
def test_a_malformed_state_is_dropped_and_the_parent_stays(state: object) -> None:
    assert parse(f"00-{T}-{S}-00", state) == Trace(T, S)


def test_a_long_state_is_cut_at_its_end_long_members_first() -> None:
    long = "long=" + "x" * 200
    members = [f"k{n}={'v' * 50}" for n in range(20)]
    trace = parse(f"00-{T}-{S}-00", ",".join([long, *members]))
    assert trace is not None and trace.state.split(",") == members[: trace.state.count(",") + 1]
    assert 400 < len(trace.state) <= 512


def test_ids_of_what_nobody_named() -> None:
    ids = [trace_id_of(f"task-{n}") for n in range(100)]
    assert len(set(ids)) == 100 and all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)
    assert trace_id_of("task-1") == ids[1]
    assert span_id_of("task-1", "1-ab") != span_id_of("task-1", "2-ab") and len(span_id_of("", "")) == 16
    assert parse(Trace(trace_id_of("\ud800"), span_id_of("\ud800", "")).parent)


@pytest.mark.parametrize("wrong", [{"opentelemetry.sdk": None}, {"OTEL_BSP_SCHEDULE_DELAY": "-1"}])
def test_who_cannot_make_spans_says_so_once_and_works(
    wrong: dict[str, str | None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(spans, "_decided", False)
    monkeypatch.setattr(spans, "_made", None)
    for name, value in wrong.items():
        if value is None:
            for loaded in [one for one in sys.modules if one.startswith(name)]:
                monkeypatch.delitem(sys.modules, loaded)
            monkeypatch.setitem(sys.modules, name, None)
        else:
            monkeypatch.setenv(name, value)
    for _ in range(2):
        with spans.Sending() as sending:
            sending.told("queue", "id", "type")
        assert sending.trace is None
    assert [one.getMessage().partition(":")[0] for one in caplog.records] == ["no spans are sent"]
