"""Retries: how often, and after how long."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.bus.task import Retries, task
from mesh.core.retries import Decision, RetryPolicy, decide
from mesh.errors import Invalid
from mesh.settings import Settings

POLICIES = st.builds(
    RetryPolicy,
    max_retries=st.integers(0, 10_000),
    base_s=st.floats(0.001, 100),
    cap_s=st.floats(0.001, 10_000),
)
DICE = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize(("retries", "again"), [(0, True), (2, True), (3, False), (4, False)])
def test_three_retries_mean_four_attempts(retries: int, again: bool) -> None:
    assert decide(RetryPolicy(max_retries=3), retries=retries, dice=0.5).again is again


def test_no_retries_at_all() -> None:
    assert decide(RetryPolicy(max_retries=0), retries=0, dice=0.5) == Decision(again=False)


@pytest.mark.parametrize(("retries", "ceiling_s"), [(0, 1), (1, 2), (2, 4), (9, 512), (10, 600), (500, 600)])
def test_the_ceiling_doubles_up_to_the_cap(retries: int, ceiling_s: float) -> None:
    policy = RetryPolicy(max_retries=1000, base_s=1, cap_s=600)
    assert decide(policy, retries=retries, dice=0.0).delay_s == 0
    assert decide(policy, retries=retries, dice=0.5).delay_s == ceiling_s / 2


@given(policy=POLICIES, retries=st.integers(0, 10_000), dice=DICE)
def test_the_delay_is_finite_and_below_the_cap_for_every_policy(
    policy: RetryPolicy, retries: int, dice: float
) -> None:
    decision = decide(policy, retries=retries, dice=dice)
    assert decision.again == (retries < policy.max_retries)
    assert 0 <= decision.delay_s <= policy.cap_s


@pytest.mark.parametrize(
    ("said", "asked", "policy"),
    [
        (Retries(), None, RetryPolicy(max_retries=3, base_s=1.0, cap_s=600.0)),
        (Retries(5), None, RetryPolicy(max_retries=5, base_s=1.0, cap_s=600.0)),
        (Retries(5), 0, RetryPolicy(max_retries=0, base_s=1.0, cap_s=600.0)),
        (Retries(0, 0, 9), None, RetryPolicy(max_retries=0, base_s=0, cap_s=9)),
        (Retries(None, 2.5), 7, RetryPolicy(max_retries=7, base_s=2.5, cap_s=600.0)),
    ],
)
def test_the_submitter_comes_before_the_type_and_that_before_the_settings(
    said: Retries, asked: int | None, policy: RetryPolicy
) -> None:
    assert said.policy(asked, Settings()) == policy


def test_the_settings_are_in_milliseconds() -> None:
    settings = Settings(max_task_retries=1, retry_delay_ms=50, retry_delay_cap_ms=70)
    assert Retries().policy(None, settings) == RetryPolicy(max_retries=1, base_s=0.05, cap_s=0.07)


@pytest.mark.parametrize(
    "wrong", [{"retries": -1}, {"retries": 1.5}, {"retry_delay_s": "1"}, {"retry_delay_cap_s": float("nan")}]
)
def test_a_wrong_policy_is_refused_where_it_is_written(wrong: dict[str, Any]) -> None:
    with pytest.raises(Invalid, match=f"{next(iter(wrong))} of task type charge is"):
        task("charge", **wrong)
