"""A store on the tests' server, and short words for what producers and holders do to it."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from mesh.core.states import State
from mesh.settings import Settings
from mesh.store.scripts import Script
from mesh.store.store import Store
from mesh.store.tasks import Entry, Fetched, Publication, Record, Settlement, Template
from tests.conftest import SECRET

LONG_AGO_MS = 1  # a time that has passed, by any clock
MINUTE_MS = 60_000
_numbers = itertools.count(1)


def open_store(redis_url: str, namespace: str, **settings: Any) -> Store:
    """A store with the default settings but for these."""
    given = {"redis_url": redis_url, "namespace": namespace, "jwt_secret": SECRET, **settings}
    return Store(dataclasses.replace(Settings(), **given))


def without_fences(store: Store) -> Store:
    """The same store with scripts that forget to compare fences: what is tested with it must go wrong."""
    for part in (store.tasks, store.agents):
        part.bound = {
            name: Script(bound.script.function, fenced=False).bind(store.client, store.keys)
            for name, bound in part.bound.items()
        }
    return store


def tick(store: Store) -> tuple[int, int, int, list[str], int, int]:
    """One turn of the leader's loop over time, by a leader."""
    return store.tasks.tick(store.agents.lead("leads", MINUTE_MS).fence)


def publication(
    task_id: str, queue: str = "work", *, message: bytes = b"message of t", token: str = "", **more: Any
) -> Publication:
    """One packed publication; `more` as `Template` takes it."""
    return Template(queue=queue, **{"type": "t", **more}).publication(task_id, message, token)


def publish(store: Store, task_id: str, queue: str = "work", **more: Any) -> str:
    """Publish one task; the script's word for it."""
    return store.tasks.submit([publication(task_id, queue, **more)])[0]


def fetch(store: Store, *queues: str, **more: Any) -> list[Fetched]:
    """Fetch as `worker-1`, with a process for each task; one task of queue `work` unless said otherwise."""
    return store.tasks.fetch(
        **{
            "holder": "worker-1#1",
            "isolated": True,
            "nonce": f"n{next(_numbers)}",
            "limit": 1,
            "held": 0,
            "queues": queues or ("work",),
            **more,
        }
    )


def take(store: Store, *queues: str, **more: Any) -> Fetched:
    """Fetch exactly one task."""
    (one,) = fetch(store, *queues, **more)
    return one


def entry(one: Fetched) -> Entry:
    """The attempt by name."""
    return Entry(one.id, one.fence)


def begin(store: Store, one: Fetched) -> str:
    """Its pool accepts it."""
    return store.tasks.start([(one.id, one.fence, 0)])[0]


def settle(store: Store, one: Fetched, state: State = State.SUCCEEDED, **more: Any) -> str:
    """The attempt ends, with a result."""
    settlement = Settlement(
        id=one.id, fence=one.fence, state=state, **{"document": b'"done"', "keep": True, **more}
    )
    return store.tasks.settle([settlement])[0][0]


def again(store: Store, one: Fetched, delay_ms: int | str | None = None, **more: Any) -> str:
    """The running attempt publishes its own id again, in queue `work` unless said otherwise."""
    return store.tasks.retry(
        entry(one),
        delay_ms=delay_ms,
        **{
            "queue": "work",
            "task_type": "t",
            "priority": 4,
            "message": b"next message",
            "failed": True,
            **more,
        },
    )


def record(store: Store, task_id: str) -> Record:
    """The record of a task that has one."""
    found = store.tasks.record(task_id)
    assert found is not None
    return found


def calm(store: Store) -> None:
    """As if somebody had just beaten: no grace, what has lost its lease is reaped."""
    store.client.execute("DEL", store.keys["grace"])
    store.client.execute("SET", store.keys["pulse"], store.agents.now_ms())


def lose_lease(store: Store, task_id: str) -> None:
    """As if its holder had been silent for too long."""
    assert store.client.execute("ZSCORE", store.keys["leases"], task_id) is not None
    store.client.execute("ZADD", store.keys["leases"], LONG_AGO_MS, task_id)


def fall_due(store: Store, task_id: str) -> None:
    """As if its time had come."""
    store.client.execute("ZADD", store.keys["scheduled"], "XX", LONG_AGO_MS, task_id)


def lapse(store: Store, task_id: str) -> None:
    """As if its expiry had passed."""
    store.client.execute("HSET", store.keys.of("task", task_id), "expires_at", LONG_AGO_MS)
    store.client.execute("ZADD", store.keys["deadlines"], "XX", LONG_AGO_MS, task_id)


def pass_deadline(store: Store, task_id: str) -> None:
    """As if its total deadline had passed, later than its expiry if that has too."""
    store.client.execute("HSET", store.keys.of("task", task_id), "deadline_at", LONG_AGO_MS + 1)
    expires_at = store.client.execute("HGET", store.keys.of("task", task_id), "expires_at")
    lapsed = expires_at is not None and int(expires_at) == LONG_AGO_MS
    store.client.execute(
        "ZADD", store.keys["deadlines"], "XX", LONG_AGO_MS if lapsed else LONG_AGO_MS + 1, task_id
    )


def lose_holder(store: Store, one: Fetched) -> None:
    """Its holder dies, and somebody takes the task back."""
    lose_lease(store, one.id)
    calm(store)
    store.tasks.reap()


def members(store: Store, key: str) -> list[str]:
    """The members of a sorted set of the namespace, in its order."""
    return [one.decode() for one in store.client.execute("ZRANGE", store.keys[key], 0, -1)]
