"""What an agent tells listeners of its tasks: everything, in few messages."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from mesh.bus.install import install
from tests.acceptance.conftest import CELERY, START_S, Place
from tests.waiting import wait_until

TASKS = 400
KINDS = ("task-received", "task-started", "task-succeeded")
BATCH_S = 0.2
WORKER = [*CELERY, "worker", "-E", "--without-gossip", "--without-mingle"]


class Listener:
    """As Celery's own, and it counts the messages."""

    def __init__(self) -> None:
        self.messages, self.events, self.left = 0, list[dict[str, Any]](), False

    def take(self, body: Any, message: Any) -> None:
        told = [one for one in (body if isinstance(body, list) else [body]) if one["type"] in KINDS]
        self.messages += bool(told)
        self.events += told
        self.left = self.left or "worker-offline" in str(body)


@contextmanager
def listening(place: Place) -> Iterator[Listener]:
    listener, stop = Listener(), threading.Event()
    app = install(Celery("listener", set_as_current=False), place.mesh.settings)
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection)
        receiver._receive = listener.take
        with receiver.consumer_context() as (link, _, _):  # subscribed from here on

            def receive() -> None:
                while not stop.is_set():
                    with suppress(TimeoutError):
                        link.drain_events(timeout=0.1)

            thread = threading.Thread(target=receive, name="receiver")
            thread.start()
            try:
                yield listener
            finally:
                stop.set()
                thread.join()


@pytest.mark.ci
@pytest.mark.parametrize("pool", ["threads", "prefork", "gevent", "solo"])
def test_tasks_are_told_whole_in_batches_and_the_last_ones_before_it_leaves(
    place: Place, tmp_path: Path, pool: str
) -> None:
    words = ("--capabilities", "gate", "-I", "tasks", "--pool", pool)
    agent = place.agent("w1", *words, command=WORKER, AGENT_ID="w1")
    counts = place.mesh.store.tasks.counts
    payload = {"started": str(tmp_path / "started"), "fifo": os.devnull}
    with listening(place) as listener:
        sent = [handle.id for handle in place.mesh.submit_many("gate", [payload] * TASKS)]
        wait_until(lambda: counts()["gate"].get("succeeded") == TASKS, START_S, "all tasks")
        agent.terminate()
        assert agent.wait() == 0
        wait_until(lambda: listener.left, START_S, "what was told last")
    for kind in KINDS:
        assert sorted(one["uuid"] for one in listener.events if one["type"] == kind) == sorted(sent)
    assert all(one["attempt"] == 1 for one in listener.events if one["type"] != "task-received")
    times = [one["timestamp"] for one in listener.events]
    assert listener.messages <= (max(times) - min(times)) / BATCH_S + 2
