"""How tasks are called: delays, expiry, priorities, routing, rate limits, callbacks, and what the request says."""

from __future__ import annotations

import time
from collections import defaultdict
from datetime import UTC, datetime, timedelta, timezone

import pytest
from celery import chain, group, signature
from celery.exceptions import TaskRevokedError

from tests.conformance.app import DEFAULT_QUEUE, SECOND_QUEUE, STOCK
from tests.conformance.cluster import HOST, Cluster
from tests.conformance.ledger import open_gate, read_notes
from tests.conformance.tasks import (
    add,
    describe,
    double,
    fail,
    gated,
    gated_early,
    gated_late,
    limited,
    note,
    on_error,
    on_error_id,
    routed,
)

DELAY_S = 1.5
EARLY_S = 0.05
"""How much too early a clock's rounding may make a start look."""


def assert_started_after(cluster: Cluster, key: str, due_s: float) -> None:
    (started_s, *_) = [entry["at_s"] for entry in read_notes(key)]
    assert started_s >= due_s - EARLY_S
    if cluster.calm:
        assert started_s < due_s + 5


# --- time ---------------------------------------------------------------------------------------


def test_countdown(cluster: Cluster) -> None:
    key, due_s = cluster.new_key(), time.time() + DELAY_S
    assert cluster.get(note.apply_async(("later", key), countdown=DELAY_S)) == "later"
    assert_started_after(cluster, key, due_s)


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=5, minutes=30))], ids=["utc", "east"])
def test_eta(cluster: Cluster, zone: timezone) -> None:
    key, due_s = cluster.new_key(), time.time() + DELAY_S
    result = note.apply_async(("later", key), eta=datetime.fromtimestamp(due_s, zone))
    assert cluster.get(result) == "later"
    assert_started_after(cluster, key, due_s)


def test_eta_in_the_past(cluster: Cluster) -> None:
    past = datetime.now(UTC) - timedelta(hours=1)
    assert cluster.get(add.apply_async((1, 2), eta=past)) == 3


def test_delayed_tasks_come_in_order_of_their_time(cluster: Cluster) -> None:
    key, now_s = cluster.new_key(), time.time()
    # More than a second apart: an agent that already waits may notice a newly delayed task a second late.
    delays = {2.9: "third", 0.3: "first", 1.6: "second"}
    results = {delay: note.apply_async((name, key), countdown=delay) for delay, name in delays.items()}
    for result in results.values():
        cluster.get(result)
    started = {entry["value"]: entry["at_s"] for entry in reversed(read_notes(key))}
    for delay, name in delays.items():
        assert started[name] >= now_s + delay - EARLY_S
    if cluster.calm:
        assert sorted(started, key=lambda name: started[name]) == ["first", "second", "third"]


def test_expired_task_never_runs(cluster: Cluster) -> None:
    key = cluster.new_key()
    result = note.apply_async(("too late", key), countdown=1.2, expires=0.4)
    cluster.wait_for_state(result, "REVOKED")
    with pytest.raises(TaskRevokedError):
        cluster.get(result)
    cluster.settle()
    assert read_notes(key) == []


def test_task_with_time_left_runs(cluster: Cluster) -> None:
    assert cluster.get(add.apply_async((1, 2), expires=120)) == 3
    assert cluster.get(add.apply_async((1, 2), expires=datetime.now(UTC) + timedelta(minutes=2))) == 3


@pytest.mark.calm_only(reason="gives each agent a further queue by remote control")
def test_task_that_expires_in_its_queue_never_runs(cluster: Cluster) -> None:
    key, queue = cluster.new_key(), f"late-{cluster.new_key()}"
    expires_s = time.time() + 0.5
    result = note.apply_async(("too late", key), queue=queue, expires=0.5)
    cluster.wait_until(lambda: time.time() > expires_s + 0.1, "the task to expire")
    with cluster.consuming(queue):
        assert cluster.get(add.apply_async((1, 2), queue=queue)) == 3
        cluster.wait_for_state(result, "REVOKED")
    assert read_notes(key) == []


# --- order and routing --------------------------------------------------------------------------


@pytest.mark.calm_only(reason="the order of starts on one given agent")
def test_priorities(cluster: Cluster) -> None:
    """9 comes first; Celery's own Redis transport has it the other way round. Equals come in order of arrival."""
    key, queue = cluster.new_key(), f"ranked-{cluster.new_key()}"
    order = [4, 0, 9, 5, 1, 8, 2, 7, 3, 6, 9, 0, 4, 4, 9]
    results = [
        note.apply_async(([priority, place], key), queue=queue, priority=priority)
        for place, priority in enumerate(order)
    ]
    with cluster.extra_agent(queues=queue):
        for result in results:
            cluster.get(result)
    sign = 1 if STOCK else -1
    expected = sorted(
        ([rank, place] for place, rank in enumerate(order)), key=lambda it: (sign * it[0], it[1])
    )
    assert [entry["value"] for entry in read_notes(key)] == expected


def test_queue_by_name(cluster: Cluster) -> None:
    assert cluster.get(describe.apply_async(queue=SECOND_QUEUE))["routing_key"] == SECOND_QUEUE


def test_queue_by_task_routes(cluster: Cluster) -> None:
    assert cluster.get(routed.delay()) == SECOND_QUEUE
    assert cluster.get(chain(routed.s(), double.s()).apply_async()) == 2 * SECOND_QUEUE
    assert cluster.get(routed.apply_async(queue=DEFAULT_QUEUE)) == DEFAULT_QUEUE


@pytest.mark.calm_only(reason="rates are kept by each worker for itself")
def test_rate_limit(cluster: Cluster) -> None:
    key = cluster.new_key()
    results = [limited.delay(key) for _ in range(14)]
    for result in results:
        cluster.get(result)
    starts = defaultdict(list)
    for entry in read_notes(key):
        starts[entry["hostname"]].append(entry["at_s"])
    assert sum(map(len, starts.values())) == 14
    for times in starts.values():
        # 5/s lets one through every 0.2 s; a worker that was late for one may hurry with the next.
        assert max(times) - min(times) >= 0.2 * (len(times) - 1) - 0.25


# --- acknowledgement ----------------------------------------------------------------------------


@pytest.mark.parametrize("task", [gated_early, gated_late], ids=["early", "late"])
def test_acknowledgement(cluster: Cluster, task: object) -> None:
    key = cluster.new_key()
    result = signature(f"tests.conformance.tasks.{task.__name__}", (key, "done"), app=cluster.app).delay()  # type: ignore[attr-defined]
    cluster.wait_for_notes(key)
    open_gate(key)
    assert cluster.get(result) == "done"
    if cluster.calm:
        cluster.settle()
        assert len(read_notes(key)) == 1


@pytest.mark.mesh_only(
    reason="Celery's Redis transport gives a killed worker's task back after an hour, or never"
)
@pytest.mark.calm_only(reason="kills one given agent")
@pytest.mark.parametrize("task", ["gated_early", "gated_late"], ids=["early", "late"])
def test_task_of_a_dead_agent_runs_elsewhere(cluster: Cluster, task: str) -> None:
    key = cluster.new_key()
    result = signature(f"tests.conformance.tasks.{task}", (key, "done"), app=cluster.app).delay()
    (first, *_) = cluster.wait_for_notes(key)
    (holder,) = [agent for agent in cluster.agents if agent.nodename == first["hostname"]]
    cluster.replace_agent(holder)
    (_, second, *_) = cluster.wait_for_notes(key, count=2)
    assert second["hostname"] != first["hostname"]
    open_gate(key)
    assert cluster.get(result) == "done"


# --- callbacks ----------------------------------------------------------------------------------


def test_link(cluster: Cluster) -> None:
    key = cluster.new_key()
    result = add.apply_async((1, 2), link=note.s(key))
    assert cluster.get(result) == 3
    assert cluster.wait_for_notes(key)[0]["value"] == 3


def test_several_links(cluster: Cluster) -> None:
    keys = [cluster.new_key() for _ in range(3)]
    add.apply_async((1, 2), link=[note.s(key) for key in keys])
    for key in keys:
        assert cluster.wait_for_notes(key)[0]["value"] == 3


def test_link_is_a_child(cluster: Cluster) -> None:
    result = add.apply_async((1, 2), link=double.s())
    cluster.get(result)
    (child,) = result.children
    assert cluster.get(child) == 6


def test_link_of_a_link(cluster: Cluster) -> None:
    key = cluster.new_key()
    callback = double.s()
    callback.link(note.s(key))
    add.apply_async((1, 2), link=callback)
    assert cluster.wait_for_notes(key)[0]["value"] == 6


def test_link_of_a_failure_is_not_called(cluster: Cluster) -> None:
    key = cluster.new_key()
    with pytest.raises(ValueError):
        cluster.get(fail.apply_async(link=note.s(key)))
    cluster.settle()
    assert read_notes(key) == []


def test_link_error(cluster: Cluster) -> None:
    key = cluster.new_key()
    result = fail.apply_async(("broken",), link_error=on_error.s(key=key))
    with pytest.raises(ValueError):
        cluster.get(result)
    entry = cluster.wait_for_notes(key)[0]
    assert (entry["id"], entry["error"], entry["text"]) == (result.id, "ValueError", "broken")


def test_link_error_by_id(cluster: Cluster) -> None:
    """An errback that takes one argument is run as a task of its own, with the failed task's id."""
    result = fail.apply_async(link_error=on_error_id.s())
    with pytest.raises(ValueError):
        cluster.get(result)
    assert cluster.wait_for_notes(result.id)[0]["id"] == result.id


def test_link_error_of_a_success_is_not_called(cluster: Cluster) -> None:
    key = cluster.new_key()
    assert cluster.get(add.apply_async((1, 2), link_error=on_error.s(key=key))) == 3
    cluster.settle()
    assert read_notes(key) == []


# --- the request --------------------------------------------------------------------------------


def test_request(cluster: Cluster) -> None:
    result = describe.delay()
    request = cluster.get(result)
    assert request["id"] == request["root_id"] == request["correlation_id"] == result.id
    assert request["parent_id"] is None and request["group"] is None
    assert request["task"] == describe.name
    assert request["retries"] == 0
    assert request["routing_key"] == DEFAULT_QUEUE
    assert (request["args"], request["kwargs"]) == ([], {})
    assert not request["is_eager"] and not request["called_directly"]
    assert request["timelimit"] == [None, None]
    assert not request["eta"] and not request["expires"]
    assert request["origin"]
    assert request["hostname"].endswith(f"@{HOST}")
    if cluster.calm:
        assert request["hostname"] in {agent.nodename for agent in cluster.agents}


def test_request_of_a_call_with_options(cluster: Cluster) -> None:
    options = {"priority": 7, "soft_time_limit": 20, "time_limit": 30, "expires": 60}
    request = cluster.get(describe.apply_async(headers={"x-colour": "green"}, **options))
    assert request["priority"] == 7
    assert request["timelimit"] == [30, 20]
    assert request["expires"]
    assert request["x-colour"] == "green"


def test_request_of_a_group_member(cluster: Cluster) -> None:
    result = group(describe.s(), describe.s()).apply_async()
    assert [request["group"] for request in cluster.get(result)] == [result.id, result.id]


def test_running_task_is_not_run_twice(cluster: Cluster) -> None:
    """Others overtake it while it runs, and it stays one execution where nothing is killed."""
    key = cluster.new_key()
    result = gated.delay(key, "done")
    cluster.wait_for_notes(key)
    cluster.settle()
    open_gate(key)
    assert cluster.get(result) == "done"
    if cluster.calm:
        assert len(read_notes(key)) == 1
