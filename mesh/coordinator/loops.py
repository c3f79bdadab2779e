"""What the leading coordinator does over and over: one small class a loop, each with a bounded `run_once`.

The scripts behind the loops are guarded by state and fence: two coordinators that both think they lead do no harm, only
work twice. Leading is for economy. A loop says what it did in numbers, and logs only when it did something.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from mesh.errors import MeshError, StoreUnavailable
from mesh.store.coordinators import Coordinators
from mesh.store.store import Store

__all__ = ["Leadership", "Loop", "Reap", "Report", "Retention", "Runner", "Tick"]
logger = logging.getLogger(__name__)
Complete = Callable[[list[str]], None]

LEAD_MS = 3000
_RENEW_S = 1.0
_TRY_S = 0.4  # a follower asks more often, so that a lead that nobody holds is found soon
_PAGES = 50  # a run ends after so many pages even if there is more: the next run goes on


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one run did: name -> how many. `more`: it stopped at its bound, run it again at once."""

    counts: dict[str, int]
    more: bool = False

    @property
    def did_something(self) -> bool:
        """Whether any number is not 0."""
        return any(self.counts.values())


class Loop(Protocol):
    """One loop: `run_once` every `every_s` seconds, while this coordinator leads."""

    name: str
    every_s: float

    def run_once(self) -> Report:
        """One bounded run. Raises `StoreUnavailable`."""
        ...


class Reap:
    """Takes back tasks whose lease ended: their agent is lost. Agents do the same; whoever comes first."""

    name = "reap"
    page = 200

    def __init__(self, store: Store, complete_chords: Complete) -> None:
        self._store, self._complete = store, complete_chords
        # Each run leaves the pulse that says that Redis was there: where no agent beats, it must come as often.
        self.every_s = min(2.0, store.settings.lease_renew_ms / 1000)

    def run_once(self) -> Report:
        """One run."""
        again = aside = 0
        for _ in range(_PAGES):
            queued, dead, _, due = self._store.tasks.reap(self.page)
            again, aside = again + queued, aside + dead
            if due:
                self._complete(due)
            if queued + dead < self.page:
                return Report(counts={"requeued": again, "put_aside": aside})
        return Report(counts={"requeued": again, "put_aside": aside}, more=True)


class Tick:
    """Queues scheduled tasks whose time has come, expires queued ones, offers what its region leaves waiting to all regions,
    completes chords that a died process left."""

    name, every_s = "tick", 0.5
    page = 500

    def __init__(self, store: Store, complete_chords: Complete) -> None:
        self._store, self._complete = store, complete_chords

    def run_once(self) -> Report:
        """One run."""
        counts = {"promoted": 0, "expired": 0, "forgotten": 0, "left_region": 0, "chords": 0}
        for _ in range(_PAGES):
            *numbers, due, left = self._store.tasks.tick(self.page)
            numbers.append(left)
            for name, number in zip(counts, (*numbers, len(due)), strict=True):
                counts[name] += number
            if due:
                self._complete(due)
            if max(numbers) < self.page:
                return Report(counts=counts)
        return Report(counts=counts, more=True)


class Retention:
    """Forgets agents and coordinators that are long gone."""

    name, every_s = "retention", 60.0

    def __init__(self, store: Store, coordinators: Coordinators) -> None:
        self._store, self._coordinators = store, coordinators

    def run_once(self) -> Report:
        """One run."""
        return Report(
            counts={
                "agents": self._store.agents.forget_old(),
                "coordinators": self._coordinators.forget_gone(),
            }
        )


class Leadership:
    """Takes and keeps the lead, and says so to everybody. Trust in a lead counts from before it was asked for."""

    def __init__(
        self, store: Store, coordinators: Coordinators, coordinator: str, fields: Callable[[], dict[str, Any]]
    ) -> None:
        self._store, self._coordinators = store, coordinators
        self._id, self._fields = coordinator, fields
        self._until = 0.0
        self.term, self.leader = 0, ""

    @property
    def leading(self) -> bool:
        """Whether this coordinator leads now, by its own clock."""
        return time.monotonic() < self._until

    @property
    def every_s(self) -> float:
        """Pause before the next run."""
        return _RENEW_S if self.leading else _TRY_S

    def run_once(self) -> None:
        """Take or keep the lead; announce. Raises `StoreUnavailable`."""
        asked_at, before = time.monotonic(), self.leading
        leads, self.term, self.leader = self._store.agents.lead(self._id, LEAD_MS)
        self._until = asked_at + LEAD_MS / 1000 if leads else 0.0
        self._coordinators.announce(self._id, self._fields())
        if leads and not before:
            logger.info("leads namespace %s, term %d", self._store.keys.namespace, self.term)
        elif before and not leads:
            logger.warning("%s leads now, term %d", self.leader, self.term)

    def resign(self) -> None:
        """Give the lead up and withdraw; what fails then runs out by itself."""
        self._until = 0.0
        try:
            self._store.agents.resign(self._id)
            self._coordinators.withdraw(self._id)
        except MeshError as error:
            logger.warning("stopped without saying so: %s", error)


@dataclass(kw_only=True)
class Last:
    """The last run of a loop, for `/health`."""

    counts: dict[str, int] = field(default_factory=dict)
    at: float | None = None  # seconds of the monotonic clock
    took_ms: float = 0.0
    runs: int = 0
    error: str | None = None


class Runner:
    """Runs each loop in a thread of its own. Redis may go away: that is said once, and they go on when it is back."""

    def __init__(self, leadership: Leadership, loops: Iterable[Loop]) -> None:
        self.leadership, self.loops = leadership, tuple(loops)
        self.last = {loop.name: Last() for loop in self.loops}
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._away = threading.Event()

    @property
    def alive(self) -> bool:
        """Whether every thread runs."""
        return bool(self._threads) and all(thread.is_alive() for thread in self._threads)

    def start(self) -> None:
        """Start the threads."""
        jobs: list[tuple[str, Callable[[], None]]] = [("leadership", self._keep_lead)]
        jobs += [(loop.name, lambda loop=loop: self._repeat(loop)) for loop in self.loops]  # type: ignore[misc]
        self._threads = [threading.Thread(target=job, daemon=True, name=f"mesh-{name}") for name, job in jobs]
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Let the runs under way end, then resign."""
        self._stop.set()
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        self.leadership.resign()

    def _keep_lead(self) -> None:
        while True:
            self._guarded(self.leadership.run_once)
            if self._stop.wait(self.leadership.every_s):
                return

    def _repeat(self, loop: Loop) -> None:
        pause = 0.0
        while not self._stop.wait(pause):
            pause = loop.every_s
            if self.leadership.leading:
                more = self._guarded(lambda: self._run(loop))
                pause = 0.0 if more else pause
            else:
                pause = min(pause, _TRY_S)  # a new leader starts all its loops at once

    def _run(self, loop: Loop) -> bool:
        last, begun = self.last[loop.name], time.monotonic()
        try:
            report = loop.run_once()
        except Exception as error:
            last.error = str(error)
            raise
        finally:
            last.at, last.runs = time.monotonic(), last.runs + 1
            last.took_ms = (last.at - begun) * 1000
        last.counts, last.error = report.counts, None
        if report.did_something:
            done = ", ".join(f"{number} {name}" for name, number in report.counts.items() if number)
            logger.info("%s: %s", loop.name, done)
        return report.more

    def _guarded(self, work: Callable[[], Any]) -> Any:
        """Run; a failure is logged (Redis's absence once) and the loop goes on."""
        try:
            result = work()
        except StoreUnavailable as error:
            if not self._away.is_set():
                self._away.set()
                logger.warning("Redis is away, the loops wait: %s", error)
            return None
        except Exception:
            logger.exception("loop")
            return None
        if self._away.is_set():
            self._away.clear()
            logger.info("Redis is back")
        return result
