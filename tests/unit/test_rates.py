"""Token buckets in a bounded table, and whose address a request has."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.rates import Buckets
from mesh.core.sources import Proxies, limited_as
from mesh.errors import Invalid


def test_a_burst_then_the_rate() -> None:
    buckets = Buckets(rate=10, burst=5)
    assert [buckets.take("a", 100.0) for _ in range(5)] == [0.0] * 5
    assert buckets.take("a", 100.0) == pytest.approx(0.1)
    assert buckets.wait_s("a", 100.04) == pytest.approx(0.06)
    assert buckets.take("b", 100.0) == 0.0, "another has a bucket of its own"
    assert buckets.take("a", 100.11) == 0.0 and buckets.take("a", 100.11) > 0
    assert [buckets.take("a", 200.0) for _ in range(6)][-1] > 0, "it never holds more than the burst"


def test_no_limit() -> None:
    buckets = Buckets(rate=0, burst=1)
    assert not any(buckets.take("a", 0.0) for _ in range(1000)) and len(buckets) == 0


@given(st.lists(st.floats(0, 0.3), max_size=200), st.integers(1, 20), st.integers(1, 10))
def test_never_more_than_rate_and_burst(pauses: list[float], rate: int, burst: int) -> None:
    buckets = Buckets(rate=rate, burst=burst)
    times = list(itertools.accumulate(pauses))
    allowed = [now for now in times if buckets.take("a", now) == 0]
    for first, last in itertools.combinations(range(len(allowed)), 2):
        assert last - first + 1 <= burst + (allowed[last] - allowed[first]) * rate + 1e-6


def test_any_number_of_addresses_does_not_make_it_grow() -> None:
    buckets = Buckets(rate=10, burst=100, most=1000)
    for number in range(100_000):
        assert buckets.take(f"{number}", number * 1e-6) == 0.0
        assert len(buckets) <= 1000


def test_who_is_locked_out_is_not_freed_by_those_who_ask_once() -> None:
    """A bucket that is full again says nothing and goes first."""
    buckets = Buckets(rate=10, burst=100, most=1000)
    assert any(buckets.take("attacker", 0.0) for _ in range(101))
    for number in range(2_000):
        buckets.take(f"{number}", number * 1e-3)
    assert buckets.wait_s("attacker", 0.05) > 0


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("nobody", "nobody"),
    ],
)
def test_what_counts_as_one_source(address: str, key: str) -> None:
    assert limited_as(address) == key


@pytest.mark.parametrize(
    ("forwarded", "source"),
    [
        ([], "10.0.0.1"),
        (["198.51.100.1"], "198.51.100.1"),
        (["1.1.1.1, 198.51.100.1"], "198.51.100.1"),
        (["1.1.1.1", "198.51.100.1"], "198.51.100.1"),
        (["198.51.100.1, 10.0.0.9, 192.0.2.1"], "198.51.100.1"),
        (["198.51.100.1, nonsense, 10.0.0.9"], "10.0.0.9"),
        (["2001:db8::1"], "2001:db8::1"),
        (["10.0.0.7"], "10.0.0.7"),
        ([""], "10.0.0.1"),
        (["198.51.100.1:8080"], "10.0.0.1"),
        (["," * 10_000], "10.0.0.1"),
    ],
)
def test_only_what_trusted_proxies_wrote_is_believed(forwarded: list[str], source: str) -> None:
    proxies = Proxies(["10.0.0.0/24", "192.0.2.1"])
    assert proxies.trusts("10.0.0.1") and proxies.trusts("::ffff:192.0.2.1")
    assert not proxies.trusts("10.0.1.1") and not proxies.trusts("") and not Proxies([]).trusts("10.0.0.1")
    assert proxies.source("10.0.0.1", forwarded) == source


@pytest.mark.parametrize("name", ["balancer", "10.0.0.0/33", "10.0.0", "*"])
def test_a_proxy_is_an_address(name: str) -> None:
    with pytest.raises(Invalid, match="neither an IP address nor a network"):
        Proxies([name])
