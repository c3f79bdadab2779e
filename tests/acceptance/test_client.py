"""What users of the mesh hold, in three ways: `Mesh` on Redis, `Mesh` over HTTP, and plain Celery calls.

One agent, two coordinators and Redis, all real; a test that takes no `way` runs once. Celery's calls are dressed as handles,
so that one suite says what all three must do; what Celery has no word for is asked of the two clients only.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import gc
import importlib.util
import os
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celery
import pytest
from celery.exceptions import CDeprecationWarning, TaskRevokedError
from celery.result import AsyncResult

from mesh.bus.install import install
from mesh.client import Mesh
from mesh.core.states import CELERY_STATUS, State
from mesh.errors import (
    Cancelled,
    Conflict,
    CoordinatorUnavailable,
    DeadLettered,
    Invalid,
    MeshError,
    NotFound,
    ResultTimeout,
    StoreUnavailable,
    TaskFailed,
    Unsatisfiable,
)
from mesh.settings import Settings
from tests.acceptance.conftest import Place, Running, make_place
from tests.acceptance.test_coordinator import start
from tests.waiting import wait_until

WAIT_S = 30
TASKS = '''
import os
from mesh import current, task
from mesh.errors import Invalid


@task("echo")
def echo(payload=None):
    """Gives back what it is given."""
    return payload


@task("double", examples=[21])
def double(payload: int) -> int:
    """Twice a number."""
    return 2 * payload


@task("refuse")
def refuse(payload):
    raise Invalid(f"page {payload} has no text")


@task("break", retries=0)
def broken(payload):
    raise ValueError(f"out of {payload}")


@task("gate")
def gate(payload):
    if "note" in payload:
        current.progress(0.25, payload["note"])
    with open(payload["started"], "a") as started:
        started.write("x\\n")
    with open(payload["fifo"]) as fifo:
        return fifo.read()
'''
TYPES = ("break", "double", "echo", "gate", "refuse")


# -- the fleet


@dataclasses.dataclass(kw_only=True)
class Fleet:
    place: Place
    coordinators: dict[str, Running]
    urls: dict[str, str]
    app: celery.Celery

    def gate(self) -> Gate:
        return Gate(self.place, uuid.uuid4().hex[:8])


class Gate:
    """A task that has begun, and ends when the test says so."""

    def __init__(self, place: Place, name: str) -> None:
        self._fifo, self._started = place.folder / f"{name}.fifo", place.folder / f"{name}.started"
        os.mkfifo(self._fifo)
        self.payload = {"fifo": str(self._fifo), "started": str(self._started)}

    def wait_until_started(self) -> None:
        wait_until(self._started.exists, WAIT_S, "the task to start")

    def open(self, word: str) -> None:
        self._fifo.write_text(word)


def wait_for_agent(place: Place, process: Running) -> None:
    place.wait_for(process, lambda: place.pid_of("w1"), "the agent to join")
    wait_until(
        lambda: {one.name for one in place.mesh.types()} >= set(TYPES), WAIT_S, "types to be advertised"
    )


@pytest.fixture(scope="module")
def fleet(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("client")
    (folder / "suite_tasks.py").write_text(TASKS)
    with make_place(redis_url, f"client-{uuid.uuid4().hex[:12]}", folder) as place:
        agent = place.start("deploy", "--agent-id", "w1", "-I", "suite_tasks", "--concurrency", "3")
        coordinators, urls = {}, {}
        for name in ("c1", "c2"):
            coordinators[name], urls[name] = start(place, name)
        wait_for_agent(place, agent)
        app = make_app(place.mesh.settings, folder)
        yield Fleet(place=place, coordinators=coordinators, urls=urls, app=app)
        app.close()
        gc.collect()  # what Celery leaves open is closed here, while Redis is still there


def make_app(settings: Settings, folder: Path) -> celery.Celery:
    """An application in this process, with the same task types."""
    app = install(celery.Celery("suite", set_as_current=False), settings)
    spec = importlib.util.spec_from_file_location("suite_tasks", folder / "suite_tasks.py")
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CDeprecationWarning)  # the queue of a task as its attribute
        app.finalize()
    return app


# -- the three ways


class CeleryHandle:
    """An `AsyncResult` that speaks as a handle does."""

    def __init__(self, result: AsyncResult) -> None:
        self._result = result
        self.id = str(result.id)

    def status(self) -> str:
        return str(self._result.status)

    def result(self, timeout_s: float | None = None) -> Any:
        try:
            return self._result.get(timeout=timeout_s)
        except celery.exceptions.TimeoutError as error:
            raise ResultTimeout(str(error)) from error
        except TaskRevokedError as error:
            raise Cancelled(str(error)) from error
        except Exception as error:
            raise TaskFailed(f"{type(error).__name__}: {error}") from error

    def progress(self) -> Any:
        return self._result.info

    def cancel(self) -> None:
        self._result.revoke(terminate=True)


class CeleryWay:
    """Plain Celery calls."""

    def __init__(self, app: celery.Celery) -> None:
        self.app = app

    def submit(self, task_type: str, payload: Any = None, **options: Any) -> CeleryHandle:
        options.pop("unsatisfiable", None)
        named = {"countdown_s": "countdown", "expires_s": "expires"}
        call = {named.get(name, name): value for name, value in options.items()}
        args = () if payload is None else (payload,)
        return CeleryHandle(self.app.tasks[task_type].apply_async(args, **call))

    def word(self, state: State) -> str:
        return CELERY_STATUS[state]


class MeshWay(Mesh):
    """A client; its words for states are those of the mesh."""

    def word(self, state: State) -> str:
        return str(state)


@pytest.fixture(scope="module")
def direct(fleet: Fleet) -> Iterator[MeshWay]:
    with MeshWay(redis_url=fleet.place.redis_url, namespace=fleet.place.namespace) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def http(fleet: Fleet) -> Iterator[MeshWay]:
    with MeshWay(coordinator_url=",".join(fleet.urls.values()), namespace=fleet.place.namespace) as mesh:
        yield mesh


@pytest.fixture(params=["direct", "http"])
def mesh(request: pytest.FixtureRequest) -> MeshWay:
    """Both clients."""
    found: MeshWay = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=["direct", "http", "celery"])
def way(request: pytest.FixtureRequest, fleet: Fleet) -> MeshWay | CeleryWay:
    """All three."""
    if request.param == "celery":
        return CeleryWay(fleet.app)
    found: MeshWay = request.getfixturevalue(request.param)
    return found


# -- all three ways


VALUES = (
    {"nested": [1, {"deep": [None, True, 2.5]}]},
    "Grüße, 世界 🚀 \u0000 \"'\\",
    [],
    0,
    False,
    2**53,
    "x" * 100_000,
)


def test_what_goes_in_comes_out(way: Any) -> None:
    handles = [way.submit("echo", value) for value in VALUES]
    assert [handle.result(timeout_s=WAIT_S) for handle in handles] == list(VALUES)
    assert {handle.status() for handle in handles} == {way.word(State.SUCCEEDED)}
    assert handles[0].result() == VALUES[0]  # again, without waiting


def test_without_a_payload_the_task_takes_no_argument(way: Any) -> None:
    assert way.submit("echo").result(timeout_s=WAIT_S) is None


def test_a_countdown_holds_it_back(way: Any) -> None:
    begun = time.monotonic()
    handle = way.submit("double", 21, countdown_s=0.7, priority=9)
    assert handle.status() == way.word(State.SCHEDULED)
    assert handle.result(timeout_s=WAIT_S) == 42
    assert time.monotonic() - begun >= 0.7


def test_what_is_not_started_in_time_expires(way: Any) -> None:
    handle = way.submit("echo", 1, countdown_s=WAIT_S, expires_s=0.3)
    with pytest.raises(Cancelled):
        handle.result(timeout_s=WAIT_S)
    assert handle.status() == way.word(State.EXPIRED)


def test_the_same_id_is_the_same_task(fleet: Fleet, way: Any) -> None:
    gate, task_id = fleet.gate(), f"rechnung-№{uuid.uuid4().hex}"
    handles = [way.submit("gate", gate.payload, task_id=task_id) for _ in range(3)]
    assert {handle.id for handle in handles} == {task_id}
    gate.wait_until_started()
    gate.open("once")
    assert [handle.result(timeout_s=WAIT_S) for handle in handles] == ["once"] * 3
    assert Path(gate.payload["started"]).read_text() == "x\n"


def test_a_failure_is_raised_where_the_result_is_wanted(way: Any) -> None:
    handle = way.submit("refuse", 7)
    with pytest.raises(TaskFailed, match=r"Invalid.*: page 7 has no text"):
        handle.result(timeout_s=WAIT_S)
    assert handle.status() == way.word(State.FAILED)


def test_a_result_that_does_not_come_in_time(fleet: Fleet, way: Any) -> None:
    gate = fleet.gate()
    handle = way.submit("gate", gate.payload)
    gate.wait_until_started()
    with pytest.raises(ResultTimeout):
        handle.result(timeout_s=0.1)
    gate.open("late")
    assert handle.result(timeout_s=WAIT_S) == "late"


def test_a_running_task_is_cancelled(fleet: Fleet, way: Any) -> None:
    gate = fleet.gate()
    handle = way.submit("gate", gate.payload)
    gate.wait_until_started()
    handle.cancel()
    with pytest.raises(Cancelled):
        handle.result(timeout_s=WAIT_S)
    assert handle.status() == way.word(State.CANCELLED)


def test_a_task_that_waits_is_cancelled(way: Any) -> None:
    handle = way.submit("echo", 1, countdown_s=WAIT_S)
    handle.cancel()
    with pytest.raises(Cancelled):
        handle.result(timeout_s=WAIT_S)
    assert handle.status() == way.word(State.CANCELLED)


def test_progress_is_seen(fleet: Fleet, way: Any) -> None:
    gate = fleet.gate()
    handle = way.submit("gate", {**gate.payload, "note": "Seite 1"})
    gate.wait_until_started()
    assert handle.progress() == {"fraction": 0.25, "note": "Seite 1"}
    gate.open("done")
    assert handle.result(timeout_s=WAIT_S) == "done"


def test_a_payload_that_is_too_large_is_refused(way: Any) -> None:
    with pytest.raises(
        MeshError, match=r"2,00\d,\d+ bytes, more than the 1,048,576 allowed \(MESH_MAX_PAYLOAD_BYTES\)"
    ):
        way.submit("echo", "x" * 2_000_000)


# -- both clients


def test_progress_is_told_while_waiting(fleet: Fleet, mesh: Mesh) -> None:
    gate, told = fleet.gate(), []
    handle = mesh.submit("gate", {**gate.payload, "note": "half"})

    def hear(progress: dict[str, Any]) -> None:
        told.append(progress)
        gate.open("heard")

    assert handle.result(timeout_s=WAIT_S, on_progress=hear) == "heard"
    assert told == [{"fraction": 0.25, "note": "half"}]
    assert handle.progress() is None


def test_options_reach_the_record(mesh: Mesh) -> None:
    handle = mesh.submit(
        "echo", 1, requires=["double", "gate"], priority=7, timeout_s=60, retries=2, labels={"team": "Köln"},
        strategy="least-loaded", region="eu",
    )  # fmt: skip
    assert handle.result(timeout_s=WAIT_S) == 1
    record = handle.record()
    assert {name: record[name] for name in ("state", "type", "queue", "priority", "labels", "agent", "attempt")} == {
        "state": "succeeded", "type": "echo", "queue": "double+echo+gate", "priority": 7, "labels": {"team": "Köln"},
        "agent": "w1", "attempt": 1,
    }  # fmt: skip
    assert repr(handle) == f"<Handle {handle.id}>"


def test_other_content_under_the_same_id_is_a_conflict(mesh: Mesh) -> None:
    handle = mesh.submit("echo", {"page": 1})
    with pytest.raises(Conflict, match=f"Task id '{handle.id}' is in use"):
        mesh.submit("double", 1, task_id=handle.id)
    named = mesh.submit("echo", {"page": 1}, task_id=f"{handle.id}/again")
    with pytest.raises(Conflict):
        mesh.submit("echo", {"page": 2}, task_id=named.id)
    assert named.result(timeout_s=WAIT_S) == {"page": 1}


def test_retries_used_up_and_run_again(mesh: Mesh) -> None:
    handle = mesh.submit("break", "paper")
    with pytest.raises(DeadLettered, match="dead lettered: ValueError: out of paper") as caught:
        handle.result(timeout_s=WAIT_S)
    assert (caught.value.task_id, caught.value.state) == (handle.id, "dead_lettered")
    assert caught.value.error is not None and "raise ValueError" in str(caught.value.error["traceback"])
    assert handle.id in [one["id"] for one in mesh.dead_letters(type="break")]
    handle.retry()
    with pytest.raises(DeadLettered):
        handle.result(timeout_s=WAIT_S)
    assert handle.record()["run"] == 2
    assert mesh.replay([handle.id, "nobody"])[0] == [handle.id]
    wait_until(lambda: handle.status() == "dead_lettered", WAIT_S, "the third run to end")
    done, ((other, error),) = mesh.discard([handle.id, "nobody"])
    assert (done, other, type(error)) == ([handle.id], "nobody", NotFound)
    assert handle.id not in [one["id"] for one in mesh.dead_letters()]
    fine = mesh.submit("echo", 1)
    assert fine.result(timeout_s=WAIT_S) == 1
    with pytest.raises(Conflict, match="is succeeded"):
        fine.retry()


def test_an_attempt_that_takes_too_long(fleet: Fleet, mesh: Mesh) -> None:
    gate = fleet.gate()
    handle = mesh.submit("gate", gate.payload, timeout_s=0.5, retries=0)
    with pytest.raises(TaskFailed, match="TimeLimitExceeded"):
        handle.result(timeout_s=WAIT_S)


def test_cancelling_says_whether_it_did(mesh: Mesh) -> None:
    handle = mesh.submit("echo", 1, countdown_s=WAIT_S)
    assert handle.cancel("not needed") is True
    assert handle.record()["reason"] == "not needed"
    assert handle.cancel() is False


def test_many_at_once(mesh: Mesh) -> None:
    handles = mesh.submit_many("double", range(300), priority=6)
    seen = {handle.id: handle.result() for handle in mesh.as_completed(handles, timeout_s=WAIT_S)}
    assert seen == {handle.id: 2 * number for number, handle in enumerate(handles)}
    assert mesh.submit_many("double", []) == []
    with pytest.raises(ResultTimeout, match=r"1 tasks have not ended within 0\.1 s"):
        list(mesh.as_completed([mesh.submit("echo", 1, countdown_s=WAIT_S)], timeout_s=0.1))


def test_awaiting(mesh: Mesh) -> None:
    async def main() -> None:
        first, second = mesh.submit("double", 1), mesh.submit("echo", "zwei")
        assert await asyncio.gather(first, second, second) == [2, "zwei", "zwei"]
        assert await first == 2
        later, failing = mesh.submit("echo", 1, countdown_s=WAIT_S), mesh.submit("refuse", 1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(later, 0.1)
        with pytest.raises(TaskFailed):
            await failing
        numbers = mesh.submit_many("double", range(20))
        assert sorted([one.result() async for one in mesh.as_completed(numbers, WAIT_S)]) == list(
            range(0, 40, 2)
        )
        with pytest.raises(ResultTimeout):
            [one async for one in mesh.as_completed([later], 0.1)]
        with pytest.raises(NotFound):
            await mesh.handle("nobody")

    asyncio.run(main())


def test_who_waits_need_not_wait_alone(mesh: Mesh) -> None:
    """Threads that wait for their own tasks, and all of them for one."""
    shared, found = mesh.submit("echo", "shared", countdown_s=0.3), []

    def work(number: int) -> None:
        own = [mesh.submit("double", number + 100 * at) for at in range(5)]
        found.append((shared.result(WAIT_S), [one.result(WAIT_S) for one in own]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert sorted(found) == [("shared", [2 * (number + 100 * at) for at in range(5)]) for number in range(8)]


def test_a_forked_child_goes_on(mesh: Mesh) -> None:
    assert mesh.submit("double", 4).result(timeout_s=WAIT_S) == 8
    here, there = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there are threads here, as in many a program that forks
        child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.write(there, str(mesh.submit("double", 21).result(timeout_s=WAIT_S)).encode())
        os._exit(0)
    os.close(there)
    with os.fdopen(here, "rb") as answer:
        assert answer.read() == b"42"
    os.waitpid(child, 0)
    assert mesh.submit("double", 5).result(timeout_s=WAIT_S) == 10


def test_what_nobody_can_do(mesh: Mesh) -> None:
    unknown = f"dubble-{uuid.uuid4().hex[:6]}"
    with pytest.raises(Unsatisfiable, match=f"^No agent offers {unknown}"):
        mesh.submit(unknown, 1, unsatisfiable="reject")
    with pytest.warns(
        UserWarning, match=f"No agent offers {unknown}.*: the task waits until one does"
    ) as told:
        waiting = mesh.submit(unknown, 1)
    assert told[0].filename == __file__
    with pytest.raises(
        Unsatisfiable, match=f"^No agent offers {unknown} .*\\)\\.$"
    ):  # now that it is known, too
        mesh.submit(unknown, 1, unsatisfiable="reject")
    assert waiting.status() == "queued"
    with pytest.warns(UserWarning, match="No agent offers nobody-has-this"):
        (also,) = mesh.submit_many("echo", [1], requires=["nobody-has-this"])
    why = also.why()
    assert (why["state"], why["position"], why["capable"]) == ("queued", 0, [])
    assert why["not_capable"] == [{"agent": "w1", "why": "it does not offer nobody-has-this"}]
    assert waiting.cancel() and also.cancel()
    with pytest.raises(Unsatisfiable, match="Did you mean double"):
        mesh.submit("dubble", 1, unsatisfiable="reject")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "type": ({"task_type": "a b"}, "a b|pattern|type"),
    "type that is a list": ({"task_type": ["a"]}, "type"),
    "type that is a list, unchecked": ({"task_type": ["a"], "unsatisfiable": "accept"}, "type"),
    "requirement in one word": ({"requires": "gpu"}, "requires 'gpu' is not a list of capabilities"),
    "requirement": ({"requires": ["gpu", 5]}, "5 is not a valid capability"),
    "payload": ({"payload": {1, 2}.__iter__()}, "cannot be written as JSON"),
    "payload of the type": ({"task_type": "double", "payload": "one"}, "double.*integer"),
    "task id": ({"task_id": "a b"}, "Task id 'a b' is not"),
    "priority": ({"priority": 11}, "11|9"),
    "priority that is none": ({"priority": True}, "Priority True"),
    "retries": ({"retries": True}, "retries True"),
    "labels": ({"labels": ["red"]}, r"labels \['red'\] are not"),
    "labels with a number": ({"labels": {"team": 1}}, "labels {'team': 1} are not"),
    "countdown": ({"countdown_s": -1}, "countdown_s"),
    "time limit": ({"timeout_s": "1"}, "timeout_s '1'"),
    "strategy": ({"strategy": "best"}, "[Ss]trategy"),
    "unsatisfiable": ({"unsatisfiable": "maybe"}, "unsatisfiable"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_said_in_one_sentence(mesh: Mesh, bad: str) -> None:
    words, says = BAD[bad]
    with pytest.raises(Invalid, match=says) as caught:
        mesh.submit(**{"task_type": "echo", "payload": 1, **words})
    assert "\n" not in str(caught.value)


def test_bad_options_of_many(mesh: Mesh) -> None:
    with pytest.raises(Invalid, match="'colour' is not an option"):
        mesh.submit_many("echo", [1], colour="red")
    with pytest.raises(Invalid, match="double"):
        mesh.submit_many("double", [1, "two"])


def test_an_unknown_id(mesh: Mesh) -> None:
    handle = mesh.handle("n/obody-№1")
    for ask in (handle.status, handle.result, handle.cancel, handle.retry, handle.why):
        with pytest.raises(NotFound, match="There is no task 'n/obody-№1'"):
            ask()
    with pytest.raises(Invalid):
        mesh.handle("a b")
    with pytest.raises(NotFound, match="no agent 'nobody'"):
        mesh.cordon("nobody")


def test_looking_around(mesh: Mesh) -> None:
    assert mesh.submit("double", 3).result(timeout_s=WAIT_S) == 6
    (agent,) = mesh.agents(capability="echo", status="healthy")
    assert (agent.id, agent.slots, agent.namespace, agent.cordoned) == (
        "w1",
        3,
        mesh.settings.namespace,
        False,
    )
    assert mesh.agents(capability="nobody-has-this") == []
    types = {one.name: one for one in mesh.types()}
    assert (types["double"].description, types["double"].examples) == ("Twice a number.", [21])
    queues = {row["queue"]: row for row in mesh.queues()}
    assert queues["double"]["states"]["succeeded"] >= 1
    offered = {row["capability"]: row for row in mesh.capabilities()}
    assert (offered["gate"]["agents"], offered["gate"]["slots"]) == (1, 3)
    newest = mesh.tasks(type="double", state="succeeded", limit=1)
    assert [row["type"] for row in newest] == ["double"]
    assert mesh.tasks(type="double", since_ms=int(time.time() * 1000) + 60_000) == []
    assert mesh.explain("echo", requires=["gate"])["capable"] == ["w1"]
    view = mesh.overview()
    assert view["agents"] == {"healthy": 1} and {one["id"] for one in view["coordinators"]} >= {"c2"}


def test_an_agent_without_new_work(mesh: Mesh) -> None:
    mesh.cordon("w1")
    try:
        assert mesh.agents()[0].cordoned is True
        assert mesh.explain("echo")["not_capable"] == [{"agent": "w1", "why": "it is cordoned"}]
    finally:
        mesh.uncordon("w1")
    assert mesh.agents()[0].cordoned is False
    assert mesh.submit("double", 8).result(timeout_s=WAIT_S) == 16


# -- ways to the mesh


def test_a_namespace_sees_only_its_own(fleet: Fleet, mesh: MeshWay) -> None:
    handle = mesh.submit("double", 1)
    settings = dataclasses.replace(mesh.settings, namespace="somebody-elses")
    over_http = type(mesh._port).__name__ == "Http"
    url = {"coordinator_url": settings.coordinator_url} if over_http else {"redis_url": settings.redis_url}
    with Mesh(settings=settings, **url) as other:
        with pytest.raises(NotFound):
            other.handle(handle.id).status()
        assert other.agents() == [] and other.tasks() == []
    assert handle.result(timeout_s=WAIT_S) == 2


@pytest.mark.parametrize(
    ("environ", "over_http"),
    [
        ({}, False),
        ({"COORDINATOR_URL": "http://c:3000"}, True),
        ({"COORDINATOR_URL": "http://c:3000", "REDIS_URL": "redis://r"}, False),
        ({"REDIS_URL": "redis://r"}, False),
    ],
    ids=["nothing", "coordinator", "both", "redis"],
)
def test_which_way_it_goes(environ: dict[str, str], over_http: bool) -> None:
    settings = Settings.load(environ)
    with Mesh(settings=settings) as mesh:
        assert hasattr(mesh._port, "store") is not over_http
    with Mesh(settings=settings, redis_url="redis://r") as mesh:
        assert mesh.store.settings.redis_url == "redis://r"
    with (
        Mesh(settings=settings, coordinator_url="http://d:3000") as mesh,
        pytest.raises(Invalid, match="REDIS_URL"),
    ):
        mesh.store  # noqa: B018
    with pytest.raises(Invalid, match="not both"):
        Mesh(settings=settings, coordinator_url="http://d:3000", redis_url="redis://r")
    with pytest.raises(Invalid, match="token="):
        Mesh(settings=settings, redis_url="redis://r", token="t")


def test_nobody_there(closed_port: int) -> None:
    settings = dataclasses.replace(
        Settings(), transport_retries=1, transport_retry_delay_ms=50, transport_timeout_ms=500
    )
    url = f"http://127.0.0.1:{closed_port}"
    with Mesh(settings=settings, coordinator_url=f"{url},http://no-such-host.invalid:3000") as mesh:
        for ask in (mesh.agents, lambda: mesh.submit("echo", 1), mesh.handle("x").result):
            with pytest.raises(
                CoordinatorUnavailable, match=rf"^No coordinator answers at {url} \(connection refused\)"
            ):
                ask()
    with Mesh(redis_url=f"redis://127.0.0.1:{closed_port}") as mesh, pytest.raises(StoreUnavailable):
        mesh.handle("x").result()


def test_what_is_no_coordinator(redis_url: str) -> None:
    settings = dataclasses.replace(Settings(), transport_retries=0)
    url = redis_url.replace("redis://", "http://").partition("?")[0]
    with Mesh(settings=settings, coordinator_url=url) as mesh, pytest.raises(MeshError):
        mesh.agents()


def test_what_answers_there_but_is_no_coordinator_is_passed_over(fleet: Fleet) -> None:
    """Agents and coordinators share a default port: where a coordinator was, an agent may answer now."""
    (agent,) = fleet.place.mesh.agents()
    url = f"http://127.0.0.1:{agent.port},{fleet.urls['c2']}"
    with Mesh(coordinator_url=url, namespace=fleet.place.namespace) as mesh:
        assert mesh.submit("double", 4).result(timeout_s=WAIT_S) == 8


def test_a_coordinator_is_killed_on_the_way(fleet: Fleet) -> None:
    """Those who wait and those who submit do not notice, and nothing is submitted twice."""
    gate, results = fleet.gate(), []
    only_here = "double+echo+refuse"  # the queue of this test's tasks
    url = f"{fleet.urls['c1']},{fleet.urls['c2']}"
    with Mesh(coordinator_url=url, namespace=fleet.place.namespace) as mesh:
        waiting = mesh.submit("gate", gate.payload)
        gate.wait_until_started()

        def wait() -> None:
            results.append(waiting.result(timeout_s=WAIT_S))

        def submit(numbers: range) -> None:
            for number in numbers:
                handle = mesh.submit("double", number, requires=["echo", "refuse"])
                if number == 50:
                    fleet.coordinators["c1"].kill()
                results.append(handle.result(timeout_s=WAIT_S))

        work = [wait, *[functools.partial(submit, range(first, 200, 4)) for first in range(4)]]
        threads = [threading.Thread(target=one) for one in work]
        for thread in threads:
            thread.start()
        for thread in threads[1:]:
            thread.join(WAIT_S)
        gate.open("survived")
        threads[0].join(WAIT_S)
        assert sorted(results, key=str) == sorted([*range(0, 400, 2), "survived"], key=str)
        queues = {row["queue"]: row["states"] for row in mesh.queues()}
        assert queues[only_here] == {"succeeded": 200}
