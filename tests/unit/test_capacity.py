"""How much capacity work needs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.capacity import agents_for, slots_wanted

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
