"""Gathers what the witness judges: the effects file, what an observer saw, and what is in Redis at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from mesh.bus import documents
from mesh.core.states import State
from mesh.errors import StoreUnavailable
from mesh.services import tasks
from mesh.store.client import NETWORK_ERRORS, subscription
from mesh.store.store import Store
from mesh.store.tasks import Record
from mesh.verify.witness import RECOVERY_S, Effect, Evidence, Fault, Look, Push, Submission

__all__ = ["Observer", "collect", "read_effects", "wait_for_ends"]
_LOOK_S = 0.5
_PAGE = 500
_ENDS = frozenset({"SUCCESS", "FAILURE", "REVOKED"})
_INDEXES = ("leases", "scheduled", "deadlines", "chords_due")


def read_effects(path: Path) -> list[Effect]:
    """The lines of an effects file in the order in which they were written; a last one cut short is left out."""
    whole = path.read_bytes().rpartition(b"\n")[0]
    return [Effect(**msgspec.json.decode(line)) for line in whole.split(b"\n") if line]


class Observer:
    """Notes each end when it is told of it, and looks at the records of all that has not ended yet. A context manager.

    It reaches Redis by itself: hand it a store whose connections no fault touches. Where Redis goes away it misses what is
    told meanwhile, and says nothing wrong. `ended`: ids of which it knows an end.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watched: set[str] = set()
        self._stop = threading.Event()
        self._subscribed = threading.Event()
        self._threads = [
            threading.Thread(target=self._tolerant(work), name=f"observer-{work.__name__}", daemon=True)
            for work in (self._listen, self._look)
        ]
        self.pushes: list[Push] = []
        self.looks: list[Look] = []
        self.ended: set[str] = set()

    @property
    def waiting(self) -> set[str]:
        """Ids that are watched and whose end is not known."""
        return set(self._watched) - self.ended

    def watch(self, task_id: str) -> None:
        """Look at this task from now on."""
        self._watched.add(task_id)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self._subscribed.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _tolerant(self, work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            while not self._stop.is_set():
                try:
                    work()
                except (StoreUnavailable, *NETWORK_ERRORS):
                    self._stop.wait(0.2)

        return run

    def _listen(self) -> None:
        keys = self._store.keys
        listener = subscription(self._store.client)
        try:
            listener.psubscribe(keys.of("result", "*"))
            while not self._stop.is_set():
                message = listener.get_message(timeout=0.2)
                if message is None:
                    continue
                self._subscribed.set()
                if message["type"] == "pmessage":
                    document = documents.decode(message["data"])
                    if document["status"] in _ENDS:
                        task_id = message["channel"].decode().removeprefix(keys.of("result", ""))
                        self.pushes.append(
                            Push(id=task_id, status=document["status"], result=document["result"])
                        )
        finally:
            listener.connection_pool.disconnect()

    def _look(self) -> None:
        last: dict[str, Look] = {}
        while not self._stop.is_set():
            waiting = sorted(self.waiting)
            for first in range(0, len(waiting), _PAGE):
                for record in self._store.tasks.records(waiting[first : first + _PAGE]):
                    if record is None:
                        continue
                    look = Look(id=record.id, state=record.state, run=record.run, attempt=record.attempt)
                    if last.get(record.id) != look:
                        last[record.id] = look
                        self.looks.append(look)
                    if record.ended_already:
                        self.ended.add(record.id)
            self._stop.wait(_LOOK_S)


def wait_for_ends(observer: Observer, ids: Sequence[str], timeout_s: float) -> bool:
    """Wait until all of these have ended, or for `timeout_s`; whether they have."""
    deadline = time.monotonic() + timeout_s
    while not observer.ended.issuperset(ids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _scan(store: Store) -> Iterator[str]:
    """What the namespace has in Redis: its keys without their prefix, each once."""
    cursor, found = b"0", set()
    while True:
        cursor, keys = store.client.execute("SCAN", cursor, "MATCH", f"{store.keys.prefix}*", "COUNT", _PAGE)
        found |= {key.decode().removeprefix(store.keys.prefix) for key in keys}
        if cursor == b"0":
            return iter(sorted(found))


def _members(store: Store, key: str) -> list[str]:
    return [one.decode() for one in store.client.execute("ZRANGE", key, 0, -1)]


def _result(state: State | None, document: bytes | None) -> Any:
    return tasks.decode_document(document)["result"] if document and state is State.SUCCEEDED else None


def collect(
    store: Store,
    ledger: Sequence[Submission],
    effects: Path,
    *,
    observer: Observer | None = None,
    faults: Sequence[Fault] = (),
    surprises: Sequence[str] = (),
    bound_s: float = RECOVERY_S,
) -> Evidence:
    """The evidence about a namespace that nothing else was submitted to. Finds all records and queues by their keys, so that
    one that no index knows is seen too. Raises `StoreUnavailable`."""
    names = list(_scan(store))
    ids = [name.removeprefix("task:") for name in names if name.startswith("task:")]
    queues = [name.removeprefix("queue:") for name in names if name.startswith("queue:")]
    records: dict[str, Record] = {}
    results: dict[str, Any] = {}
    for first in range(0, len(ids), _PAGE):
        page = ids[first : first + _PAGE]
        records |= {one.id: one for one in store.tasks.records(page) if one}
        for task_id, (state, _, document) in zip(page, store.tasks.outcomes(page), strict=True):
            results[task_id] = _result(state, document)
    counters: dict[str, int] = {}
    for states in store.tasks.counts().values():
        for name, number in states.items():
            counters[name] = counters.get(name, 0) + number
    left = {name: _members(store, store.keys[name]) for name in _INDEXES}
    left |= {f"queue {name}": _members(store, store.keys.of("queue", name)) for name in queues}
    return Evidence(
        ledger=ledger,
        effects=read_effects(effects),
        records=records,
        results=results,
        counters=counters,
        left=left,
        pushes=tuple(observer.pushes) if observer else (),
        looks=tuple(observer.looks) if observer else (),
        faults=faults,
        surprises=surprises,
        bound_s=bound_s,
    )
