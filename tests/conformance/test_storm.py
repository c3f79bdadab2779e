"""All kinds of flows at once, for as long as several kills take: what one test at a time is seldom struck by."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError

from tests.conformance.cluster import Cluster
from tests.conformance.tasks import (
    add,
    autoretried,
    double,
    fail,
    replaced_by_chain,
    replaced_by_chord,
    replaced_by_sum,
    retry_until,
    total,
)

Flow = Callable[[Cluster, int], tuple[Any, Any]]
"""Starts one flow; its result, and the value (or the kind of error) that it must have."""

FLOWS: dict[str, Flow] = {
    "task": lambda _, i: (add.delay(i, 1), i + 1),
    "delayed": lambda _, i: (add.apply_async((i, 1), countdown=1), i + 1),
    "chain": lambda _, i: (chain(add.s(i, 1), double.s(), add.s(5)).apply_async(), 2 * (i + 1) + 5),
    "group": lambda _, i: (group(add.s(i, j) for j in range(4)).apply_async(), [i, i + 1, i + 2, i + 3]),
    "chord": lambda _, i: (chord([add.s(i, j) for j in range(4)], total.s()).apply_async(), 4 * i + 6),
    "chord in chain": lambda _, i: (
        chain(add.s(i, 1), group(add.s(1), add.s(2)), total.s(), double.s()).apply_async(),
        2 * (2 * (i + 1) + 3),
    ),
    "nested chord": lambda _, i: (
        chord([chord([add.s(i, 1), add.s(i, 2)], total.s()), double.s(i)], total.s()).apply_async(),
        4 * i + 3,
    ),
    "chunks": lambda _, i: (
        add.chunks([(i, j) for j in range(4)], 2).apply_async(),
        [[i, i + 1], [i + 2, i + 3]],
    ),
    "replaced": lambda _, i: (chain(replaced_by_chain.s(i), double.s()).apply_async(), 4 * (i + 1)),
    "replaced in chord": lambda _, i: (
        chord([replaced_by_sum.s(i, 1), replaced_by_chord.s(3)], total.s()).apply_async(),
        i + 1 + 6,
    ),
    "retry": lambda cluster, _: (retry_until.delay(cluster.new_key(), 2), 2),
    "autoretry": lambda cluster, _: (autoretried.delay(cluster.new_key(), failures=1), 1),
    "failure": lambda _, i: (fail.delay(f"number {i}"), ValueError),
    "failing header": lambda _, i: (
        chord([add.s(i, 1), fail.s("header")], total.s()).apply_async(),
        ChordError,
    ),
}
ROUNDS = {"solo": 2, "prefork": 4, "threads": 6, "gevent": 8}
"""Flows of each kind at a time: enough to keep both agents busy for some seconds where each task takes 0.1 s."""
ENOUGH_KILLS = 3
LONGEST_S = 60


def start_wave(cluster: Cluster) -> list[tuple[str, Any, Any]]:
    """Start `ROUNDS` flows of each kind: (name, result, expected)."""
    rounds = range(ROUNDS[cluster.pool])
    return [
        (f"{name} {number}", *start(cluster, number)) for number in rounds for name, start in FLOWS.items()
    ]


def find_wrong(cluster: Cluster, wave: list[tuple[str, Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """Wait for the flows of a wave; (value, expected) of those that ended wrongly."""
    deadline, wrong = time.monotonic() + 2 * cluster.patience_s, {}
    for name, result, expected in wave:
        value = result.get(timeout=max(1.0, deadline - time.monotonic()), propagate=False)
        right = isinstance(value, expected) if isinstance(expected, type) else value == expected
        if not right:
            wrong[name] = (value, expected)
    return wrong


@pytest.mark.timeout(240)
def test_all_flows_at_once(cluster: Cluster) -> None:
    """Wave after wave until several agents were killed meanwhile; where nothing is killed, one wave."""
    kills, deadline = cluster.kills, time.monotonic() + LONGEST_S
    assert find_wrong(cluster, start_wave(cluster)) == {}
    while not cluster.calm and cluster.kills < kills + ENOUGH_KILLS and time.monotonic() < deadline:
        assert find_wrong(cluster, start_wave(cluster)) == {}
