"""What an agent's main process holds: its leased attempts, and the outbox of what became of them.

Holdings belong to the process, not to the channel: they survive a reconnect. Settling is group-committed: what ends is put
into the outbox, which goes with the next fetch, or soon after on a connection of its own; entries stay until Redis has
confirmed them. A crash before that means a second execution, never a lost or a doubled result.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from mesh.bus import messages
from mesh.bus.opening import Refusals, Seen
from mesh.core.envelopes import Rejected
from mesh.core.places import own_queue, regional
from mesh.core.prefetch import RunTime, refill_at, room
from mesh.core.states import RECORDED, State
from mesh.errors import StoreUnavailable
from mesh.store.scripts import Bound
from mesh.store.store import Store
from mesh.store.tasks import Entry, Settlement

logger = logging.getLogger(__name__)
UNSTARTED_LIMIT_S = 5.0  # a leased task that has not been started for so long goes back to its queue
STOPPED_WITHIN_S = 1.0  # a pool that can stop a task has done so by then
_COMMIT_S = 0.02  # the least time between two commits of the outbox's own


class Holding:
    """One leased attempt."""

    __slots__ = (
        "dropped",
        "dropped_at",
        "ended",
        "fence",
        "id",
        "leased_at",
        "limit_s",
        "overran",
        "pid",
        "priority",
        "proof",
        "queue",
        "request",
        "run",
        "seen",
        "started_at",
        "tag",
    )

    def __init__(self, task_id: str, fence: str, run: int, queue: str, priority: int | None) -> None:
        self.id, self.fence, self.run, self.queue, self.priority = task_id, fence, run, queue, priority
        self.tag = f"{task_id} {fence}"
        self.leased_at = time.monotonic()
        self.started_at: float | None = None
        self.pid: int | None = None
        self.limit_s: float | None = None  # its hard time limit
        self.dropped = False  # given back, lost or ended from outside: it must not be started any more
        self.dropped_at = 0.0
        self.overran = False  # dropped because it ran past its time limit
        self.ended = False  # its end is in the outbox, or was recorded elsewhere
        self.seen: str | None = None  # failure, retry, time-out, revoke: an acknowledgement then says nothing
        self.request: Any = None
        self.proof = b""  # of its message's seal

    def drop(self) -> None:
        """It is no longer this agent's: whatever comes of it is refused."""
        self.dropped = self.ended = True
        self.dropped_at = time.monotonic()

    @property
    def attempt(self) -> int:
        """Which attempt at its task it is, from 1."""
        return int(self.fence.partition("-")[0])

    @property
    def overruns_at(self) -> float | None:
        """When it will have run for as long as it may, by the monotonic clock; None: never, or it is over."""
        if self.started_at is None or self.limit_s is None or self.ended:
            return None
        return self.started_at + self.limit_s


class Wake:
    """Wakes an event loop from another thread, through a pipe that the loop watches."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(self.writer, False)

    def set(self) -> None:
        """Make the reader readable."""
        with contextlib.suppress(BlockingIOError):
            os.write(self.writer, b"\0")

    def clear(self) -> bytes:
        """Take what was written."""
        with contextlib.suppress(BlockingIOError):
            return os.read(self.reader, 4096)
        return b""

    def close(self) -> None:
        """Close both ends."""
        os.close(self.reader)
        os.close(self.writer)


class Holdings:
    """The attempts that this agent holds, by delivery tag (`id fence`)."""

    def __init__(self, store: Store, *, holder: str, slots: Callable[[], int], isolated: bool) -> None:
        self.store = store
        self.holder = holder  # agent#incarnation
        self.slots = slots
        self.isolated = isolated  # each task runs in a process of its own (prefork)
        self.run_time = RunTime()
        self.by_tag: dict[str, Holding] = {}
        self.seen = Seen()
        self.refusals = Refusals()
        self.offered: frozenset[str] | None = None  # its capabilities; None: it is no agent
        self.outbox = Outbox(self)
        self.wake = Wake()
        self.starved = (
            -1
        )  # the loop waits until no more than so many are held: who makes it so wakes it; -1: it does not
        #: Told of a request that a pool process has taken up although its attempt is over: nobody else would end it.
        self.stop: Callable[[Any], object] = lambda _: None
        self.closed = False  # draining: nothing new is fetched
        self.cordoned = False  # an operator's word: the same, until he takes it back
        self.region: str | None = None
        self.alone_until = 0.0  # a watched task runs in this process: nothing else is fetched before

    def room(self) -> int:
        """How many more tasks may be fetched now."""
        if self.closed or self.cordoned or (self.by_tag and time.monotonic() < self.alone_until):
            return 0
        slots = self.slots()
        return room(slots=slots, held=len(self.by_tag), average_s=self.run_time.average_s)

    def places(self, queues: list[str]) -> list[str]:
        """Where tasks of these requirements may wait for this agent."""
        own = [] if self.holder.startswith("consumer-") else [own_queue(self.holder.rpartition("#")[0])]
        return [*own, *regional(queues, self.region)]

    def starve(self) -> None:
        """There is no room: wake the loop once there is."""
        self.starved = -1 if self.closed else refill_at(slots=self.slots(), average_s=self.run_time.average_s)

    def add(self, task_id: str, fence: str, run: int, queue: str, priority: int | None = None) -> Holding:
        """Hold an attempt that was just leased."""
        holding = Holding(task_id, fence, run, queue, priority)
        self.by_tag[holding.tag] = holding
        return holding

    def accepted(self, holding: Holding, pid: int | None) -> bool:
        """The pool takes it up; False if it must not be started any more."""
        if holding.dropped:
            return False
        holding.started_at, holding.pid = time.monotonic(), pid
        self.outbox.started(holding)
        return True

    def end(self, holding: Holding, settlement: Settlement | None) -> None:
        """The attempt is over: `settlement` is to be recorded (None: it was, elsewhere)."""
        if not holding.ended:
            holding.ended = True
            if settlement is not None:
                self.outbox.ended(settlement)
        elif holding.dropped and settlement is not None:
            self.outbox.refused += 1
            logger.info("result of %s (attempt %s) refused: it is over", holding.id, holding.fence)

    def forget(self, holding: Holding) -> None:
        """The pool is done with it: its slot is free."""
        if self.by_tag.pop(holding.tag, None) is None:
            return
        holding.request = None
        if holding.started_at is not None:
            self.run_time.observe(time.monotonic() - holding.started_at)
        if len(self.by_tag) <= self.starved:
            self.starved = -1
            self.wake.set()

    def acknowledge(self, holding: Holding, *, recorded_elsewhere: bool) -> None:
        """Celery acknowledges: success, unless something else was seen of this attempt."""
        if not holding.ended and holding.seen is None and not recorded_elsewhere:
            self.end(holding, self.settlement(holding, State.SUCCEEDED))
        elif not holding.ended and self.isolated:
            self.outbox.ended_elsewhere(holding)
        self.forget(holding)

    def settlement(
        self, holding: Holding, state: State, document: bytes = b"", keep: bool = False
    ) -> Settlement:
        """How this attempt ended."""
        ran_ms = None if holding.started_at is None else int((time.monotonic() - holding.started_at) * 1000)
        return Settlement(holding.id, holding.fence, state, document, keep, ran_ms, proof=holding.proof)

    def refuse(self, holding: Holding, refused: Rejected) -> None:
        """Its message is not to be run: put aside, with the reason."""
        document = messages.failure(holding.id, refused.detail)
        settlement = self.settlement(holding, State.DEAD_LETTERED, document, keep=True)
        self.end(holding, settlement._replace(reason=refused.reason, error=refused.detail, proof=b""))
        self.forget(holding)
        self.refusals.note(holding.id, refused)

    def release(self, holdings: Iterable[Holding]) -> None:
        """Give attempts back, uncounted."""
        chosen = [holding for holding in holdings if not holding.ended]
        for holding in chosen:
            holding.drop()
        if chosen:
            self.store.tasks.release([Entry(holding.id, holding.fence) for holding in chosen])
        for holding in chosen:
            self.forget(holding)

    def unstarted(self, *, older_than_s: float = -1.0) -> list[Holding]:
        """Attempts that no pool has accepted yet."""
        limit = time.monotonic() - older_than_s
        return [
            one for one in list(self.by_tag.values()) if one.started_at is None and one.leased_at <= limit
        ]

    def running_on(self) -> tuple[int, int]:
        """Attempts that were ended from outside and could not be stopped: (past their time limit, for another reason)."""
        limit = time.monotonic() - STOPPED_WITHIN_S
        left = [
            one
            for one in list(self.by_tag.values())
            if one.dropped and one.started_at is not None and one.dropped_at <= limit
        ]
        overran = sum(one.overran for one in left)
        return overran, len(left) - overran

    def held(self) -> list[Holding]:
        """Attempts whose leases are to be renewed: also those whose end is not confirmed yet."""
        return list(self.by_tag.values())


class Outbox:
    """Starts and ends that Redis does not know yet."""

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings
        self._tasks = holdings.store.tasks
        self._starts: deque[Holding] = deque()
        self._ends: deque[Settlement] = deque()
        self._elsewhere: deque[tuple[Entry, bytes]] = deque()
        self._news = threading.Event()
        self._stopping = False
        self._last = 0.0
        self.flushing = threading.Lock()
        self.on_chords_due: Callable[[list[str]], None] = lambda groups: None
        self.refused = 0  # results that came too late

    def started(self, holding: Holding) -> None:
        """A pool has accepted it."""
        self._starts.append(holding)
        if not self._news.is_set():
            self._news.set()

    def ended(self, settlement: Settlement) -> None:
        """An attempt ended."""
        self._ends.append(settlement)
        if not self._news.is_set():
            self._news.set()

    def ended_elsewhere(self, holding: Holding) -> None:
        """A pool's child has recorded its end, or not: Redis knows, and is asked with what goes next."""
        if holding.proof:
            self._elsewhere.append((Entry(holding.id, holding.fence), holding.proof))
            if not self._news.is_set():
                self._news.set()

    def take(self) -> Batch | None:
        """What is there, to be sent now; None if nothing is."""
        self._news.clear()
        starts: list[tuple[str, str, int]] = []
        ends: list[Settlement] = []
        elsewhere: list[tuple[Entry, bytes]] = []
        now = time.monotonic()
        with contextlib.suppress(IndexError):  # two threads may take at once: each gets a part
            for _ in range(len(self._starts)):
                holding = self._starts.popleft()
                # What has ended meanwhile needs no start of its own: settling says how long it ran.
                if not holding.ended and holding.started_at is not None:
                    starts.append((holding.id, holding.fence, int((now - holding.started_at) * 1000)))
        with contextlib.suppress(IndexError):
            ends.extend(self._ends.popleft() for _ in range(len(self._ends)))
        with contextlib.suppress(IndexError):
            elsewhere.extend(self._elsewhere.popleft() for _ in range(len(self._elsewhere)))
        if not (starts or ends or elsewhere):
            return None
        return Batch(self._tasks, starts, ends, elsewhere, self._holdings.seen)

    def put_back(self, batch: Batch | None) -> None:
        """It may not have arrived: ends are sent again (starts are not worth it: the end tells them too)."""
        if batch is not None and batch.ends:
            self._ends.extendleft(reversed(batch.ends))
            self._news.set()

    def confirm(self, batch: Batch, replies: list[Any]) -> None:
        """Redis's answers to a batch."""
        for (entry, proof), reply in zip(batch.elsewhere, replies, strict=False):
            if not isinstance(reply, Exception) and self._tasks.ended_by(reply, entry):
                batch.seen.add(proof)
        if not batch.ends:
            return
        words, due = self._tasks.settled(replies[-1])
        for settlement, word in zip(batch.ends, words, strict=True):
            if word in RECORDED:
                if settlement.proof:
                    batch.seen.add(settlement.proof)
            else:
                self.refused += 1
                logger.info("result of %s (attempt %s) refused: %s", settlement.id, settlement.fence, word)
        if due:
            self.on_chords_due(due)

    def flush(self) -> None:
        """Send what is there on a connection of its own. Raises `StoreUnavailable`; then nothing is lost."""
        with self.flushing:
            batch = self.take()
            if batch is None:
                return
            try:
                replies = self._tasks.together(batch.calls)
            except BaseException:
                self.put_back(batch)
                raise
        self.confirm(batch, replies)

    def run(self) -> None:
        """The committing thread: at once when it has been quiet, else at most every few milliseconds."""
        while not self._stopping:
            if not self._news.wait(1.0):
                continue
            pause = self._last + _COMMIT_S - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            try:
                self.flush()
            except StoreUnavailable as error:
                logger.warning("results wait: %s", error)
                time.sleep(0.5)
            except Exception:
                logger.exception("results wait")
                time.sleep(0.5)
            self._last = time.monotonic()

    def stop(self, timeout_s: float = 10.0) -> bool:
        """Send everything; False if Redis did not take it in time."""
        self._stopping = True
        limit = time.monotonic() + timeout_s
        while True:
            with self.flushing:
                pass  # what is under way comes back if it does not arrive
            if not (self._starts or self._ends):
                return True
            try:
                self.flush()
            except StoreUnavailable:
                if time.monotonic() > limit:
                    return False
                time.sleep(0.2)


class Batch:
    """Starts and ends on their way, and questions about ends; what ended for good will be remembered in `seen`."""

    __slots__ = ("calls", "elsewhere", "ends", "seen")

    def __init__(
        self,
        tasks: Any,
        starts: list[tuple[str, str, int]],
        ends: list[Settlement],
        elsewhere: list[tuple[Entry, bytes]],
        seen: Seen,
    ) -> None:
        self.ends, self.elsewhere, self.seen = ends, elsewhere, seen
        self.calls: list[tuple[Bound, list[Any]]] = [tasks.end_words(entry) for entry, _ in elsewhere]
        if starts:
            self.calls.append(tasks.start_words(starts))
        if ends:
            self.calls.append(tasks.settle_words(ends))
