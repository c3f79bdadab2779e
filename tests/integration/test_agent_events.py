"""Celery's events, as agents send them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from mesh.bus.install import install
from mesh.settings import Settings
from mesh.store.embedded import Server, start_server
from mesh.workers.events import send_events


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with start_server(tmp_path / "redis") as server:
        yield server


def test_an_event_never_waits_for_redis(server: Server, namespace: str) -> None:
    """Celery's heartbeat asks for tries without end: an agent's event loop would stand still until Redis is back."""
    app = install(Celery(), Settings(redis_url=server.url, namespace=namespace))
    send_events(app)
    seen: list[dict[str, Any]] = []
    with app.connection_for_write() as link, app.connection_for_read() as listening:
        sender = app.events.Dispatcher(link, hostname="w1")
        sender.send("worker-online", retry=True)
        server.kill()
        sender.send("worker-heartbeat", retry=True)  # returns
        server.start()
        hears = app.events.Receiver(listening, handlers={"worker-heartbeat": seen.append})
        with hears.consumer_context() as (_, channel, _):
            assert channel is not None
            sender.flush()
            for _ in hears.consume(limit=1, timeout=10, wakeup=False):
                break
    assert [event["hostname"] for event in seen] == ["w1"], "and nothing is forgotten"
