"""The HTTP client's waiting: a few long requests that ask for all tasks that this process waits for.

`tasks:wait` returns as soon as one of its tasks has ended. An event loop in a thread of its own keeps at most a few such
requests under way: whoever joins gets one at once, for himself and those who came in the same moment; what a request
leaves over is asked for together with others in the next. If too many are under way, the one with the fewest ids is
given up for a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Sequence
from typing import Any

import httpx2
import msgspec

from mesh.client.calls import CONNECT_S, UNANSWERED, Caller, answer_of, client_options, named, shares
from mesh.client.ports import Tell, Waiting
from mesh.errors import MeshError, TooManyRequests
from mesh.settings import Settings

__all__ = ["LongPoll"]
_IDS = 1000  # of one request
_WAIT_S = 10.0
_LATE_S = 5.0  # a coordinator that has not answered so long after that does not live
_CROWDED_WAIT_S = 1.0  # when there are more ids than the requests can hold: they take turns
_JOIN_S = 0.002  # those who join in the same moment are asked for together
_AGAIN_S = 0.02  # after an answer: what ends in the same moment is found together


class LongPoll:
    """Waits as long as it takes; an outage of all coordinators is told only after the transport's time-out."""

    def __init__(self, settings: Settings, caller: Caller, path: str) -> None:
        self._settings = settings
        self._caller = caller
        self._path = path
        self._most = shares(settings.max_concurrent_connections)[1]  # requests under way at once
        self._patience_s = settings.transport_timeout_ms / 1000
        self._waiting = Waiting()
        self._lock = threading.Lock()  # of `_waiting`; all below belongs to the loop's thread
        self._unasked: dict[str, None] = {}
        self._asked: dict[asyncio.Task[None], list[str]] = {}
        self._failures = 0
        self._away_since: float | None = None
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._client: Any = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="mesh-waiting")
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread runs (not after a fork)."""
        return self._thread.is_alive()

    def watch(self, task_ids: Sequence[str], tell: Tell) -> None:
        """Call `tell` for each once it has ended."""
        with self._lock:
            new = self._waiting.add(task_ids, tell)
        self._loop.call_soon_threadsafe(self._join, new)

    def forget(self, task_ids: Sequence[str], tell: Tell) -> None:
        """Undo `watch`; requests that ask for it return by themselves."""
        with self._lock:
            self._waiting.remove(task_ids, tell)

    def stop(self) -> None:
        """End the thread."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(2.0)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        async with httpx2.AsyncClient(**client_options(self._settings, self._most)) as self._client:
            await self._end.wait()
            for request in self._asked:
                request.cancel()

    def _join(self, task_ids: Sequence[str]) -> None:
        self._unasked.update(dict.fromkeys(task_ids))
        self._loop.call_later(_JOIN_S, self._ask_all)

    def _ask_all(self) -> None:
        """Start requests for what nobody asks for yet."""
        unasked = [one for one in self._unasked if one in self._waiting]
        self._unasked.clear()
        if not unasked or self._end.is_set():
            return
        if len(self._asked) >= self._most:
            fewest = min(self._asked, key=lambda request: len(self._asked[request]))
            if len(self._asked[fewest]) >= _IDS:
                self._unasked.update(dict.fromkeys(unasked))  # all are full: their turn comes
                return
            unasked += [one for one in self._asked.pop(fewest) if one in self._waiting]
            fewest.cancel()
        task_ids, rest = unasked[:_IDS], unasked[_IDS:]
        request = self._loop.create_task(self._ask(task_ids))
        self._asked[request] = task_ids
        if rest:
            self._unasked.update(dict.fromkeys(rest))
            if len(self._asked) < self._most:
                self._ask_all()

    async def _ask(self, task_ids: list[str]) -> None:
        pause_s = _AGAIN_S
        try:
            for one in await self._request(task_ids):
                self._told(one["id"], one)
            self._failures, self._away_since = 0, None
        except (httpx2.TransportError, *UNANSWERED) as error:
            pause_s = self._failed(error)
            if isinstance(error, TooManyRequests):
                pause_s = max(pause_s, error.retry_after_s)
        except Exception as error:  # refused, or no coordinator at all: it will be again
            told = error if isinstance(error, MeshError) else MeshError(f"Waiting failed: {error!r}.")
            for task_id in task_ids:
                self._told(task_id, told)
        request = asyncio.current_task()
        if request is not None and self._asked.pop(request, None) is not None:
            self._unasked.update(dict.fromkeys(one for one in task_ids if one in self._waiting))
        self._loop.call_later(pause_s, self._ask_all)

    async def _request(self, task_ids: list[str]) -> list[dict[str, Any]]:
        crowded = len(self._waiting) > self._most * _IDS
        timeout_s = self._settings.transport_timeout_ms / 1000
        wait_s = min(_CROWDED_WAIT_S if crowded else _WAIT_S, timeout_s / 2)
        endpoint, bearer = self._caller.endpoints.order()[0], self._caller.bearer
        try:
            for again in (True, False):
                headers = {"host": endpoint.host, "content-type": "application/json", **bearer.headers()}
                response = await self._client.post(
                    **endpoint.request(self._path),
                    headers=headers,
                    content=msgspec.json.encode({"ids": task_ids, "wait_s": wait_s}),
                    timeout=httpx2.Timeout(
                        min(timeout_s, wait_s + _LATE_S), connect=min(CONNECT_S, timeout_s)
                    ),
                )
                if not (again and response.status_code == 401 and bearer.refused(headers)):
                    break
            answer = answer_of(response)
        except (httpx2.TransportError, *UNANSWERED) as error:
            self._caller.endpoints.failed(endpoint, named(error))
            raise
        ended: list[dict[str, Any]] = answer["ended"]
        return ended

    def _failed(self, error: Exception) -> float:
        """Seconds until the next try: the next endpoint at once, all of them again after a pause."""
        now = time.monotonic()
        self._away_since = self._away_since or now
        if now - self._away_since > self._patience_s:
            said = error if isinstance(error, MeshError) else self._caller.endpoints.nobody()
            self._away_since = None
            for task_id in self._waiting.ids():
                self._told(task_id, said)
        self._failures += 1
        rounds, place = divmod(self._failures, max(1, len(self._caller.endpoints.order())))
        return _AGAIN_S if place else self._caller.pause_s(min(rounds - 1, 3))

    def _told(self, task_id: str, pushed: Any) -> None:
        with self._lock:
            tells = self._waiting.pop(task_id)
        for tell in tells:
            tell(task_id, pushed)
