"""Canvas: chain, group, chord, chunks, map and starmap, alone and inside each other."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError
from celery.result import AsyncResult

from tests.conformance.cluster import Cluster
from tests.conformance.ledger import read_notes
from tests.conformance.tasks import (
    add,
    describe,
    double,
    echo,
    fail,
    fail_after,
    note,
    on_error,
    replaced_by_chain,
    replaced_by_chord,
    replaced_by_failure,
    replaced_by_group,
    replaced_by_sum,
    total,
)


def assert_noted_once(cluster: Cluster, key: str, **facts: Any) -> None:
    """`key` has a note with these facts; where nothing is killed, exactly one."""
    notes = cluster.wait_for_notes(key)
    assert facts.items() <= notes[0].items()
    if cluster.calm:
        cluster.settle()
        assert len(read_notes(key)) == 1


def assert_chord_error(cluster: Cluster, result: AsyncResult, text: str) -> None:
    error = cluster.get(result, propagate=False)
    assert result.state == "FAILURE"
    assert isinstance(error, ChordError) and text in str(error)


# --- chain --------------------------------------------------------------------------------------


def test_chain(cluster: Cluster) -> None:
    assert cluster.get(chain(add.s(1, 2), double.s(), add.s(4)).apply_async()) == 10


def test_chain_by_pipes(cluster: Cluster) -> None:
    assert cluster.get((add.s(1, 2) | double.s() | double.s()).delay()) == 12


def test_chain_parents(cluster: Cluster) -> None:
    result = chain(add.s(1, 2), double.s(), add.s(4)).apply_async()
    assert cluster.get(result) == 10
    # Celery sends the next step before it stores the result of this one.
    assert cluster.get(result.parent) == 6 and cluster.get(result.parent.parent) == 3
    assert result.parent.parent.parent is None


def test_chain_immutable(cluster: Cluster) -> None:
    assert cluster.get(chain(add.si(1, 2), add.si(30, 40)).apply_async()) == 70


def test_chain_of_twelve(cluster: Cluster) -> None:
    assert cluster.get(chain(add.s(0, 1), *[add.s(1) for _ in range(11)]).apply_async()) == 12


def test_chain_of_chains(cluster: Cluster) -> None:
    inner = chain(double.s(), add.s(1))
    assert cluster.get(chain(add.s(1, 1), inner, inner).apply_async()) == 11


def test_chain_that_fails(cluster: Cluster) -> None:
    key = cluster.new_key()
    result = chain(add.s(1, 2), fail_after.s(), note.s(key)).apply_async()
    with pytest.raises(ValueError, match="after 3"):
        cluster.get(result.parent)
    with pytest.raises(ValueError, match="after 3"):
        cluster.get(result)
    cluster.wait_for_state(result, "FAILURE")
    assert read_notes(key) == []


def test_chain_errback(cluster: Cluster) -> None:
    key = cluster.new_key()
    result = chain(add.s(1, 2), fail_after.s(), double.s()).apply_async(link_error=on_error.s(key=key))
    cluster.get(result.parent, propagate=False)
    notes = cluster.wait_for_notes(key)
    assert notes[0]["error"] == "ValueError" and notes[0]["text"] == "after 3"


def test_chain_callback(cluster: Cluster) -> None:
    key = cluster.new_key()
    chain(add.s(1, 2), double.s()).apply_async(link=note.s(key))
    assert_noted_once(cluster, key, value=6)


def test_chain_ids(cluster: Cluster) -> None:
    """Each step knows the one before as its parent and the first as its root."""
    result = chain(describe.s(), describe.s(), describe.s()).apply_async()
    third = cluster.get(result)
    second, first = cluster.get(result.parent), cluster.get(result.parent.parent)
    assert first["root_id"] == first["id"] and first["parent_id"] is None
    assert (second["parent_id"], second["root_id"]) == (first["id"], first["id"])
    assert (third["parent_id"], third["root_id"]) == (second["id"], first["id"])


def test_chain_with_countdown(cluster: Cluster) -> None:
    assert cluster.get(chain(add.s(1, 2), double.s().set(countdown=0.5)).apply_async()) == 6


# --- group --------------------------------------------------------------------------------------


def test_group(cluster: Cluster) -> None:
    assert cluster.get(group(add.s(i, i) for i in range(8)).apply_async()) == [2 * i for i in range(8)]


def test_group_of_one(cluster: Cluster) -> None:
    assert cluster.get(group([add.s(3, 4)]).apply_async()) == [7]


def test_group_with_partial_arguments(cluster: Cluster) -> None:
    assert cluster.get(group(add.s(1), add.s(2)).delay(10)) == [11, 12]


def test_group_of_chains(cluster: Cluster) -> None:
    result = group(chain(add.s(i, 1), double.s()) for i in range(4)).apply_async()
    assert cluster.get(result) == [2, 4, 6, 8]


def test_group_of_groups(cluster: Cluster) -> None:
    result = group(group(double.s(1), double.s(2)), double.s(3)).apply_async()
    assert cluster.get(result) == [2, 4, 6]


def test_chain_ending_in_group(cluster: Cluster) -> None:
    result = chain(add.s(1, 1), group(add.s(10), add.s(20))).apply_async()
    assert cluster.get(result) == [12, 22]


# --- chord --------------------------------------------------------------------------------------


def test_chord(cluster: Cluster) -> None:
    result = chord((double.s(i) for i in range(6)), total.s()).apply_async()
    assert cluster.get(result) == 30


def test_chord_keeps_the_order_of_its_header(cluster: Cluster) -> None:
    result = chord([echo.s(i) for i in range(20)], echo.s()).apply_async()
    assert cluster.get(result) == list(range(20))


def test_chord_of_one(cluster: Cluster) -> None:
    assert cluster.get(chord([double.s(21)], echo.s()).apply_async()) == [42]


def test_chord_with_immutable_body(cluster: Cluster) -> None:
    assert cluster.get(chord([double.s(1), double.s(2)], add.si(5, 5)).apply_async()) == 10


def test_chord_body_runs_once(cluster: Cluster) -> None:
    key = cluster.new_key()
    result = chord([double.s(i) for i in range(10)], note.s(key)).apply_async()
    assert cluster.get(result) == [2 * i for i in range(10)]
    assert_noted_once(cluster, key, value=[2 * i for i in range(10)])


def test_wide_chord(cluster: Cluster) -> None:
    result = chord([echo.s(i) for i in range(60)], total.s()).apply_async()
    assert cluster.get(result) == 60 * 59 // 2


def test_group_and_task_make_a_chord(cluster: Cluster) -> None:
    result = (group(double.s(i) for i in range(5)) | total.s() | double.s()).apply_async()
    assert cluster.get(result) == 40


def test_chord_in_the_middle_of_a_chain(cluster: Cluster) -> None:
    result = chain(add.s(1, 1), group(add.s(10), add.s(20)), total.s(), double.s()).apply_async()
    assert cluster.get(result) == 68


def test_two_groups_in_a_chain(cluster: Cluster) -> None:
    flow = chain(group(double.s(1), double.s(2)), group(total.s(), total.s()), total.s())
    assert cluster.get(flow.apply_async()) == 12


def test_chain_in_a_chord_header(cluster: Cluster) -> None:
    result = chord([chain(add.s(i, 1), double.s()) for i in range(3)], total.s()).apply_async()
    assert cluster.get(result) == 12


def test_chain_as_chord_body(cluster: Cluster) -> None:
    assert cluster.get(chord([double.s(1), double.s(2)], chain(total.s(), double.s())).apply_async()) == 12


def test_group_as_chord_body(cluster: Cluster) -> None:
    result = chord([double.s(1), double.s(2)], group(total.s(), echo.s())).apply_async()
    assert cluster.get(result) == [6, [2, 4]]


def test_chord_in_a_chord_header(cluster: Cluster) -> None:
    inner = chord([double.s(1), double.s(2)], total.s())
    assert cluster.get(chord([inner, double.s(10)], total.s()).apply_async()) == 26


def test_chord_with_failing_header(cluster: Cluster) -> None:
    key, body_key = cluster.new_key(), cluster.new_key()
    body = note.s(body_key).on_error(on_error.s(key=key))
    result = chord([double.s(1), fail.s("in the header"), double.s(2)], body).apply_async()
    assert_chord_error(cluster, result, "in the header")
    with pytest.raises((ChordError, ValueError), match="in the header"):
        cluster.get(result)  # looks at the header, its parent, first
    assert cluster.wait_for_notes(key)[0]["error"] == "ChordError"
    assert read_notes(body_key) == []


def test_chord_with_failing_body(cluster: Cluster) -> None:
    result = chord([double.s(1), double.s(2)], fail_after.s()).apply_async()
    with pytest.raises(ValueError, match="after"):
        cluster.get(result)


def test_chord_in_chain_with_failing_header(cluster: Cluster) -> None:
    key = cluster.new_key()
    result = chain(group(double.s(1), fail.s("halfway")), total.s(), note.s(key)).apply_async()
    assert_chord_error(cluster, result, "halfway")
    assert read_notes(key) == []


def test_chord_callback(cluster: Cluster) -> None:
    key = cluster.new_key()
    chord([double.s(1), double.s(2)], total.s()).apply_async(link=note.s(key))
    assert_noted_once(cluster, key, value=6)


# --- chunks, map, starmap -----------------------------------------------------------------------


def test_chunks(cluster: Cluster) -> None:
    result = add.chunks([(i, i) for i in range(10)], 4).apply_async()
    assert cluster.get(result) == [[0, 2, 4, 6], [8, 10, 12, 14], [16, 18]]


def test_chunks_as_group(cluster: Cluster) -> None:
    result = add.chunks([(i, i) for i in range(6)], 2).group().apply_async()
    assert cluster.get(result) == [[0, 2], [4, 6], [8, 10]]


def test_map(cluster: Cluster) -> None:
    assert cluster.get(double.map(range(5)).apply_async()) == [0, 2, 4, 6, 8]


def test_starmap(cluster: Cluster) -> None:
    assert cluster.get(add.starmap([(1, 2), (3, 4)]).apply_async()) == [3, 7]


def test_map_in_a_chain(cluster: Cluster) -> None:
    assert cluster.get(chain(double.map([1, 2, 3]), total.s()).apply_async()) == 12


# --- replace ------------------------------------------------------------------------------------


def test_replace(cluster: Cluster) -> None:
    result = replaced_by_sum.delay(3, 4)
    assert cluster.get(result) == 7
    assert AsyncResult(result.id, app=cluster.app).state == "SUCCESS"


def test_replace_by_chain(cluster: Cluster) -> None:
    assert cluster.get(replaced_by_chain.delay(4)) == 10


def test_replace_by_group(cluster: Cluster) -> None:
    assert cluster.get(replaced_by_group.delay(4)) == [0, 2, 4, 6]


def test_replace_by_chord(cluster: Cluster) -> None:
    assert cluster.get(replaced_by_chord.delay(4)) == 12


def test_replace_by_failure(cluster: Cluster) -> None:
    result = replaced_by_failure.delay()
    with pytest.raises(ValueError, match="replaced"):
        cluster.get(result)


def test_replace_in_a_chain(cluster: Cluster) -> None:
    assert cluster.get(chain(add.s(1, 1), replaced_by_chain.s(), double.s()).apply_async()) == 12


def test_replace_in_a_chord_header(cluster: Cluster) -> None:
    header = [replaced_by_sum.s(i, 1) for i in range(4)]
    assert cluster.get(chord(header, total.s()).apply_async()) == 10


def test_replace_by_chord_in_a_chord_header(cluster: Cluster) -> None:
    assert cluster.get(chord([replaced_by_chord.s(3), double.s(1)], total.s()).apply_async()) == 8


def test_replace_of_a_chord_body(cluster: Cluster) -> None:
    result = chord([double.s(1), double.s(2)], chain(total.s(), replaced_by_chain.s())).apply_async()
    assert cluster.get(result) == 14


def test_many_flows_at_once(cluster: Cluster) -> None:
    """Counters of one flow must not leak into another's."""
    flows = [
        chain(add.s(i, 1), group(add.s(j) for j in range(3)), total.s()).apply_async() for i in range(12)
    ]
    values = Counter(cluster.get(flow) for flow in flows)
    assert values == Counter(3 * (i + 1) + 3 for i in range(12))
