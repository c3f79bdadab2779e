"""Task types: what agents say of them, and the built-in ones at work, in every pool."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from mesh import install
from mesh.errors import Invalid, TaskFailed
from mesh.services import types
from mesh.services.tasks import new_id
from tests.acceptance.conftest import CELERY, Place, make_place
from tests.waiting import wait_until

TYPES = '''
from __future__ import annotations
import dataclasses
from typing import Literal
from pydantic import BaseModel, Field
from mesh import current, task

class Page(BaseModel):
    path: str
    dpi: int = Field(300, ge=50)

class Text(BaseModel):
    words: list[str]

@task("ocr", requires=["gpu"], retries=0, timeout_s=9, examples=[Page(path="a.png")])
def ocr(payload: Page) -> Text:
    """Read a page.

    Not shown.
    """
    return Text(words=[payload.path, str(payload.dpi)])

@dataclasses.dataclass
class Sum:
    total: int
    kind: Literal["exact", "rounded"]

@task("total")
def total(payload: dict[str, int]) -> Sum:
    return Sum(sum(payload.values()), "exact")

@task("as-it-is")
def as_it_is(payload):
    return [payload, current.attempt]
'''
POOLS = ("prefork", "threads", "solo", "gevent")


@pytest.fixture(scope="module")
def place(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """An agent of each pool; `requires` chooses one. The first has the types."""
    with make_place(redis_url, f"types-{new_id()[:8]}", tmp_path_factory.mktemp("types")) as made:
        (made.folder / "own_types.py").write_text(TYPES)
        for pool in POOLS:
            words = ["--pool", pool, "--concurrency", "2", "--without-gossip", "--without-mingle"]
            own = ",ocr,gpu,total,as-it-is" if pool == "prefork" else ""
            words += ["-I", "own_types"] if own else []
            made.start(
                *CELERY, "worker", *words, "--agent-id", pool, "--capabilities", f"task-execution,data-processing,{pool}{own}",
                command=[], MESH_ALLOWED_COMMANDS="sh,wc", MESH_LEASE_MS="4000", MESH_LEASE_RENEW_MS="1000",
            )  # fmt: skip
        for pool, process in zip(POOLS, made.running, strict=True):
            made.wait_for(process, lambda pool=pool: made.pid_of(pool), f"agent {pool}")  # type: ignore[misc]
        yield made


def test_agents_advertise_their_types(place: Place) -> None:
    known = {one.name: one for one in types.advertised(place.mesh.store)}
    assert set(known) == {"as-it-is", "data-processing", "ocr", "task-execution", "total"}
    ocr = known["ocr"]
    assert (ocr.requires, ocr.requirement, ocr.retries, ocr.timeout_s) == (("gpu",), "gpu+ocr", 0, 9)
    assert (ocr.description, ocr.examples) == ("Read a page.", [{"path": "a.png", "dpi": 300}])
    assert ocr.payload_schema is not None and ocr.payload_schema["properties"]["dpi"]["minimum"] == 50
    assert ocr.result_schema is not None and "words" in ocr.result_schema["properties"]
    assert known["as-it-is"].payload_schema is None
    for one in known.values():
        assert one.examples or one.name in ("as-it-is", "total")
        for example in one.examples:
            types.check(one, example)
    assert types.unknown_hint(place.mesh.store, "data_procesing") == "Did you mean data-processing?"
    assert types.unknown_hint(place.mesh.store, "ocr") == types.unknown_hint(place.mesh.store, "banana") == ""


def test_payloads_and_results_are_what_the_annotations_say(place: Place) -> None:
    submit = place.mesh.submit
    assert submit("ocr", {"path": "p", "dpi": 72}, requires=["gpu"]).result(timeout_s=20) == {
        "words": ["p", "72"]
    }
    assert submit("total", {"a": 1, "b": 2}).result(timeout_s=20) == {"total": 3, "kind": "exact"}
    assert submit("as-it-is", {"a": 1}).result(timeout_s=20) == [{"a": 1}, 1]


def test_a_celery_call_with_a_wrong_payload_fails_at_once(place: Place) -> None:
    """Plain Celery calls ask nobody before they publish; what is checked where tasks are submitted, agents check as well."""
    app = install(Celery("caller", set_as_current=False), place.mesh.settings)
    task_id = app.send_task("total", args=[{"a": 1, "b": "x"}], queue="total").id
    with pytest.raises(
        TaskFailed,
        match=r"Invalid: The payload of task total is wrong at payload\.b: Input should be a valid",
    ):
        place.mesh.handle(task_id).result(timeout_s=20)
    record = place.mesh.store.tasks.record(task_id)
    assert record is not None and (record.state, record.attempt) == ("failed", 1)


def test_the_mesh_takes_requirement_and_schema_from_the_registry(place: Place) -> None:
    handle = place.mesh.submit("ocr", {"path": "p"})
    record = place.mesh.store.tasks.record(handle.id)
    assert record is not None and record.queue == "gpu+ocr", "its type requires it"
    assert handle.result(timeout_s=20) == {"words": ["p", "300"]}
    with pytest.raises(
        Invalid, match=r'The payload of task total is wrong at payload\.b: "x" is not an integer\.'
    ):
        place.mesh.submit("total", {"a": 1, "b": "x"})
    with pytest.raises(
        Invalid, match="The payload of task task-execution is wrong at payload: command is missing"
    ):
        place.mesh.submit("task-execution", {})
    done = place.call("execute", "--task-type", "data-processing", "--payload", '{"operation": "dance"}')
    assert done.returncode == 2
    assert 'wrong at payload.operation: "dance" is not one of' in done.stderr


@pytest.mark.parametrize("pool", POOLS)
def test_a_command_is_run_in_every_pool(place: Place, pool: str) -> None:
    payload = {"command": ["sh", "-c", "wc -c; env; exit 3"], "stdin": "x" * 300_000, "env": {"WHO": pool}}
    result = place.mesh.submit("task-execution", payload, requires=[pool]).result(timeout_s=20)
    assert result["exit_code"] == 3
    assert (
        "300000" in result["stdout"]
        and f"WHO={pool}" in result["stdout"]
        and "REDIS_URL" not in result["stdout"]
    )
    refused = place.mesh.submit("task-execution", {"command": ["ls"]}, requires=[pool])
    with pytest.raises(TaskFailed, match="Refused: program 'ls' is not allowed on this agent"):
        refused.result(timeout_s=20)


@pytest.mark.parametrize("pool", POOLS)
def test_cancelling_ends_the_whole_command_in_every_pool(place: Place, pool: str) -> None:
    pids = _start_sleepers(place, pool)
    handle, numbers = pids
    assert handle.cancel()
    wait_until(lambda: not any(map(_is_there, numbers)), 15, f"the command to end in pool {pool}")
    payload = {"command": ["wc", "-c"], "stdin": "abc"}
    assert (
        place.mesh.submit("task-execution", payload, requires=[pool]).result(timeout_s=20)["stdout"].strip()
        == "3"
    )


def _start_sleepers(place: Place, name: str, **options: object):  # type: ignore[no-untyped-def]
    payload = {
        "command": ["sh", "-c", f"sleep 600 & echo $$ $! > {name}.new; mv {name}.new {name}.pids; wait"]
    }
    requires = [name.partition("-")[0]]
    handle = place.mesh.submit("task-execution", payload, requires=requires, **options)  # type: ignore[arg-type]
    file = place.folder / f"{name}.pids"
    wait_until(file.exists, 20, f"the command to start in pool {name}")
    return handle, [int(word) for word in file.read_text().split()]


def _is_there(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_the_time_limit_of_the_attempt_ends_it(place: Place, pool: str) -> None:
    handle, numbers = _start_sleepers(place, f"{pool}-limit", timeout_s=1, retries=0)
    with pytest.raises(TaskFailed, match="SoftTimeLimitExceeded"):
        handle.result(timeout_s=20)
    assert not any(map(_is_there, numbers))


@pytest.mark.parametrize("pool", POOLS)
def test_data_is_processed_in_partitions_in_every_pool(place: Place, pool: str) -> None:
    for number in range(4):
        (place.folder / f"{number}.csv").write_text(f"city,amount\nOslo,{number}\nRome,1\n")

    def answers(*payloads: dict[str, object]) -> list[Any]:
        handles = place.mesh.submit_many("data-processing", payloads, requires=[pool])
        return [handle.result(timeout_s=30) for handle in handles]

    (found,) = answers({"operation": "partitions", "folder": ".", "pattern": "?.csv", "parts": 2})
    query = "select city, sum(amount)::bigint as total from sales group by city"
    parts = answers(
        *[
            {"operation": "sql", "query": query, "tables": {"sales": {"files": part}}}
            for part in found["partitions"]
        ]
    )
    query = "select city, sum(total)::bigint as total from parts group by city order by city"
    (whole,) = answers({"operation": "sql", "query": query, "tables": {"parts": {"answers": parts}}})
    assert whole["rows"] == [["Oslo", 6], ["Rome", 4]]


@pytest.mark.parametrize("pool", ["threads", "gevent"])
def test_a_long_query_can_be_cancelled_where_nothing_else_ends_it(place: Place, pool: str) -> None:
    query = "select sum(a.range * b.range) from range(10000000) a, range(10000000) b"
    handle = place.mesh.submit("data-processing", {"operation": "sql", "query": query}, requires=[pool])
    wait_until(lambda: handle.status() == "running", 20, "the query to run")
    assert handle.cancel()
    payload = {"operation": "sql", "query": "select 42"}
    handles = place.mesh.submit_many("data-processing", [payload] * 3, requires=[pool])
    assert [handle.result(timeout_s=20)["rows"] for handle in handles] == [[[42]]] * 3
    wait_until(
        lambda: (place.mesh.store.agents.get(pool) or {})["running"] == "0", 10, "the agent to be idle"
    )


def test_types_are_told_again_when_redis_has_lost_them(place: Place) -> None:
    store = place.mesh.store
    store.client.execute("DEL", store.keys["types"], store.keys.of("agent", "solo"))
    wait_until(lambda: "task-execution" in store.types.all(), 15, "the agent to join again")


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_command_dies_with_its_agent(place: Place, pool: str) -> None:
    """The last test: these agents do not come back. In `prefork` only the main process is killed, not the pool's."""
    handle, numbers = _start_sleepers(place, f"{pool}-dies")
    place.running[POOLS.index(pool)].process.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(map(_is_there, numbers)), 15, "the command to end")
    assert handle.status() != "succeeded"
