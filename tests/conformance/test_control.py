"""Remote control and task events: what Celery's command line and Flower rely on."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.conformance.app import DEFAULT_QUEUE, SECOND_QUEUE
from tests.conformance.cluster import CONCURRENCY, Cluster
from tests.conformance.ledger import open_gate
from tests.conformance.tasks import add, describe, double, fail, gated, note, reject, retry_until

pytestmark = pytest.mark.calm_only(reason="asks given agents for what they know")

REPLY_S = 10
SOLO_IS_BUSY = "Celery's solo pool answers no remote control while its task runs"


def nodenames(cluster: Cluster) -> set[str]:
    return {agent.nodename for agent in cluster.agents}


def ask(cluster: Cluster, command: str, *, nodes: set[str] | None = None, **arguments: Any) -> dict[str, Any]:
    """The answers of all agents (or of `nodes`) to a remote control command, by node name."""
    wanted = nodes or nodenames(cluster)
    replies = cluster.app.control.broadcast(
        command,
        arguments=arguments,
        destination=sorted(wanted),
        reply=True,
        timeout=REPLY_S,
        limit=len(wanted),
    )
    answers = {name: answer for reply in replies for name, answer in reply.items()}
    assert set(answers) == wanted
    return answers


def consumed_queues(cluster: Cluster) -> dict[str, set[str]]:
    answers = ask(cluster, "active_queues")
    return {name: {queue["name"] for queue in queues} for name, queues in answers.items()}


def count_consumers(cluster: Cluster, queue: str) -> int:
    return sum(queue in queues for queues in consumed_queues(cluster).values())


# --- inspect ------------------------------------------------------------------------------------


def test_ping(cluster: Cluster) -> None:
    replies = cluster.app.control.ping(timeout=REPLY_S, destination=sorted(nodenames(cluster)), limit=2)
    assert {name: answer for reply in replies for name, answer in reply.items()} == {
        name: {"ok": "pong"} for name in nodenames(cluster)
    }


def test_ping_of_everyone(cluster: Cluster) -> None:
    """Nobody else answers, no other pool's agents and no dead ones."""
    replies = cluster.app.control.ping(timeout=1)
    assert {name for reply in replies for name in reply} == nodenames(cluster)


def test_registered(cluster: Cluster) -> None:
    for names in ask(cluster, "registered").values():
        assert add.name in names


def test_active_queues(cluster: Cluster) -> None:
    for queues in consumed_queues(cluster).values():
        assert {DEFAULT_QUEUE, SECOND_QUEUE} <= queues


def test_stats(cluster: Cluster) -> None:
    for _ in range(3):
        cluster.get(add.delay(1, 1))
    answers = ask(cluster, "stats")
    pids = {agent.nodename: agent.process.pid for agent in cluster.agents}
    assert {name: answer["pid"] for name, answer in answers.items()} == pids
    assert sum(answer["total"].get(add.name, 0) for answer in answers.values()) >= 3
    for answer in answers.values():
        assert answer["uptime"] >= 0 and answer["clock"]
        assert answer["pool"]["max-concurrency"] == CONCURRENCY[cluster.pool]


def test_inspect_object(cluster: Cluster) -> None:
    """The same by `app.control.inspect()`, as the command line does it."""
    inspect = cluster.app.control.inspect(sorted(nodenames(cluster)), timeout=REPLY_S, limit=2)
    assert set(inspect.ping()) == nodenames(cluster)
    assert set(inspect.stats()) == nodenames(cluster)
    assert set(inspect.report()) == nodenames(cluster)
    assert set(inspect.conf()) == nodenames(cluster)
    assert inspect.clock() is not None


@pytest.mark.pools("prefork", "threads", "gevent", reason=SOLO_IS_BUSY)
def test_active(cluster: Cluster) -> None:
    key = cluster.new_key()
    result = gated.delay(key, "done")
    (entry, *_) = cluster.wait_for_notes(key)
    active = [(name, task) for name, tasks in ask(cluster, "active").items() for task in tasks]
    ((name, task),) = [pair for pair in active if pair[1]["id"] == result.id]
    assert name == entry["hostname"]
    assert task["name"] == gated.name and task["args"] == [key, "done"]
    queried = ask(cluster, "query_task", ids=[result.id])
    assert queried[name][result.id][0] == "active"
    open_gate(key)
    assert cluster.get(result) == "done"


def test_revoked_list(cluster: Cluster) -> None:
    result = note.apply_async(("never", cluster.new_key()), countdown=1)
    cluster.app.control.revoke(result.id, reply=True, timeout=REPLY_S, limit=2)
    for ids in ask(cluster, "revoked").values():
        assert result.id in ids


# --- control ------------------------------------------------------------------------------------


def test_consumers(cluster: Cluster) -> None:
    queue = f"added-{cluster.new_key()}"
    result = describe.apply_async(queue=queue)
    ask(cluster, "add_consumer", queue=queue)
    cluster.wait_until(lambda: count_consumers(cluster, queue) == 2, "both agents to consume the queue")
    assert cluster.get(result)["routing_key"] == queue
    ask(cluster, "cancel_consumer", queue=queue)
    cluster.wait_until(lambda: count_consumers(cluster, queue) == 0, "both agents to leave the queue")
    after = add.apply_async((1, 2), queue=queue)
    cluster.settle()
    assert not after.ready()
    ask(cluster, "add_consumer", queue=queue)
    assert cluster.get(after) == 3
    ask(cluster, "cancel_consumer", queue=queue)


@pytest.mark.pools("prefork", reason="the sizes of the other pools are fixed, or change without processes")
def test_pool_grows_and_shrinks(cluster: Cluster) -> None:
    name = min(nodenames(cluster))

    def processes() -> int:
        return len(ask(cluster, "stats", nodes={name})[name]["pool"]["processes"])

    before = processes()
    ask(cluster, "pool_grow", nodes={name}, n=1)
    cluster.wait_until(lambda: processes() == before + 1, "the pool to grow")
    cluster.settle()
    ask(cluster, "pool_shrink", nodes={name}, n=1)
    cluster.wait_until(lambda: processes() == before, "the pool to shrink")
    cluster.settle()


def test_rate_limit_by_remote_control(cluster: Cluster) -> None:
    for answer in ask(cluster, "rate_limit", task_name=double.name, rate_limit="100/s").values():
        assert "ok" in answer
    assert [cluster.get(double.delay(number)) for number in range(5)] == [0, 2, 4, 6, 8]
    ask(cluster, "rate_limit", task_name=double.name, rate_limit="0")


def test_unknown_command(cluster: Cluster) -> None:
    cluster.app.control.broadcast("make_coffee")
    assert set(ask(cluster, "ping")) == nodenames(cluster)


def test_shutdown(cluster: Cluster) -> None:
    with cluster.extra_agent(queues=f"own-{cluster.new_key()}") as agent:
        cluster.wait_until_answering(agent)
        cluster.app.control.shutdown(destination=[agent.nodename])
        cluster.wait_until(lambda: agent.process.poll() is not None, "the agent to end")
    assert set(ask(cluster, "ping")) == nodenames(cluster)


# --- events -------------------------------------------------------------------------------------


class Listener:
    """Collects task events by task id."""

    def __init__(self) -> None:
        self.events: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.workers: set[str] = set()

    def take(self, event: dict[str, Any]) -> None:
        if event["type"].startswith("task-"):
            self.events[event["uuid"]].append(event)
        elif event["type"] in ("worker-online", "worker-heartbeat"):
            self.workers.add(event["hostname"])

    def types(self, task_id: str) -> set[str]:
        return {event["type"] for event in self.events.get(task_id, ())}

    def one(self, task_id: str, kind: str) -> dict[str, Any]:
        (event,) = [event for event in self.events[task_id] if event["type"] == kind]
        return event


@contextmanager
def listening(cluster: Cluster) -> Iterator[Listener]:
    """Receive events in a thread, until the block ends."""
    listener, stop = Listener(), threading.Event()

    def receive() -> None:
        with cluster.app.connection_for_read() as connection:
            receiver = cluster.app.events.Receiver(connection, handlers={"*": listener.take})
            for _ in receiver.itercapture(limit=None, timeout=None, wakeup=True):
                if stop.is_set():
                    return

    thread = threading.Thread(target=receive, name="receiver", daemon=True)
    thread.start()
    try:
        hear_agents(cluster, listener)
        yield listener
    finally:
        stop.set()
        add.delay(0, 0)  # one more event, for the receiver to notice
        thread.join(timeout=10)
    assert not thread.is_alive()


def hear_agents(cluster: Cluster, listener: Listener) -> None:
    """Return when events arrive: what is sent before the receiver has subscribed is heard by nobody."""

    def heard() -> bool:
        cluster.get(add.delay(1, 1))
        return bool(listener.events)

    cluster.wait_until(heard, "the first event")


def test_events_of_a_success(cluster: Cluster) -> None:
    with listening(cluster) as listener:
        result = add.delay(2, 3)
        kinds = {"task-sent", "task-received", "task-started", "task-succeeded"}
        cluster.wait_until(lambda: kinds <= listener.types(result.id), "the events of a success")
        sent, received = listener.one(result.id, "task-sent"), listener.one(result.id, "task-received")
        assert sent["name"] == received["name"] == add.name
        assert sent["queue"] == DEFAULT_QUEUE and sent["routing_key"] == DEFAULT_QUEUE
        assert received["hostname"] in nodenames(cluster)
        assert listener.one(result.id, "task-started")["pid"] > 0
        succeeded = listener.one(result.id, "task-succeeded")
        assert succeeded["result"] == "5" and succeeded["runtime"] >= 0


def test_events_of_a_failure(cluster: Cluster) -> None:
    with listening(cluster) as listener:
        result = fail.delay("seen")
        cluster.wait_until(lambda: "task-failed" in listener.types(result.id), "the event of a failure")
        event = listener.one(result.id, "task-failed")
        assert "seen" in event["exception"] and "Traceback" in event["traceback"]
        assert "task-succeeded" not in listener.types(result.id)


def test_events_of_a_retry(cluster: Cluster) -> None:
    with listening(cluster) as listener:
        result = retry_until.delay(cluster.new_key(), 1)
        kinds = {"task-retried", "task-succeeded"}
        cluster.wait_until(lambda: kinds <= listener.types(result.id), "the events of a retry")


def test_events_of_a_rejection(cluster: Cluster) -> None:
    with listening(cluster) as listener:
        rejected = reject.delay(cluster.new_key(), requeue=False)
        cluster.wait_until(lambda: "task-rejected" in listener.types(rejected.id), "the event of a rejection")


def test_events_of_a_revoked_task(cluster: Cluster) -> None:
    with listening(cluster) as listener:
        revoked = note.apply_async(("never", cluster.new_key()), countdown=1)
        revoked.revoke()
        cluster.wait_until(
            lambda: "task-revoked" in listener.types(revoked.id), "the event of a revoked task"
        )


@pytest.mark.pools(
    "prefork", "gevent", reason="Celery's threads and solo pools cannot terminate a running task"
)
def test_events_of_a_terminated_task(cluster: Cluster) -> None:
    with listening(cluster) as listener:
        key = cluster.new_key()
        terminated = gated.delay(key)
        cluster.wait_for_notes(key)
        terminated.revoke(terminate=True)
        kind = "task-revoked"
        cluster.wait_until(lambda: kind in listener.types(terminated.id), "the event of a terminated task")
        open_gate(key)


def test_events_show_the_agents(cluster: Cluster) -> None:
    with listening(cluster) as listener:
        for agent in cluster.agents:
            cluster.app.control.heartbeat(destination=[agent.nodename])
        cluster.wait_until(lambda: nodenames(cluster) <= listener.workers, "each agent's heartbeat")
