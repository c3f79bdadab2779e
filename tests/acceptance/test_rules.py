"""The rules of the transport, each seen to hold on real agents; break one, and its test turns red.

What the store alone decides (fences, who may publish an id again, bells) is tested in `tests/integration`.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.bus import messages
from mesh.core.states import State
from mesh.errors import DeadLettered, TaskFailed
from mesh.services.tasks import new_id
from mesh.store.signing import body_sealer, sealer
from mesh.store.tasks import Record, Template
from tests.chaos.fleet import Fleet
from tests.waiting import wait_until

QUEUES = "celery,mesh-fails,mesh-refuses,far"


@pytest.fixture(scope="module")
def fleet(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("rules")
    running = Fleet(redis_url, f"rules-{new_id()[:8]}", folder)
    running.start("solid", pool="prefork", concurrency=2, capabilities=QUEUES, app="tests.chaos.rules_app")
    try:
        running.ready("solid")
        yield running
    finally:
        running.close()


def publish(
    fleet: Fleet, name: str, args: str = "[]", *, headers: dict[str, object] | None = None, **more: object
) -> str:
    """Publish a Celery task as a message of our own making."""
    body = f'[{args},{{}},{{"callbacks":null,"errbacks":null,"chain":null,"chord":null}}]'
    task_id = new_id()
    message = messages.encode(name, body.encode(), headers=headers)
    template = Template(queue=str(more.pop("queue", "celery")), type=name, **more)  # type: ignore[arg-type]
    sealed = sealer(fleet.mesh.store, template.queue)(task_id, message)
    fleet.mesh.store.tasks.submit([template.publication(task_id, sealed)])
    return task_id


def ended(fleet: Fleet, task_id: str, timeout_s: float = 20) -> Record:
    """The record, once the task has ended."""
    store = fleet.mesh.store

    def over() -> bool:
        record = store.tasks.record(task_id)
        return record is not None and record.ended_already

    wait_until(over, timeout_s, f"task {task_id} to end: {store.tasks.record(task_id)} {fleet.tails()}")
    record = store.tasks.record(task_id)
    assert record is not None
    return record


def test_rule_1_long_tasks_are_not_hoarded(fleet: Fleet, tmp_path: Path) -> None:
    """An agent that has run quick tasks takes many ahead; of long ones it gives back what it does not start in 5 s."""
    for one in [publish(fleet, "quick", headers={"ignore_result": True}) for _ in range(150)]:
        ended(fleet, one)
    gate = tmp_path / "gate"
    held = [publish(fleet, "hold", f'["{gate}"]') for _ in range(8)]
    records = fleet.mesh.store.tasks.records

    def states() -> list[str]:
        return sorted(str(record.state) for record in records(held) if record)

    try:
        wait_until(lambda: states().count("running") == 2, 15, f"two of them to run: {states()}")
        wait_until(
            lambda: states() == ["queued"] * 6 + ["running"] * 2,
            15,
            f"the others to be given back: {states()}",
        )
        assert all(record is not None and record.crashes == 0 for record in records(held))
    finally:
        gate.touch()
    for one in held:
        assert ended(fleet, one, 40).state is State.SUCCEEDED


def test_rule_3_an_acknowledgement_alone_says_little(fleet: Fleet) -> None:
    """A failure whose result nobody wants is acknowledged too, and is no success; Ignore ends without a result."""
    failed = ended(fleet, publish(fleet, "fail-ignored", headers={"ignore_result": True}))
    assert failed.state is State.FAILED
    assert ended(fleet, publish(fleet, "skip")).state is State.SUCCEEDED


def test_rule_3_a_lost_pool_process_is_a_crash(fleet: Fleet) -> None:
    """Three crashes put a task aside as poison, while its neighbours go on."""
    poison = publish(fleet, "exit")
    neighbours = [publish(fleet, "same", f"[{number}]") for number in range(20)]
    record = ended(fleet, poison, 30)
    assert (record.state, record.crashes, record.failures, record.reason) == (
        State.DEAD_LETTERED,
        3,
        0,
        "poison",
    )
    with pytest.raises(DeadLettered, match="pool process"):
        fleet.mesh.handle(poison).result(timeout_s=5)
    for one in neighbours:
        neighbour = ended(fleet, one)
        assert (neighbour.state, neighbour.crashes) == (State.SUCCEEDED, 0)


def test_rule_4_a_complete_chord_is_finished_by_whoever_beats(fleet: Fleet) -> None:
    """The process that settled the last part died before it could publish the body: any agent's beat does it."""
    from kombu.utils.json import dumps

    from tests.chaos.rules_app import total

    store, group, body_id = fleet.mesh.store, new_id(), new_id()
    body = total.s().set(task_id=body_id)
    store.chords.arm(group, body=body_sealer(store)(group, dumps(body).encode()), size=2)
    for index in range(2):
        document = (
            f'{{"status":"SUCCESS","result":{index + 1},"task_id":"p{index}","children":[],"traceback":null}}'
        )
        store.chords.part(group, str(index), document.encode())
    wait_until(lambda: store.tasks.record(body_id) is not None, 20, "the body to be published")
    assert ended(fleet, body_id).state is State.SUCCEEDED
    assert fleet.mesh.handle(body_id).result(timeout_s=5) == 3


def test_rule_6_a_callback_has_the_same_id_in_each_attempt() -> None:
    """Callbacks without an id get one derived from their parent, so that a parent that runs twice publishes them once."""
    from mesh.bus.amqp import with_ids
    from tests.chaos.rules_app import same

    first, second = (
        with_ids([same.s(), same.s()], "parent", "link"),
        with_ids([same.s(), same.s()], "parent", "link"),
    )
    assert first is not None and second is not None
    ids = [one["options"]["task_id"] for one in first]
    assert ids == [one["options"]["task_id"] for one in second]
    assert (
        len({*ids, *[one["options"]["task_id"] for one in with_ids([same.s()], "other", "link") or []]}) == 3
    )


def test_rule_7_the_workers_clock_decides_nothing(fleet: Fleet) -> None:
    """Redis has decided when a task is due; an agent whose clock differs by hours neither holds it nor lets it expire."""
    now = datetime.datetime.now(datetime.UTC)
    later, before = (
        (now + datetime.timedelta(hours=2)).isoformat(),
        (now - datetime.timedelta(hours=2)).isoformat(),
    )
    task_id = publish(
        fleet, "same", "[7]", headers={"eta": later, "expires": before}, delay_ms=50, expires_ms=60000
    )
    record = ended(fleet, task_id, 15)
    assert record.state is State.SUCCEEDED
    assert record.leased is not None and record.created is not None and record.leased >= record.created + 50


def test_rule_8_a_lost_bell_costs_a_second_at_most(fleet: Fleet) -> None:
    """No token told of the task: the next look finds it."""
    store = fleet.mesh.store
    for _ in range(3):
        task_id = publish(fleet, "same", "[1]")
        store.client.execute("DEL", store.keys.of("bell", "celery"))
        record = ended(fleet, task_id, 15)
        assert record.leased is not None and record.queued is not None
        assert record.leased - record.queued < 3000


def test_rule_9_a_task_knows_its_requirements_queue(fleet: Fleet) -> None:
    """A retry goes back to the queue that the task was published to."""
    record = ended(fleet, publish(fleet, "route", '["k"]', queue="far"))
    assert (record.state, record.queue) == (State.SUCCEEDED, "far")
    assert fleet.mesh.handle(record.id).result(timeout_s=5) == "far"


def test_rule_10_types_of_the_mesh_follow_its_retry_policy(fleet: Fleet) -> None:
    """Retries used up: dead-lettered. Not to be retried: failed. A plain Celery task: failed at once."""
    used_up = ended(fleet, publish(fleet, "mesh-fails", queue="mesh-fails"), 30)
    assert (used_up.state, used_up.failures) == (State.DEAD_LETTERED, 1)
    final = ended(fleet, publish(fleet, "mesh-refuses", queue="mesh-refuses"))
    assert (final.state, final.failures) == (State.FAILED, 0)
    plain = ended(fleet, publish(fleet, "fail-ignored"))
    assert (plain.state, plain.failures) == (State.FAILED, 0)
    with pytest.raises(TaskFailed, match="ValueError: on purpose"):
        fleet.mesh.handle(plain.id).result(timeout_s=5)


def test_rule_5_what_has_ended_survives_a_restart_of_redis(tmp_path: Path) -> None:
    """Redis is away when a task ends: its result is sent again until it is confirmed, and recorded once."""
    from mesh.store.embedded import start_server

    with start_server(tmp_path / "redis") as server:
        fleet = Fleet(server.url, "away", tmp_path)
        try:
            fleet.start("patient", pool="threads", concurrency=2, app="tests.chaos.rules_app")
            fleet.ready("patient")
            gate = tmp_path / "gate"
            held = publish(fleet, "hold", f'["{gate}"]')
            wait_until(lambda: fleet.mesh.handle(held).status() == "running", 15, "the task to run")
            server.kill()
            gate.touch()
            log = tmp_path / "patient.log"
            wait_until(
                lambda: "results wait" in log.read_text() or "succeeded" in log.read_text(),
                20,
                "the task to end",
            )
            server.restart()
            record = ended(fleet, held, 30)
            assert (record.state, record.attempt, record.crashes) == (State.SUCCEEDED, 1, 0)
            assert fleet.mesh.store.tasks.counts()["celery"]["succeeded"] == 1
            # And the agent goes on by itself.
            assert ended(fleet, publish(fleet, "same", "[2]"), 30).state is State.SUCCEEDED
        finally:
            fleet.close()


def test_waiting_is_pushed(fleet: Fleet) -> None:
    """A result reaches its waiter at once, not at the next look."""
    begin = time.monotonic()
    for number in range(10):
        assert fleet.mesh.handle(publish(fleet, "same", f"[{number}]")).result(timeout_s=10) == number
    assert time.monotonic() - begin < 10
