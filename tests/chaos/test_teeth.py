"""The checker has teeth: the same scene is good evidence on the store as it is, and turns its check red once a defect is
planted. A checker that passes everything would pass the fault matrix and `mesh verify` too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.store.store import Store
from mesh.verify.witness import check
from tests.chaos.actors import Actors
from tests.chaos.planted import REWRITES, plant
from tests.integration.stores import open_store
from tests.waiting import wait_until

LEASE_MS, RENEW_MS = 1000, 300


class Killed(Exception):
    """The process is gone at this point."""


def die() -> None:
    """Killed in between."""
    raise Killed


def a_late_result(actors: Actors, defect: str | None) -> None:
    """An agent pauses for longer than its lease, and wakes when another one runs its task."""
    if defect:
        plant(actors.store, defect)
    actors.submit("a")
    first = actors.take("one")
    assert first is not None
    actors.reap_silent(first)
    second = actors.take("two")
    actors.finish(first, "one")
    actors.finish(second, "two")


def a_kill_while_it_settles(actors: Actors, defect: str | None) -> None:
    """An agent is killed in the middle of recording a result, or just after."""
    actors.submit("a")
    first = actors.take("one")
    assert first is not None
    if defect:
        settle = actors.store.tasks.settle
        plant(actors.store, defect, between=die)
        with pytest.raises(Killed):
            actors.finish(first, "one")
        actors.store.tasks.settle = settle  # type: ignore[method-assign]
    else:
        actors.finish(first, "one")
    actors.reap_silent(first)
    actors.finish(actors.take("two"), "two")


def an_end_beside_the_reaper(actors: Actors, defect: str | None) -> None:
    """An agent that was silent for a lease ends its task at the very moment at which somebody takes it back."""
    actors.submit("a")
    first = actors.take("one")
    assert first is not None
    if defect:
        plant(actors.store, defect, between=lambda: actors.finish(first, "one"))
        actors.reap_silent(first)
    else:
        actors.reap_silent(first, lambda: (actors.finish(first, "one"), actors.store.tasks.reap()))
    actors.finish(actors.take("two"), "two")


def a_dead_agent_with_a_wrong_clock(actors: Actors, defect: str | None) -> None:
    """An agent whose clock is two hours ahead dies; another one runs its task when its lease has ended."""
    agent = open_store(
        actors.store.client.url, actors.store.keys.namespace, lease_ms=LEASE_MS, lease_renew_ms=RENEW_MS
    )
    if defect:
        plant(agent, defect)
    actors.submit("a")
    first = actors.take("one", agent)
    assert first is not None

    def taken_back() -> bool:
        actors.store.tasks.reap()
        record = actors.store.tasks.record("a")
        return record is not None and record.state == "queued"

    try:
        wait_until(taken_back, 5 * LEASE_MS / 1000, "the lease to end")
    except AssertionError:
        assert defect
    agent.close()
    actors.finish(actors.take("two"), "two")


def a_submission_repeated(actors: Actors, defect: str | None) -> None:
    """The answer to a submission is lost; it is repeated with the same id when the task has ended."""
    if defect:
        plant(actors.store, defect)
    actors.submit("a")
    actors.finish(actors.take("one"), "one")
    actors.submit("a")
    actors.finish(actors.take("two"), "two")


#: Defect -> (the scene that needs it not to be there, the checks that find it).
SCENES: dict[str, tuple[Callable[[Actors, str | None], None], set[str]]] = {
    "no fence": (a_late_result, {"stale"}),
    "settle in two steps": (a_kill_while_it_settles, {"twice"}),
    "reap without state guard": (an_end_beside_the_reaper, {"twice"}),
    "lease by the agent's clock": (a_dead_agent_with_a_wrong_clock, {"lost", "stuck"}),
    "submit is not idempotent": (a_submission_repeated, {"twice"}),
}


@pytest.fixture
def store(redis_url: str, namespace: str) -> Store:
    return open_store(redis_url, namespace, lease_ms=LEASE_MS, lease_renew_ms=RENEW_MS)


def broken(store: Store, effects: Path, defect: str, *, planted: bool) -> set[str]:
    """The checks that fail after the defect's scene."""
    with Actors(store, effects) as actors:
        SCENES[defect][0](actors, defect if planted else None)
        return {one.name for one in check(actors.evidence()) if not one.passed}


def test_every_defect_has_a_scene() -> None:
    assert SCENES.keys() == REWRITES.keys()


@pytest.mark.parametrize("defect", SCENES)
def test_the_store_as_it_is_passes(store: Store, tmp_path: Path, defect: str) -> None:
    assert broken(store, tmp_path / "effects", defect, planted=False) == set()


@pytest.mark.parametrize("defect", SCENES)
def test_a_planted_defect_is_found(store: Store, tmp_path: Path, defect: str) -> None:
    assert broken(store, tmp_path / "effects", defect, planted=True) >= SCENES[defect][1]
