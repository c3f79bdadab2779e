"""Which coordinator is asked next, and what answers mean."""

from __future__ import annotations

import pytest

from mesh import errors
from mesh.client.calls import Endpoints, error_of, shares
from mesh.errors import (
    Conflict,
    CoordinatorUnavailable,
    Invalid,
    MeshError,
    NotFound,
    Refused,
    TaskFailed,
    TooManyRequests,
    Unauthenticated,
)

URLS = ("http://one:3001", "https://two/mesh", "http://gone")
ADDRESSES = {"one": ["10.0.0.1"], "two": ["10.0.0.2", "fd7a::2"], "gone": []}


def make() -> Endpoints:
    return Endpoints(URLS, lambda name, _: ADDRESSES[name])


def bases(endpoints: Endpoints) -> list[str]:
    return [endpoint.base for endpoint in endpoints.order()]


ALL = ["http://10.0.0.1:3001", "https://10.0.0.2:443/mesh", "https://[fd7a::2]:443/mesh", "http://gone:80"]


def test_every_address_of_every_url() -> None:
    endpoints = make()
    assert bases(endpoints) == ALL
    second = endpoints.order()[2]
    assert (second.host, second.name) == ("two", "two")
    assert second.request("/v1/cluster") == {
        "url": "https://[fd7a::2]:443/mesh/v1/cluster",
        "extensions": {"sni_hostname": "two"},
    }


def test_who_has_answered_is_asked_first_who_has_not_last() -> None:
    endpoints = make()
    one, two, other_two, gone = ALL
    endpoints.failed(endpoints.order()[0], "connection refused")
    assert bases(endpoints) == [two, other_two, gone, one]
    endpoints.prefer(endpoints.order()[2])
    assert bases(endpoints) == [gone, two, other_two, one]
    endpoints.failed(
        endpoints.order()[1], "no answer in time"
    )  # somebody else has found a better one meanwhile
    assert bases(endpoints) == [gone, two, other_two, one]
    assert str(endpoints.nobody()) == (
        "No coordinator answers at http://one:3001 (connection refused), https://two/mesh (no answer in time), http://gone."
    )


def test_each_client_has_an_order_of_its_own_and_keeps_it() -> None:
    addresses = [f"10.0.0.{number}" for number in range(3)]
    first: set[str] = set()
    for _ in range(200):
        endpoints = Endpoints(["http://mesh:3000"], lambda *_: addresses)
        order = bases(endpoints)
        assert sorted(order) == [f"http://{address}:3000" for address in addresses]
        for _ in addresses:  # whoever fails goes to the end: all get their turn
            assert bases(endpoints) == order
            endpoints.failed(endpoints.order()[0], "no answer in time")
            order = [*order[1:], order[0]]
        first.add(order[0])
    assert len(first) == 3


def test_names_are_looked_up_when_one_has_failed_and_remembered_while_nobody_knows_them() -> None:
    addresses = ["10.0.0.1"]
    endpoints = Endpoints(["http://mesh:3000"], lambda *_: list(addresses))
    endpoints.prefer(endpoints.order()[0])
    addresses[:] = ["10.0.0.2"]
    assert bases(endpoints) == ["http://10.0.0.1:3000"], "what works stays"
    endpoints.failed(endpoints.order()[0], "connection refused")
    assert bases(endpoints) == ["http://10.0.0.2:3000"]
    addresses.clear()
    endpoints.failed(endpoints.order()[0], "connection refused")
    assert bases(endpoints) == ["http://10.0.0.2:3000"], "the name server is away too"


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_comes_back_as_what_it_was(name: str) -> None:
    kind = getattr(errors, name)
    problem = {
        "code": name,
        "detail": "So it is.",
        "task_id": "t1",
        "state": "expired",
        "error": {"type": "E"},
    }
    error = error_of(kind.http_status, problem)
    assert (type(error), str(error)) == (kind, "So it is.")
    if isinstance(error, TaskFailed):
        assert (error.task_id, error.state, error.error) == ("t1", "expired", {"type": "E"})


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, Unauthenticated),
        (403, Refused),
        (404, NotFound),
        (409, Conflict),
        (413, Invalid),
        (422, Invalid),
        (429, TooManyRequests),
        (502, CoordinatorUnavailable),
        (500, MeshError),
    ],
)
@pytest.mark.parametrize("problem", [None, "<html>", {"code": "FromTheFuture", "title": "No."}], ids=str)
def test_what_a_proxy_answers_is_judged_by_its_status(
    status: int, kind: type[MeshError], problem: object
) -> None:
    error = error_of(status, problem)
    assert type(error) is kind
    assert str(error) == ("No." if isinstance(problem, dict) else f"The coordinator answered {status}.")


@pytest.mark.parametrize(
    ("connections", "expected"), [(1, (1, 1)), (2, (1, 1)), (10, (7, 3)), (100, (96, 4))]
)
def test_waiting_takes_some_of_the_connections(connections: int, expected: tuple[int, int]) -> None:
    assert shares(connections) == expected
