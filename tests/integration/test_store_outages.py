"""What a caller sees when the network takes the request, or its reply: a call succeeds once, or fails cleanly; again is safe."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from mesh.errors import StoreUnavailable
from mesh.services import tasks
from mesh.store.store import Store
from mesh.verify.proxy import Proxy
from tests.integration.stores import fetch, open_store
from tests.waiting import wait_until

TYPE = "work"


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    parts = urlsplit(redis_url)
    assert parts.hostname and parts.port
    with Proxy(parts.hostname, parts.port) as made:
        yield made


@pytest.fixture
def far(proxy: Proxy, redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The namespace through the proxy; it waits 2 s for a reply. It has a connection, and no need to look the type up again."""
    monkeypatch.setattr("mesh.services.types._UNKNOWN_S", 3600.0)
    store = open_store(proxy.url(redis_url), namespace, redis_socket_timeout_ms=2000)
    tasks.submit(store, TYPE, "the first")
    yield store
    store.close()


def queued(store: Store) -> int:
    return store.tasks.counts()[TYPE]["queued"]


def test_a_lost_reply_is_asked_for_again_by_the_same_words(far: Store, proxy: Proxy, store: Store) -> None:
    """Also without an id of the caller's: the id is made before the first try, and goes along with each."""
    ids: list[str] = []
    proxy.drop("replies")
    caller = threading.Thread(target=lambda: ids.append(tasks.submit(far, TYPE, "written, and not told")))
    caller.start()
    wait_until(lambda: queued(store) == 2, 10, "the task to be written")
    proxy.heal()  # resets what has lost bytes: the caller finds out, and asks again on another connection
    caller.join(10)
    assert len(ids) == 1
    assert queued(store) == 2
    assert len(fetch(store, TYPE, limit=9)) == 2


def test_a_submission_that_failed_may_be_repeated_with_its_id(far: Store, proxy: Proxy, store: Store) -> None:
    """No reply to any try: the caller is told that nothing is known, though the task is there."""
    proxy.drop("replies")
    with pytest.raises(StoreUnavailable):
        tasks.submit(far, TYPE, "written, and not told", task_id="invoice-77")
    assert queued(store) == 2
    proxy.heal()
    assert tasks.submit(far, TYPE, "written, and not told", task_id="invoice-77") == "invoice-77"
    assert queued(store) == 2


def test_one_dead_connection_condemns_all_that_lie_idle(far: Store, proxy: Proxy) -> None:
    """Each would cost a time-out of its own: here 8 would need 16 s."""
    callers = [threading.Thread(target=far.client.execute, args=("BLPOP", "nothing", 1)) for _ in range(8)]
    for one in callers:
        one.start()
    for one in callers:
        one.join(10)
    assert proxy.connections >= 8
    proxy.strand()
    done = threading.Event()
    caller = threading.Thread(target=lambda: (far.client.execute("PING"), done.set()), daemon=True)
    caller.start()
    assert done.wait(7)


def test_requests_that_do_not_arrive_change_nothing(far: Store, proxy: Proxy, store: Store) -> None:
    proxy.drop("requests")
    with pytest.raises(StoreUnavailable):
        tasks.submit(far, TYPE, "not written", task_id="invoice-78")
    assert queued(store) == 1
    proxy.heal()
    tasks.submit(far, TYPE, "not written", task_id="invoice-78")
    assert queued(store) == 2
