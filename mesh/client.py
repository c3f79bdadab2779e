"""`Mesh`: what Python users hold.

```python
mesh = Mesh()
handle = mesh.submit("data-processing", {"data": "example"})
handle.result(timeout_s=30)
```
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from mesh.core.states import TERMINAL
from mesh.errors import Invalid, MeshError, NotFound, ResultTimeout, StoreUnavailable, Unsatisfiable
from mesh.services import agents as agent_services
from mesh.services import tasks as task_services
from mesh.services.agents import AgentInfo
from mesh.services.tasks import Options
from mesh.settings import Settings
from mesh.store.client import NETWORK_ERRORS, subscription
from mesh.store.store import Store
from mesh.store.tasks import Record

__all__ = ["Handle", "Mesh"]
_OFFERED_FOR_S = 5.0  # how long an answer to "can anybody do this?" is believed
_RECHECK_S = 5.0  # a waiter looks by itself so often: a push can be lost with its connection


class Mesh:
    """A namespace of the mesh, straight on Redis. Safe for threads.

    Settings come from the environment and the configuration file; `namespace` and `redis_url` override them.
    """

    def __init__(
        self, *, namespace: str | None = None, redis_url: str | None = None, settings: Settings | None = None
    ) -> None:
        settings = settings or Settings.load()
        changes: dict[str, Any] = {"namespace": namespace, "redis_url": redis_url}
        self.settings = dataclasses.replace(settings, **{k: v for k, v in changes.items() if v is not None})
        self.store = Store(self.settings)
        self._listener: Listener | None = None
        self._lock = threading.Lock()
        self._met: dict[str, float] = {}

    # -- submitting

    def submit(
        self,
        task_type: str,
        payload: Any = None,
        *,
        requires: Sequence[str] = (),
        priority: int = 4,
        countdown_s: float | None = None,
        expires_s: float | None = None,
        timeout_s: float | None = None,
        task_id: str | None = None,
        ignore_result: bool = False,
        labels: Mapping[str, str] | None = None,
        unsatisfiable: str = "warn",
    ) -> Handle:
        """Submit one task.

        `payload`: anything that JSON can say (None: the task takes no argument). `task_id` makes it idempotent.
        `unsatisfiable`: what if no agent can take it now: "warn" (it waits), "accept" (silently), "reject".
        Raises `Invalid`, `Conflict`, `Unsatisfiable`, `StoreUnavailable`; then nothing was submitted, or, if Redis
        went away in the middle, submitting again with the same `task_id` is safe.
        """
        options = (
            task_services.DEFAULTS
            if not (
                requires
                or countdown_s
                or expires_s is not None
                or timeout_s is not None
                or ignore_result
                or labels
            )
            and priority == 4
            else Options(
                requires=tuple(requires),
                priority=priority,
                countdown_s=countdown_s,
                expires_s=expires_s,
                timeout_s=timeout_s,
                ignore_result=ignore_result,
                labels=labels or {},
            )
        )
        self._check_offered(task_type, options, unsatisfiable)
        return Handle(self, task_services.submit(self.store, task_type, payload, options, task_id))

    def submit_many(self, task_type: str, payloads: Iterable[Any], **options: Any) -> list[Handle]:
        """Submit many tasks of one type; the options of `submit` except `task_id`."""
        unsatisfiable = options.pop("unsatisfiable", "warn")
        if "requires" in options:
            options["requires"] = tuple(options["requires"])
        try:
            chosen = Options(**options)
        except TypeError as error:
            raise Invalid(f"submit_many: {error}") from error
        self._check_offered(task_type, chosen, unsatisfiable)
        return [
            Handle(self, one) for one in task_services.submit_many(self.store, task_type, payloads, chosen)
        ]

    def _check_offered(self, task_type: str, options: Options, unsatisfiable: str) -> None:
        if unsatisfiable == "accept":
            return
        if unsatisfiable not in ("warn", "reject"):
            raise Invalid(f"unsatisfiable={unsatisfiable!r} is not one of warn, accept, reject.")
        requirement = task_services.requirement_of(task_type, options.requires)
        now = time.monotonic()
        if self._met.get(requirement, 0.0) > now:
            return
        sentence = agent_services.unmet(self.store, requirement)
        if sentence is not None and unsatisfiable == "reject":
            raise Unsatisfiable(sentence.replace(": the task waits until one does.", "."))
        if len(self._met) > 10_000:
            self._met.clear()
        self._met[requirement] = now + _OFFERED_FOR_S
        if sentence is not None:
            warnings.warn(sentence, UserWarning, stacklevel=3)

    # -- looking

    def handle(self, task_id: str) -> Handle:
        """The handle of a task that somebody has submitted."""
        return Handle(self, task_services.check_task_id(task_id))

    def as_completed(self, handles: Iterable[Handle], timeout_s: float | None = None) -> Iterator[Handle]:
        """The handles as their tasks end, each once. Raises `ResultTimeout`."""
        waiting = {handle.id: handle for handle in handles}
        ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        listener = self._listen()
        limit = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            for handle in waiting.values():
                listener.watch(handle.id, handle._take, ended.put)
            while waiting:
                left = None if limit is None else limit - time.monotonic()
                try:
                    task_id = ended.get(timeout=None if left is None else max(0.0, left))
                except queue.Empty:
                    raise ResultTimeout(
                        f"{len(waiting)} tasks have not ended within {timeout_s} s."
                    ) from None
                handle = waiting.pop(task_id)
                yield handle
        finally:
            for task_id in waiting:
                listener.forget(task_id)

    def agents(
        self, *, capability: str | None = None, status: str | None = None, region: str | None = None
    ) -> list[AgentInfo]:
        """The agents of the namespace."""
        return agent_services.discover(self.store, capability=capability, status=status, region=region)

    def queues(self) -> dict[str, dict[str, int]]:
        """Queue -> state -> tasks: now in it for live states, ever ended in it for terminal ones."""
        return self.store.tasks.counts()

    def dead_letters(self, limit: int = 100) -> list[Record]:
        """Tasks that were put aside, newest first."""
        return self.store.tasks.dead_letters(limit)

    def close(self) -> None:
        """Stop listening and close the connections."""
        with self._lock:
            listener, self._listener = self._listener, None
        if listener is not None:
            listener.stop()
        self.store.close()

    def __enter__(self) -> Mesh:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _listen(self) -> Listener:
        with self._lock:
            if self._listener is None or not self._listener.alive:
                self._listener = Listener(self.store)
            return self._listener


class Handle:
    """One task: its state, its result."""

    __slots__ = ("_document", "_mesh", "id")

    def __init__(self, mesh: Mesh, task_id: str) -> None:
        self._mesh = mesh
        self.id = task_id
        self._document: bytes | None = None

    def __repr__(self) -> str:
        return f"<Handle {self.id}>"

    def status(self) -> str:
        """The state of the task, see `mesh.core.states.State`. Raises `NotFound`."""
        return str(self.record().state)

    def record(self) -> Record:
        """All that is recorded of it. Raises `NotFound`."""
        return task_services.get(self._mesh.store, self.id)

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait for the end; what the task returned. It is pushed, not polled.

        Raises `TaskFailed` (or `TimedOut`, `Cancelled`, `DeadLettered`), `ResultTimeout`, `NotFound`,
        `StoreUnavailable`.
        """
        store = self._mesh.store
        if self._document is None:
            listener = self._mesh._listen()
            ended = threading.Event()
            listener.watch(self.id, self._take, lambda _: ended.set())
            try:
                if not ended.wait(timeout_s):
                    raise ResultTimeout(
                        f"Task {self.id} has not ended within {timeout_s} s; it is {self.status()}."
                    )
            finally:
                listener.forget(self.id)
        over, value = task_services.outcome(store, self.id, self._document or None)
        if not over:
            raise NotFound(f"Task {self.id} started a new run while its end was being read: ask again.")
        return value

    def progress(self) -> dict[str, Any] | None:
        """What the task last told of its progress: {fraction, note}, or None."""
        _, _, document = self._mesh.store.tasks.outcome(self.id)
        meta = task_services.decode_document(document) if document else {}
        value = meta.get("result") if meta.get("status") == "PROGRESS" else None
        return value if isinstance(value, dict) else None

    def cancel(self, reason: str = "cancelled") -> bool:
        """Cancel it, wherever it is; False if it had ended before. Raises `NotFound`."""
        return task_services.cancel(self._mesh.store, self.id, reason)

    def _take(self, document: bytes | None) -> None:
        self._document = document


class Listener:
    """One connection on which all ends that this process waits for are pushed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._channels = store.keys.of("result", "")
        self._waiting: dict[str, tuple[Callable[[bytes | None], None], Callable[[str], None]]] = {}
        self._to_check: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._pubsub = subscription(store.client)
        self._lock = threading.Lock()
        self._stopping = False
        self._rechecked = time.monotonic()
        try:
            self._pubsub.subscribe(self._channels)  # keeps the subscription alive while nobody waits
        except NETWORK_ERRORS as error:
            raise StoreUnavailable(f"Redis cannot be reached: {error}") from error
        self._thread = threading.Thread(target=self._run, daemon=True, name="mesh-listener")
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread runs (not after a fork)."""
        return self._thread.is_alive()

    def watch(self, task_id: str, take: Callable[[bytes | None], None], tell: Callable[[str], None]) -> None:
        """Call `take(document)` and then `tell(id)` once the task has ended, also if that was before."""
        with self._lock:
            self._waiting[task_id] = (take, tell)
            try:
                self._pubsub.subscribe(
                    self._channels + task_id
                )  # its confirmation makes the thread look once
            except NETWORK_ERRORS:
                self._rechecked = 0.0

    def forget(self, task_id: str) -> None:
        """Nobody waits any more."""
        with self._lock:
            if self._waiting.pop(task_id, None) is None:
                return
            self._unsubscribe(task_id)

    def stop(self) -> None:
        """End the thread."""
        self._stopping = True
        self._thread.join(2.0)
        self._pubsub.close()

    def _unsubscribe(self, task_id: str) -> None:
        try:
            self._pubsub.unsubscribe(self._channels + task_id)
        except NETWORK_ERRORS:
            self._rechecked = 0.0

    def _run(self) -> None:
        while not self._stopping:
            try:
                message = self._pubsub.get_message(timeout=0.5)
                if message is not None:
                    self._heard(message)
                elif self._waiting and time.monotonic() - self._rechecked > _RECHECK_S:
                    self._check_all()
            except (MeshError, *NETWORK_ERRORS):
                # redis-py subscribes again when it reconnects; what was pushed meanwhile is found by looking.
                self._rechecked = 0.0
                time.sleep(0.2)

    def _heard(self, message: dict[str, Any]) -> None:
        task_id = message["channel"].decode()[len(self._channels) :]
        if message["type"] == "subscribe" and task_id:
            self._check(task_id)
        elif message["type"] == "message":
            document = message["data"]
            if not document.startswith(b'{"status":"PROGRESS"') and self._is_end(task_id, document):
                self._end(task_id, document)

    def _is_end(self, task_id: str, document: bytes) -> bool:
        return task_services.decode_document(document).get("status") in ("SUCCESS", "FAILURE", "REVOKED")

    def _check(self, task_id: str) -> None:
        if task_id not in self._waiting:
            return
        state, _, document = self._store.tasks.outcome(task_id)
        if state is None and document is None:
            self._end(task_id, b"")
        elif state in TERMINAL:
            self._end(task_id, document or b"")

    def _check_all(self) -> None:
        for task_id in list(self._waiting):
            self._check(task_id)
        self._rechecked = time.monotonic()

    def _end(self, task_id: str, document: bytes) -> None:
        with self._lock:
            waiter = self._waiting.pop(task_id, None)
            if waiter is None:
                return
            self._unsubscribe(task_id)
        take, tell = waiter
        take(document)
        tell(task_id)
