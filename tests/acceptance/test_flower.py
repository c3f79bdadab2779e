"""The real Flower over a running fleet, by its HTTP interface and in a browser."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flower.urls import handlers
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By

from mesh.bus.flower import safe_address
from mesh.errors import Invalid
from mesh.store.embedded import free_port
from tests.acceptance.conftest import CELERY, START_S, USER_TASKS, Gate, Place, Running, make_place
from tests.waiting import wait_until

TASKS = f"""{USER_TASKS}
import pathlib

@task("flaky")
def flaky(payload):
    marker = pathlib.Path(payload["marker"])
    if not marker.exists():
        marker.touch()
        raise OSError("the disk was asleep")
    return "awake"
"""
SHOP = """
from celery import Celery
from mesh import install

app = install(Celery("shop"))
"""
PICTURES = Path(__file__).parents[2] / "docs/images"
SHOWN = ("workers.png", "broker.png")  # in docs/flower.md
ENOUGH_S = 20
RETRIED = 12  # tasks: with the others they fill a page
ITS_OWN = ("--", "--max-tasks=1000")  # options of Flower


@dataclass(kw_only=True)
class Dashboard:
    """A Flower that runs."""

    port: int
    process: Running

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as answer:
            return json.load(answer)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/healthcheck", timeout=5):
                return True
        except OSError:
            return False

    def agents(self) -> dict[str, bool]:
        """Agent -> whether Flower calls it online."""
        rows = self.get("/workers?json=1")["data"]
        return {row["hostname"].partition("@")[0]: row["status"] for row in rows}

    def task(self, task_id: str) -> dict[str, Any]:
        """What Flower knows of a task; {} if nothing."""
        found: dict[str, Any] = self.get("/api/tasks").get(task_id, {})
        return found

    def wait_for_task(self, task_id: str, state: str) -> dict[str, Any]:
        wait_until(lambda: self.task(task_id).get("state") == state, ENOUGH_S, f"Flower to show {state}")
        return self.task(task_id)

    def queues(self) -> dict[str, dict[str, Any]]:
        return {row["name"]: row for row in self.get("/api/queues/length")["active_queues"]}


@dataclass(kw_only=True)
class Fleet:
    """Two agents that serve the same types, and two Flowers: of the mesh's own application, and of a user's."""

    place: Place
    agents: dict[str, Running]
    dashboard: Dashboard
    shop: Dashboard
    gone: str = ""  # an agent that was killed


@pytest.fixture(scope="module")
def fleet(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("flower")
    with make_place(redis_url, f"flower-{os.getpid()}", folder) as place:
        (folder / "tasks.py").write_text(TASKS)
        (folder / "shop.py").write_text(SHOP)
        environ = {
            "FLOWER_UNAUTHENTICATED_API": "true",
            "MESH_LEASE_MS": "2500",
            "MESH_LEASE_RENEW_MS": "800",
            "MESH_RETRY_DELAY_MS": "20",
        }
        port, other = free_port(), free_port()
        dashboard = Dashboard(
            port=port, process=place.start("flower", "--port", str(port), *ITS_OWN, **environ)
        )
        words = (sys.executable, "-m", "celery", "-A", "shop", "flower", f"--port={other}")
        shop = Dashboard(port=other, process=place.start(command=list(words), **environ))
        capabilities = ("--capabilities", "gate,flaky", "-I", "tasks", "--concurrency", "1")
        agents = {
            name: place.start("deploy", "--agent-id", name, *capabilities, "--pool", "prefork", **environ)
            for name in ("w1", "w2")
        }
        for one in (dashboard, shop):
            place.wait_for(one.process, one.answers, "Flower to answer")
            assert (
                one.get("/api/tasks") == {}
            )  # it is told now what was before: from here on it hears all itself
        for name, process in agents.items():
            place.wait_for(process, lambda name=name: place.pid_of(name), f"agent {name} to join")
        yield Fleet(place=place, agents=agents, dashboard=dashboard, shop=shop)


@pytest.fixture(scope="module")
def gates(fleet: Fleet) -> list[Gate]:
    return [fleet.place.gate(name) for name in ("first", "second")]


def test_it_does_not_start_open_to_everybody(fleet: Fleet) -> None:
    done = fleet.place.run(
        "flower", "--address=0.0.0.0", f"--port={free_port()}", command=CELERY, timeout_s=START_S
    )
    assert done.returncode == Invalid.exit_code
    assert (
        "Error: Flower on 0.0.0.0 would let everybody in who reaches it: set FLOWER_BASIC_AUTH" in done.stderr
    )


def agents_are_there_within_seconds(fleet: Fleet) -> None:
    """And tell of their tasks as soon as Flower has asked them to, which it does every five seconds."""
    wait_until(lambda: fleet.dashboard.agents() == {"w1": True, "w2": True}, ENOUGH_S, "both agents")
    for agent in fleet.agents.values():
        wait_until(lambda agent=agent: "Events of group {task} enabled" in agent.output(), ENOUGH_S, "events")


def a_task_with_its_arguments_states_and_run_time(fleet: Fleet, gates: list[Gate]) -> None:
    handle = fleet.place.mesh.submit("gate", gates[0].payload)
    shown = fleet.dashboard.wait_for_task(handle.id, "STARTED")
    (agent,) = gates[0].starts()
    assert shown["name"] == "gate" and shown["worker"].startswith(f"{agent}@")
    assert str(gates[0].fifo) in shown["args"] and shown["runtime"] is None
    gates[0].open("done")
    shown = fleet.dashboard.wait_for_task(handle.id, "SUCCESS")
    assert shown["result"] == "'done'" and shown["runtime"] > 0
    assert shown["received"] <= shown["started"] <= shown["succeeded"] and shown["retries"] in (0, None)


def a_task_that_is_retried(fleet: Fleet) -> None:
    """By one agent or two, which tell of it in batches: Flower may hear of the second attempt first."""
    markers = [{"marker": str(fleet.place.folder / f"marker-{number}")} for number in range(RETRIED)]
    handles = fleet.place.mesh.submit_many("flaky", markers)
    for handle in handles:
        assert handle.result(timeout_s=ENOUGH_S) == "awake"
    for handle in handles:
        shown = fleet.dashboard.wait_for_task(handle.id, "SUCCESS")
        wait_until(lambda one=handle.id: fleet.dashboard.task(one)["retried"], ENOUGH_S, "the retry")
        assert shown["retries"] == 1 and shown["worker"].startswith(f"{handle.record()['agent']}@")
        assert "the disk was asleep" in fleet.dashboard.task(handle.id)["exception"]


def queues_have_their_true_lengths(fleet: Fleet, gates: list[Gate]) -> None:
    """Those that nobody serves too, wherever in Redis the tasks wait, in both applications' Flower."""
    mesh = fleet.place.mesh
    mesh.submit_many("nobody", [None] * 5, unsatisfiable="accept")
    mesh.submit_many("nobody", [None] * 2, region="mars", unsatisfiable="accept")
    mesh.submit_many("gate", [None] * 3, requires=["gpu"], unsatisfiable="accept")
    mesh.submit("gate", None, countdown_s=3600, unsatisfiable="accept")
    for dashboard in (fleet.dashboard, fleet.shop):
        queues = dashboard.queues()
        lengths = {name: row["messages"] for name, row in queues.items()}
        assert lengths == {"flaky": 0, "gate": 0, "gate+gpu": 3, "nobody": 7}
        assert {name: row["consumers"] for name, row in queues.items()} == {
            "flaky": 2, "gate": 2, "gate+gpu": 0, "nobody": 0,
        }  # fmt: skip


def a_killed_agents_task_goes_on(fleet: Fleet, gates: list[Gate]) -> None:
    handle = fleet.place.mesh.submit("gate", gates[1].payload)
    gates[1].wait_until_started()
    (victim,) = gates[1].starts()
    (other,) = {"w1", "w2"} - {victim}
    assert fleet.dashboard.queues()["gate"] | {"name": "gate"} == {
        "name": "gate", "messages": 0, "messages_ready": 0, "messages_unacknowledged": 1, "consumers": 2,
    }  # fmt: skip
    fleet.agents[victim].kill()
    gates[1].wait_until_started(2)
    gates[1].open("taken over")
    shown = fleet.dashboard.wait_for_task(handle.id, "SUCCESS")
    assert shown["worker"].startswith(f"{other}@") and shown["result"] == "'taken over'"
    fleet.gone = victim


@pytest.fixture(scope="module")
def day(fleet: Fleet, gates: list[Gate]) -> Fleet:
    """What happens there in its order, each seen in Flower: the tests below look at what has become of it."""
    agents_are_there_within_seconds(fleet)
    a_task_with_its_arguments_states_and_run_time(fleet, gates)
    a_task_that_is_retried(fleet)
    queues_have_their_true_lengths(fleet, gates)
    a_killed_agents_task_goes_on(fleet, gates)
    return fleet


def test_what_it_tells_of_agents_tasks_and_queues(day: Fleet) -> None:
    assert len(day.dashboard.get("/api/tasks")) == 2 + RETRIED and day.gone


# -- as a person sees it


def see(browser: webdriver.Chrome, url: str, where: str, picture: Path, *words: str) -> list[str]:
    """Open a page, wait until what `where` selects shows all the words, take a picture; the selected texts."""
    browser.get(url)

    def texts() -> list[str]:
        try:
            return [one.text for one in browser.find_elements(By.CSS_SELECTOR, where)]
        except StaleElementReferenceException:  # the page has just drawn itself anew
            return []

    wait_until(lambda: all(word in "\n".join(texts()) for word in words), ENOUGH_S, f"{words} on {url}")
    browser.save_screenshot(picture)
    if "DOCS_PICTURES" in os.environ and picture.name in SHOWN:
        browser.save_screenshot(PICTURES / f"flower-{picture.name}")
    return texts()


def test_what_a_person_sees(day: Fleet, gates: list[Gate], browser: webdriver.Chrome) -> None:
    """Of agents, one of which was killed, of tasks that have ended and of others that wait.

    Agents answer each time that Flower asks for events: so the killed one goes offline within seconds, and the other stays.
    The pictures stay in the test's folder; those that docs/ has are made anew if DOCS_PICTURES is set.
    """
    folder, url = day.place.folder, day.dashboard.url
    browser.set_window_size(1440, 1043)  # of which the page has 900
    tasks = see(
        browser, f"{url}/tasks", "#tasks-table tbody tr", folder / "tasks.png", "gate", "flaky", "SUCCESS"
    )
    assert len(tasks) == 2 + RETRIED and all(
        "SUCCESS" in row and ("w1@" in row or "w2@" in row) for row in tasks
    )
    assert sum(str(gate.fifo) in row for gate in gates for row in tasks) == 2

    wait_until(lambda: day.dashboard.queues()["gate"]["consumers"] == 1, ENOUGH_S, "its lease to end")
    queues = see(
        browser, f"{url}/broker", "#queue-table tbody tr", folder / "broker.png", "nobody", "gate+gpu"
    )
    # name, waiting, held, waiting, agents that take it
    assert [row.split()[:5] for row in queues] == [
        ["flaky", "0", "0", "0", "1"],
        ["gate", "0", "0", "0", "1"],
        ["gate+gpu", "3", "0", "3", "0"],
        ["nobody", "7", "0", "7", "0"],
    ]

    task_id = next(iter(day.dashboard.get("/api/tasks")))
    see(browser, f"{url}/task/{task_id}", "body", folder / "task.png", "taken over", str(gates[1].fifo))
    name = next(one for one in day.dashboard.get("/api/tasks").values())["worker"]
    see(browser, f"{url}/worker/{name}", "body", folder / "worker.png", name)
    said = see(browser, f"{url}/worker/{name}", "#mesh-registration td", folder / "worker.png", "gate")
    assert {"gate, flaky", day.place.namespace, "healthy"} <= set(said)

    (stays,) = {"w1", "w2"} - {day.gone}
    wait_until(lambda: not day.dashboard.agents()[day.gone], ENOUGH_S, "the agent to be offline")
    agents = see(browser, f"{url}/workers", "#workers-table tbody tr", folder / "workers.png", "w1@", "w2@")
    shown = {row.partition("@")[0]: row.split()[1] for row in agents}
    assert shown == {day.gone: "Offline", stays: "Online"}
    rows = see(browser, f"{url}/workers", "#mesh-agents tbody tr", folder / "workers.png", "w1", "w2")
    health = {row.split()[0]: row.split()[1] for row in rows}
    assert health == {day.gone: "degraded", stays: "healthy"} and all("gate, flaky" in row for row in rows)


def test_a_flower_that_begins_later_knows_the_tasks_from_before(day: Fleet) -> None:
    before = day.dashboard.get("/api/tasks")
    assert len(before) == 2 + RETRIED
    port = free_port()
    process = day.place.start("flower", "--port", str(port), *ITS_OWN, FLOWER_UNAUTHENTICATED_API="true")
    late = Dashboard(port=port, process=process)
    day.place.wait_for(process, late.answers, "Flower to answer")
    after = late.get("/api/tasks")
    assert set(after) == set(before)
    for task_id, seen in before.items():
        told = after[task_id]
        same = ("name", "state", "worker", "result", "retries")
        assert {name: told[name] or None for name in same} == {name: seen[name] or None for name in same}
        assert told["runtime"] == pytest.approx(seen["runtime"], abs=0.5)
        assert told["started"] == pytest.approx(seen["started"], abs=1)
    process.kill()


# -- who may look


def test_only_this_host_reaches_it(fleet: Fleet) -> None:
    """Whoever listens on every address also answers on the other loopback addresses."""
    for dashboard in (fleet.dashboard, fleet.shop):
        with closing(socket.socket()) as knock:
            assert knock.connect_ex(("127.0.0.2", dashboard.port)) != 0


@pytest.mark.parametrize(
    ("given", "protected", "listens"),
    [
        ("", False, "127.0.0.1"),
        ("", True, ""),
        ("0.0.0.0", True, "0.0.0.0"),
        ("127.0.0.3", False, "127.0.0.3"),
        ("::1", False, "::1"),
        ("localhost", False, "localhost"),
    ],
)
def test_where_it_listens(given: str, protected: bool, listens: str) -> None:
    assert safe_address(given, protected=protected) == listens


@pytest.mark.parametrize("given", ["0.0.0.0", "::", "192.0.2.7", "example.org", "127.0.0.1.example.org"])
def test_where_it_does_not_listen(given: str) -> None:
    with pytest.raises(Invalid, match="would let everybody in"):
        safe_address(given, protected=False)


LOGIN = "ann:a-password-for-this-test"
OPEN = ("/healthcheck", "/static/")
#: What Flower's patterns take, one of each.
PATHS = (
    "/", "/workers", "/worker/w1", "/task/1", "/tasks", "/tasks/datatable", "/broker", "/metrics", "/api/workers", "/api/tasks",
    "/api/task/types", "/api/task/info/1", "/api/task/result/1", "/api/queues/length",
)  # fmt: skip
LAUNCHES = ("/api/task/apply/gate", "/api/task/async-apply/gate", "/api/task/send-task/gate")
CONTROLS = ("/api/worker/shutdown/w1", "/api/task/revoke/1", *LAUNCHES)


@pytest.fixture(scope="module")
def locked(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """A Flower with a login, on every address, that holds no secret of the mesh."""
    with make_place(redis_url, f"locked-{os.getpid()}", tmp_path_factory.mktemp("locked")) as place:
        port = free_port()
        words = ("flower", "--address", "0.0.0.0", "--port", str(port))
        process = place.start(*words, FLOWER_BASIC_AUTH=LOGIN, MESH_JWT_SECRET=None)
        dashboard = Dashboard(port=port, process=process)
        place.wait_for(process, dashboard.answers, "Flower to answer")
        yield dashboard


def answer(dashboard: Dashboard, path: str, login: str = "", *, method: str = "GET") -> tuple[int, str]:
    """(status, body)."""
    data = b"{}" if method == "POST" else None
    request = urllib.request.Request(f"{dashboard.url}{path}", data=data, method=method)
    if login:
        request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=20) as found:
            return found.status, found.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize(
    ("method", "path"), [("GET", one) for one in PATHS] + [("POST", one) for one in CONTROLS]
)
def test_nobody_sees_or_does_anything_without_the_login(locked: Dashboard, method: str, path: str) -> None:
    for login in ("", "ann:guessed", "ann", LOGIN.upper()):
        assert answer(locked, path, login, method=method)[0] == 401, login


@pytest.mark.parametrize(
    "path", ["/workers", "/tasks", "/broker", "/metrics", "/api/tasks", "/api/queues/length"]
)
def test_the_login_opens(locked: Dashboard, path: str) -> None:
    assert answer(locked, path, LOGIN)[0] == 200


def test_what_lives_is_told_to_everybody(locked: Dashboard) -> None:
    assert answer(locked, "/healthcheck") == (200, "OK")


def test_every_route_of_flower_is_among_those_tried() -> None:
    """A route that a new version brings is looked at before it is shipped."""
    known = {path.strip("/").split("/")[0] for path in (*PATHS, *CONTROLS)}
    others = {"static", "healthcheck", "login", "logout", "comet", ".*"}
    for one in handlers:
        pattern = one[0] if isinstance(one, tuple) else one.regex.pattern
        assert re.sub(r"[($?].*", "", pattern).strip("/").split("/")[0] in known | others, pattern


def test_a_browser_is_asked_who_is_there(
    locked: Dashboard, browser: webdriver.Chrome, tmp_path: Path
) -> None:
    browser.get(f"{locked.url}/workers")
    assert "workers-table" not in browser.page_source
    url = locked.url.replace("http://", f"http://{LOGIN}@")
    see(browser, f"{url}/workers", "body", tmp_path / "workers.png", "Workers", "Broker")


@pytest.mark.parametrize("path", ["/api/task/send-task/gate", "/api/task/async-apply/data-processing"])
def test_launching_a_task_without_the_meshs_secret_is_refused_in_one_sentence(
    locked: Dashboard, path: str
) -> None:
    status, body = answer(locked, path, LOGIN, method="POST")
    assert status == Invalid.http_status
    assert body.startswith("MESH_JWT_SECRET is not set") and "\n" not in body
