"""How much capacity work needs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.capacity import Fleet, Need, agents_for, coordinators, judge, slots_wanted

MIN = 60_000


@pytest.mark.parametrize(
    ("backlog", "busy", "mean_ms", "slots"),
    [
        (0, 0, 5.0, 0),
        (0, 3, 5.0, 3),  # what runs is not cut off
        (100, 2, 6_000.0, 2),  # 10 minutes of work, within 5 minutes
        (100, 2, 60_000.0, 20),
        (100, 0, 600_000.0, 100),  # no more than there are tasks
        (7, 2, 600_000_000.0, 9),
        (5, 0, None, 1),  # one, to find out how long it takes
        (5, 4, None, 4),
    ],
)
def test_slots_for_a_backlog(backlog: int, busy: int, mean_ms: float | None, slots: int) -> None:
    assert slots_wanted(backlog=backlog, busy=busy, mean_run_ms=mean_ms, within_ms=5 * MIN) == slots


@given(
    backlog=st.integers(0, 10**6),
    busy=st.integers(0, 1000),
    mean_ms=st.none() | st.floats(0, 10**9),
    within_ms=st.floats(1000, 10**8),
)
def test_slots_are_within_reason(backlog: int, busy: int, mean_ms: float | None, within_ms: float) -> None:
    wanted = slots_wanted(backlog=backlog, busy=busy, mean_run_ms=mean_ms, within_ms=within_ms)
    assert busy <= wanted <= busy + backlog and (wanted > 0 or not backlog)
    if mean_ms is not None and wanted < busy + backlog:
        assert backlog * mean_ms / wanted <= within_ms * 1.000001 if wanted else not backlog


def test_agents_for_slots() -> None:
    assert [agents_for(slots, 4) for slots in (0, 1, 4, 5)] == [0, 1, 1, 2]
    assert agents_for(3, 0) == 3  # agents that say they have none


def need(**changes: Any) -> Need:
    """Two agents with four slots each, all free, for tasks of a minute."""
    usual = {
        "requirement": "gpu+ocr", "backlog": 0, "busy": 0, "mean_run_ms": float(MIN), "agents": 2, "resting": 0, "slots": 8,
        "free_slots": 8, "slots_per_agent": 4.0,
    }  # fmt: skip
    return Need(**{**usual, **changes})


@pytest.mark.parametrize(
    ("changes", "to_add", "why"),
    [
        ({}, 0, None),
        ({"backlog": 40}, 0, None),  # 8 slots do that in 5 minutes
        ({"backlog": 100, "busy": 8, "free_slots": 0}, 3,
         "20 slots would start what waits within 5 min: start 3 agents with --capabilities gpu,ocr."),
        # The other slots are held by what else these agents serve.
        ({"backlog": 40, "busy": 2, "free_slots": 0}, 2,
         "8 slots would start what waits within 5 min: start 2 agents with --capabilities gpu,ocr."),
        ({"backlog": 3, "agents": 0, "slots": 0, "free_slots": 0, "slots_per_agent": 1.0}, 1,
         "No agent takes it: start 1 agent with --capabilities gpu,ocr."),
        ({"backlog": 3, "agents": 0, "resting": 2, "slots": 0, "free_slots": 0}, 1,
         "2 agents with it take no work (cordoned, draining or silent): bring these back, or start 1 agent with "
         "--capabilities gpu,ocr."),
        ({"busy": 1, "free_slots": 7, "mean_run_ms": 5.0 * MIN}, 0, None),
        ({"busy": 1, "free_slots": 7, "mean_run_ms": 6.0 * MIN}, 1,
         "A task runs for 6 min, over 5 min: start 1 agent with --capabilities gpu,ocr."),
        ({"mean_run_ms": 6.0 * MIN}, 0, None),  # there is no work
    ],
)  # fmt: skip
def test_what_a_requirement_needs(changes: dict[str, Any], to_add: int, why: str | None) -> None:
    told = judge(need(**changes), 5 * MIN)
    assert (told.to_add, told.why) == (to_add, why)


@pytest.mark.parametrize(
    ("fleet", "size", "to_add", "why"),
    [
        ((1, 50, 1000), "small", 0, None),
        ((0, 0, 0), "small", 0, None),
        ((1, 2, 1001), "small", 1, "Add a coordinator: 1001 tasks wait, over 1000."),
        ((1, 51, 0), "medium", 2, "Add 2 coordinators: 51 agents, over 50, want 3 of them, so that one may fail."),
        ((3, 600, 0), "medium", 0, None),
        ((3, 1500, 0), "large", 0, None),
        ((3, 1600, 1500), "too large", 1,
         "Add a coordinator: there are 534 agents a coordinator, over 500; 1500 tasks wait, over 1000."),
        ((1, 1600, 0), "too large", 3,
         "Add 3 coordinators: there are 1600 agents a coordinator, over 500; 1600 agents, over 50, want 3 of them, so that "
         "one may fail."),
    ],
)  # fmt: skip
def test_coordinators(fleet: tuple[int, int, int], size: str, to_add: int, why: str | None) -> None:
    one = Fleet(coordinators=fleet[0], agents=fleet[1], backlog=fleet[2])
    told = coordinators(one)
    assert (one.size, told.to_add, told.why) == (size, to_add, why)
