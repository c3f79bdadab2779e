"""The plan of a run is a pure function of its seed, and always leaves somebody who can take over."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import Invalid
from mesh.verify.plan import FAULTS, PARTITIONS, Step, choose_faults, make_load, make_plan

AGENTS = [f"agent-{number}" for number in range(1, 4)]
COORDINATORS = ["coordinator-1", "coordinator-2"]


def plan(seed: int, *faults: str, duration_s: float = 120.0, agents: list[str] = AGENTS) -> list[Step]:
    return make_plan(
        seed, duration_s=duration_s, faults=faults or tuple(FAULTS), agents=agents, coordinators=COORDINATORS
    )


def test_a_seed_repeats_a_run() -> None:
    assert plan(7) == plan(7) != plan(8)
    assert make_load(7, tasks=50, duration_s=10) == make_load(7, tasks=50, duration_s=10)


@given(st.integers(), st.floats(1, 900), st.integers(2, 5))
def test_somebody_is_always_spared(seed: int, duration_s: float, agents: int) -> None:
    names = [f"agent-{number}" for number in range(agents)]
    steps = plan(seed, duration_s=duration_s, agents=names)
    for step in steps:
        assert step.at_s > 0 and step.at_s + step.for_s <= duration_s + 0.2
        assert (step.how in PARTITIONS) == (step.fault == "partition")
        harmed = {
            other.target for other in steps if other.at_s <= step.at_s < other.at_s + other.for_s
        } & set(names)
        assert len(harmed) < agents
    for name in (*names, *COORDINATORS, "redis"):
        own = [step for step in steps if step.target == name]
        for first, second in itertools.pairwise(own):
            assert first.at_s + first.for_s < second.at_s


def test_every_kind_has_its_turn() -> None:
    assert set(Counter(step.fault for step in plan(1, duration_s=120))) == set(FAULTS)
    assert {step.fault for step in plan(1, "kill-agent", duration_s=120)} == {"kill-agent"}
    assert make_plan(1, duration_s=60, faults=(), agents=AGENTS, coordinators=[]) == []


def test_the_load_is_mixed() -> None:
    items = make_load(1, tasks=400, duration_s=60)
    assert [item.number for item in items] == list(range(400))
    assert all(0 <= item.at_s < 60 for item in items)
    assert {item.way for item in items} == {"one", "batch", "http"}
    assert {item.priority for item in items} == set(range(10))
    assert any(item.countdown_s for item in items) and any(item.impatient for item in items)


@pytest.mark.parametrize(
    ("text", "coordinators", "chosen"),
    [
        ("none", 2, ()),
        ("all", 2, tuple(FAULTS)),
        ("all", 0, ("kill-agent", "pause-agent", "restart-redis", "partition")),
        (" partition, kill-agent,partition", 0, ("partition", "kill-agent")),
    ],
)
def test_faults_by_name(text: str, coordinators: int, chosen: tuple[str, ...]) -> None:
    assert choose_faults(text, coordinators=coordinators) == chosen


@pytest.mark.parametrize(("text", "says"), [("", "'' is no fault"), ("kill,partition", "'kill' is no fault")])
def test_what_is_no_fault(text: str, says: str) -> None:
    with pytest.raises(Invalid, match=says):
        choose_faults(text, coordinators=1)


def test_a_coordinator_that_is_not_there_cannot_be_killed() -> None:
    with pytest.raises(Invalid, match="kill-coordinator needs a coordinator"):
        choose_faults("kill-coordinator", coordinators=0)
