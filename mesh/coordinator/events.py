"""Server-sent events of a namespace: the ends of its tasks, and how many tasks are in each state.

A namespace that somebody looks at has one feed, whatever the number of streams: it collects the ends that are published, reads
their records some times a second, and hands the same bytes to all. A stream that is not read fast enough misses events, and is
told so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi.concurrency import run_in_threadpool

from mesh.coordinator.answers import encode
from mesh.coordinator.problems import busy
from mesh.coordinator.waiting import Ends, Valid
from mesh.core.states import TERMINAL
from mesh.errors import MeshError
from mesh.services.views import by_state, iso
from mesh.store.store import Store

__all__ = ["Events"]
logger = logging.getLogger(__name__)

_EVERY_S = 0.25
_COUNTS_EVERY = 8  # rounds
_QUIET_S = 15.0  # a comment keeps proxies from closing a quiet stream
_PAGE = 500  # records read in one round
_MOST_STREAMS = 200
_MOST_WAITING = 20_000  # ends that wait for being read
_MOST_CHUNKS = 40  # rounds that a slow reader may be behind
_NO_END = (b'{"status":"PROGRESS"', b'{"status":"STARTED"', b'{"status":"RETRY"', b'{"status": "PROGRESS"')


def event(name: str, data: Any) -> bytes:
    """One event in the format of an event stream."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), encode(data))


class _Stream:
    def __init__(self, valid: Valid) -> None:
        self.valid = valid
        self.chunks: asyncio.Queue[bytes | None] = asyncio.Queue(
            _MOST_CHUNKS + 1
        )  # the last place is for the end
        self.missed = 0

    def put(self, chunk: bytes) -> None:
        if self.chunks.qsize() >= _MOST_CHUNKS:
            self.missed += chunk.count(b"event: task\n")
            return
        if self.missed:
            chunk, self.missed = event("missed", {"tasks": self.missed}) + chunk, 0
        self.chunks.put_nowait(chunk)


class _Feed:
    """What the streams of one namespace share."""

    def __init__(self, ends: Ends, store: Store) -> None:
        self._ends, self._store = ends, store
        self._prefix = store.keys.of("result", "")
        self._ended: deque[str] = deque()
        self._missed = 0
        self._counts: dict[str, int] | None = None
        self.streams: set[_Stream] = set()
        self.task = asyncio.create_task(self._run())

    def _tell(self, channel: str, document: bytes | None) -> None:
        """In the listening thread."""
        if document is None or document.startswith(_NO_END):
            return
        if len(self._ended) < _MOST_WAITING:
            self._ended.append(channel[len(self._prefix) :])
        else:
            self._missed += 1

    async def _run(self) -> None:
        pattern = [self._prefix + "*"]
        await run_in_threadpool(self._ends.watch, pattern, self._tell)
        try:
            rounds = 0
            while True:
                chunk = b""
                try:
                    chunk = await run_in_threadpool(self._round, rounds % _COUNTS_EVERY == 0)
                except MeshError as error:
                    logger.debug("events wait: %s", error)
                except Exception:
                    logger.exception("events")
                for stream in self.streams:
                    if chunk:
                        stream.put(chunk)
                rounds += 1
                await asyncio.sleep(_EVERY_S)
        finally:
            self._ends.forget(pattern, self._tell)

    def _round(self, with_counts: bool) -> bytes:
        chunks = []
        ids = [self._ended.popleft() for _ in range(min(_PAGE, len(self._ended)))]
        for record in self._store.tasks.records(ids) if ids else ():
            if record is not None and record.state in TERMINAL:
                told = {
                    name: getattr(record, name)
                    for name in ("id", "state", "type", "queue", "agent", "attempt")
                }
                chunks.append(event("task", {**told, "ended_at": iso(record.ended)}))
        if self._missed:
            missed, self._missed = self._missed, 0
            chunks.append(event("missed", {"tasks": missed}))
        if with_counts and (counts := self._count()) != self._counts:
            self._counts = counts
            chunks.append(event("counts", {"tasks": counts}))
        return b"".join(chunks)

    def _count(self) -> dict[str, int]:
        total: Counter[str] = Counter()
        for counts in self._store.tasks.counts().values():
            total.update(by_state(counts))
        return dict(total)

    def counts(self) -> bytes:
        """For a stream that begins."""
        return b": events of tasks\n\n" + (
            event("counts", {"tasks": self._counts}) if self._counts is not None else b""
        )


class Events:
    """The event streams of this process."""

    def __init__(self, ends: Ends) -> None:
        self._ends = ends
        self._feeds: dict[str, _Feed] = {}
        self._stopping = False

    def check(self) -> None:
        """Raise `CoordinatorUnavailable` if one more stream is too many."""
        if self._stopping or sum(len(feed.streams) for feed in self._feeds.values()) >= _MOST_STREAMS:
            raise busy("event streams")

    async def stream(self, store: Store, valid: Valid) -> AsyncIterator[bytes]:
        """The events of a namespace until the reader leaves, his token ends, or the process stops."""
        name = store.keys.namespace
        feed = self._feeds.get(name)
        if feed is None:
            feed = self._feeds[name] = _Feed(self._ends, store)
        stream = _Stream(valid)
        feed.streams.add(stream)
        try:
            yield feed.counts()
            while not self._stopping:
                try:
                    chunk = await asyncio.wait_for(stream.chunks.get(), _QUIET_S)
                except TimeoutError:
                    chunk = b": quiet\n\n"
                if chunk is None:
                    return
                yield chunk
        finally:
            feed.streams.discard(stream)
            if not feed.streams and self._feeds.get(name) is feed:
                del self._feeds[name]
                feed.task.cancel()

    def stop(self) -> None:
        """End all streams, in the event loop; there are no new ones."""
        self._stopping = True
        self.end()

    def end(self) -> None:
        """End the streams that there are, in the event loop: their readers come back."""
        self._end(lambda _: True)

    def sweep(self) -> None:
        """End those whose token has ended, in the event loop."""
        self._end(lambda stream: not stream.valid())

    def _end(self, over: Callable[[_Stream], bool]) -> None:
        for feed in self._feeds.values():
            for stream in filter(over, feed.streams):
                with contextlib.suppress(asyncio.QueueFull):
                    stream.chunks.put_nowait(None)
