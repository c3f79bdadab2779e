"""Who gets a task: strategies, requirements, regions, cordons; on real agents, through Mesh and through plain Celery calls."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from mesh.client import Handle, Mesh
from mesh.errors import Invalid, NotFound, Unsatisfiable
from tests.chaos.fleet import Fleet
from tests.waiting import wait_until

AGENTS = {"e1": ["--region", "eu"], "u1": ["--region", "us"], "u2": ["--region", "us"]}
HELD_S = 0.4  # longer than an idle agent needs to ask for work


@pytest.fixture(scope="module")
def fleet(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Three agents, one task at a time each; `u2` has a rare capability."""
    running = Fleet(redis_url, f"routing-{uuid.uuid4().hex[:8]}", tmp_path_factory.mktemp("routing"))
    for agent, more in AGENTS.items():
        rare = ",rare" if agent == "u2" else ""
        capabilities = f"who,needy{rare}"
        running.start(
            agent,
            pool="solo",
            concurrency=1,
            capabilities=capabilities,
            app="tests.chaos.routing_app",
            more=more,
        )
    try:
        running.ready(*AGENTS)
        wait_until(lambda: running.mesh.store.agents.consumers("who") == len(AGENTS), 30, "all to offer")
        yield running
    finally:
        running.close()


@pytest.fixture
def mesh(fleet: Fleet) -> Mesh:
    return fleet.mesh


def runners(handles: Sequence[Handle]) -> Counter[str]:
    """Agent -> how many of these tasks it ran."""
    return Counter(handle.result(timeout_s=30) for handle in handles)


def test_round_robin_takes_turns(mesh: Mesh) -> None:
    assert set(runners([mesh.submit("who", strategy="round-robin") for _ in range(9)]).values()) == {3}
    assert set(runners(mesh.submit_many("who", [None] * 30, strategy="round-robin")).values()) == {10}


def test_least_loaded_goes_where_nobody_waits(mesh: Mesh) -> None:
    busy = mesh.submit("who", HELD_S * 3, region="eu")
    wait_until(lambda: busy.status() == "running", 10, "the task to run")
    assert set(runners([mesh.submit("who", HELD_S, strategy="least-loaded") for _ in range(2)])) == {
        "u1",
        "u2",
    }
    assert busy.result(timeout_s=10) == "e1"


def test_random_reaches_all(mesh: Mesh) -> None:
    assert set(runners(mesh.submit_many("who", [None] * 60, strategy="random"))) == set(AGENTS)


def test_by_default_whoever_is_free_takes_it(mesh: Mesh) -> None:
    busy = mesh.submit("who", HELD_S * 2, region="eu")
    wait_until(lambda: busy.status() == "running", 10, "the task to run")
    assert "e1" not in runners(mesh.submit_many("who", [0.01] * 10))


def test_why_says_whose_turn_it_is(mesh: Mesh) -> None:
    busy = mesh.submit("who", HELD_S * 5, region="eu")
    wait_until(lambda: busy.status() == "running", 10, "the task to run")
    first, placed = mesh.submit("who", region="eu"), mesh.submit("who", region="eu", strategy="round-robin")
    told = {row["agent"]: row["why"] for row in first.why()["agents"]}
    assert told["e1"] == "all its slots are full (1 of 1)"
    assert told["u1"].startswith("it is of another region: the task is offered to region eu first for ")
    told = {row["agent"]: row["why"] for row in placed.why()["agents"]}
    assert told == {
        **told,
        "u1": "the task was placed with agent e1",
        "u2": "the task was placed with agent e1",
    }
    assert sum(runners([busy, first, placed]).values()) == 3


def test_celery_calls_choose_too(mesh: Mesh) -> None:
    from mesh.bus import runtime
    from tests.chaos.routing_app import app, who

    runtime.configure(mesh.settings)
    app.conf.broker_url = mesh.settings.redis_url
    app.conf.broker_transport_options = {
        **app.conf.broker_transport_options,
        "namespace": mesh.settings.namespace,
    }
    app.backend.url = mesh.settings.redis_url

    def ask(**options: Any) -> Counter[str]:
        results = [who.apply_async(**options) for _ in range(6)]
        return Counter(mesh.handle(one.id).result(timeout_s=20) for one in results)

    assert set(ask(strategy="round-robin").values()) == {2}
    assert ask(region="eu") == {"e1": 6}
    with pytest.raises(Invalid, match=r"Strategy 'fastest' is not one of capability-match, round-robin"):
        who.apply_async(strategy="fastest")


def test_a_type_brings_its_requirement_along(mesh: Mesh) -> None:
    handle = mesh.submit("needy", unsatisfiable="reject")
    assert handle.result(timeout_s=10) == "u2"
    assert mesh.store.tasks.record(handle.id).queue == "needy+rare"  # type: ignore[union-attr]
    assert runners([mesh.submit("who", requires=["rare"]) for _ in range(4)]) == {"u2": 4}


def test_what_no_agent_can_do_is_said_at_submission(mesh: Mesh) -> None:
    with pytest.raises(Unsatisfiable, match=r"No agent offers nowhere \(offered: needy, rare, who\)\."):
        mesh.submit("who", requires=["nowhere"], unsatisfiable="reject")
    with pytest.warns(UserWarning, match="No agent offers elsewhere"):
        waits = mesh.submit("who", requires=["elsewhere"])
    assert waits.status() == "queued" and waits.cancel()
    for bad in ({"strategy": "fastest"}, {"region": "e u"}, {"retries": -1}):
        with pytest.raises(Invalid):
            mesh.submit("who", **bad)  # type: ignore[arg-type]


def test_a_region_is_preferred_and_another_helps_out(mesh: Mesh) -> None:
    handles = mesh.submit_many("who", [None] * 10, region="eu")
    assert runners(handles) == {"e1": 10}
    record = handles[0].record()
    assert (record["strategy"], record["region"], record["queue"]) == ("capability-match", "eu", "who")
    assert set(runners(mesh.submit_many("who", [0.01] * 10, region="us"))) <= {"u1", "u2"}
    assert sum(runners(mesh.submit_many("who", [None] * 4, region="nowhere")).values()) == 4
    mesh.cordon("e1")
    assert set(runners(mesh.submit_many("who", [None] * 6, region="eu"))) <= {"u1", "u2"}
    mesh.uncordon("e1")


def test_a_cordoned_agent_gets_nothing_and_what_waited_for_it_goes_elsewhere(mesh: Mesh) -> None:
    busy = [mesh.submit("who", HELD_S, strategy="round-robin") for _ in AGENTS]
    waiting = [mesh.submit("who", strategy="round-robin") for _ in range(6)]
    mesh.cordon("e1")
    assert sum(runners(busy).values()) == 3
    assert "e1" not in runners(waiting)
    assert next(one for one in mesh.agents() if one.id == "e1").cordoned
    assert "e1" not in runners(mesh.submit_many("who", [0.01] * 12))
    mesh.uncordon("e1")
    wait_until(
        lambda: "e1" in runners(mesh.submit_many("who", [None] * 3, strategy="round-robin")),
        10,
        "e1 to be back",
    )
    with pytest.raises(NotFound, match="There is no agent 'nobody'"):
        mesh.cordon("nobody")


@pytest.mark.ci
def test_the_tasks_placed_with_an_agent_survive_it(fleet: Fleet) -> None:
    """Frozen, it takes nothing; killed, what was placed with it runs elsewhere within the bound."""
    mesh = fleet.mesh
    fleet.start("dies", pool="solo", concurrency=1, capabilities="who", app="tests.chaos.routing_app")
    fleet.ready("dies")
    wait_until(lambda: mesh.store.agents.consumers("who") == 4, 30, "it to offer")
    fleet.processes["dies"].send_signal(19)
    handles = mesh.submit_many("who", [None] * 20, strategy="round-robin")
    wait_until(lambda: sum(handle.status() == "succeeded" for handle in handles) == 15, 20, "the others")
    assert [one.id for one in mesh.agents() if one.id == "dies"]
    fleet.kill("dies")
    assert sum(Counter(handle.result(timeout_s=20) for handle in handles).values()) == 20


def test_a_drained_agent_leaves_and_its_work_is_done(fleet: Fleet) -> None:
    mesh = fleet.mesh
    fleet.start("leaves", pool="solo", concurrency=1, capabilities="who", app="tests.chaos.routing_app")
    fleet.ready("leaves")
    wait_until(lambda: mesh.store.agents.consumers("who") == 4, 30, "it to offer")
    handles = mesh.submit_many("who", [0.05] * 20, strategy="round-robin")
    mesh.drain("leaves")
    assert fleet.processes["leaves"].wait(20) == 0
    assert sum(runners(handles).values()) == 20
    assert next(one for one in mesh.agents() if one.id == "leaves").status == "offline"
