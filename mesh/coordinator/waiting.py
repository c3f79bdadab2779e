"""Waiting for the ends of tasks without holding a thread.

One connection a process is subscribed to the channels that somebody waits for; one thread reads it and tells the waiting
coroutines. Callers come back for what has not ended (`result?wait_s=` again and again, `tasks:wait` for the rest of many), so
a subscription lingers for some seconds after its last waiter.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from mesh.coordinator.problems import busy
from mesh.core.states import TERMINAL, State
from mesh.services import views
from mesh.store.client import NETWORK_ERRORS, Client, pack
from mesh.store.store import Store

__all__ = ["Ends", "Waiting", "look"]
logger = logging.getLogger(__name__)

Tell = Callable[[str, bytes | None], None]
"""Called in the listening thread: (channel, what was published), or (channel, None) once it is subscribed to."""

Valid = Callable[[], bool]
"""Whether the caller's token still holds."""

_LINGER_S = 5.0
_PING_S = 5.0  # a silent connection is asked whether it lives, and given up after twice as long again
_PAUSE_S = 0.2  # between tries while Redis is away
_HURRIED_S = 1.0
_GATHER_S = 0.01  # who waits for many takes what ends so soon after the first along
_MOST_IDS = 100_000  # that all waiting calls together wait for
_STATUS = re.compile(rb'\{\s*"status":\s*"([A-Z]+)"')


class _Channel:
    __slots__ = ("confirmed", "idle_since", "tells")

    def __init__(self) -> None:
        self.confirmed = False
        self.tells: list[Tell] = []
        self.idle_since = 0.0


class Ends:
    """The subscriptions of this process. Safe for threads; only its own thread reads the connection."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._channels: dict[str, _Channel] = {}
        self._connection: Any = None  # None: the thread makes a new one and subscribes anew
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._swept = self._heard = self._asked = 0.0

    def watch(self, channels: Sequence[str], tell: Tell) -> None:
        """Tell what is published on each channel (a name with a `*` is a pattern)."""
        known: list[str] = []
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True, name="mesh-ends")
                self._thread.start()
            fresh: list[str] = []
            for name in channels:
                channel = self._channels.get(name)
                if channel is None:
                    channel = self._channels[name] = _Channel()
                    fresh.append(name)
                elif channel.confirmed:
                    known.append(name)
                channel.tells.append(tell)
            self._send("SUBSCRIBE", fresh)
        for name in known:
            tell(name, None)

    def forget(self, channels: Sequence[str], tell: Tell) -> None:
        """Tell no more."""
        now = time.monotonic()
        with self._lock:
            for name in channels:
                channel = self._channels.get(name)
                if channel is not None and tell in channel.tells:
                    channel.tells.remove(tell)
                    channel.idle_since = now

    def stop(self) -> None:
        """End the thread."""
        self._stopping = True
        if self._thread is not None:
            self._thread.join(2.0)

    # -- the connection

    def _send(self, verb: str, names: Sequence[str]) -> None:
        """Under the lock. What cannot be sent is left to the thread, which subscribes to all on its next connection."""
        if self._connection is None:
            return
        try:
            for prefix, some in (
                ("", [name for name in names if "*" not in name]),
                ("P", [name for name in names if "*" in name]),
            ):
                if some:
                    self._connection.send_packed_command([pack([prefix + verb, *some])], check_health=False)
        except NETWORK_ERRORS:
            self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()

    def _connect(self) -> None:
        connection = self._client.connection()
        connection.connect()
        with self._lock:
            self._connection = connection
            self._heard = self._asked = time.monotonic()
            for channel in self._channels.values():
                channel.confirmed = False
            self._send("SUBSCRIBE", list(self._channels))

    def _run(self) -> None:
        while not self._stopping:
            try:
                connection = self._connection
                if connection is None:
                    self._connect()
                elif connection.can_read(0.5):
                    self._hear(connection.read_response())
                now = time.monotonic()
                if now - self._swept > 1:
                    self._swept = now
                    self._keep_up(now)
            except Exception as error:
                if not isinstance(
                    error, NETWORK_ERRORS
                ):  # a connection that was dropped meanwhile says many things
                    logger.debug("the connection for waiting: %r", error)
                with self._lock:
                    self._drop()
                time.sleep(_PAUSE_S)
        with self._lock:
            self._drop()

    def _keep_up(self, now: float) -> None:
        with self._lock:
            idle = [
                name
                for name, channel in self._channels.items()
                if not channel.tells and now - channel.idle_since > _LINGER_S
            ]
            for name in idle:
                del self._channels[name]
            self._send("UNSUBSCRIBE", idle)
            if now - self._heard > 3 * _PING_S:
                self._drop()
            elif self._connection is not None and now - max(self._heard, self._asked) > _PING_S:
                self._asked = now
                self._connection.send_packed_command([pack(["PING"])], check_health=False)

    def _hear(self, message: list[Any]) -> None:
        self._heard = time.monotonic()
        kind = message[0]
        if kind in (b"message", b"pmessage"):
            self._tell(message[1].decode(), message[-2].decode(), message[-1])
        elif kind in (b"subscribe", b"psubscribe"):
            name = message[1].decode()
            with self._lock:
                channel = self._channels.get(name)
                if channel is not None:
                    channel.confirmed = True
            self._tell(name, name, None)

    def _tell(self, subscribed: str, channel: str, data: bytes | None) -> None:
        with self._lock:
            known = self._channels.get(subscribed)
            tells = list(known.tells) if known is not None else []
        for tell in tells:
            tell(channel, data)


def look(store: Store, task_ids: Sequence[str]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """(what has ended or is unknown: id -> its answer; id -> state of the rest), now, in two round trips."""
    ended: dict[str, dict[str, Any]] = {}
    under_way: dict[str, str] = {}
    over: dict[str, State] = {}
    raws = store.client.pipeline(*[("HGET", store.keys.of("task", one), "state") for one in task_ids])
    for task_id, raw in zip(task_ids, raws, strict=True):
        if raw is None:
            ended[task_id] = {"id": task_id, "state": None}
        elif (state := State(raw.decode())) in TERMINAL:
            over[task_id] = state
        else:
            under_way[task_id] = str(state)
    if over:
        documents = store.client.pipeline(*[("GET", store.keys.of("result", one)) for one in over])
        for (task_id, state), document in zip(over.items(), documents, strict=True):
            ended[task_id] = views.end(task_id, state, document)
    return ended, under_way


class _Waiter:
    """One waiting call; `told` comes from the listening thread."""

    def __init__(self, prefix: str, asked: Sequence[str], until: float, valid: Valid) -> None:
        self._asked = frozenset(asked)
        self.until = until
        self.valid = valid
        self._loop = asyncio.get_running_loop()
        self._skip = len(prefix)
        self.news = asyncio.Event()
        self.to_look: dict[str, None] = {}
        self.documents: dict[str, bytes] = {}

    def tell(self, channel: str, document: bytes | None) -> None:
        status = b""
        if document is not None:
            match = _STATUS.match(document)
            status = match[1] if match else b"?"
            if status in (b"PROGRESS", b"STARTED", b"RETRY"):
                return
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._told, channel, document if status == b"SUCCESS" else None)

    def _told(self, channel: str, document: bytes | None) -> None:
        task_id = channel[self._skip :]
        if task_id not in self._asked:
            return  # an id with a * in it is a pattern to Redis
        if document is None:
            self.to_look[task_id] = None
        else:
            self.documents[task_id] = document
        self.news.set()

    def take(self) -> tuple[list[str], dict[str, bytes]]:
        """(ids to look at, documents of those that succeeded)."""
        to_look, documents = self.to_look, self.documents
        self.to_look, self.documents = {}, {}
        self.news.clear()
        return [one for one in to_look if one not in documents], documents


class Waiting:
    """The waiting calls of this process. When it stops, all of them return at once."""

    def __init__(self, ends: Ends) -> None:
        self.ends = ends
        self.stopping = False
        self._longest_s = float("inf")
        self._waiters: set[_Waiter] = set()
        self._ids = 0

    def hurry(self) -> None:
        """Answer who waits, in the event loop. Who comes later waits for a second at most, not at all would make him come
        back again and again: a balancer may cut off what is under way once it has seen that this process stops."""
        self._longest_s = _HURRIED_S
        for waiter in self._waiters:
            waiter.until = 0.0
            waiter.news.set()

    def sweep(self) -> None:
        """Answer those whose token has ended, in the event loop."""
        for waiter in self._waiters:
            if not waiter.valid():
                waiter.until = 0.0
                waiter.news.set()

    def stop(self) -> None:
        """End all waits, in the event loop."""
        self.stopping = True
        for waiter in self._waiters:
            waiter.news.set()

    async def ended(
        self, store: Store, task_ids: Sequence[str], wait_s: float, request: Request, valid: Valid
    ) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """As `look`, as soon as one has ended or is unknown, at the latest after `wait_s` seconds or when the token ends."""
        answer = await run_in_threadpool(look, store, task_ids)
        if answer[0] or wait_s <= 0 or self.stopping:
            return answer
        if self._ids + len(task_ids) > _MOST_IDS:
            raise busy("waiting calls")
        prefix = store.keys.of("result", "")
        channels = [prefix + one for one in task_ids]
        waiter = _Waiter(prefix, task_ids, time.monotonic() + min(wait_s, self._longest_s), valid)
        self._waiters.add(waiter)
        self._ids += len(task_ids)
        gone = asyncio.create_task(_until_gone(request, waiter))
        try:
            await run_in_threadpool(self.ends.watch, channels, waiter.tell)
            return await self._wait(store, waiter, gone, answer[1])
        finally:
            gone.cancel()
            self._waiters.discard(waiter)
            self._ids -= len(task_ids)
            self.ends.forget(channels, waiter.tell)

    async def _wait(
        self, store: Store, waiter: _Waiter, gone: asyncio.Task[None], states: dict[str, str]
    ) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        while not (self.stopping or gone.done()):
            try:
                async with asyncio.timeout(max(0.0, waiter.until - time.monotonic())):
                    await waiter.news.wait()
            except TimeoutError:
                break
            if len(states) > 1 and not self.stopping:
                await asyncio.sleep(_GATHER_S)
            to_look, documents = waiter.take()
            ended = {one: views.end(one, State.SUCCEEDED, document) for one, document in documents.items()}
            if to_look:
                more, rest = await run_in_threadpool(look, store, to_look)
                ended |= more
                states |= rest
            if ended:
                return ended, states
        # Whatever was pushed while a connection was lost is found here at the latest.
        return (
            ({}, states)
            if self.stopping or gone.done()
            else await run_in_threadpool(look, store, list(states))
        )


async def _until_gone(request: Request, waiter: _Waiter) -> None:
    """End when the caller has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    waiter.news.set()
