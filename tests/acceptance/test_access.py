"""Who may do what over HTTP: each route for each role, with things of one's own and of others; what is no token."""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from mesh.client import Mesh
from mesh.core.policies import DEFAULT_POLICIES
from mesh.errors import Refused, Unauthenticated
from tests.acceptance.conftest import Place, make_place
from tests.acceptance.test_coordinator import start
from tests.tokens import bearer, token
from tests.waiting import wait_until

ROLES = ("worker", "producer", "viewer", "operator", "admin", "stranger")
NOW_S = 10

# By hand. Route, then who may: with a thing of his own, with one of another's (`=`: the same). `{}` stands for its id.
ROUTES = """
POST tasks                     worker producer operator admin           | =
POST tasks:batch               worker producer operator admin           | =
POST tasks:explain             worker producer operator admin           | =
GET  tasks                     worker producer viewer operator admin    | =
POST tasks:wait                worker producer viewer operator admin    | worker viewer operator admin
GET  tasks/{}                  worker producer viewer operator admin    | worker viewer operator admin
GET  tasks/{}/attempts         worker producer viewer operator admin    | worker viewer operator admin
GET  tasks/{}/result           worker producer viewer operator admin    | worker viewer operator admin
GET  tasks/{}/why              worker producer viewer operator admin    | worker viewer operator admin
POST tasks/{}:cancel           worker producer operator admin           | operator admin
POST tasks/{}:retry            worker producer operator admin           | operator admin
GET  dead-letters              worker producer viewer operator admin    | =
POST dead-letters:replay       operator admin                           | =
POST dead-letters:discard      operator admin                           | =
GET  agents                    worker producer viewer operator admin    | =
GET  agents/{agent}            worker producer viewer operator admin    | worker viewer operator admin
POST agents/{agent}:cordon     worker operator admin                    | operator admin
POST agents/{agent}:uncordon   worker operator admin                    | operator admin
POST agents/{agent}:drain      worker operator admin                    | operator admin
GET  capabilities              worker viewer operator admin             | =
GET  capabilities/{capability} worker viewer operator admin             | =
GET  capacity                  worker viewer operator admin             | =
GET  capacity/replay           worker viewer operator admin             | =
GET  metrics-targets           worker viewer operator admin             | =
GET  queues                    worker viewer operator admin             | =
GET  top                       worker viewer operator admin             | =
GET  types                     worker producer viewer operator admin    | =
GET  events                    worker viewer operator admin             | =
GET  /cluster                  worker viewer operator admin             | =
POST /snapshots:restore        admin                                    | =
POST /tokens                   admin                                    | =
POST /tokens:revoke            admin                                    | =
DELETE /tokens/{jti}                                                    | =
"""
BODIES = {
    "tasks": {"type": "quiet", "unsatisfiable": "accept", "countdown_s": 999},
    "tasks:batch": {"type": "quiet", "payloads": [], "unsatisfiable": "accept"},
    "tasks:explain": {"type": "quiet"},
    "dead-letters:replay": {"ids": ["nobody"]},
    "dead-letters:discard": {"ids": ["nobody"]},
}


def rows() -> Iterator[tuple[str, str, set[str], set[str]]]:
    for line in ROUTES.strip().split("\n"):
        head, others = line.split("|")
        method, route, *own = head.split()
        yield method, route, set(own), set(own if others.strip() == "=" else others.split())


class Caller:
    """HTTP with one token."""

    http: httpx2.Client

    def __init__(self, url: str, namespace: str, headers: dict[str, str]) -> None:
        self.url, self.namespace = url, namespace
        self.base = f"{url}/v1/namespaces/{namespace}"
        self.headers = headers

    def ask(self, method: str, route: str, body: Any = None, **more: Any) -> httpx2.Response:
        url = f"{self.url}/v1{route}" if route.startswith("/") else f"{self.base}/{route}"
        return self.http.request(
            method, url, content=None if body is None else json.dumps(body), headers=self.headers, **more
        )

    def submit(self, **more: Any) -> str:
        answer = self.ask("POST", "tasks", {**BODIES["tasks"], **more})
        assert answer.status_code == 202, answer.text
        task_id: str = answer.json()["id"]
        return task_id

    def status(self, method: str, route: str, body: Any = None) -> int:
        """Of an answer whose body need not end."""
        url = f"{self.url}/v1{route}" if route.startswith("/") else f"{self.base}/{route}"
        content = None if body is None else json.dumps(body)
        with self.http.stream(method, url, content=content, headers=self.headers) as answer:
            return answer.status_code


@pytest.fixture(scope="module", autouse=True)
def _connections() -> Iterator[None]:
    with httpx2.Client(timeout=30) as Caller.http:
        yield


@pytest.fixture(scope="module")
def door(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, str]]:
    """A coordinator whose policies are the shipped ones and those of two more agent types."""
    folder = tmp_path_factory.mktemp("access")
    table = json.loads(DEFAULT_POLICIES.read_text()) | {
        "clerk": {"*": {"submit": ["report-*", "celery.*"], "read": "own"}},
        "blind": {"*": {"submit": ["*"]}},
    }
    (folder / "policies.json").write_text(json.dumps(table))
    with make_place(redis_url, f"access-{uuid.uuid4().hex[:12]}", folder) as place:
        yield place, start(place, "door", MESH_POLICY_FILE=str(folder / "policies.json"))[1]


def caller(door: tuple[Place, str], role: str = "admin", subject: str = "me", namespace: str = "") -> Caller:
    place, url = door
    return Caller(url, place.namespace, bearer(role, subject, [namespace or place.namespace]))


def several(door: tuple[Place, str], whose: str, number: int) -> list[str]:
    """So many tasks of a subject; their ids."""
    bulk = {"type": "quiet", "payloads": [None] * number, "unsatisfiable": "accept", "countdown_s": 999}
    ids: list[str] = caller(door, "admin", whose).ask("POST", "tasks:batch", bulk).json()["ids"]
    return ids


def refusal(answer: httpx2.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    detail: str = answer.json()["detail"]
    return detail


@pytest.mark.ci
def test_each_route_for_each_role(door: tuple[Place, str]) -> None:
    place, _ = door
    agents = place.mesh.store.agents
    for name in ("me", "another"):
        agents.join(name, {"name": name, "state": "ready"})
    fresh = {whose: iter(several(door, whose, 200)) for whose in ("me", "another")}
    wrong = []
    for method, route, own, others in rows():
        for role in ROLES:
            me = caller(door, role)
            for whose, may in (("me", own), ("another", others)):
                task_id = next(fresh[whose])
                path = route.format(task_id, agent=whose, capability="ocr", jti="nobody-has-this-jti")
                body = BODIES.get(route)
                if route == "tasks:wait":
                    body = {"ids": [task_id, "nobody"], "wait_s": 0}
                elif route.endswith(":restore"):
                    body = {"namespace": place.namespace, "agents": []}
                    path += "?dry_run=true"
                elif route == "/tokens":
                    body = {"subject": "x", "agent_type": "viewer", "namespaces": [place.namespace]}
                elif route == "/tokens:revoke":
                    body = {"token": token("viewer", "x", [place.namespace])}
                status = me.status(method, path, body)
                if (status not in (401, 403)) != (role in may) or status >= 500 or status == 422:
                    wrong.append((method, route, role, whose, status))
    assert wrong == []


def test_the_table_by_hand_has_every_route(door: tuple[Place, str]) -> None:
    paths = httpx2.get(f"{door[1]}/openapi.json").json()["paths"]
    there = {
        (method.upper(), path) for path, found in paths.items() for method in found if path.startswith("/v1")
    }
    for path, found in paths.items():
        for one in found.values():
            assert one["security"] == ([{"token": []}] if path.startswith(("/v1/", "/metrics")) else []), path
    known = set()
    for method, route, _, _ in rows():
        named = route.replace("{}", "{task_id}").replace("{agent}", "{agent_id}")
        known.add((method, f"/v1{named}" if named[0] == "/" else f"/v1/namespaces/{{namespace}}/{named}"))
    assert known <= there
    elsewhere = {path for _, path in there - known}
    assert all(path.startswith(("/v1/tokens", "/v1/audit")) or "/agents" in path for path in elsewhere), (
        elsewhere
    )


def test_a_foreign_namespace_is_one_that_is_not_there(door: tuple[Place, str]) -> None:
    place, _ = door
    mine = caller(door)
    task_id, letter = mine.submit(), place.mesh.submit("quiet", countdown_s=999, unsatisfiable="accept").id
    place.mesh.store.agents.join("w1", {"name": "w1", "state": "ready"})
    stranger = caller(door, "admin", namespace="elsewhere")
    for method, route, _, _ in rows():
        if route.startswith("/"):
            continue
        told = set()
        for one, agent in ((task_id, "w1"), (letter, "w1"), ("nobody", "nobody")):
            body = {"ids": [one]} if route == "tasks:wait" else BODIES.get(route)
            answer = stranger.ask(method, route.format(one, agent=agent, capability=one), body)
            told.add((answer.status_code, answer.text))
        missing = Caller(stranger.url, "never-was", stranger.headers)
        answer = missing.ask(
            method, route.format("nobody", agent="nobody", capability="nobody"), BODIES.get(route)
        )
        told.add((answer.status_code, answer.text.replace("never-was", place.namespace)))
        assert len(told) == 1 and answer.status_code == 404, (route, told)
    body = {"namespace": place.namespace, "agents": []}
    assert "There is no namespace" in refusal(stranger.ask("POST", "/snapshots:restore", body), 404)
    assert place.mesh.store.tasks.record(task_id).state == "scheduled"  # type: ignore[union-attr]


def test_own_and_anothers_tasks(door: tuple[Place, str]) -> None:
    place, _ = door
    me, other, viewer = (caller(door, role, name) for role, name in
                         (("producer", "me"), ("producer", "other"), ("viewer", "eye")))  # fmt: skip
    mine, theirs = me.submit(labels={"a": "b"}), other.submit()
    nobodys = place.mesh.submit("quiet", countdown_s=999, unsatisfiable="accept").id
    listed = {one["id"]: one["by"] for one in me.ask("GET", "tasks").json()["tasks"]}
    assert mine in listed and set(listed.values()) == {"me"}
    seen = {one["id"]: one["by"] for one in viewer.ask("GET", "tasks").json()["tasks"]}
    assert (seen[mine], seen[theirs], seen[nobodys]) == ("me", "other", None)
    for one in (theirs, nobodys):
        said = refusal(me.ask("GET", f"tasks/{one}"), 403)
        assert (
            said
            == f"me may not: no row for agent type 'producer' in namespace '{place.namespace}' grants read any."
        )
        assert "grants cancel any" in refusal(me.ask("POST", f"tasks/{one}:cancel"), 403)
        refusal(me.ask("POST", "tasks:wait", {"ids": [mine, one], "wait_s": 0}), 403)
    assert "There is no task" in refusal(me.ask("GET", "tasks/nobody"), 404)
    assert me.ask("POST", f"tasks/{mine}:cancel").json()["cancelled"] is True
    # A repetition changes nothing, also not whose it is.
    key = f"k-{uuid.uuid4()}"
    me.submit(task_id=key)
    other.submit(task_id=key)
    assert viewer.ask("GET", f"tasks/{key}").json()["by"] == "me"


def test_types_are_allowed_one_by_one(door: tuple[Place, str]) -> None:
    clerk = caller(door, "clerk", "clerk")
    accept = {"unsatisfiable": "accept"}
    assert clerk.ask("POST", "tasks", {"type": "report-daily", **accept}).status_code == 202
    assert "grants submit mail" in refusal(clerk.ask("POST", "tasks", {"type": "mail", **accept}), 403)
    assert "grants submit mail" in refusal(clerk.ask("POST", "tasks:explain", {"type": "mail"}), 403)
    inner = {"type": "celery.map", "payload": {"task": "mail", "args": []}, **accept}
    assert "grants submit mail" in refusal(clerk.ask("POST", "tasks", inner), 403)
    inner["payload"]["task"] = "report-x"  # type: ignore[index]
    assert clerk.ask("POST", "tasks", inner).status_code == 202
    assert "grants submit mail" in refusal(clerk.ask("POST", "tasks", {**inner, "payload": "mail"}), 403)
    hidden = {**inner, "payload": ["celery.map", [["mail", [1]]]]}
    assert "cannot be told" in refusal(clerk.ask("POST", "tasks", hidden), 422)
    bulk = {"type": "celery.chunks", "payloads": [{"task": "report-x"}, {"task": "mail"}], **accept}
    assert "grants submit mail" in refusal(clerk.ask("POST", "tasks:batch", bulk), 403)
    batch = {"tasks": [{"type": one, **accept} for one in ("report-1", "mail", "report-2")]}
    items = clerk.ask("POST", "tasks:batch", batch).json()["items"]
    assert [one.get("code") for one in items] == [None, "Refused", None] and items[1]["status"] == 403
    assert len(clerk.ask("GET", "tasks").json()["tasks"]) == 4
    blind = caller(door, "blind", "blind")
    mine = blind.submit()
    assert "grants read own" in refusal(blind.ask("GET", f"tasks/{mine}/result"), 403)
    assert "grants read own" in refusal(blind.ask("GET", "tasks"), 403)


def test_a_token_that_is_none(door: tuple[Place, str]) -> None:
    place, url = door
    base = f"{url}/v1/namespaces/{place.namespace}"
    good = token()
    values: list[list[tuple[str, str]]] = [
        [], [("Authorization", good)], [("Authorization", f"Basic {good}")], [("Authorization", "Bearer")],
        [("Authorization", "Bearer x.y.z")], [("Authorization", f"Bearer {good} {good}")],
        [("Authorization", f"Bearer {good}="),], [("Authorization", f"Bearer {token(kind='join')}")],
        [("Authorization", f"Bearer {good}"), ("Authorization", f"Bearer {good}")], [("X-Token", good)],
    ]  # fmt: skip
    told = set()
    for headers in values:
        for method, path in (
            ("GET", "tasks"),
            ("POST", "tasks"),
            ("GET", "tasks/x?wait_s=no"),
            ("POST", "tasks:wait"),
        ):
            answer = httpx2.request(
                method, f"{base}/{path}", headers=headers, content=b"{" * (method == "POST")
            )
            assert answer.headers["www-authenticate"] == "Bearer", (headers, path)
            told.add((answer.status_code, answer.text))
    assert [status for status, _ in told] == [401]
    for path in ("health", "health/live", "health/ready", "openapi.json", ""):
        assert httpx2.get(f"{url}/{path}").status_code in (200, 503)
    assert httpx2.get(f"{base}/tasks", headers={"authorization": f"bEaReR {good}"}).status_code == 200


def test_what_lasts_ends_with_its_token(door: tuple[Place, str]) -> None:
    place, url = door
    task_id = caller(door).submit()
    brief = {"Authorization": f"Bearer {token('viewer', 'eye', [place.namespace], ttl_s=3)}"}
    eye = Caller(url, place.namespace, brief)
    answers: list[httpx2.Response] = []
    ended: list[bool] = []

    def follow() -> None:
        with eye.http.stream("GET", f"{eye.base}/events", headers=brief) as stream:
            assert stream.status_code == 200
            for _ in stream.iter_bytes():
                pass
        ended.append(True)

    asks = (
        lambda: answers.append(eye.ask("GET", f"tasks/{task_id}/result?wait_s=25")),
        lambda: answers.append(eye.ask("POST", "tasks:wait", {"ids": [task_id], "wait_s": 25})),
        follow,
    )
    threads = [threading.Thread(target=ask) for ask in asks]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(answers) == 2 and ended, 20, "all to end, before their time")
    assert [answer.status_code for answer in answers] == [401, 401]
    for thread in threads:
        thread.join(5)
    assert eye.ask("GET", "tasks").status_code == 401


def test_what_our_client_shows(door: tuple[Place, str], monkeypatch: pytest.MonkeyPatch) -> None:
    place, url = door
    with Mesh(namespace=place.namespace, coordinator_url=url) as own:  # by the secret
        assert own.submit("quiet", countdown_s=999, unsatisfiable="accept").record()["by"] == "mesh"
    with Mesh(namespace=place.namespace, coordinator_url=url, token=token("viewer", "eye")) as given:
        assert given.tasks()
        with pytest.raises(Refused, match=r"eye may not: no row for agent type 'viewer' .* grants submit\."):
            given.submit("quiet", unsatisfiable="accept")
        assert given.overview()["leader"]
    monkeypatch.setenv("MESH_TOKEN", token("producer", "me", [place.namespace]))
    with Mesh(namespace=place.namespace, coordinator_url=url) as named:
        assert named.submit("quiet", countdown_s=999, unsatisfiable="accept").record()["by"] == "me"
        assert named.overview  # the rest of it is not his
        with pytest.raises(Refused, match="grants read any"):
            named.queues()
    monkeypatch.delenv("MESH_TOKEN")
    monkeypatch.delenv("MESH_JWT_SECRET")
    with (
        Mesh(namespace=place.namespace, coordinator_url=url) as bare,
        pytest.raises(Unauthenticated, match="The token is missing or not valid"),
    ):
        bare.tasks()


def test_the_command_line_says_what_is_missing(door: tuple[Place, str]) -> None:
    place, url = door
    shown = {"MESH_JWT_SECRET": None, "REDIS_URL": None, "COORDINATOR_URL": url}
    done = place.call("task", "list", **shown)
    assert (done.returncode, done.stderr) == (
        4,
        "Error: The token is missing or not valid; `mesh auth` makes one.\n",
    )
    path = place.folder / "token"
    path.write_text(token("viewer", "eye", [place.namespace]) + "\n")
    done = place.call("task", "list", "-o", "name", MESH_TOKEN_FILE=str(path), **shown)
    assert done.returncode == 0, done.stderr
    done = place.call("execute", "--task-type", "quiet", MESH_TOKEN_FILE=str(path), **shown)
    assert done.returncode == 4 and "eye may not: no row for agent type 'viewer'" in done.stderr


EXPLAINED = [
    (
        "producer",
        "submit",
        "ocr",
        0,
        r"allowed: row 'producer', '\*' \(the shipped table:\d+\) grants submit \*\.",
    ),
    ("producer", "read", "own", 0, "grants read own"),
    (
        "producer",
        "read",
        None,
        4,
        "refused: no row for agent type 'producer' in namespace '.*' grants read any",
    ),
    ("producer", "administer", "audit", 4, "grants administer audit"),
    ("producer", "register", "ocr", 4, "register takes a token of kind join, and this is one of kind api"),
    ("producer", "submit", None, 2, "needs the OBJECT: what to submit"),
    ("producer", "cancel", "mine", 2, "OBJECT of cancel is own or any, not 'mine'"),
]


@pytest.mark.parametrize(("role", "action", "thing", "code", "said"), EXPLAINED)
def test_a_token_explained(
    place: Place, role: str, action: str, thing: str | None, code: int, said: str
) -> None:
    words = ["auth", "explain", token(role, "me", [place.namespace]), action, *([thing] if thing else [])]
    done = place.call(*words)
    assert done.returncode == code and re.search(said, done.stdout + done.stderr), done


def test_what_is_no_token_is_explained_too(place: Place) -> None:
    joining = token("worker", "w", [place.namespace], kind="join")
    done = place.call("auth", "explain", "-", "register", "ocr", stdin=joining.encode())
    assert done.returncode == 0 and "grants register *" in done.stdout
    elsewhere = place.call("auth", "explain", token(namespaces=["other"]), "read")
    assert (
        elsewhere.returncode == 4
        and f"is for namespaces other, not for '{place.namespace}'" in elsewhere.stdout
    )
    foreign = place.call("auth", "explain", token(secret="k" * 20 + "9f2c" * 9), "read")
    assert (foreign.returncode, foreign.stdout) == (
        4,
        "refused: it is signed with a key that is not known.\n",
    )


def test_tokens_made_and_revoked_at_the_command_line_are_recorded(place: Place) -> None:
    text = place.call("auth", "--agent-id", "me", "--agent-type", "viewer").stdout.strip()
    assert place.call("token", "revoke", text).returncode == 0
    revoked, issued = (one for one in place.mesh.audit() if one["namespace"] == place.namespace)
    assert (issued["action"], revoked["action"]) == ("issue token", "revoke token")
    assert issued["object"].startswith("token ") and issued["object"] == f"{revoked['object']} for me"
    assert text not in json.dumps([revoked, issued]) and "@" in issued["subject"]
    done = place.call("auth", "explain", text, "read")
    assert (done.returncode, done.stdout) == (4, "refused: it was revoked.\n")


def test_who_reads_only_his_own_learns_how_many_agents_there_are_not_which(door: tuple[Place, str]) -> None:
    admin = caller(door)
    for name in ("mine", "secret-1", "secret-2"):
        row = {"name": name, "state": "ready", "capabilities": "named", "slots": 1}
        door[0].mesh.store.agents.join(name, row)
    for subject, shown in (("mine", {"mine"}), ("eve", set[str]())):
        me = caller(door, "producer", subject)
        why = f"tasks/{me.submit()}/why"
        _unnamed(me.ask("GET", why), admin.ask("GET", why), shown)
        for requires in ([], ["named"]):
            body = {"type": "quiet", "requires": requires}
            _unnamed(me.ask("POST", "tasks:explain", body), admin.ask("POST", "tasks:explain", body), shown)


def _unnamed(told: httpx2.Response, full: httpx2.Response, shown: set[str]) -> None:
    assert told.status_code == full.status_code == 200
    assert "secret-1" in full.text and "secret-" not in told.text
    for name in ("capable", "not_capable"):
        assert len(told.json()[name]) == len(full.json()[name])
    named = {*told.json()["capable"], *(one["agent"] for one in told.json()["not_capable"])}
    assert named - {""} == shown


def test_a_revoked_token_ends_what_lasts(door: tuple[Place, str]) -> None:
    place, url = door
    task_id = caller(door).submit()
    text = token("viewer", "gone", [place.namespace])
    eye = Caller(url, place.namespace, {"Authorization": f"Bearer {text}"})
    answers: list[int] = []
    thread = threading.Thread(
        target=lambda: answers.append(eye.ask("GET", f"tasks/{task_id}/result?wait_s=25").status_code)
    )
    thread.start()
    channel = place.mesh.store.keys.of("result", task_id)
    execute = place.mesh.store.client.execute
    wait_until(lambda: execute("PUBSUB", "NUMSUB", channel)[1] == 1, 20, "it to wait")
    assert place.call("token", "revoke", text).returncode == 0
    wait_until(lambda: answers == [401], 15, "the wait to end")
    thread.join(5)


def test_an_id_that_is_a_pattern_tells_of_no_other_task(door: tuple[Place, str]) -> None:
    place, url = door
    root, headers = f"{url}/v1/namespaces/{place.namespace}", bearer("producer")
    task = {"type": "quiet", "task_id": "*", "countdown_s": 999, "unsatisfiable": "accept"}
    assert httpx2.post(f"{root}/tasks", json=task, headers=headers, timeout=30).status_code == 202
    answers: list[Any] = []

    def wait() -> None:
        asked = {"ids": ["*"], "wait_s": 3}
        answers.append(httpx2.post(f"{root}/tasks:wait", json=asked, headers=headers, timeout=30).json())

    waiting = threading.Thread(target=wait)
    waiting.start()
    while waiting.is_alive():  # the tasks of others end all the time
        place.mesh.submit("quiet", unsatisfiable="accept").cancel()
    waiting.join()
    assert answers == [{"ended": []}]


def test_what_was_not_there_when_he_asked_is_not_told_when_it_comes(door: tuple[Place, str]) -> None:
    place, url = door
    root, headers = f"{url}/v1/namespaces/{place.namespace}", bearer("producer")
    guessed = f"invoice-{uuid.uuid4().hex}"
    asked = {"ids": [guessed], "wait_s": 20}
    answer = httpx2.post(f"{root}/tasks:wait", json=asked, headers=headers, timeout=30)
    assert answer.json() == {"ended": [{"id": guessed, "state": None}]}
    for way in ("GET ", "GET /result?wait_s=1", "GET /attempts", "GET /why", "POST :cancel"):
        method, what = way.split(" ")
        answer = httpx2.request(method, f"{root}/tasks/{guessed}{what}", headers=headers, timeout=30)
        assert answer.status_code == 404, way
