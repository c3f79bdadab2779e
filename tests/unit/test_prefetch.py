"""Prefetch: batches of short tasks, never a task behind a long one."""

from hypothesis import given
from hypothesis import strategies as st

from mesh.core.prefetch import MAX_BATCH, WINDOW_S, RunTime, room

SLOTS = st.integers(1, 500)
HELD = st.integers(0, 2000)
AVERAGE_S = st.floats(0, 1e6)


def test_an_agent_that_knows_nothing_yet_takes_its_free_slots_only() -> None:
    assert room(slots=8, held=0, average_s=RunTime().average_s) == 8
    assert room(slots=8, held=6, average_s=RunTime().average_s) == 2


def test_short_tasks_come_in_batches_of_what_starts_within_the_window() -> None:
    assert room(slots=4, held=0, average_s=0.004) == int(4 * WINDOW_S / 0.004)
    assert room(slots=4, held=0, average_s=1e-9) == 4 + MAX_BATCH


@given(slots=SLOTS, held=HELD, average_s=AVERAGE_S)
def test_the_bounds_hold_for_every_agent(slots: int, held: int, average_s: float) -> None:
    free = room(slots=slots, held=held, average_s=average_s)
    assert max(0, slots - held) <= free <= max(0, slots + MAX_BATCH - held)


@given(slots=SLOTS, held=HELD, average_s=st.floats(WINDOW_S, 1e6))
def test_nothing_waits_behind_tasks_that_take_longer_than_the_window(
    slots: int, held: int, average_s: float
) -> None:
    assert room(slots=slots, held=held, average_s=average_s) == max(0, slots - held)


@given(slots=SLOTS, held=HELD, average_s=AVERAGE_S, slower=st.floats(1, 1000))
def test_slower_tasks_and_fuller_hands_never_mean_more(
    slots: int, held: int, average_s: float, slower: float
) -> None:
    free = room(slots=slots, held=held, average_s=average_s)
    assert room(slots=slots, held=held, average_s=average_s * slower) <= free
    assert room(slots=slots, held=held + 1, average_s=average_s) <= free


def test_the_average_rises_at_once_with_a_slow_task_and_falls_slowly_with_fast_ones() -> None:
    run_time = RunTime(average_s=0.001)
    run_time.observe(10)
    assert run_time.average_s > 2
    fast = 0
    while room(slots=4, held=0, average_s=run_time.average_s) == 4:
        run_time.observe(0.001)
        fast += 1
    assert 5 < fast < 200


@given(runs=st.lists(st.floats(0, 1000), min_size=1, max_size=50))
def test_the_average_stays_between_the_shortest_and_the_longest(runs: list[float]) -> None:
    run_time = RunTime()
    for run_s in runs:
        run_time.observe(run_s)
    assert min(1.0, *runs) - 1e-9 <= run_time.average_s <= max(1.0, *runs) + 1e-9
