"""The direct client's waiting: one connection on which all ends that this process waits for are pushed.

A task's end is published on the channel of its result. Whoever waits subscribes on the shared connection; the
confirmation makes the thread look once whether the task had ended before, so nothing falls between. When the connection
is lost the thread makes a new one and subscribes to everything again, which looks again.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from mesh.client.ports import Progress, Tell, Waiting
from mesh.core.states import HELD, TERMINAL, State
from mesh.errors import MeshError, StoreUnavailable
from mesh.services import views
from mesh.store.client import NETWORK_ERRORS, pack
from mesh.store.store import Store

__all__ = ["Ended", "Listener"]
logger = logging.getLogger(__name__)
_IDLE_S = 0.5
_PING_S = 5.0  # a silent connection is asked whether it lives, and given up after twice as long again
_RECHECK_S = 5.0  # a waiter looks by itself so often: a push can be lost with its connection
_PAUSE_S = 0.2
_TOGETHER = 1000  # channels of one command
_LOOK_AT = 50  # tasks looked at in one round trip: their results come along
_STATUS = re.compile(rb'\{\s*"status":\s*"([A-Z]+)"')


class Ended(NamedTuple):
    """How a task ended; state None: there is no such task."""

    state: State | None
    document: bytes | None


class Listener:
    """Raises `StoreUnavailable` if Redis cannot be reached at the start; later it waits for Redis to come back."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._prefix = store.keys.of("result", "")
        self._waiting = Waiting()
        self._lock = (
            threading.Lock()
        )  # of the three around it: what is waited for and what is subscribed agree
        self._left: list[str] = []  # subscribed, and nobody waits any more
        self._connection: Any = None
        self._to_look_at: list[str] = []
        self._looked = self._heard = self._asked = time.monotonic()
        self._stopping = False
        try:
            self._connect()
        except NETWORK_ERRORS as error:
            raise StoreUnavailable(f"Redis cannot be reached: {error}") from error
        self._thread = threading.Thread(target=self._run, daemon=True, name="mesh-listener")
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread runs (not after a fork)."""
        return self._thread.is_alive()

    def watch(self, task_ids: Sequence[str], tell: Tell) -> None:
        """Call `tell` for each once it has ended, and for its progress."""
        for first in range(0, len(task_ids), _TOGETHER):
            with self._lock:
                self._send("SUBSCRIBE", self._waiting.add(task_ids[first : first + _TOGETHER], tell))

    def forget(self, task_ids: Sequence[str], tell: Tell) -> None:
        """Undo `watch`; the thread unsubscribes when it has nothing else to do."""
        with self._lock:
            self._left += self._waiting.remove(task_ids, tell)

    def stop(self) -> None:
        """End the thread."""
        self._stopping = True
        self._thread.join(2.0)

    def _connect(self) -> None:
        connection = self._store.client.connection()
        connection.connect()
        with self._lock:
            self._connection = connection
            self._heard = self._asked = time.monotonic()
            self._left.clear()
            self._send("SUBSCRIBE", ["", *self._waiting.ids()])  # '': a subscriber even while nobody waits

    def _send(self, verb: str, task_ids: Sequence[str]) -> None:
        """Called with the lock. A connection that fails is dropped; the thread makes a new one."""
        connection = self._connection
        if connection is None:
            return
        try:
            for first in range(0, len(task_ids), _TOGETHER):
                channels = [self._prefix + one for one in task_ids[first : first + _TOGETHER]]
                connection.send_packed_command([pack([verb, *channels])], check_health=False)
        except NETWORK_ERRORS:
            self._connection = None

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._turn()
            except (MeshError, *NETWORK_ERRORS):
                self._lose()  # Redis comes back
            except Exception as error:  # it refuses: it will again
                logger.exception("waiting for results")
                self._lose()
                for task_id in self._waiting.ids():
                    self._end(task_id, StoreUnavailable(f"Redis does not let this client wait: {error}"))
        self._lose(pause_s=0)

    def _lose(self, pause_s: float = _PAUSE_S) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()
        self._to_look_at.clear()  # subscribing again looks at everything
        time.sleep(pause_s)

    def _turn(self) -> None:
        connection = self._connection
        if connection is None:
            self._connect()
            return
        busy = self._to_look_at or self._left
        now = time.monotonic()
        if connection.can_read(0 if busy else _IDLE_S):
            self._heard = now
            self._hear(*connection.read_response())
            if len(self._to_look_at) < _LOOK_AT:
                return
        if self._to_look_at:
            batch, self._to_look_at = self._to_look_at[:_LOOK_AT], self._to_look_at[_LOOK_AT:]
            self._look_at(batch)
        elif self._left:
            with self._lock:
                left = [one for one in self._left if one not in self._waiting]
                self._left.clear()
                self._send("UNSUBSCRIBE", left)
        elif self._waiting and now - self._looked > _RECHECK_S:
            self._looked = now
            self._to_look_at = self._waiting.ids()
        elif now - self._heard > 3 * _PING_S:
            raise StoreUnavailable("the connection for waiting is silent")
        elif now - max(self._heard, self._asked) > _PING_S:
            self._asked = now
            with self._lock:
                if self._connection is not None:
                    self._connection.send_packed_command([pack(["PING"])], check_health=False)

    def _hear(self, kind: bytes, channel: bytes, data: Any = None) -> None:
        task_id = channel.decode()[len(self._prefix) :]
        if kind == b"subscribe":
            if task_id:
                self._to_look_at.append(task_id)
        elif kind == b"message":
            found = _STATUS.match(data)
            status = found[1] if found else b""
            if status == b"SUCCESS":
                self._end(task_id, Ended(State.SUCCEEDED, data))
            elif status == b"PROGRESS":
                self._tell_progress(task_id, data)
            else:
                self._to_look_at.append(task_id)  # the other words stand for several states

    def _look_at(self, task_ids: Sequence[str]) -> None:
        wanted = [one for one in task_ids if one in self._waiting]
        for task_id, (state, _, document) in zip(wanted, self._store.tasks.outcomes(wanted), strict=True):
            if state is None or state in TERMINAL:
                self._end(task_id, Ended(state, document))
            elif document and state in HELD:
                self._tell_progress(task_id, document)  # what was told before anybody listened

    def _tell_progress(self, task_id: str, document: bytes) -> None:
        value = views.progress(document)
        for tell in self._waiting.of(task_id) if value else ():
            tell(task_id, Progress(value or {}))

    def _end(self, task_id: str, ended: Ended | MeshError) -> None:
        with self._lock:
            tells = self._waiting.pop(task_id)
            self._left.append(task_id)
        for tell in tells:
            tell(task_id, ended)
