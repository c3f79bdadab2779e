"""The audit log: who, from where, what, on what, allowed or why not; bounded, complete, and without anything secret."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import time
import uuid
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from mesh.client import Mesh
from mesh.services import audit, namespaces
from mesh.services.audit import Audit, operator
from mesh.store import audit as stream
from mesh.store.audit import FIELDS
from mesh.store.embedded import start_server
from mesh.store.keys import AUDIT, MOVED, MOVING
from mesh.store.store import Store
from tests.acceptance.conftest import Place
from tests.acceptance.test_coordinator import start
from tests.tokens import bearer, token
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    """A server of its own: what is recorded of the whole mesh is seen in every namespace."""
    with start_server() as server:
        yield server.url


def log(place: Place, **filters: Any) -> list[dict[str, Any]]:
    return place.mesh.audit(limit=1000, **filters)


def brief(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(row["subject"], row["action"], row["object"], row["allowed"]) for row in reversed(rows)]


def test_what_is_done_and_refused_over_http_is_recorded(place: Place) -> None:
    process, url = start(place, "c1")
    base = f"{url}/v1/namespaces/{place.namespace}"
    place.mesh.store.agents.join("w1", {"name": "w1", "state": "ready"})
    joining = token("worker", "w1", [place.namespace], kind="join")
    mark, label = f"body-{uuid.uuid4()}", f"label-{uuid.uuid4()}"
    shown = [bearer("operator", "olga", [place.namespace]), bearer("viewer", "vera", [place.namespace])]
    elsewhere = f"far-{uuid.uuid4().hex[:8]}"  # the log is the whole mesh's: other tests have written to it
    far = bearer("admin", "ada", [elsewhere])
    admin = bearer("admin", "root", [place.namespace])
    body = {
        "type": "quiet",
        "payload": mark,
        "labels": {"a": label},
        "countdown_s": 999,
        "unsatisfiable": "accept",
    }
    with httpx2.Client(timeout=30) as http:
        made = http.post(f"{base}/tasks", json=body, headers=shown[0]).json()["id"]
        asked = [
            http.post(f"{base}/tasks", json=body, headers=shown[1]),
            http.post(f"{base}/tasks/{made}:cancel", headers=shown[1]),
            http.get(f"{base}/tasks/{made}", headers=far),
            http.get(f"{base}/tasks/{made}", headers={"Authorization": f"Bearer {joining}"}),
            http.post(f"{base}/agents/w1:cordon", headers=shown[0]),
            http.post(f"{base}/agents/w1:uncordon", headers=shown[0]),
            http.post(f"{base}/agents/w1:drain", headers=shown[0]),
            http.post(f"{base}/tasks/{made}:cancel", json={"reason": mark}, headers=shown[0]),
            http.post(f"{base}/tasks/{made}:cancel", headers=shown[0]),
            http.get(f"{url}/v1/audit", headers=shown[1]),
        ]
        assert [one.status_code for one in asked] == [403, 403, 404, 401, 200, 200, 202, 200, 200, 403]
        wait_until(lambda: len(log(place)) >= 10, 10, "all to be written")
        rows = log(place)
        assert brief(rows) == [
            ("vera", "submit", f"namespace {place.namespace}", False),
            ("vera", "cancel", f"namespace {place.namespace}", False),
            ("ada", "read", "GET /v1/namespaces/{namespace}/tasks/{task_id:path}", False),
            ("", "read", "GET /v1/namespaces/{namespace}/tasks/{task_id:path}", False),
            ("olga", "cordon", "agent w1", True),
            ("olga", "uncordon", "agent w1", True),
            ("olga", "drain", "agent w1", True),
            ("olga", "cancel", f"task {made}", True),
            ("olga", "cancel", f"task {made}", True),
            ("vera", "audit", "audit log", False),
        ]
        assert {row["source"] for row in rows} == {"127.0.0.1"} and {row["namespace"] for row in rows} == {
            place.namespace
        }
        why = [row["why"] for row in reversed(rows)]
        assert f"no row for agent type 'viewer' in namespace '{place.namespace}' grants submit" in why[0]
        assert (
            why[2] == f"the token is for namespaces {elsewhere}"
            and why[3] == "it is not of type mesh-api+jwt"
        )
        assert why[7:9] == ["", "it had ended"]
        # Over HTTP the same, in pages and by filters, to those who may.
        page = http.get(f"{url}/v1/audit", params={"limit": 4}, headers=admin).json()
        rest = http.get(f"{url}/v1/audit", params={"cursor": page["next_cursor"]}, headers=admin).json()
        assert page["entries"] + rest["entries"] == rows and rest["next_cursor"] is None
        for query, number in (({"subject": "olga"}, 5), ({"allowed": "false"}, 5), ({"action": "cancel"}, 3),
                              ({"since": "2126-01-01T00:00:00Z"}, 0)):  # fmt: skip
            found = http.get(f"{url}/v1/audit", params=query, headers=admin).json()["entries"]
            assert len(found) == number, query
        for cursor in ("x", "0-0", "1-", f"{10**30}-1", "\u00b2-1", "1-1 "):
            assert http.get(f"{url}/v1/audit", params={"cursor": cursor}, headers=admin).status_code == 422
        for since in ("1900-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"):
            answer = http.get(f"{url}/v1/audit", params={"since": since}, headers=admin)
            assert answer.status_code in (200, 422), answer.text
        assert http.get(f"{url}/v1/audit", headers=far).json()["entries"] == []
        # Nobody can fill it.
        assert {http.get(f"{base}/queues").status_code for _ in range(200)} == {401}
        flood = "GET /v1/namespaces/{namespace}/queues"

        def counted() -> list[dict[str, Any]]:
            return [row for row in log(place) if row["object"] == flood]

        wait_until(lambda: sum(row["many"] for row in counted()) == 200, 15, "all to be counted")
        assert any(
            "more like these; the last: there is no header Authorization" in row["why"] for row in counted()
        )
    process.terminate()
    assert process.wait(15) == 0
    lines = [json.loads(line) for line in process.output().splitlines()]
    told = [line for line in lines if line["logger"] == "mesh.audit"]
    assert [(line["subject"], line["action"], line["object"], line["allowed"]) for line in told][
        :10
    ] == brief(rows)
    everything = (
        process.output() + json.dumps(rows) + str(place.mesh.store.client.execute("XRANGE", AUDIT, "-", "+"))
    )
    hidden = [mark, label, joining, os.environ["MESH_JWT_SECRET"]]
    hidden += [one["Authorization"].partition(" ")[2] for one in (*shown, far, admin)]
    assert [one for one in hidden if one in everything] == []


def test_what_the_command_line_does_on_redis_is_recorded(place: Place) -> None:
    place.mesh.store.agents.join("w1", {"name": "w1", "state": "ready"})
    task_id = place.mesh.submit("quiet", countdown_s=999, unsatisfiable="accept").id
    for words in (("cordon", "w1"), ("uncordon", "w1"), ("task", "cancel", task_id), ("drain", "w1")):
        assert place.call(*words).returncode == 0, words
    me, source = operator()
    assert brief(log(place)) == [
        (me, "cordon", "agent w1", True),
        (me, "uncordon", "agent w1", True),
        (me, "cancel", f"task {task_id}", True),
        (me, "drain", "agent w1", True),
    ]
    assert "@" in me and log(place)[0]["source"] == source
    done = place.call("audit", "--action", "cancel", "--since", "1h", "-o", "json")
    assert [row["object"] for row in json.loads(done.stdout)] == [f"task {task_id}"]
    done = place.call("audit", "--denied")
    assert (done.returncode, done.stdout) == (0, "") and "No such entry" in done.stderr
    table = place.call("audit", "--subject", me).stdout
    assert table.startswith("TIME") and f"task {task_id}" in table


def test_following_the_log(place: Place) -> None:
    process = place.start("audit", "--follow", "-o", "jsonl")
    for number in range(3):
        audit.record(place.mesh.store, subject=f"s{number}", source="here", action="cancel", object="task x")
        wait_until(lambda: f'"s{number}"' in process.output(), 20, "it to be printed")  # noqa: B023
    rows = [json.loads(line) for line in process.output().splitlines()]
    assert [row["subject"] for row in rows] == ["s0", "s1", "s2"]
    process.process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130


def test_an_agent_that_comes_refuses_and_goes_is_recorded(place: Place) -> None:
    store = place.mesh.store
    task_id = place.mesh.submit("gate", {"secret": "payload"}, unsatisfiable="accept").id
    message = store.keys.of("message", task_id)
    store.client.execute("APPEND", message, "x")
    agent = place.agent("w1", "--capabilities", "gate")
    wait_until(lambda: place.mesh.handle(task_id).status() == "dead_lettered", 20, "it to be put aside")
    agent.terminate()
    assert agent.wait(30) == 0
    # They waited in its namespace: no coordinator runs, so whoever reads moves them.
    wait_until(lambda: len(log(place)) == 3, 10, "them to be moved")
    rows = log(place)
    assert store.client.execute("XLEN", store.keys["told"]) == 0
    assert {row["namespace"] for row in rows} == {place.namespace}
    assert brief(rows) == [
        ("w1", "register", "capabilities gate", True),
        ("", "run", f"task {task_id}", False),
        ("w1", "leave", "agent w1", True),
    ]
    (refused,) = [row for row in rows if not row["allowed"]]
    assert (
        refused["source"] == "agents: agent w1"
        and refused["why"].startswith("refused: forged: ")
        and "payload" not in str(rows)
    )


@pytest.fixture
def writer(place: Place) -> Audit:
    return Audit(place.mesh.store.client, place.namespace)


def test_what_was_noted_before_the_end_is_written(place: Place, writer: Audit) -> None:
    for number in range(1200):
        writer.note(subject="s", source="x", action="cancel", object=f"task {number}", allowed=True, why="")
    for number in range(25):
        writer.note(
            subject="\ud800" * 2,
            source=f"y{number % 2}",
            action="a",
            object="o" * 9999,
            allowed=False,
            why="no",
        )
    writer.close()
    rows = place.mesh.audit(limit=5000)
    assert [row["object"] for row in reversed(rows) if row["allowed"]] == [
        f"task {number}" for number in range(1200)
    ]
    refused = [row for row in rows if not row["allowed"]]
    assert sum(row["many"] for row in refused) == 25 and len(refused) == 22
    assert refused[0]["subject"] == "??" and len(refused[0]["object"]) == 303


def test_a_leader_moves_what_agents_have_told(place: Place) -> None:
    """Also those of another namespace, which no coordinator leads."""
    process, _ = start(place, "c1")
    with Mesh(redis_url=place.redis_url, namespace=f"{place.namespace}-2") as other:
        for store in (place.mesh.store, other.store):
            store.agents.join("w1", {"name": "w1", "state": "ready"})
            tell(store)
            wait_until(lambda: store.client.execute("XLEN", store.keys["told"]) == 0, 10, "it to be moved")  # noqa: B023
            (row,) = audit.entries(store.client, namespaces=[store.keys.namespace])[0]
            assert (row["subject"], row["source"]) == ("w1", "agents: host")
        namespaces.drop(other.store)
    process.terminate()
    assert process.wait(15) == 0


def tell(store: Store, **changes: str) -> None:
    """As an agent does, or one that says what it likes."""
    words = {**dict.fromkeys(FIELDS, ""), "namespace": store.keys.namespace, "subject": "w1", "source": "host",
             "action": "register", "object": "agent w1", "allowed": "1", "many": "1", **changes}  # fmt: skip
    store.client.execute("XADD", store.keys["told"], "*", *(part for pair in words.items() for part in pair))


def test_what_agents_tell_is_marked_and_checked(place: Place) -> None:
    store = place.mesh.store
    tell(store, namespace="another", subject="root", source="10.0.0.1", action="cancel")
    for changes in (
        {"allowed": "2"},
        {"many": "0"},
        {"many": "9999999"},
        {"why": "w" * 901},
        {"subject": "s" * 304},
        {"x": ""},
    ):
        tell(store, **changes)
    store.client.execute("XADD", store.keys["told"], "*", "a", b"\xff")
    store.client.execute("XADD", store.keys["told"], "*", *["why", "twice"] * len(FIELDS))
    store.client.execute("XADD", store.keys["told"], "*", "a", "b")
    summed, forged = log(place)
    assert (forged["namespace"], forged["subject"], forged["source"]) == (
        place.namespace, "root", "agents: 10.0.0.1",
    )  # fmt: skip
    assert (summed["many"], summed["source"], summed["allowed"]) == (9, "agents:", False)
    store.client.execute("DEL", store.keys["told"])
    store.client.execute("SET", store.keys["told"], "no stream")
    assert "something else stood" in log(place)[0]["why"]
    tell(store)
    assert log(place)[0]["object"] == "agent w1"


def test_what_waited_says_since_when(place: Place) -> None:
    store = place.mesh.store
    words = [part for name in FIELDS for part in (name, "1")]
    store.client.execute("XADD", store.keys["told"], f"{store.now_ms() - 60_000}-0", *words)
    tell(store)
    now, before = log(place)
    assert now["why"] == "" and re.fullmatch(r"told at 20\d\d-.*\. 1", before["why"])


def test_agents_of_one_namespace_cannot_flush_what_others_have_written(place: Place) -> None:
    store = place.mesh.store
    audit.record(store, subject="olga", source="here", action="cancel", object="task x")
    store.client.execute("SET", MOVED + place.namespace, 9_900, "EX", 3600)
    for _ in range(250):
        tell(store)
    rows = log(place)
    assert len(rows) == 1 + 100 + 1 and rows[-1]["subject"] == "olga"
    assert rows[0]["many"] == 150 and "150 more within the hour" in rows[0]["why"]
    tell(store)
    assert log(place)[0]["many"] == 1 and store.client.execute("XLEN", store.keys["told"]) == 0


def test_nothing_is_lost_when_the_mover_dies_before_it_removes(place: Place) -> None:
    store = place.mesh.store
    tell(store)
    store.client.close()
    mover = multiprocessing.get_context("fork").Process(target=move_and_die, args=(store,))
    mover.start()
    mover.join(10)
    assert mover.exitcode == 9
    rows = audit.entries(store.client, namespaces=[place.namespace])[0]
    assert len(rows) == 1 and store.client.execute("XLEN", store.keys["told"]) == 1
    assert len(log(place)) == 1  # it still holds what it was about to move
    store.client.execute("DEL", MOVING + place.namespace)  # as time does
    assert [row["object"] for row in log(place)] == ["agent w1"] * 2
    assert store.client.execute("XLEN", store.keys["told"]) == 0


def move_and_die(store: Store) -> None:
    stream.Told.remove = lambda *_: os._exit(9)  # type: ignore[method-assign]
    audit.move(store.client, store.keys.namespace, store.now_ms())


def test_refusals_of_ten_thousand_sources_are_bounded_too(place: Place, writer: Audit) -> None:
    refused = {"subject": "", "action": "read", "object": "tasks", "allowed": False, "why": "no token"}
    begun = time.monotonic()
    for number in range(10_000):
        writer.note(source=f"10.1.{number // 256}.{number % 256}", **refused)
        if number % 100 == 0:
            writer.note(subject="olga", source="here", action="cancel", object="task x", allowed=True, why="")
    seconds = int(time.monotonic() - begun) + 2
    writer.close()
    rows = place.mesh.audit(limit=10_000)
    assert sum(row["many"] for row in rows if not row["allowed"]) == 10_000
    assert sum(row["allowed"] for row in rows) == 100
    assert len(rows) <= 100 + 101 * seconds
    assert any("more, of any source; the last: no token" in row["why"] for row in rows)
