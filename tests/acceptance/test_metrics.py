"""What coordinators and agents tell Prometheus, asked of running processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mesh.core.states import TERMINAL
from mesh.store.embedded import start_server
from mesh.telemetry.metrics import BY_NAME, PREFIX, TABLE
from tests.acceptance.conftest import Place, make_place
from tests.acceptance.test_coordinator import leader, start
from tests.tokens import bearer
from tests.waiting import wait_until

TASKS = """
import os
import time

from mesh import task


@task("fine")
def fine(payload):
    time.sleep(0.12)
    return payload


@task("broken", retries=1, retry_delay_s=0.01)
def broken(payload):
    raise ValueError("no")


@task("deadly")
def deadly(payload):
    if not os.path.exists(payload):
        open(payload, "w").close()
        os.kill(os.getpid(), 9)
    return "alive"
"""

Figures = Counter[tuple[str, tuple[tuple[str, str], ...]]]


def scrape(url: str, **headers: str) -> str:
    """The text of `/metrics`."""
    request = urllib.request.Request(f"{url}/metrics", headers=headers or bearer())
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        return str(answer.read().decode())


def figures(*texts: str) -> Figures:
    """(name, labels) -> sum over all, as `sum without (instance, job)` gives it."""
    found: Figures = Counter()
    for text in texts:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found[sample.name, tuple(sorted(sample.labels.items()))] += sample.value
    return found


def of(found: Figures, name: str, **labels: str) -> float:
    """The sum of a metric over what the labels leave open."""
    wanted = set(labels.items())
    return sum(value for (one, has), value in found.items() if one == PREFIX + name and wanted <= set(has))


@pytest.fixture
def working(place: Place) -> Place:
    (place.folder / "tasks.py").write_text(TASKS)
    return place


def health_port(place: Place, agent_id: str) -> int:
    return int((place.mesh.store.agents.get(agent_id) or {})["port"])


@pytest.mark.ci
def test_figures_of_a_namespace_are_exact_told_once_and_survive_their_teller(working: Place) -> None:
    place, mesh = working, working.mesh
    fast = {"MESH_LEASE_MS": "2000", "MESH_LEASE_RENEW_MS": "500"}
    first, one_url = start(place, "c1", **fast)
    wait_until(lambda: leader(place) == "c1", 5, "c1 to lead")
    _, other_url = start(place, "c2", **fast)
    words = ("-I", "tasks", "--capabilities", "fine,broken,deadly", "--pool", "prefork", "--concurrency", "2")
    place.agent("w1", *words, **fast)
    handles = [mesh.submit("fine", index) for index in range(7)]
    handles += [mesh.submit("broken", 1), mesh.submit("deadly", str(place.folder / "marker"))]
    waiting = mesh.submit("fine", 1, requires=["gpu"], unsatisfiable="accept")
    later = mesh.submit("fine", 1, countdown_s=3600)
    wait_until(lambda: all(handle.status() in TERMINAL for handle in handles), 30, "all to end")

    def both() -> Figures:
        return figures(scrape(one_url), scrape(other_url))

    wait_until(lambda: of(both(), "slots", capability="fine", state="free") == 2, 10, "a beat that says so")
    found = both()
    ended = {
        status: of(found, "tasks_total", status=status) for status in ("succeeded", "failed", "dead_lettered")
    }
    assert ended == {"succeeded": 8, "failed": 0, "dead_lettered": 1}
    assert of(found, "retries_total", capability="broken") == 1
    assert of(found, "reassignments_total", reason="process_died", capability="deadly") == 1
    assert of(found, "dead_letters") == 1 and of(found, "scheduled") == 1 and of(found, "coordinators") == 2
    assert of(found, "queue_depth") == of(found, "queue_depth", capability="fine+gpu") == 1
    assert of(found, "tasks", state="queued") == 1 and of(found, "tasks", state="scheduled") == 1
    assert of(found, "queue_oldest_age_seconds", capability="fine+gpu") > 0
    assert of(found, "agents", status="healthy") == of(found, "agents") == 1
    assert of(found, "capable_agents", capability="fine") == 1
    assert of(found, "capable_agents", capability="fine+gpu") == 0
    assert of(found, "task_run_seconds_count", capability="fine") == 7
    assert 0.8 <= of(found, "task_run_seconds_sum", capability="fine") < 7
    assert of(found, "task_run_seconds_bucket", capability="fine", le="0.1") == 0
    assert of(found, "task_run_seconds_count", capability="broken") == 2, "each attempt"
    assert of(found, "task_queue_wait_seconds_count", capability="deadly") == 2
    assert of(found, "leader") == 1 and of(found, "redis_up") == 2

    first.kill()
    wait_until(lambda: leader(place) == "c2", 20, "c2 to lead")
    wait_until(lambda: of(figures(scrape(other_url)), "agents") == 1, 5, "c2 to tell")
    alone = figures(scrape(other_url))
    for name in ("tasks_total", "retries_total", "reassignments_total", "task_run_seconds_sum"):
        assert of(alone, name) == of(found, name), name
    for handle in (waiting, later):
        handle.cancel()
    assert of(figures(scrape(other_url)), "tasks_total", status="cancelled") == 2


def test_every_row_of_the_table_is_told_with_its_labels_and_nothing_else(working: Place) -> None:
    place = working
    _, url = start(place, "c1")
    wait_until(lambda: leader(place) == "c1", 5, "c1 to lead")
    place.agent("w1", "-I", "tasks", "--capabilities", "fine")
    assert place.mesh.submit("fine", 1).result(timeout_s=20) == 1
    scrape(url)  # this answer is counted, too
    told = figures(scrape(url), scrape(f"http://127.0.0.1:{health_port(place, 'w1')}"))
    labels = {name: {label for label, _ in has} for (name, has) in told}
    ours = {name for name in labels if name.startswith(PREFIX)}
    for row in TABLE:
        name = f"{row.full_name}_bucket" if row.kind == "histogram" else row.full_name
        assert labels.get(name) == {*row.labels, *(["le"] if row.kind == "histogram" else [])}, row.name
        ours -= {name, f"{row.full_name}_sum", f"{row.full_name}_count"}
    assert ours == set()
    assert ("process_resident_memory_bytes", ()) in told


@pytest.mark.ci
def test_answers_are_counted_by_route_and_what_is_refused_before_without(place: Place) -> None:
    _, url = start(place, "c1")

    def ask(method: str, path: str, body: bytes | None = None, **headers: str) -> int:
        request = urllib.request.Request(url + path, method=method, data=body, headers=headers or bearer())
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    tasks = f"/v1/namespaces/{place.namespace}/tasks"
    body = json.dumps({"type": "t", "payload": 1, "unsatisfiable": "accept"}).encode()
    assert [ask("POST", tasks, body) for _ in range(3)] == [202] * 3
    assert ask("GET", f"{tasks}/some-id") == 404 and ask("GET", f"{tasks}/another-id") == 404
    assert ask("HEAD", tasks) == 200 and ask("GET", tasks, Authorization="Bearer none") == 401
    assert ask("GET", "/v1/nothing-here") == 404
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 5) as raw:
        raw.sendall(b"NONSENSE / HTTP/9.9\r\n\r\n")
        assert b" 400 " in raw.recv(4096)
    found = figures(scrape(url))
    route = "/v1/namespaces/{namespace}/tasks"
    assert of(found, "http_requests_total", route=route, method="POST", code="202") == 3
    assert of(found, "http_requests_total", route=route, method="HEAD", code="200") == 1
    assert of(found, "http_requests_total", route=route, method="GET", code="401") == 1
    assert of(found, "http_requests_total", code="404", route="") == 1
    assert of(found, "http_requests_total", code="404") == 3, "two of them have the route of any task"
    assert of(found, "http_requests_total", code="400", route="", method="") == 1
    assert of(found, "http_request_seconds_count", route=route) == 5
    assert of(found, "connections") >= 1


def test_metrics_of_a_coordinator_need_a_token_that_may_read_all(place: Place) -> None:
    _, url = start(place, "c1")
    for headers, code in (
        ({}, 401),
        (bearer("producer"), 403),
        (bearer("viewer", namespaces=("another",)), 403),
    ):
        request = urllib.request.Request(f"{url}/metrics", headers=headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=5)
        refused.value.close()
        assert refused.value.code == code, headers
    scrape(url, **bearer("viewer", namespaces=(place.namespace,)))


@pytest.mark.ci
def test_agents_tell_their_own_and_prometheus_finds_them(working: Place) -> None:
    place = working
    _, url = start(place, "c1")
    place.agent("w1", "-I", "tasks", "--capabilities", "fine", "--region", "north")
    place.agent("w2", "-I", "tasks", "--capabilities", "fine")
    found = figures(scrape(f"http://127.0.0.1:{health_port(place, 'w1')}"))
    assert of(found, "agent_slots", state="free") == 1 and of(found, "agent_slots", state="running") == 0
    assert of(found, "agent_status", status="healthy") == of(found, "agent_status") == 1
    assert of(found, "redis_up") == 1 and of(found, "redis_latency_seconds_count") >= 1
    request = urllib.request.Request(
        f"{url}/v1/namespaces/{place.namespace}/metrics-targets", headers=bearer("viewer")
    )
    with urllib.request.urlopen(request, timeout=5) as answer:
        targets = {one["labels"]["__meta_agent_mesh_agent"]: one for one in json.load(answer)}
    assert set(targets) == {"w1", "w2"}
    assert targets["w1"]["labels"] == {
        "__meta_agent_mesh_agent": "w1", "__meta_agent_mesh_namespace": place.namespace,
        "__meta_agent_mesh_region": "north", "__meta_agent_mesh_capabilities": "fine",
    }  # fmt: skip
    assert targets["w1"]["targets"][0].endswith(f":{health_port(place, 'w1')}")


@pytest.mark.ci
def test_without_redis_a_coordinator_says_that_and_nothing_stale(tmp_path: Path, namespace: str) -> None:
    server = start_server(tmp_path / "redis")
    try:
        with make_place(server.url, namespace, tmp_path) as place:
            _, url = start(place, "c1", MESH_REDIS_SOCKET_TIMEOUT_MS="1500")
            wait_until(lambda: of(figures(scrape(url)), "coordinators") == 1, 10, "c1 to tell")
            os.kill(server.pid, signal.SIGSTOP)
            try:
                wait_until(
                    lambda: of(figures(scrape(url)), "leader") == 0, 20, "c1 to know that it does not lead"
                )
                wait_until(lambda: of(figures(scrape(url)), "redis_up") == 0, 20, "c1 to miss Redis")
                found = figures(scrape(url))
                assert not any(name == f"{PREFIX}agents" for name, _ in found)
                assert of(found, "redis_beat_age_seconds") > 0
            finally:
                os.kill(server.pid, signal.SIGCONT)
            wait_until(lambda: of(figures(scrape(url)), "coordinators") == 1, 20, "c1 to tell again")
    finally:
        server.stop()


@pytest.mark.ci
def test_requirements_that_anybody_makes_up_do_not_grow_the_labels(place: Place) -> None:
    _, url = start(place, "c1")
    wait_until(lambda: leader(place) == "c1", 5, "c1 to lead")
    place.mesh.submit_many("fine", [1] * 9, unsatisfiable="accept")
    for index in range(600):
        place.mesh.submit(f"made-up-{index}", 1, unsatisfiable="accept")
    found = figures(scrape(url))
    names = {dict(has)["capability"] for name, has in found if name == f"{PREFIX}queue_depth"}
    assert len(names) == 501 and "(others)" in names
    assert of(found, "queue_depth") == 609 and of(found, "queue_depth", capability="(others)") == 101
    assert of(found, "queue_depth", capability="fine") == 9, "the busiest keeps its name"
    assert BY_NAME["queue_depth"].kind == "gauge"
