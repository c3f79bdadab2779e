"""One moment, five tellers: Flower, `mesh status`, the API, Prometheus' metrics and the page's data say the same of it.

After a run in which tasks succeed, fail, are tried again, and an agent is killed while it has some.
"""

from __future__ import annotations

import json
import urllib.request
from collections import Counter
from typing import Any

import pytest

from mesh.core.states import CELERY_STATUS, LIVE, TERMINAL, State
from mesh.store.embedded import free_port
from tests.acceptance.conftest import START_S, Place
from tests.acceptance.test_coordinator import leader, start
from tests.acceptance.test_flower import ENOUGH_S, ITS_OWN, Dashboard
from tests.acceptance.test_metrics import figures, of, scrape
from tests.tokens import bearer
from tests.waiting import wait_until

TASKS = """
import os
import time
from mesh import task


@task("fine")
def fine(payload):
    return payload


@task("broken", retries=0)
def broken(payload):
    raise ValueError("no")


@task("flaky", retry_delay_s=0.01)
def flaky(payload):
    if not os.path.exists(payload):
        open(payload, "w").close()
        raise OSError("not yet")
    return "now"


@task("long")
def long(payload):
    open(payload + os.environ["AGENT_ID"], "w").close()
    while not os.path.exists(payload + "go"):
        time.sleep(0.02)
    return "done"
"""
FAST = {"MESH_LEASE_MS": "2500", "MESH_LEASE_RENEW_MS": "800", "FLOWER_UNAUTHENTICATED_API": "true"}
Told = dict[str, dict[str, int]]  # queue -> state -> tasks


@pytest.mark.ci
@pytest.mark.timeout(240)
def test_all_that_show_figures_show_the_same(place: Place) -> None:
    mesh, folder = place.mesh, place.folder
    (folder / "tasks.py").write_text(TASKS)
    flower = Dashboard(
        port=(port := free_port()), process=place.start("flower", "--port", str(port), *ITS_OWN, **FAST)
    )
    _, url = start(place, "c1", **FAST)
    wait_until(lambda: leader(place) == "c1", 5, "c1 to lead")
    words = (
        "-I",
        "tasks",
        "--capabilities",
        "fine,broken,flaky,long",
        "--pool",
        "prefork",
        "--concurrency",
        "2",
    )
    agents = {name: place.agent(name, *words, **FAST) for name in ("w1", "w2")}
    place.wait_for(flower.process, flower.answers, "Flower to answer")
    for agent in agents.values():
        wait_until(lambda agent=agent: "Events of group {task} enabled" in agent.output(), START_S, "events")

    # The run: 40 succeed, 4 fail, one is tried again, one outlives its agent, some wait for nobody, one for its time.
    held = mesh.submit("long", str(folder / "long-"))
    wait_until(lambda: any((folder / f"long-{name}").exists() for name in agents), START_S, "it to start")
    (first,) = [name for name in agents if (folder / f"long-{name}").exists()]
    agents[first].kill()
    (folder / "long-go").touch()
    ended = [held, *mesh.submit_many("fine", range(40)), *mesh.submit_many("broken", range(4))]
    ended.append(mesh.submit("flaky", str(folder / "marker")))
    cancelled = mesh.submit("fine", 1, countdown_s=3600)
    assert cancelled.cancel()
    mesh.submit_many("fine", range(3), requires=["gpu"], unsatisfiable="accept")
    mesh.submit("fine", 1, countdown_s=3600)
    wait_until(lambda: all(one.status() in TERMINAL for one in ended), 60, "all to end")

    def api(path: str) -> Any:
        request = urllib.request.Request(f"{url}/v1/namespaces/{place.namespace}/{path}", headers=bearer())
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def by_status() -> Told:
        return json.loads(place.call("status", "-o", "json").stdout)["queues"]

    def by_api() -> Told:
        return {row["queue"]: row["states"] for row in api("queues")["queues"]}

    def by_metrics() -> Told:
        found = figures(scrape(url))
        told: Told = {}
        for (name, has), value in found.items():
            labels = dict(has)
            state = labels.get("status") if name == "agent_mesh_tasks_total" else labels.get("state")
            if name in ("agent_mesh_tasks_total", "agent_mesh_tasks") and state and value:
                told.setdefault(labels["capability"], {})[state] = int(value)
        return told

    def tellers() -> dict[str, Told]:
        return {"status": only_states(by_status()), "api": only_states(by_api()), "metrics": by_metrics()}

    def only_states(told: Told) -> Told:
        rows = {
            queue: {state: number for state, number in states.items() if state in set(State) and number}
            for queue, states in told.items()
        }
        return {queue: states for queue, states in rows.items() if states}

    expected = {
        "fine": {"succeeded": 40, "scheduled": 1, "cancelled": 1},
        "broken": {"dead_lettered": 4},
        "flaky": {"succeeded": 1},
        "long": {"succeeded": 1},
        "fine+gpu": {"queued": 3},
    }
    assert tellers() == dict.fromkeys(("status", "api", "metrics"), expected)

    # Flower: queues as they are; of the tasks what it was told by events.
    for queue, states in expected.items():
        row = flower.queues()[queue]
        assert row["messages"] == states.get("queued", 0) and row["messages_unacknowledged"] == 0, queue

    def by_flower() -> Counter[tuple[str, str]]:
        return Counter((one["name"], one["state"]) for one in flower.get("/api/tasks?limit=1000").values())

    in_celery: Counter[tuple[str, str]] = Counter()
    for queue, states in expected.items():
        for state, number in states.items():
            if State(state) in TERMINAL and state != "cancelled":  # an agent never saw that one
                in_celery[queue, CELERY_STATUS[State(state)]] += number
    wait_until(
        lambda: by_flower() == in_celery, ENOUGH_S, f"Flower to tell {in_celery}; it tells {by_flower()}"
    )

    # Retries, what was taken over, dead letters, agents, slots.
    found = figures(scrape(url))
    assert of(found, "retries_total") == 1 == mesh.handle(ended[-1].id).record()["failures"]
    assert of(found, "reassignments_total") == of(found, "reassignments_total", capability="long") == 1
    assert of(found, "dead_letters") == len(api("dead-letters")["dead_letters"]) == 4
    assert of(found, "scheduled") == 1 and of(found, "queue_depth") == 3

    def agents_agree() -> bool:
        """Health changes by itself: the dead one is degraded in all of them at once."""
        counts = api("agents")["counts"]
        shown = json.loads(place.call("status", "-o", "json").stdout)["agents"]
        told = figures(scrape(url))
        return (
            counts
            == shown
            == {
                status: int(number)
                for status in ("healthy", "degraded", "unhealthy", "draining", "offline")
                if (number := of(told, "agents", status=status))
            }
            == {"healthy": 1, "degraded": 1}
        )

    wait_until(agents_agree, ENOUGH_S, "all to tell of one healthy agent and one that is not")
    other = next(name for name in agents if name != first)
    wait_until(lambda: flower.agents() == {first: False, other: True}, 60, "Flower to miss the dead one")

    def slots_agree() -> bool:
        rows: dict[str, dict[str, Any]] = {
            row["capability"]: row for row in api("capabilities")["capabilities"]
        }
        told = figures(scrape(url))
        row = rows["fine"]
        return (
            (row["agents"], row["slots"], row["free_slots"], row["backlog"])
            == (
                of(told, "capable_agents", capability="fine"),
                of(told, "slots", capability="fine"),
                of(told, "slots", capability="fine", state="free"),
                sum(of(told, "queue_depth", capability=one) for one in ("fine", "fine+gpu")),
            )
            == (1, 2, 2, 3)
        )

    wait_until(slots_agree, ENOUGH_S, "the free slots to be told")
    assert {State(state) for states in expected.values() for state in states} & LIVE, (
        "it is a moment, not an end"
    )
