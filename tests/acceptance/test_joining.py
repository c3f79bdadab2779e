"""Agents that join over HTTP, as processes: what they can do, what they cannot, how they end."""

from __future__ import annotations

import base64
import json
import secrets
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
import redis

from mesh.services import audit
from mesh.store.embedded import Server, free_port, start_server
from mesh.store.keys import JOINED
from mesh.store.redis_users import hashed
from tests.acceptance.conftest import CELERY, Place, make_place
from tests.acceptance.joined import Mesh, join_token, start
from tests.acceptance.test_flower import Dashboard
from tests.chaos.sentinel import Failover
from tests.waiting import wait_until

TASKS = """
import os
import time
from celery import chain
from mesh import Mesh, task

@task("double")
def double(payload):
    return 2 * payload

@task("pause")
def pause(payload):
    time.sleep(payload["for_s"])
    with open(payload["ran"], "a") as ran:
        ran.write(payload["name"] + " " + str(os.getpid()) + "\\n")
    return payload["name"]

@task("outer")
def outer(payload):
    return [Mesh().submit("double", one).result(timeout_s=30) for one in payload]

@task("chained")
def chained(payload):
    return chain(double.s(payload), double.s()).delay().id

@task("look")
def look(payload):
    agent = os.getpid() if payload == "solo" else os.getppid()
    with open(f"/proc/{agent}/environ") as environ, open(f"/proc/{agent}/cmdline") as cmdline:
        return [str(dict(os.environ)), environ.read(), cmdline.read()]
"""


@pytest.fixture
def fleet(place: Place) -> Mesh:
    (place.folder / "tasks.py").write_text(TASKS)
    _, url = start(place, "c1")
    return Mesh(place, url)


def call(url: str, method: str, path: str, token: str, body: Any = None) -> tuple[int, Any]:
    """One request."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(url + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def a_key() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode()


def test_an_agent_joins_with_a_token_only_works_and_leaves(fleet: Mesh) -> None:
    """Its environment has no address of Redis and no secret; it works, also from inside its tasks, and leaves nothing."""
    place = fleet.place
    token = join_token(place.namespace)
    process = fleet.agent("w1", "--pool", "prefork", "--concurrency", "2", "-I", "tasks", token=token)
    joined = fleet.joined("w1")
    assert joined is not None and joined.reach == "own" and fleet.users() == [f"mesh:0:{place.namespace}:w1"]
    assert place.mesh.submit("outer", [1, 21]).result(timeout_s=60) == [2, 42]
    last = place.mesh.handle(place.mesh.submit("chained", 3).result(timeout_s=30))
    wait_until(lambda: place.mesh.store.tasks.record(last.id), 30, "the chain to go on")
    assert last.result(timeout_s=30) == 12
    seen = "".join(place.mesh.submit("look", "prefork").result(timeout_s=30))
    assert token not in seen and "redis://" not in seen
    process.terminate()
    assert process.wait() == 0, process.output()
    assert fleet.joined("w1") is None and fleet.users() == []
    assert "Traceback" not in process.output() and token not in process.output()


REFUSED = {
    "of another mesh": (lambda ns: join_token(ns, secret=secrets.token_hex(32)), "ocr", "token is missing or not valid"),
    "expired": (lambda ns: join_token(ns, now_s=1_000_000_000, ttl_s=60), "ocr", "token is missing or not valid"),
    "of another kind": (lambda ns: join_token(ns, kind="api"), "ocr", "token is missing or not valid"),
    "no token at all": (lambda ns: "x.y.z", "ocr", "token is missing or not valid"),
    "beyond the token": (lambda ns: join_token(ns, capabilities=["pdf"]), "ocr", "the token is for capabilities pdf"),
    "beyond the token, unasked": (
        lambda ns: join_token(ns, capabilities=["pdf"]), "", "; --capabilities (AGENT_CAPABILITIES) names which to offer",
    ),
    "beyond the policy": (lambda ns: join_token(ns, agent_type="viewer"), "ocr", "grants register"),
    "of another namespace": (lambda ns: join_token("another"), "ocr", "There is no namespace"),
}  # fmt: skip


@pytest.mark.ci
def test_who_may_not_join_is_told_in_one_sentence(fleet: Mesh) -> None:
    place = fleet.place
    started = {
        why: place.start(
            "deploy", "--agent-id", "w1", "--pool", "solo", *(("--capabilities", capability) if capability else ()),
            **fleet.environment(make(place.namespace)),
        )
        for why, (make, capability, _) in REFUSED.items()
    }  # fmt: skip
    for why, process in started.items():
        code = process.wait(60)
        lines = [line for line in process.output().splitlines() if line.startswith("Error:")]
        expected = 3 if why == "of another namespace" else 4
        assert code == expected and len(lines) == 1 and REFUSED[why][2] in lines[0], (why, process.output())
        assert "Traceback" not in process.output(), why
    assert fleet.joined("w1") is None and fleet.users() == [] and place.discover() == []


def test_what_an_agent_is_given_reaches_its_namespace_only(fleet: Mesh) -> None:
    place, path = fleet.place, f"/v1/namespaces/{fleet.place.namespace}/agents"
    token = join_token(place.namespace, capabilities=["ocr", "pdf"])
    body = {"id": "w1", "capabilities": ["ocr"], "public_key": a_key()}
    status, answer = call(fleet.url, "POST", path, token, body)
    assert status == 201 and answer["granted"]["redis"]["reach"] == "own"
    assert "@" not in answer["granted"]["redis"]["url"]
    assert set(answer["granted"]["task_keys"]["capabilities"]) == set(answer["granted"]["kids"])
    assert all(set(keys) == {"ocr"} for keys in answer["granted"]["task_keys"]["capabilities"].values())
    login = answer["granted"]["redis"]
    client = fleet.client(login["username"], login["password"])
    assert client.ping()
    for command in (
        ("GET", "mesh:{another}:pulse"),
        ("HGETALL", "mesh:{mesh}:joined"),
        ("XRANGE", "mesh:{mesh}:audit", "-", "+"),
        ("SET", "mesh:{mesh}:coordinator:c1", "x"),
        ("CONFIG", "GET", "*"),
        ("CONFIG", "SET", "maxmemory", "1"),
        ("ACL", "LIST"),
        ("ACL", "SETUSER", login["username"], "allkeys"),
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("SCRIPT", "FLUSH"),
        ("DEBUG", "SLEEP", "0"),
        ("MODULE", "LIST"),
        ("CLIENT", "LIST"),
        ("SHUTDOWN", "NOSAVE"),
        ("MONITOR",),
        ("PSUBSCRIBE", "*"),
    ):
        with pytest.raises(redis.ResponseError, match=r"permission|not allowed"):
            client.execute_command(*command)
    # Who is live is not replaced; another life neither renews nor leaves for it.
    status, problem = call(fleet.url, "POST", path, token, body)
    assert status == 409 and "already running" in problem["detail"]
    beat = {"life": "another", "capabilities": ["ocr"], "public_key": body["public_key"]}
    assert call(fleet.url, "PUT", f"{path}/w1/heartbeat", token, beat)[0] == 409
    assert call(fleet.url, "DELETE", f"{path}/w1?life=another", token) == (200, {"withdrawn": False})
    beat["life"] = answer["life"]
    assert call(fleet.url, "PUT", f"{path}/w1/heartbeat", token, {**beat, "capabilities": ["cpu"]})[0] == 403
    assert call(fleet.url, "DELETE", f"{path}/w1?life={answer['life']}", token) == (200, {"withdrawn": True})
    with pytest.raises(redis.ConnectionError):
        client.ping()
    # A join token opens nothing else, and no other token joins.
    assert call(fleet.url, "GET", path, token)[0] == 401
    api = join_token(place.namespace, kind="api")
    assert call(fleet.url, "POST", path, api, body)[0] == 401
    status, problem = call(fleet.url, "POST", path, token, {**body, "public_key": "A" * 42 + "*"})
    assert status == 422 and "public_key" in problem["detail"]


# -- faults


class Load:
    """Tasks that write down each of their runs."""

    def __init__(self, fleet: Mesh, number: int, for_s: float = 0.1) -> None:
        self.ran, self.place = fleet.place.folder / "ran", fleet.place
        payloads = [{"name": f"t{n}", "for_s": for_s, "ran": str(self.ran)} for n in range(number)]
        self.handles = self.place.mesh.submit_many("pause", payloads)
        self.names = [payload["name"] for payload in payloads]

    def runs(self) -> list[str]:
        return [line.split()[0] for line in self.ran.read_text().splitlines()] if self.ran.exists() else []

    def wait_until_begun(self, number: int) -> None:
        wait_until(lambda: len(self.runs()) >= number, 60, f"{number} tasks to have run")

    def check(self, *, again: int = 0) -> None:
        """Each has its result; at most `again` of them ran twice."""
        assert [handle.result(timeout_s=90) for handle in self.handles] == self.names
        runs = self.runs()
        assert set(runs) == set(self.names) and len(runs) - len(self.names) <= again, len(runs)


@pytest.fixture
def own_server() -> Iterator[Server]:
    with start_server() as server:
        yield server


@pytest.fixture
def own_fleet(own_server: Server, namespace: str, tmp_path: Path) -> Iterator[Mesh]:
    """On a Redis of its own, which may be restarted."""
    with make_place(own_server.url, namespace, tmp_path) as place:
        (place.folder / "tasks.py").write_text(TASKS)
        _, url = start(place, "c1", MESH_CREDENTIALS_TTL_S="8")
        yield Mesh(place, url)


PREFORK = ("--pool", "prefork", "--concurrency", "2", "-I", "tasks")


@pytest.mark.ci
def test_credentials_are_renewed_under_load(own_fleet: Mesh) -> None:
    own_fleet.agent("w1", *PREFORK)
    seen = set()

    def renewed() -> bool:
        joined = own_fleet.joined("w1")
        seen.update(joined.hashes[:1] if joined else ())
        return len(seen) >= 4

    load = Load(own_fleet, 250)
    wait_until(renewed, 60, "three renewals")
    load.check()
    joined = own_fleet.joined("w1")
    assert joined is not None and len(joined.hashes) == 2


@pytest.mark.ci
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_redis_restarts_and_forgets_the_users(own_fleet: Mesh, own_server: Server, pool: str) -> None:
    own_fleet.agent("w1", "--pool", pool, "--concurrency", "2", "-I", "tasks")
    load = Load(own_fleet, 150)
    load.wait_until_begun(10)
    own_server.restart()
    load.wait_until_begun(60)
    load.check(again=8)
    assert own_fleet.users()
    assert own_fleet.place.mesh.submit("outer", [4]).result(timeout_s=30) == [8]


def health(process_port: int) -> dict[str, Any]:
    status, body = call(f"http://127.0.0.1:{process_port}", "GET", "/health", "none")
    return {"http": status, **body}


def port_of(place: Place, agent_id: str) -> int:
    return int((place.mesh.store.agents.get(agent_id) or {})["port"])


@pytest.mark.ci
def test_an_agent_works_on_while_no_coordinator_answers(place: Place) -> None:
    (place.folder / "tasks.py").write_text(TASKS)
    port = str(free_port())
    coordinator, url = start(place, "c1", "--port", port)
    fleet = Mesh(place, url, {"HEARTBEAT_INTERVAL_MS": "500", "UNHEALTHY_THRESHOLD_MS": "5000"})
    fleet.agent("w1", *PREFORK)
    own = port_of(place, "w1")
    assert health(own)["status"] == "healthy"
    coordinator.kill()
    wait_until(lambda: health(own)["status"] == "degraded", 20, "the agent to notice")
    found = health(own)
    assert found["http"] == 200 and "no coordinator answers" in found["detail"]
    assert place.mesh.submit("double", 4).result(timeout_s=30) == 8
    start(place, "c2", "--port", port)
    wait_until(lambda: health(own)["status"] == "healthy", 40, "the agent to be well again")


@pytest.mark.ci
def test_who_is_killed_is_withdrawn_and_his_tasks_go_to_others(place: Place) -> None:
    _, url = start(place, "c1", MESH_CREDENTIALS_TTL_S="6")
    fleet = Mesh(place, url)
    fleet.agent("dies", "--pool", "prefork", "--concurrency", "1", "-I", "tasks")
    gate = place.gate()
    handle = place.mesh.submit("gate", gate.payload)
    gate.wait_until_started()
    fleet.agent("lives", "--pool", "prefork", "--concurrency", "1", "-I", "tasks")
    place.running[1].kill()
    wait_until(
        lambda: gate.starts() == ["dies", "lives"] or len(gate.starts()) == 2, 20, "the other to take it over"
    )
    gate.open()
    assert handle.result(timeout_s=30) == "through"
    wait_until(lambda: fleet.joined("dies") is None, 30, "the dead one's credentials to end")
    assert fleet.users() == [f"mesh:0:{place.namespace}:lives"]


@pytest.mark.ci
@pytest.mark.parametrize("pool", ["solo", "threads", "gevent"])
def test_other_pools(fleet: Mesh, pool: str) -> None:
    place = fleet.place
    if pool == "gevent":
        pytest.importorskip("gevent")
    words = ["--concurrency", "2"] if pool != "solo" else []
    process = fleet.agent("w1", "--pool", pool, *words, "-I", "tasks")
    assert place.mesh.submit("double", 4).result(timeout_s=30) == 8
    if pool != "solo":  # which would wait for itself
        assert place.mesh.submit("outer", [4]).result(timeout_s=30) == [8]
    answered = place.run("inspect", "ping", "--timeout", "5", command=CELERY)
    assert "pong" in answered.stdout, answered.stderr
    process.terminate()
    assert process.wait() == 0, process.output()
    assert fleet.users() == [] and "Traceback" not in process.output()


@pytest.mark.ci
def test_a_replica_takes_over_that_does_not_know_the_users(namespace: str, tmp_path: Path) -> None:
    if shutil.which("redis-sentinel") is None:
        pytest.skip("no redis-sentinel here")
    failover = Failover(tmp_path / "redis")
    try:
        with make_place(failover.url, namespace, tmp_path) as place:
            (place.folder / "tasks.py").write_text(TASKS)
            _, url = start(place, "c1")
            fleet = Mesh(place, url)
            fleet.agent("w1", *PREFORK)
            load = Load(fleet, 150)
            load.wait_until_begun(10)
            failover.first.kill()
            load.wait_until_begun(80)
            load.check(again=20)
            assert fleet.users() == [f"mesh:0:{namespace}:w1"]
    finally:
        failover.stop()


@pytest.mark.ci
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_who_is_revoked_is_cut_off_and_his_tasks_go_to_others(fleet: Mesh, pool: str) -> None:
    place = fleet.place
    words = ("--pool", pool, "--concurrency", "1", "-I", "tasks")
    first = fleet.agent("w1", *words, token=join_token(place.namespace, "leaked"))
    load = Load(fleet, 1, for_s=60)
    wait_until(lambda: place.discover()[0]["running"] == 1, 30, "w1 to run a task")
    second = fleet.agent("w2", *words, token=join_token(place.namespace, "kept"))
    assert place.call("token", "revoke", "--subject", "leaked").returncode == 0
    wait_until(lambda: fleet.joined("w1") is None and len(fleet.users()) == 1, 10, "w1 to be withdrawn")
    wait_until(
        lambda: place.mesh.store.tasks.record(load.handles[0].id).attempt >= 2, 20, "w2 to have the task"
    )
    assert first.wait(30) == 4, first.output()
    assert "cut off" in first.output()
    load.handles[0].cancel()
    assert second.process.poll() is None
    # The same token does not come back.
    again = place.start(
        "deploy", "--agent-id", "w3", "--pool", "solo", "--capabilities", "pause",
        **fleet.environment(join_token(place.namespace, "leaked", now_s=time.time() - 60)),
    )  # fmt: skip
    assert again.wait(60) == 4 and "token is missing or not valid" in again.output()


@pytest.mark.ci
def test_the_coordinators_own_login_is_shared_only_where_it_was_asked_for(place: Place) -> None:
    """With a Redis user that may make no users."""
    (place.folder / "tasks.py").write_text(TASKS)
    client, small = place.mesh.store.client, f"small-{place.namespace}"
    rights = ("reset", "on", ">right-of-it", "~*", "&*", "+@all", "-acl")
    client.execute("ACL", "SETUSER", small, *rights)
    url = place.redis_url.replace("redis://", f"redis://{small}:right-of-it@")
    try:
        _, refusing = start(place, "c1", REDIS_URL=url)
        refused = place.start(
            "deploy", "--agent-id", "w1", "--pool", "solo", "-I", "tasks",
            **Mesh(place, refusing).environment(join_token(place.namespace), TRANSPORT_RETRIES="0"),
        )  # fmt: skip
        assert refused.wait(60) == 5, refused.output()
        (said,) = [line for line in refused.output().splitlines() if line.startswith("Error:")]
        assert "MESH_SHARED_REDIS_LOGIN=true" in said and "right-of-it" not in refused.output()
        _, sharing = start(place, "c2", REDIS_URL=url, MESH_SHARED_REDIS_LOGIN="true")
        fleet = Mesh(place, sharing)
        assert fleet.joined("w1") is None
        shared = fleet.agent("w1", "--pool", "threads", "--concurrency", "2", "-I", "tasks")
        joined = fleet.joined("w1")
        assert joined is not None and joined.reach == "shared" and fleet.users() == []
        assert place.mesh.submit("outer", [1, 21]).result(timeout_s=30) == [2, 42]
        shared.terminate()
        assert shared.wait() == 0, shared.output()
        assert fleet.joined("w1") is None and "right-of-it" not in shared.output()
    finally:
        client.execute("ACL", "DELUSER", small)


@pytest.mark.ci
def test_flower_shows_who_has_joined(fleet: Mesh) -> None:
    place, port = fleet.place, free_port()
    process = place.start("flower", "--port", str(port), FLOWER_UNAUTHENTICATED_API="true")
    dashboard = Dashboard(port=port, process=process)
    agent = fleet.agent("w1", *PREFORK)
    place.wait_for(process, dashboard.answers, "Flower to answer")
    wait_until(lambda: dashboard.agents() == {"w1": True}, 30, "Flower to show the agent")
    wait_until(lambda: "Events of group {task} enabled" in agent.output(), 30, "its events")
    handle = place.mesh.submit("double", 4)
    assert dashboard.wait_for_task(handle.id, "SUCCESS")["worker"].startswith("w1@")


def beat_of(life: str) -> dict[str, Any]:
    return {"life": life, "capabilities": ["ocr"], "public_key": a_key()}


def test_a_heartbeat_takes_the_id_of_nobody_who_lives(fleet: Mesh) -> None:
    """What was issued may be lost; the agent's own record shows whose it is."""
    place, agents = fleet.place, fleet.place.mesh.store.agents
    path = f"/v1/namespaces/{place.namespace}/agents"
    token = join_token(place.namespace)

    def heartbeat(agent: str, life: str) -> int:
        return call(fleet.url, "PUT", f"{path}/{agent}/heartbeat", token, beat_of(life))[0]

    agents.join("secret", {"capabilities": "ocr"})  # holds the secret of the mesh: it never joined over HTTP
    agents.join("joined", {"capabilities": "ocr", "life": hashed("its own")})
    assert heartbeat("secret", "its own") == 409
    assert heartbeat("joined", "another") == 409
    assert fleet.users() == [] and fleet.joined("secret") is None
    assert heartbeat("joined", "its own") == 200
    assert fleet.users() == [f"mesh:0:{place.namespace}:joined"]
    assert heartbeat("joined", "another") == 409
    assert heartbeat("nobody", "its own") == 200


def test_a_revocation_puts_out_only_who_has_joined_with_that_token(fleet: Mesh) -> None:
    place, agents = fleet.place, fleet.place.mesh.store.agents
    path, leaked = f"/v1/namespaces/{place.namespace}/agents", join_token(place.namespace, "leaked")
    for agent in ("secret", "joined"):
        body = {"id": agent, "capabilities": ["ocr"], "public_key": a_key()}
        status, answer = call(fleet.url, "POST", path, leaked, body)
        assert status == 201
        agents.join(agent, {"life": hashed(answer["life"])} if agent == "joined" else {})
    assert place.call("token", "revoke", "--subject", "leaked").returncode == 0

    def withdrawn() -> set[str]:
        noted, _ = audit.entries(place.mesh.store.client, action="withdraw", namespaces={place.namespace})
        return {one["object"] for one in noted}

    wait_until(lambda: withdrawn() == {"agent secret", "agent joined"}, 20, "both to be withdrawn")
    assert fleet.users() == []
    assert "left" in (agents.get("joined") or {}) and "left" not in (agents.get("secret") or {})


def test_an_agent_goes_on_when_redis_has_lost_all_that_was_issued(own_fleet: Mesh) -> None:
    """All but its own record, then that too."""
    fleet, client = own_fleet, own_fleet.place.mesh.store.client
    process = fleet.agent("w1", "--pool", "threads", "-I", "tasks", HEARTBEAT_INTERVAL_MS="500")
    first = fleet.joined("w1")
    assert first is not None
    for lose in (("HDEL", JOINED, f"{first.namespace}/w1"), ("FLUSHALL",)):
        client.execute(*lose)
        client.execute("ACL", "DELUSER", *fleet.users())
        wait_until(lambda: fleet.joined("w1") is not None and fleet.users(), 30, "it to be known again")
        again = fleet.joined("w1")
        assert again is not None and again.life == first.life
        wait_until(lambda: "life" in (fleet.place.mesh.store.agents.get("w1") or {}), 30, "its record")
        assert fleet.place.mesh.submit("double", 4).result(timeout_s=30) == 8
    assert process.process.poll() is None


def test_a_name_that_is_none_gets_nothing(fleet: Mesh) -> None:
    """Neither by joining nor by the heartbeat of an agent that never joined: least of all the coordinator's own access."""
    place = fleet.place
    url = f"{fleet.url}/v1/namespaces/{place.namespace}/agents"
    headers = {"Authorization": f"Bearer {join_token(place.namespace)}"}
    body = {"capabilities": ["ocr"], "public_key": base64.b64encode(bytes(range(32))).decode()}
    beat = {**body, "life": "l" * 22, "kids": []}
    for agent in ("a b", "worker\n", "", "a/b", "x" * 64, "~*"):
        answers = [
            httpx2.post(url, json={"id": agent, **body}, headers=headers, timeout=30),
            httpx2.put(f"{url}/{quote(agent, safe='')}/heartbeat", json=beat, headers=headers, timeout=30),
        ]
        for answer in answers:
            assert answer.status_code in (404, 405, 422), (agent, answer.text)
            assert "password" not in answer.text
        assert fleet.users() == [], agent
