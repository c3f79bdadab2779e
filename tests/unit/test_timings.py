"""Histograms: quantiles as Prometheus tells them, and several together."""

import pytest

from mesh.core.timings import BOUNDS_MS, Timing


def timing(counts: dict[int, int], sum_ms: int = 0) -> Timing:
    """`counts`: upper bound in ms (0: above all) -> attempts."""
    buckets = [counts.get(bound, 0) for bound in (*BOUNDS_MS, 0)]
    return Timing(buckets=tuple(buckets), sum_ms=sum_ms)


def test_nothing_has_no_mean_and_no_quantile() -> None:
    assert (timing({}).mean_ms, timing({}).quantile_ms(0.95)) == (None, None)


def test_a_quantile_lies_on_the_line_between_the_bounds_of_its_bucket() -> None:
    one = timing({100: 10})
    assert one.quantile_ms(0.5) == pytest.approx(75) and one.quantile_ms(1) == 100
    two = timing({5: 90, 1000: 10}, sum_ms=8000)
    assert two.quantile_ms(0.9) == 5 and two.quantile_ms(0.95) == pytest.approx(750)
    assert two.mean_ms == 80


def test_above_the_last_bound_nothing_more_is_known() -> None:
    assert timing({0: 3}).quantile_ms(0.5) == BOUNDS_MS[-1]


def test_together() -> None:
    both = Timing.together([timing({5: 1}, 4), timing({5: 2, 0: 1}, 9_000_000)])
    assert (both.count, both.buckets[0], both.buckets[-1], both.sum_ms) == (4, 3, 1, 9_000_004)
