"""Trace context: from a caller's header through the task to what it submits, its log lines and its record."""

import json
import secrets
from typing import Any

import httpx2
import pytest

from mesh import Mesh, continue_trace
from mesh.bus.messages import unpack
from mesh.bus.opening import open_stored
from mesh.core.tracing import trace_id_of
from tests.acceptance.conftest import START_S, Place, Running
from tests.acceptance.test_coordinator import start
from tests.waiting import wait_until

TASKS = """
import logging
from celery import chain, chord
from mesh import Mesh, current, task

logger = logging.getLogger("shop")

def say(what):
    logger.warning(what, extra={"parent": getattr(current._task.request, "traceparent", None), "now": current.traceparent})

@task("leaf")
def leaf(*_):
    say("leaf")

@task("again", retry_delay_s=0)
def again(payload):
    say("again")
    if current.attempt == 1:
        raise ValueError("once")

@task("root")
def root(payload):
    say("root")
    if payload == "delay":
        leaf.delay(None)
    elif payload == "submit":
        with Mesh() as mesh:
            mesh.submit("leaf")
    elif payload == "chord":
        chord([leaf.si(None), leaf.si(None)])(leaf.s())

@task("broken", retries=0)
def broken(payload):
    raise ValueError("never")
"""
T, S = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def said(agent: Running, trace_id: str) -> list[dict[str, Any]]:
    """What tasks said in a trace."""
    lines = [json.loads(line) for line in agent.output().splitlines() if line.startswith("{")]
    return [line for line in lines if line["logger"] == "shop" and line["trace_id"] == trace_id]


def wait_for(agent: Running, trace_id: str, many: int) -> list[dict[str, Any]]:
    wait_until(lambda: len(said(agent, trace_id)) >= many, START_S, f"{many} lines in the trace")
    return said(agent, trace_id)


def agent_of(place: Place, pool: str = "solo") -> Running:
    (place.folder / "shop_tasks.py").write_text(TASKS)
    return place.agent("a1", "-I", "shop_tasks", "--pool", pool, LOG_FORMAT="json")


@pytest.mark.parametrize(
    "pool", ["solo", *(pytest.param(one, marks=pytest.mark.ci) for one in ("prefork", "threads", "gevent"))]
)
def test_a_trace_goes_on_in_what_a_task_submits(place: Place, pool: str) -> None:
    agent = agent_of(place, pool)
    for payload, many in (("delay", 2), ("submit", 2), ("chord", 4)):
        trace_id = secrets.token_hex(16)
        with continue_trace(f"00-{trace_id}-{S}-01", "shop=1"):
            handle = place.mesh.submit("root", payload)
        root, *leaves = wait_for(agent, trace_id, many)
        assert root["task"] == handle.id and root["parent"] == f"00-{trace_id}-{S}-01"
        assert root["now"] == f"00-{trace_id}-{root['span_id']}-01" and root["span_id"] != S
        assert [leaf["message"] for leaf in leaves] == ["leaf"] * (many - 1)
        assert {leaf["parent"] for leaf in leaves} == {root["now"]}
        shown = place.call("task", "get", leaves[0]["task"], "-o", "json")
        assert json.loads(shown.stdout)["trace_id"] == trace_id, shown
    # Nobody named one: its own, and nothing is sent or stored for it; what it submits is told.
    handle = place.mesh.submit("root", "delay")
    root, leaf = wait_for(agent, trace_id_of(handle.id), 2)
    assert root["parent"] is None and leaf["parent"] == root["now"]
    assert handle.record()["trace_id"] == trace_id_of(handle.id)
    assert place.mesh.store.tasks.record(handle.id).other.get("trace") is None
    # Attempts of one task: one trace, a span each, the same parent.
    trace_id = secrets.token_hex(16)
    with continue_trace(f"00-{trace_id}-{S}-00"):
        handle = place.mesh.submit("again", 1)
    first, second = wait_for(agent, trace_id, 2)
    assert first["task"] == second["task"] == handle.id and first["parent"] == second["parent"]
    assert first["span_id"] != second["span_id"]


def test_a_trace_comes_over_http(place: Place) -> None:
    _, url = start(place, "c1")
    done = place.call("auth", "--agent-id", "me", "--agent-type", "admin")
    headers = {"authorization": f"Bearer {done.stdout.strip()}"}
    tasks = f"{url}/v1/namespaces/{place.namespace}/tasks"

    def trace_of(task_id: str) -> str:
        return str(httpx2.get(f"{tasks}/{task_id}", headers=headers).json()["trace_id"])

    def submitted(*parents: str) -> str:
        sent = [*headers.items(), *(("traceparent", parent) for parent in parents), ("tracestate", "shop=1")]
        answer = httpx2.post(tasks, headers=sent, json={"type": "root"})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    task_id = submitted(f"00-{T}-{S}-01")
    assert trace_of(task_id) == T
    message = opened(place, task_id)
    assert message == {"traceparent": f"00-{T}-{S}-01", "tracestate": "shop=1"}
    for parents in ((), ("malformed",), (f"00-{T}-{S}-01", f"00-{T}-{S}-01")):
        task_id = submitted(*parents)
        assert trace_of(task_id) == trace_id_of(task_id) and opened(place, task_id) is None
    for body in ({"tasks": [{"type": "root"}]}, {"type": "root", "payloads": [1, 2]}):
        answer = httpx2.post(
            f"{tasks}:batch", headers={**headers, "traceparent": f"00-{T}-{S}-00"}, json=body
        )
        found = answer.json()
        ids = found.get("ids") or [one["id"] for one in found["items"]]
        assert {trace_of(one) for one in ids} == {T}
    with Mesh(namespace=place.namespace, coordinator_url=url, token=done.stdout.strip()) as remote:
        trace_id = secrets.token_hex(16)
        with continue_trace(f"00-{trace_id}-{S}-01"):
            many = remote.submit_many("root", [None], unsatisfiable="accept")
            assert [one.record()["trace_id"] for one in many] == [trace_id]


def opened(place: Place, task_id: str) -> dict[str, Any] | None:
    """The headers in a task's sealed message."""
    store = place.mesh.store
    sealed = store.tasks.message(task_id)
    assert sealed is not None
    return unpack(open_stored(store, "root", task_id, sealed)).headers


def test_a_message_of_another_trace_is_the_same_task(place: Place) -> None:
    for trace_id in (T, secrets.token_hex(16)):
        with continue_trace(f"00-{trace_id}-{S}-01"):
            handle = place.mesh.submit("root", 1, task_id="named", unsatisfiable="accept")
    assert handle.record()["trace_id"] == T
