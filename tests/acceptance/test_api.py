"""The coordinator's HTTP API, on a coordinator and an agent as processes."""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx2
import pytest

from tests.acceptance.conftest import CELERY, Gate, Place, Running, make_place
from tests.acceptance.test_coordinator import start
from tests.tokens import bearer
from tests.waiting import wait_until

TASKS = """
from mesh import current, task

@task("add", requires=["sums"], examples=[[1, 2]])
def add(payload: list[int]) -> int:
    "Adds numbers."
    return sum(payload)

@task("fail", retries=0)
def fail(payload):
    raise ValueError(payload)

@task("gate")
def gate(payload):
    current.progress(0.5, "half")
    with open(payload["started"], "a") as started:
        started.write("w1 ")
    with open(payload["fifo"]) as fifo:
        return fifo.read()
"""
ASK_S = 20


class Api:
    """The API of one namespace: `get("tasks")`, `post("tasks", {...})`."""

    def __init__(self, url: str, namespace: str) -> None:
        self.url, self.base = url, f"{url}/v1/namespaces/{namespace}"
        self.http = httpx2.Client(timeout=ASK_S + 10, headers=bearer())

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *exc: object) -> None:
        self.http.close()

    def get(self, path: str, **query: Any) -> httpx2.Response:
        return self.http.get(f"{self.base}/{path}", params=query)

    def post(self, path: str, body: Any = None, headers: dict[str, str] | None = None) -> httpx2.Response:
        content = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        return self.http.post(f"{self.base}/{path}", content=content, headers=headers)

    def submit(self, task_type: str, payload: Any = None, **options: Any) -> str:
        answer = self.post("tasks", {"type": task_type, "payload": payload, **options})
        assert answer.status_code == 202, answer.text
        task_id: str = answer.json()["id"]
        return task_id

    def end(self, task_id: str) -> dict[str, Any]:
        answer = self.get(f"tasks/{task_id}/result", wait_s=ASK_S)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


def problem(answer: httpx2.Response, status: int, code: str) -> str:
    """The sentence of a problem document."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert (
        (body["status"], body["code"]) == (status, code) and body["title"] and body["type"] == "about:blank"
    )
    detail: str = body["detail"]
    return detail


@pytest.fixture(scope="module")
def fleet(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, Api, Running]]:
    """A coordinator, and an agent that runs the tasks above four at a time."""
    folder = tmp_path_factory.mktemp("api")
    with make_place(redis_url, f"api-{uuid.uuid4().hex[:12]}", folder) as place:
        (folder / "tasks.py").write_text(TASKS)
        coordinator, url = start(place, "c1")
        place.agent(
            "w1", "--capabilities", "add,sums,fail,gate", "-I", "tasks", "--pool", "threads", "-c", "4",
            command=[*CELERY, "worker"],
        )  # fmt: skip
        with Api(url, place.namespace) as api:
            yield place, api, coordinator


@pytest.fixture
def api(fleet: tuple[Place, Api, Running]) -> Api:
    return fleet[1]


@pytest.fixture
def held(fleet: tuple[Place, Api, Running]) -> Iterator[tuple[str, Gate]]:
    """A task that runs until its gate is opened, which the end of the test does at the latest."""
    place, api, _ = fleet
    gate = place.gate(f"gate-{uuid.uuid4().hex[:8]}")
    task_id = api.submit("gate", gate.payload)
    gate.wait_until_started()
    yield task_id, gate
    if api.get(f"tasks/{task_id}").json()["state"] == "running":
        gate.open()
        api.end(task_id)


def test_a_task_from_its_submission_to_its_result(api: Api) -> None:
    body = {
        "type": "add",
        "payload": [40, 2],
        "priority": 7,
        "labels": {"team": "a"},
        "task_id": "sum/of two",
    }
    assert problem(api.post("tasks", body), 422, "Invalid").startswith("Task id 'sum/of two' is not 1 to 200")
    body["task_id"] = name = f"sum/{uuid.uuid4()}"
    answer = api.post("tasks", body)
    assert answer.status_code == 202 and answer.json() == {"id": name, "state": "queued", "queue": "add+sums"}
    quoted = name.replace("/", "%2F")
    assert api.end(quoted) == {"id": name, "state": "succeeded", "result": 42}
    view = api.get(f"tasks/{quoted}").json()
    assert {key: view[key] for key in ("id", "state", "type", "queue", "priority", "agent", "attempt", "labels")} == {
        "id": name, "state": "succeeded", "type": "add", "queue": "add+sums", "priority": 7, "agent": "w1", "attempt": 1,
        "labels": {"team": "a"},
    }  # fmt: skip
    tried = api.get(f"tasks/{quoted}/attempts").json()
    assert (tried["attempts"], tried["latest"]["agent"]) == (1, "w1") and tried["latest"]["ended_at"]
    assert api.get(f"tasks/{quoted}/why").json()["detail"] == "It has ended: succeeded."
    assert api.post(f"tasks/{quoted}:cancel").json() == {"id": name, "state": "succeeded", "cancelled": False}
    assert "is succeeded" in problem(api.post(f"tasks/{quoted}:retry"), 409, "Conflict")
    listed = api.get(
        "tasks", type="add", agent="w1", capability="sums", state="succeeded", since=view["created_at"]
    )
    assert name in [one["id"] for one in listed.json()["tasks"]]


def test_the_same_id_is_the_same_task(api: Api) -> None:
    key, body = {"Idempotency-Key": f"k-{uuid.uuid4()}"}, {"type": "add", "payload": [1]}
    name = key["Idempotency-Key"]
    assert api.post("tasks", body, key).json()["id"] == name
    api.end(name)
    assert api.post("tasks", body, key).json() == {"id": name, "state": "succeeded", "queue": "add+sums"}
    assert "is in use by a task" in problem(api.post("tasks", {**body, "payload": [2]}, key), 409, "Conflict")
    both = api.post("tasks", {**body, "task_id": "another"}, key)
    assert "Idempotency-Key and task_id" in problem(both, 422, "Invalid")


def test_failures_dead_letters_and_running_again(api: Api) -> None:
    names = [api.submit("fail", f"no {number}") for number in range(3)]
    end = api.end(names[0])
    assert (end["state"], end["error"]["type"], end["error"]["message"]) == (
        "dead_lettered",
        "ValueError",
        "no 0",
    )
    assert "ValueError" in end["error"]["traceback"] and "result" not in end
    for name in names[1:]:
        api.end(name)
    letters = api.get("dead-letters", type="fail").json()
    assert {one["id"] for one in letters["dead_letters"]} == set(names) and letters["next_cursor"] is None
    assert api.post(f"tasks/{names[0]}:retry").status_code == 202
    wait_until(lambda: api.get(f"tasks/{names[0]}").json()["run"] == 2, 5, "the second run")
    assert api.end(names[0])["state"] == "dead_lettered"
    done = api.post("dead-letters:discard", {"ids": [names[1], "nobody"]}).json()
    assert done["ids"] == [names[1]] and done["more"] is False
    assert done["refused"][0]["id"] == "nobody" and done["refused"][0]["problem"]["code"] == "NotFound"
    later = {"type": "fail", "since": "2126-01-01T00:00:00Z"}
    assert api.post("dead-letters:replay", later).json() == {"ids": [], "refused": [], "more": False}
    done = api.post("dead-letters:replay", {"type": "fail", "since": "2000-01-01T00:00:00Z"}).json()
    assert sorted(done["ids"]) == sorted([names[0], names[2]]) and done["refused"] == []
    for name in done["ids"]:
        assert api.end(name)["state"] == "dead_lettered"
    assert len(api.post("dead-letters:discard", {"all": True}).json()["ids"]) == 2
    assert api.get("dead-letters").json()["dead_letters"] == []
    assert "Say which dead letters" in problem(api.post("dead-letters:replay", {}), 422, "Invalid")


def test_waiting_is_pushed(api: Api, held: tuple[str, Gate]) -> None:
    name, gate = held
    answer = api.get(f"tasks/{name}/result", wait_s=0.1)
    assert answer.status_code == 202 and answer.json() == {"id": name, "state": "running"}
    assert api.get(f"tasks/{name}").json()["progress"] == {"fraction": 0.5, "note": "half"}
    assert "being run by agent w1" in api.get(f"tasks/{name}/why").json()["detail"]
    assert api.post("tasks:wait", {"ids": [name], "wait_s": 0.1}).json() == {"ended": []}
    unknown = api.post("tasks:wait", {"ids": [name, "nobody"], "wait_s": ASK_S}).json()
    assert unknown == {"ended": [{"id": "nobody", "state": None}]}
    assert "There is no task" in problem(api.get("tasks/nobody/result", wait_s=ASK_S), 404, "NotFound")
    other = api.submit("add", [1])
    assert api.post("tasks:wait", {"ids": [name, other], "wait_s": ASK_S}).json()["ended"][0]["id"] == other

    async def all_wait() -> list[httpx2.Response]:
        """More callers than the coordinator has threads, and it answers others meanwhile."""
        limits = httpx2.Limits(max_connections=200)
        async with httpx2.AsyncClient(
            base_url=f"{api.base}/", timeout=ASK_S + 10, limits=limits, headers=bearer()
        ) as client:
            query = {"wait_s": ASK_S}
            waits = [
                asyncio.ensure_future(client.get(f"tasks/{name}/result", params=query)) for _ in range(100)
            ]
            done, _ = await asyncio.wait(waits, timeout=0.5)
            assert not done
            assert (await client.post("tasks", content=b'{"type": "add", "payload": [1]}')).status_code == 202
            assert (await client.get("queues")).status_code == 200
            await asyncio.to_thread(gate.open)
            return await asyncio.gather(*waits)

    answers = asyncio.run(all_wait())
    assert {answer.text for answer in answers} == {json.dumps(api.end(name), separators=(",", ":"))}


def test_what_nobody_can_do(api: Api) -> None:
    body = {"type": "ad", "payload": 1}
    warning = api.post("tasks", body).json()["warning"]
    assert "No agent offers ad " in warning and "Did you mean add?" in warning
    assert "warning" not in api.post("tasks", {**body, "unsatisfiable": "accept"}).json()
    said = problem(api.post("tasks", {**body, "unsatisfiable": "reject"}), 409, "Unsatisfiable")
    assert said.startswith("No agent offers ad") and "waits" not in said
    told = api.post("tasks:explain", {"type": "ad"}).json()
    assert (told["queue"], told["capable"], told["ahead"]) == ("ad", [], 2)
    assert told["not_capable"] == [{"agent": "w1", "why": "it does not offer ad"}]
    assert api.get("tasks", type="").json()["tasks"] == []
    waiting = [one["id"] for one in api.get("tasks", type="ad").json()["tasks"]]
    why = api.get(f"tasks/{waiting[0]}/why").json()
    assert why["position"] == 1 and why["detail"] == "It waits for an agent that offers ad: none is there."
    (row,) = [one for one in api.get("capabilities").json()["capabilities"] if one["capability"] == "ad"]
    assert (row["agents"], row["backlog"]) == (0, 2) and row["oldest_age_ms"] > 0
    needed = api.get("capabilities/ad").json()
    assert (needed["agents"], needed["backlog"], needed["agents_wanted"]) == (0, 2, 1)
    told = api.get("capacity", within_s=60).json()
    (row,) = [one for one in told["requirements"] if one["requirement"] == "ad"]
    assert (row["backlog"], row["slots_wanted"], row["agents_to_add"]) == (2, 1, 1)
    assert row["advice"] == "No agent takes it: start 1 agent with --capabilities ad."
    assert (told["size"], told["coordinators_to_add"]) == ("small", 0) and told["coordinators"] >= 1
    replayed = api.get("capacity/replay", slots=3, requires="ad").json()
    assert replayed["left_out"]["unfinished"] >= 2 and replayed["slots"] == 7
    assert "not both" in problem(api.get("capacity/replay", slots=1, agents=1), 422, "Invalid")
    problem(api.get("capacity/replay", slots=1, requires="a b"), 422, "Invalid")
    unused = api.get("capabilities/never+used", within_s=60).json()
    assert set(unused.values()) == {"never+used", 60, 0}
    problem(api.get("capabilities/a%20b"), 422, "Invalid")
    cancelled = api.post(f"tasks/{waiting[0]}:cancel", {"reason": "not needed"}).json()
    assert cancelled == {"id": waiting[0], "state": "cancelled", "cancelled": True}
    assert api.get(f"tasks/{waiting[0]}").json()["reason"] == "not needed"


BAD: list[tuple[str, Any, int, str]] = [
    ("tasks", b"", 422, "The request body is not JSON"),
    ("tasks", b"{", 422, "The request body is not JSON"),
    ("tasks", b'{"type": "add", "payload": NaN}', 422, "The request body is not JSON"),
    ("tasks", b'{"type": "add", "payload": 1e999}', 422, "The request body is"),
    ("tasks", b'{"type": "add", "payload": "\xff"}', 422, "The request body is not JSON"),
    ("tasks", b'{"type": "add", "payload": ' + b"[" * 100_000, 422, "The request body is nested deeper"),
    (
        "tasks",
        b'{"type": "add", "payload": [1], "type": "gate"}',
        422,
        'The request body has a key twice: "type" at',
    ),
    (
        "tasks",
        b'{"type": "gate", "payload": [{"a": 1, "a": 2}]}',
        422,
        'has a key twice: "a" at line 1 column 43',
    ),
    ("tasks", b'{"type": "add", "payload": [1e999]}', 422, "Number out of range"),
    ("tasks", b'{"type": "add", "payload": "\\ud800"}', 422, "The request body is not JSON"),
    ("tasks", b'{"type": "add", "payload": ' + b"9" * 5000 + b"}", 422, "The request body is not JSON"),
    ("tasks:batch", b'{"type": "gate", "payloads": [{"a": 1, "a": 2}]}', 422, 'has a key twice: "a"'),
    (
        "tasks:batch",
        b'{"tasks": [{"type": "gate", "payload": [{"a": 1, "a": 2}]}]}',
        422,
        'has a key twice: "a"',
    ),
    ("tasks:wait", b'{"ids": ["x"], "ids": ["y"]}', 422, 'has a key twice: "ids"'),
    ("tasks/nobody:cancel", b'{"reason": "a", "reason": "b"}', 422, 'has a key twice: "reason"'),
    ("dead-letters:replay", b'{"ids": [], "all": true, "ids": []}', 422, 'has a key twice: "ids"'),
    ("tasks", [], 422, "Expected `object`, got `array`"),
    ("tasks", {"payload": 1}, 422, "missing required field `type`"),
    ("tasks", {"type": "a b"}, 422, "at `$.type`"),
    ("tasks", {"type": "add", "paylod": 1}, 422, "unknown field `paylod`"),
    ("tasks", {"type": "add", "payload": [1], "priority": 10}, 422, "at `$.priority`"),
    ("tasks", {"type": "add", "payload": [1], "countdown_s": -1}, 422, "at `$.countdown_s`"),
    ("tasks", {"type": "add", "payload": [1], "strategy": "magic"}, 422, "at `$.strategy`"),
    ("tasks", {"type": "add", "payload": ["one"]}, 422, 'payload[0]: "one" is not an integer'),
    ("tasks", {"type": "gate", "payload": "x" * 1_048_577}, 422, "more than the 1,048,576 allowed"),
    ("tasks", {"type": "gate", "payload": "x" * 1_200_000}, 413, "bigger than the 1,114,112 bytes allowed"),
    ("tasks:batch", {}, 422, "must have either tasks, or type and payloads"),
    ("tasks:batch", {"tasks": [], "payloads": []}, 422, "must have either tasks, or type and payloads"),
    ("tasks:batch", {"tasks": 1}, 422, "Expected `array`, got `int` - at `$.tasks`"),
    ("tasks:batch", {"tasks": [{"type": "add"}] * 10_001}, 422, "Expected `array` of length <= 10000"),
    ("tasks:batch", {"type": "add", "payloads": [[1], ["x"]]}, 422, 'payload[0]: "x" is not an integer'),
    ("tasks:wait", {"ids": []}, 422, "at `$.ids`"),
    ("tasks:wait", {"ids": ["x"], "wait_s": 1e6}, 422, "at `$.wait_s`"),
    ("tasks/nobody:cancel", None, 404, "There is no task 'nobody'"),
    ("tasks/nobody:retry", None, 404, "There is no task 'nobody'"),
    ("agents/nobody:cordon", None, 404, "There is no agent 'nobody'"),
    ("agents/nobody:drain", None, 404, "There is no agent 'nobody'"),
    ("agents/nobody:drain", {"grace_ms": -1}, 422, "at `$.grace_ms`"),
    ("tasks:nothing", {}, 404, "There is nothing at"),
    ("queues", {}, 405, "but GET is"),
]


@pytest.mark.parametrize(("path", "body", "status", "sentence"), BAD, ids=range(len(BAD)))
def test_bad_bodies(api: Api, path: str, body: Any, status: int, sentence: str) -> None:
    code = "NotFound" if status == 404 else "Invalid"
    assert sentence in problem(api.post(path, body), status, code)


@pytest.mark.parametrize(
    ("path", "query", "status", "sentence"),
    [
        ("tasks", {"state": "asleep"}, 422, "query state: Input should be 'scheduled'"),
        ("tasks", {"limit": 0}, 422, "query limit"),
        ("tasks", {"cursor": "x"}, 422, "'x' is not a cursor"),
        ("tasks", {"since": "yesterday"}, 422, "query since"),
        ("tasks/x/result", {"wait_s": "nan"}, 422, "query wait_s"),
        ("agents", {"status": "asleep"}, 422, "query status"),
        ("agents/nobody", {}, 404, "There is no agent 'nobody'"),
        ("tasks/nobody", {}, 404, "There is no task 'nobody'"),
        ("nothing", {}, 404, "There is nothing at"),
    ],
)  # fmt: skip
def test_bad_questions(api: Api, path: str, query: dict[str, Any], status: int, sentence: str) -> None:
    assert sentence in problem(api.get(path, **query), status, "NotFound" if status == 404 else "Invalid")


def test_a_batch_answers_for_each(api: Api) -> None:
    name = f"b-{uuid.uuid4()}"
    tasks = [
        {"type": "add", "payload": [1, 2]},
        {"type": "add", "payload": [1], "priority": 11},
        {"type": "add", "payload": ["x"]},
        {"type": "nobody-does", "unsatisfiable": "reject"},
        {"type": "add", "payload": [5], "task_id": name},
        {"type": "add", "payload": [6], "task_id": name},
        {"type": "nobody-does", "countdown_s": 3600},
    ]
    answer = api.post("tasks:batch", {"tasks": tasks})
    assert answer.status_code == 200
    items = answer.json()["items"]
    codes = [item.get("code") for item in items]
    assert codes == [None, "Invalid", "Invalid", "Unsatisfiable", None, "Conflict", None]
    assert "at `$.priority`" in items[1]["detail"] and items[1]["status"] == 422
    assert items[6]["state"] == "scheduled" and "No agent offers" in items[6]["warning"]
    assert api.end(items[0]["id"])["result"] == 3 and api.end(name)["result"] == 5
    assert api.post(f"tasks/{items[6]['id']}:cancel").json()["cancelled"] is True

    compact = api.post("tasks:batch", {"type": "add", "payloads": [[n] for n in range(200)]}).json()
    assert compact["queue"] == "add+sums" and len(set(compact["ids"])) == 200
    waiting, results = set(compact["ids"]), []
    while waiting:
        ended = api.post("tasks:wait", {"ids": sorted(waiting), "wait_s": ASK_S}).json()["ended"]
        assert ended, "nothing ended in time"
        results += [one["result"] for one in ended]
        waiting -= {one["id"] for one in ended}
    assert sorted(results) == list(range(200))


def test_pages_of_a_list(api: Api) -> None:
    """A batch has one time for many tasks; while one turns the pages, new tasks come."""
    ids = api.post(
        "tasks:batch", {"type": "later", "payloads": [0] * 30, "countdown_s": 999, "unsatisfiable": "accept"}
    ).json()["ids"]
    seen: list[str] = []
    cursor = None
    while True:
        query = {"cursor": cursor} if cursor else {}
        page = api.get("tasks", type="later", limit=10, **query).json()
        seen += [one["id"] for one in page["tasks"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
        api.submit("add", [1])
    assert len(seen) == 30 and set(seen) == set(ids)
    (row,) = [one for one in api.get("queues").json()["queues"] if one["queue"] == "later"]
    assert (row["depth"], row["states"]) == (0, {"scheduled": 30})


def test_agents_types_and_the_cluster(api: Api) -> None:
    body = api.get("agents", capability="sums", status="healthy").json()
    assert body["counts"] == {"healthy": 1}
    (agent,) = body["agents"]
    assert agent["id"] == "w1" and api.get("agents/w1").json()["slots"] == 4
    assert api.get("agents", region="mars").json() == {"agents": [], "counts": {}}
    assert api.post("agents/w1:cordon").json()["cordoned"] is True
    try:
        told = api.post("tasks:explain", {"type": "add"}).json()
        assert told["not_capable"] == [{"agent": "w1", "why": "it is cordoned"}]
    finally:
        assert api.post("agents/w1:uncordon").json()["cordoned"] is False

    def all_free() -> bool:
        told = api.post("tasks:explain", {"type": "add"}).json()
        assert (told["queue"], told["capable"]) == ("add+sums", ["w1"])
        return bool(told["free_slots"] == 4)

    wait_until(all_free, 20, "a beat after what an earlier test has left running")
    (add,) = [one for one in api.get("types").json()["types"] if one["name"] == "add"]
    assert (add["requires"], add["description"], add["examples"]) == (["sums"], "Adds numbers.", [[1, 2]])
    assert add["payload_schema"]["items"] == {"type": "integer"}
    cluster = api.http.get(f"{api.url}/v1/cluster").json()
    assert [
        one["id"] for one in cluster["coordinators"] if one["namespace"] == api.base.rpartition("/")[2]
    ] == ["c1"]
    assert cluster["leader"]["id"] == "c1" and cluster["durability"]["appendonly"] == "yes"
    links = api.http.get(f"{api.url}/").json()["links"]
    for path in links.values():
        if not path.endswith("/events"):
            assert api.http.get(api.url + path).status_code == 200, path


def test_namespaces_are_apart(api: Api) -> None:
    name = api.submit("add", [1])
    with Api(api.url, f"other-{uuid.uuid4().hex[:8]}") as other, Api(api.url, "No_Such") as none:
        assert other.get("tasks").json()["tasks"] == [] and other.get("agents").json()["agents"] == []
        assert "There is no task" in problem(other.get(f"tasks/{name}"), 404, "NotFound")
        assert "no such namespace" in problem(none.post("tasks", {"type": "x"}), 404, "NotFound")


@pytest.fixture
def unclosed() -> Iterator[ExitStack]:
    """What the end of the test closes."""
    with ExitStack() as stack:
        yield stack


def read_events(stream: httpx2.Response, found: list[tuple[str, Any]]) -> None:
    """Collect events until the stream ends."""
    name = ""
    for line in stream.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            found.append((name, json.loads(line.removeprefix("data: "))))


def test_events_tell_of_ends(api: Api, fleet: tuple[Place, Api, Running], unclosed: ExitStack) -> None:
    """And a second coordinator that stops answers what waits at once, ends its streams, and ends with 0."""
    place, _, _ = fleet
    second, url = start(place, "c2")
    there = unclosed.enter_context(Api(url, place.namespace))
    later = there.submit("later", countdown_s=999, unsatisfiable="accept")
    found: list[tuple[str, Any]] = []
    with there.http.stream("GET", f"{there.base}/events", timeout=ASK_S) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        reader = threading.Thread(target=read_events, args=(stream, found))
        reader.start()
        wait_until(lambda: any(event == "counts" for event, _ in found), ASK_S, "the counts")
        name = api.submit("add", [2, 3])
        wait_until(
            lambda: any(event == "task" and data["id"] == name for event, data in found), ASK_S, "its end"
        )
        (told,) = [data for event, data in found if event == "task" and data["id"] == name]
        assert (told["state"], told["type"], told["agent"]) == ("succeeded", "add", "w1") and told["ended_at"]

        answers: list[httpx2.Response] = []
        waits = [
            threading.Thread(target=lambda: answers.append(there.get(f"tasks/{later}/result", wait_s=ASK_S))),
            threading.Thread(
                target=lambda: answers.append(there.post("tasks:wait", {"ids": [later], "wait_s": ASK_S}))
            ),
        ]
        for wait in waits:
            wait.start()
        subscribed = f"{place.mesh.store.keys.of('result', later)}"
        wait_until(
            lambda: place.mesh.store.client.execute("PUBSUB", "NUMSUB", subscribed)[1] >= 1,
            ASK_S,
            "them to wait",
        )
        second.terminate()
        assert second.wait(5) == 0, second.output()
        for thread in (*waits, reader):
            thread.join(5)
            assert not thread.is_alive()
    assert sorted((answer.status_code, answer.text) for answer in answers) == [
        (200, '{"ended":[]}'),
        (202, f'{{"id":"{later}","state":"scheduled"}}'),
    ]
    assert "Traceback" not in second.output() and "error" not in second.output()


def test_the_document_says_what_there_is(api: Api) -> None:
    document = api.http.get(f"{api.url}/openapi.json").json()
    operations = [one for path in document["paths"].values() for one in path.values()]
    assert len(operations) > 25 and all(one["operationId"] and one["tags"] for one in operations)
    names = [one["operationId"] for one in operations]
    assert len(set(names)) == len(names)
    body = document["paths"]["/v1/namespaces/{namespace}/tasks"]["post"]["requestBody"]["content"]
    for example in body["application/json"]["examples"].values():
        assert api.post("tasks:explain", example["value"]).status_code == 200
    used = set(json.dumps(document).split('"#/components/schemas/')[1:])
    assert {text.partition('"')[0] for text in used} <= set(document["components"]["schemas"])


def test_the_oldest_of_a_queue_may_have_a_low_priority(api: Api) -> None:
    def row() -> dict[str, Any]:
        (found,) = [one for one in api.get("queues").json()["queues"] if one["queue"] == "nobody"]
        return dict(found)

    first = api.submit("nobody", priority=2, unsatisfiable="accept")
    wait_until(lambda: row()["oldest_age_ms"] >= 300, 5, "it to become old")
    for priority in (9, 4):
        api.submit("nobody", priority=priority, unsatisfiable="accept")
    assert row()["oldest_age_ms"] >= 300 and row()["depth"] == 3 and row()["capabilities"] == ["nobody"]
    assert api.get(f"tasks/{first}/why").json()["position"] == 2
