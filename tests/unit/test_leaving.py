"""What a leaving agent does next."""

from hypothesis import given
from hypothesis import strategies as st

from mesh.core.leaving import Step, next_step

TIMES = st.floats(0, 1e6)


def step(*, left_s: float = 60.0, finishing: int = 0, held: int = 0, stopping_s: float = 0.0) -> Step:
    return next_step(left_s=left_s, finishing=finishing, held=held, stopping_s=stopping_s, patience_s=10.0)


def test_what_runs_may_finish_within_its_time() -> None:
    assert step(finishing=2, held=3) is Step.WAIT
    assert step(left_s=0.0, finishing=2, held=3) is Step.GIVE_BACK


def test_an_idle_agent_stops_in_order_at_once() -> None:
    assert step() is Step.STOP
    assert step(stopping_s=9.0) is Step.STOP
    assert step(stopping_s=11.0) is Step.GIVE_BACK  # it hangs


def test_nobody_waits_for_what_cannot_be_stopped_and_does_not_count() -> None:
    assert step(held=1) is Step.GIVE_BACK


@given(left_s=TIMES, finishing=st.integers(0, 9), lost=st.integers(0, 9), stopping_s=TIMES)
def test_it_waits_only_for_what_counts(left_s: float, finishing: int, lost: int, stopping_s: float) -> None:
    found = step(left_s=left_s, finishing=finishing, held=finishing + lost, stopping_s=stopping_s)
    assert (found is Step.WAIT) <= (finishing > 0 and left_s > 0)
    assert (found is Step.STOP) <= (finishing + lost == 0)
