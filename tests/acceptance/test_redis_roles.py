"""Every role does all of its work under its own Redis user: Redis's own log of what it refused stays empty."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.store.embedded import free_port
from tests.acceptance.conftest import START_S, Place, make_place
from tests.acceptance.redis_users import Guarded
from tests.acceptance.test_flower import Dashboard
from tests.waiting import wait_until

NAMESPACE = "roles"
TASKS = """
from celery import shared_task
from mesh import Mesh, current, task

@task("echo")
def echo(payload):
    current.progress(0.5, "half")
    return payload

@task("parent")
def parent(payload):
    return Mesh().submit("echo", payload).id

@task("bad", retries=1)
def bad(payload):
    raise ValueError("no")

@shared_task(name="add")
def add(x, y=0):
    return x + y

@shared_task(name="total")
def total(numbers):
    return sum(numbers)
"""
PRODUCER = """
import asyncio, json
import tasks
from celery import chain, chord, group
from mesh import Mesh
from mesh.errors import TaskFailed
from mesh.bus.app import app

mesh, said = Mesh(), {}
said["bulk"] = sum(handle.result(timeout_s=60) for handle in mesh.submit_many("echo", range(20)))
for strategy in ("round-robin", "least-loaded", "random"):
    said[strategy] = mesh.submit("echo", 1, strategy=strategy, region="eu").result(timeout_s=60)
said["later"] = mesh.submit("echo", 2, requires=["parent"], countdown_s=0.2, expires_s=60).result(timeout_s=60)
said["parent"] = mesh.handle(mesh.submit("parent", 7).result(timeout_s=60)).result(timeout_s=60)
waiting = mesh.submit("echo", 1, requires=["nowhere"])
said["why"] = bool(waiting.why())
said["cancelled"] = waiting.cancel(), mesh.submit("echo", 1, countdown_s=60).cancel()
try:
    mesh.submit("bad").result(timeout_s=60)
except TaskFailed as error:
    said["bad"] = type(error).__name__
said["looked"] = [bool(list(look())) for look in (mesh.agents, mesh.capabilities, mesh.queues, mesh.dead_letters)]
async def wait():
    return await mesh.submit("echo", 9)
said["async"] = asyncio.run(wait())
app.set_current()
said["call"] = tasks.add.delay(1, 2).get(timeout=60)
said["chain"] = chain(tasks.add.s(1, 2), tasks.add.s(3)).apply_async().get(timeout=60)
saved = group(tasks.add.s(number, number) for number in range(4)).apply_async()
saved.save()
said["group"] = app.GroupResult.restore(saved.id).get(timeout=60)
saved.forget()
said["chord"] = chord([tasks.add.s(number, number) for number in range(4)], tasks.total.s()).apply_async().get(timeout=60)
said["chunks"] = tasks.add.chunks([(1, 2), (3, 4)], 1).apply_async().get(timeout=60)
tasks.add.apply_async((1, 2), countdown=60).revoke()
said["ping"] = bool(app.control.ping(timeout=5, limit=1))
print(json.dumps(said))
mesh.close()
"""
SAID = {
    "bulk": 190, "round-robin": 1, "least-loaded": 1, "random": 1, "later": 2, "parent": 7, "why": True,
    "cancelled": [True, True], "bad": "DeadLettered", "looked": [True] * 4, "async": 9, "call": 3, "chain": 6,
    "group": [0, 2, 4, 6], "chord": 12, "chunks": [[3], [7]], "ping": True,
}  # fmt: skip
COMMANDS = (
    "status", "doctor", "discover", "task list", "task get {task}", "task why {task}", "queue list", "type list",
    "agent describe {agent}", "agent cordon {agent}", "agent uncordon {agent}", "dead-letter list",
    "dead-letter replay --all --yes", "dead-letter discard --all --yes", "restore --file agents.json --dry-run",
    "restore --file agents.json --yes", "execute --task-type echo --payload 1 --wait",
)  # fmt: skip


@pytest.fixture(
    params=[
        pytest.param((None, ("prefork", "solo")), id="embedded"),
        pytest.param(("redis-server", ("prefork", "threads", "solo", "gevent")), id="debian", marks=pytest.mark.ci),
    ]
)  # fmt: skip
def mesh_of_roles(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[Guarded, Place, tuple[str, ...]]]:
    name, pools = request.param
    if name and shutil.which(name) is None:
        pytest.skip(f"no {name} on PATH")
    guarded = Guarded(tmp_path / "redis", NAMESPACE, binary=Path(shutil.which(name) or "") if name else None)
    with make_place(guarded.url("admin"), NAMESPACE, tmp_path) as place:
        (tmp_path / "tasks.py").write_text(TASKS)
        (tmp_path / "producer.py").write_text(PRODUCER)
        yield guarded, place, pools
    guarded.stop()


@pytest.mark.ci
@pytest.mark.timeout(300)
def test_every_role_works_under_its_own_user(
    mesh_of_roles: tuple[Guarded, Place, tuple[str, ...]],
) -> None:
    guarded, place, pools = mesh_of_roles
    fast = {"MESH_LEASE_MS": "2500", "MESH_LEASE_RENEW_MS": "800", "MESH_RETRY_DELAY_MS": "50"}

    def of(role: str) -> dict[str, str]:
        return {**fast, "REDIS_URL": guarded.url(role)}

    port = free_port()
    flower = Dashboard(
        port=port,
        process=place.start("flower", "--port", str(port), **of("flower"), FLOWER_UNAUTHENTICATED_API="1"),
    )
    coordinator = place.start("coordinator", "--port", str(free_port()), **of("coordinator"))
    words = ("-I", "tasks", "--capabilities", "echo,parent,bad,add,total,celery", "--concurrency", "2")
    agents = {
        f"a-{pool}": place.start("deploy", "--agent-id", f"a-{pool}", "--pool", pool, *words, **of("agent"))
        for pool in pools
    }
    for name, process in agents.items():
        place.wait_for(process, lambda name=name: place.pid_of(name), f"agent {name} to join")

    done = place.run(
        "producer.py", command=[sys.executable], REDIS_URL=guarded.url("producer"), timeout_s=4 * START_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout) == SAID

    place.wait_for(flower.process, flower.answers, "Flower to answer")
    wait_until(lambda: set(flower.agents()) == set(agents), START_S, "Flower to show the agents")
    assert flower.queues()["echo"]["consumers"] == len(pools)

    task = place.mesh.store.tasks.recent(1)[0].id
    rows = place.call("discover", "--format", "json", REDIS_URL=guarded.url("coordinator"))
    (place.folder / "agents.json").write_text(rows.stdout)
    for command in COMMANDS:
        spoken = command.format(task=task, agent=f"a-{pools[-1]}").split()
        said = place.call(*spoken, REDIS_URL=guarded.url("coordinator"))
        assert said.returncode in (0, 1), f"{command}: {said.stdout}{said.stderr}"

    agents.pop(f"a-{pools[0]}").kill()  # what dies is reaped by the others
    wait_until(lambda: place.mesh.store.agents.consumers("echo") == len(agents), START_S, "it to be missed")
    for process in (*agents.values(), coordinator):
        process.terminate()
        assert process.wait(2 * START_S) == 0, process.output()
    assert guarded.denied() == []
