"""Recorded tasks, replayed: whatever the history, the simulation keeps the rules of the mesh."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.replay import Change, Pool, Run, Start, alike, changed, quantile, replay
from mesh.core.requirements import satisfies
from mesh.errors import Invalid

SPILL_MS = 1000


def pool(offered: str, slots: int, region: str | None = None, agents: int = 1) -> Pool:
    return Pool(capabilities=frozenset(offered.split()), region=region, agents=agents, slots=slots)


def run(
    arrived_ms: int, run_ms: int, needs: str = "a", score: float | None = None, region: str | None = None
) -> Run:
    return Run(
        requirement=needs,
        arrived_ms=arrived_ms,
        run_ms=run_ms,
        score=arrived_ms if score is None else score,
        region=region,
    )


def waits(runs: list[Run], starts: list[Start | None]) -> list[int | None]:
    return [
        None if start is None else start.at_ms - one.arrived_ms
        for one, start in zip(runs, starts, strict=True)
    ]


RUNS = st.lists(
    st.builds(
        run,
        st.integers(0, 5000),
        st.integers(0, 2000),
        st.sampled_from(["a", "b", "a+b"]),
        st.integers(0, 5),
        st.sampled_from([None, "eu", "us"]),
    ),
    max_size=60,
)
POOLS = st.lists(
    st.builds(
        pool, st.sampled_from(["a", "b", "a b"]), st.integers(0, 3), st.sampled_from([None, "eu", "us"])
    ),
    max_size=5,
)


@given(RUNS, POOLS)
def test_each_task_runs_once_where_it_may_and_no_slot_runs_two(runs: list[Run], pools: list[Pool]) -> None:
    starts = replay(runs, pools, spill_ms=SPILL_MS)
    assert len(starts) == len(runs)
    for one, start in zip(runs, starts, strict=True):
        able = [
            at
            for at, two in enumerate(pools)
            if two.slots and set(one.requirement.split("+")) <= two.capabilities
        ]
        assert (start is None) == (not able)
        if start is not None:
            assert start.pool in able and start.at_ms >= one.arrived_ms
    for at, two in enumerate(pools):
        steps = [
            (when, by)
            for one, start in zip(runs, starts, strict=True)
            if start is not None and start.pool == at and one.run_ms
            for when, by in ((start.at_ms, 1), (start.at_ms + one.run_ms, -1))
        ]
        busy = 0
        for _, by in sorted(steps):
            busy += by
            assert 0 <= busy <= two.slots


@given(RUNS, POOLS)
def test_pools_that_are_put_together_serve_each_task_with_as_many_slots(
    runs: list[Run], pools: list[Pool]
) -> None:
    together = alike(pools, runs)

    def served(by: list[Pool], requirement: str) -> Counter[str | None]:
        able = [one for one in by if satisfies(one.capabilities, requirement)]
        return Counter(
            {one.region: sum(each.slots for each in able if each.region == one.region) for one in able}
        )

    assert all(served(pools, one.requirement) == served(together, one.requirement) for one in runs)
    assert sum(one.slots for one in together) == sum(one.slots for one in pools)


@given(RUNS)
def test_with_as_many_slots_as_tasks_nobody_waits(runs: list[Run]) -> None:
    assert set(waits(runs, replay(runs, [pool("a b", len(runs))], spill_ms=SPILL_MS))) <= {0}


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 1000)), max_size=60), st.integers(1, 5))
def test_more_slots_never_lengthen_a_wait_in_one_queue(tasks: list[tuple[int, int]], slots: int) -> None:
    runs = [run(*one, score=at) for at, one in enumerate(sorted(tasks))]
    few, more = (replay(runs, [pool("a", number)], spill_ms=SPILL_MS) for number in (slots, slots + 1))
    for short, long in zip(waits(runs, more), waits(runs, few), strict=True):
        assert short is not None and long is not None and short <= long


def test_a_free_slot_takes_the_lowest_score_of_all_that_its_agent_serves() -> None:
    runs = [
        run(0, 100),
        run(1, 10, score=9),
        run(2, 10, "b", score=5),
        run(3, 10, "a+b", score=7),
        run(4, 10, "c"),
    ]
    assert waits(runs, replay(runs, [pool("a b", 1)], spill_ms=SPILL_MS)) == [0, 119, 98, 107, None]


def test_a_region_serves_its_own_until_they_spill() -> None:
    pools = [pool("a", 1, "eu"), pool("a", 1, "us")]
    runs = [
        run(0, 5000, region="eu"),
        run(1, 10, region="eu"),
        run(2, 10, region="us"),
        run(3, 10, region="asia"),
    ]
    first, second, *others = replay(runs, pools, spill_ms=SPILL_MS)
    assert (first, second) == (Start(at_ms=0, pool=0), Start(at_ms=1001, pool=1))
    assert [one and one.pool for one in others] == [1, 1], "nobody serves asia: whoever is free"
    alone = replay(runs, changed(pools, Change(without_region="us")), spill_ms=SPILL_MS)
    assert waits(runs, alone) == [0, 4999, 5008, 5017]


def test_a_task_that_has_spilled_runs_once_and_leaves_its_region() -> None:
    pools = [pool("a", 1, "eu"), pool("a", 1, "us")]
    runs = [
        run(0, 5000, region="eu"),
        run(0, 2000, region="us", score=1),
        run(1, 7000, region="eu"),
        run(2, 1, region="eu"),
    ]
    starts = replay(runs, pools, spill_ms=SPILL_MS)
    assert waits(runs, starts) == [0, 0, 1999, 4998] and starts[2] == Start(at_ms=2000, pool=1)


MIXED = [pool("a", 6, "eu", agents=3), pool("a b", 2, "us"), pool("c", 4)]


@pytest.mark.parametrize(
    ("change", "slots"),
    [
        (Change(), [6, 2, 4]),
        (Change(slots=6), [3, 1, 2]),
        (Change(agents=10), [12, 4, 8]),
        (Change(slots=9, requires=frozenset("a")), [4, 7, 2]),
        (Change(agents=2, requires=frozenset("b")), [6, 4, 4]),
        (Change(slots=0, requires=frozenset("c")), [6, 2, 0]),
        (Change(slots=5, requires=frozenset("x")), [6, 2, 4, 5]),
        (Change(agents=5, requires=frozenset("x")), [6, 2, 4, 5]),
        (Change(without_region="eu"), [2, 4]),
        (Change(without_region="eu", slots=12), [4, 8]),
    ],
)
def test_changes(change: Change, slots: list[int]) -> None:
    found = changed(MIXED, change)
    assert sorted(one.slots for one in found) == sorted(slots)
    assert all(dataclasses.replace(one, slots=0) in [dataclasses.replace(two, slots=0) for two in MIXED]
               or one.capabilities == {"x"} for one in found)  # fmt: skip


@pytest.mark.parametrize(
    ("pools", "change", "said"),
    [
        (MIXED, Change(agents=1, slots=1), "not both"),
        (MIXED, Change(without_region="asia"), "No agent of region 'asia' takes work: eu, us."),
        (MIXED, Change(requires=frozenset("a")), "Say how many"),
        ([], Change(slots=2), "No agent takes work now"),
    ],
)
def test_what_makes_no_sense_is_said(pools: list[Pool], change: Change, said: str) -> None:
    with pytest.raises(Invalid, match=said):
        changed(pools, change)


def test_quantiles_are_values_that_were_there() -> None:
    assert [quantile([1, 2, 3, 4], share) for share in (0.5, 0.95, 1.0)] == [2, 4, 4]
    assert quantile([], 0.5) is None
