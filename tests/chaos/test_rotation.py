"""The secret is changed under load, old -> both -> new, in orders of restarts that have each role before and after each other.

Nobody may be refused, no task may be lost or put aside; afterwards the old secret must be worth nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import secrets
import threading
import time
from collections.abc import Callable, Iterator

import httpx2
import pytest

from mesh.client import Handle, Mesh
from mesh.core.keyring import key_id
from mesh.services import audit
from mesh.services.resealing import sealed_with
from mesh.settings import Settings
from tests.chaos.stage import Stage
from tests.conftest import SECRET
from tests.tokens import token
from tests.waiting import wait_until

ROLES = ("coordinators", "agents", "producer", "caller")
ORDERS = (
    ROLES,
    ROLES[::-1],
    ("agents", "caller", "coordinators", "producer"),
    ("producer", "coordinators", "caller", "agents"),
)
LONG_S = 3600
SETTLED_BEATS = 10  # seconds, of a coordinator: by then whoever signs has looked, and renewed its certificate


def test_the_orders_have_every_pair_both_ways() -> None:
    before = {(one, other) for order in ORDERS[:2] for one, other in itertools.combinations(order, 2)}
    assert before == set(itertools.permutations(ROLES, 2))


class Load:
    """Submits without end through one `Mesh`, which may be replaced; remembers what was refused. `parents`: every other task."""

    def __init__(self, opened: Callable[[], Mesh]) -> None:
        self.mesh = opened()
        self.handles: list[Handle] = []
        self.refusals: list[str] = []
        self._lock, self._end = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._end.wait(0.1):
            number += 1
            with self._lock:
                try:
                    self.handles.append(
                        self.mesh.submit("parent" if number % 4 == 0 else "double", {"n": number})
                    )
                except Exception as error:
                    self.refusals.append(repr(error))

    def replace(self, opened: Callable[[], Mesh]) -> None:
        """The program was started anew, with other secrets."""
        with self._lock:
            self.mesh.close()
            self.mesh = opened()

    def stop(self) -> None:
        self._end.set()
        self._thread.join()


class Rotation:
    """A mesh of two coordinators, two agents, a producer on Redis and a caller over HTTP, each with the secrets of its own."""

    def __init__(self, stage: Stage, old: str, new: str) -> None:
        self.stage, self.old, self.new = stage, old, new
        self.names = {"coordinators": ("c1", "c2"), "agents": ("w1", "w2")}
        for name in self.names["coordinators"]:
            self.start_coordinator(name, old, None)
        for name in self.names["agents"]:
            self.start_agent(name, old, None)
        stage.ready("w1", "w2")
        for name in self.names["coordinators"]:
            self.answering(name)
        self.loads = {
            "producer": Load(lambda: self.open(old, None)),
            "caller": Load(lambda: self.open(old, None, http=True)),
        }

    def open(self, secret: str, coming: str | None, *, http: bool = False) -> Mesh:
        settings = dataclasses.replace(Settings.load(), jwt_secret=secret, jwt_secret_new=coming)
        urls = ",".join(self.stage.url(name) for name in self.names["coordinators"])
        if http:
            return Mesh(namespace=self.stage.namespace, coordinator_url=urls, settings=settings)
        return Mesh(namespace=self.stage.namespace, redis_url=self.stage.redis_url, settings=settings)

    def start_coordinator(self, name: str, secret: str, coming: str | None) -> None:
        self.stage.start_coordinator(name, MESH_JWT_SECRET=secret, MESH_JWT_SECRET_NEW=coming or "")

    def start_agent(self, name: str, secret: str, coming: str | None) -> None:
        self.stage.start(
            name, pool="threads", capabilities="double,parent", include="tests.chaos.rotation_tasks",
            MESH_JWT_SECRET=secret, MESH_JWT_SECRET_NEW=coming or "",
        )  # fmt: skip

    def answering(self, name: str) -> None:
        def ready() -> bool:
            with contextlib.suppress(httpx2.HTTPError):
                return httpx2.get(f"{self.stage.url(name)}/health/ready", timeout=5).status_code == 200
            return False

        wait_until(ready, 60, f"{name} to be ready")

    def restart(self, role: str, secret: str, coming: str | None) -> None:
        """All of a role, one after the other."""
        if role in self.loads:
            self.loads[role].replace(lambda: self.open(secret, coming, http=role == "caller"))
        for name in self.names.get(role, ()):
            assert self.stage.stop(name) == 0, self.stage.tails()
            if role == "agents":
                self.start_agent(name, secret, coming)
                self.stage.ready(name)
            else:
                self.start_coordinator(name, secret, coming)
                self.answering(name)

    def settled(self) -> None:
        """As docs/security.md says: the new key is in force, nothing is sealed with another any more, and all have noticed."""
        kid, since = key_id(self.new.encode()), -1

        def well() -> bool:
            nonlocal since
            view = self.stage.mesh.overview()
            leader = next((row for row in view["coordinators"] if row.get("leads")), None)
            if leader is None or view["keys"]["in_force"] != kid or view["keys"]["sealed_otherwise"] != 0:
                since = -1
                return False
            since = int(leader["beats"]) if since < 0 else since
            return int(leader["beats"]) - since >= SETTLED_BEATS

        wait_until(well, 90, "the new key to be in force everywhere")

    def stop(self) -> None:
        for load in self.loads.values():
            load.stop()
            load.mesh.close()


class JoinedRotation(Rotation):
    """The same with agents that joined over HTTP: they know no secret, have a join token in a file, and are never restarted."""

    def __init__(self, stage: Stage, old: str, new: str) -> None:
        self.token = stage.folder / "join-token"
        self.give_token(stage, old)
        super().__init__(stage, old, new)

    def give_token(self, stage: Stage, secret: str) -> None:
        made = token(
            kind="join", subject="fleet", agent_type="worker", namespaces=[stage.namespace], secret=secret
        )
        beside = self.token.with_suffix(".new")
        beside.write_text(made)
        beside.replace(self.token)

    def start_agent(self, name: str, secret: str, coming: str | None) -> None:
        urls = ",".join(self.stage.url(one) for one in self.names["coordinators"])
        self.stage.start(
            name, pool="threads", capabilities="double,parent", include="tests.chaos.rotation_tasks",
            REDIS_URL="", MESH_JWT_SECRET="", COORDINATOR_URL=urls, MESH_JOIN_TOKEN_FILE=str(self.token),
            HEARTBEAT_INTERVAL_MS="1000", TRANSPORT_RETRIES="8",
        )  # fmt: skip

    def refused(self) -> dict[str, int]:
        """Tasks that each agent did not believe."""
        records = [self.stage.mesh.store.agents.get(name) or {} for name in self.names["agents"]]
        bodies = [httpx2.get(f"http://127.0.0.1:{one['port']}/health", timeout=5).json() for one in records]
        return {one["agent"]: one["refused_tasks"] for one in bodies}


@pytest.fixture
def rotation(stage: Stage) -> Iterator[Rotation]:
    made = Rotation(stage, SECRET, secrets.token_hex(32))
    yield made
    made.stop()


@pytest.mark.ci
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
@pytest.mark.timeout(400)
def test_nobody_is_refused_while_the_secret_changes(rotation: Rotation, order: tuple[str, ...]) -> None:
    stage, old, new = rotation.stage, rotation.old, rotation.new
    first = rotation.loads["producer"].mesh
    waiting = [first.submit("double", {"n": n}, countdown_s=LONG_S) for n in range(5)]
    assert set(sealed_with(stage.mesh.store, [one.id for one in waiting])) == {key_id(old.encode())}
    for role in order:
        rotation.restart(role, old, new)
    rotation.settled()
    assert set(sealed_with(stage.mesh.store, [one.id for one in waiting])) == {key_id(new.encode())}
    for role in order:
        rotation.restart(role, new, None)
    finish(rotation)

    with rotation.open(new, None) as mesh:
        noted, _ = audit.entries(mesh.store.client, action="rotate", namespaces={stage.namespace})
        assert {one["object"] for one in noted} == {f"key {key_id(new.encode())}"}
        every_task_is_done(rotation, mesh)
        the_old_secret_is_worth_nothing(rotation, mesh)


@pytest.mark.ci
@pytest.mark.timeout(400)
def test_joined_agents_live_through_a_change_of_the_secret(stage: Stage) -> None:
    """They are told of the keys by coordinators, and want a new token before the old secret ends."""
    rotation = JoinedRotation(stage, SECRET, secrets.token_hex(32))
    try:
        old, new = rotation.old, rotation.new
        for role in ("coordinators", "producer", "caller"):
            rotation.restart(role, old, new)
        rotation.give_token(stage, new)
        rotation.settled()
        for role in ("coordinators", "producer", "caller"):
            rotation.restart(role, new, None)
        finish(rotation)
        with rotation.open(new, None) as mesh:
            every_task_is_done(rotation, mesh)
            assert rotation.refused() == dict.fromkeys(rotation.names["agents"], 0)
            the_old_secret_is_worth_nothing(rotation, mesh)
            assert sum(rotation.refused().values()) == 1
        ended = [name for name in rotation.names["agents"] if stage.processes[name].poll() is not None]
        assert not ended, stage.tails()
    finally:
        rotation.stop()


def finish(rotation: Rotation) -> None:
    """After some more work: nobody was refused."""
    count = {name: len(load.handles) for name, load in rotation.loads.items()}
    wait_until(
        lambda: all(len(rotation.loads[name].handles) > count[name] + 10 for name in count), 60, "more work"
    )
    rotation.stop()
    assert {name: load.refusals for name, load in rotation.loads.items()} == {"producer": [], "caller": []}


def every_task_is_done(rotation: Rotation, mesh: Mesh) -> None:
    for load in rotation.loads.values():
        assert len(load.handles) > 20
        for handle in load.handles:
            answer = mesh.handle(handle.id).result(timeout_s=90)
            if isinstance(answer, str):  # a parent's: what it has published is done as well
                assert isinstance(mesh.handle(answer).result(timeout_s=90), int)
    assert mesh.dead_letters() == []


def the_old_secret_is_worth_nothing(rotation: Rotation, mesh: Mesh) -> None:
    for name in rotation.names["coordinators"]:
        url = f"{rotation.stage.url(name)}/v1/namespaces/{rotation.stage.namespace}/tasks"
        for secret, status in ((rotation.old, 401), (rotation.new, 200)):
            headers = {"Authorization": f"Bearer {token(secret=secret)}"}
            assert httpx2.get(url, headers=headers, timeout=30).status_code == status
    begun = time.monotonic()
    with rotation.open(rotation.old, None) as former:
        forged = former.submit("double", {"n": 1}).id
    wait_until(lambda: mesh.handle(forged).status() == "dead_lettered", 60, "the task to be refused")
    assert [one["id"] for one in mesh.dead_letters()] == [forged], time.monotonic() - begun
