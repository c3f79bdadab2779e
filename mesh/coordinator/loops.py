"""What the leading coordinator does over and over: one small class a loop, each with a bounded `run_once`.

Each run carries the lead under which it was started, and its scripts refuse one that is over. A loop says what it did in
numbers, and logs only when it did something.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from mesh.coordinator.leadership import Leadership
from mesh.core.agents import Health
from mesh.errors import StaleFence, StoreUnavailable
from mesh.services import agents, audit, joining, resealing
from mesh.store import audit as log
from mesh.store.agents import Lead
from mesh.store.coordinators import Coordinators
from mesh.store.redis_users import Joined, RedisUsers
from mesh.store.signing import kid_in_force
from mesh.store.store import Store

__all__ = ["HealthCheck", "Hear", "Loop", "Reap", "Report", "Runner", "Tick", "Withdraw"]
logger = logging.getLogger(__name__)
Complete = Callable[[list[str]], None]

_LOOK_S, _IDLE_S = 0.1, 2.0
_STOP_S = 5.0  # for the runs under way, when the process stops
_WELL = (Health.HEALTHY, Health.DRAINING, Health.OFFLINE)  # what an agent is meant to be, at some time
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

    def run_once(self, lead: Lead) -> Report:
        """One bounded run. Raises `StoreUnavailable`, `StaleFence` if the lead is over."""
        ...


class Reap:
    """Takes back tasks whose lease ended: their agent is lost. Agents do the same; whoever comes first, so it needs no lead."""

    name = "reap"
    page = 200

    def __init__(self, store: Store, complete_chords: Complete) -> None:
        self._store, self._complete = store, complete_chords
        # Each run leaves the pulse that says that Redis was there: where no agent beats, it must come as often.
        self.every_s = min(2.0, store.settings.lease_renew_ms / 1000)

    def run_once(self, lead: Lead) -> Report:
        """One run."""
        again = aside = 0
        for _ in range(_PAGES):
            reaped = self._store.tasks.reap(self.page)
            again, aside = again + reaped.again, aside + len(reaped.aside)
            if reaped.chords_due:
                self._complete(reaped.chords_due)
            if reaped.again + len(reaped.aside) < self.page:
                return Report(counts={"requeued": again, "put_aside": aside})
        return Report(counts={"requeued": again, "put_aside": aside}, more=True)


class Tick:
    """Queues scheduled tasks whose time has come, ends what is late, offers what its region leaves waiting to all regions,
    completes chords that a died process left."""

    name, every_s = "tick", 0.5
    page = 500

    def __init__(self, store: Store, complete_chords: Complete) -> None:
        self._store, self._complete = store, complete_chords

    def run_once(self, lead: Lead) -> Report:
        """One run."""
        counts = {"promoted": 0, "expired": 0, "forgotten": 0, "left_region": 0, "timed_out": 0, "chords": 0}
        for _ in range(_PAGES):
            *numbers, due, left, timed_out = self._store.tasks.tick(lead.fence, self.page)
            numbers += [left, timed_out]
            for name, number in zip(counts, (*numbers, len(due)), strict=True):
                counts[name] += number
            if due:
                self._complete(due)
            if max(numbers) < self.page:
                return Report(counts=counts)
        return Report(counts=counts, more=True)


class HealthCheck:
    """Judges the health of all agents, says what has changed, and forgets agents and coordinators that are long gone."""

    name = "health"

    def __init__(self, store: Store, coordinators: Coordinators) -> None:
        self._store, self._coordinators = store, coordinators
        self.every_s = store.settings.health_check_interval_ms / 1000

    def run_once(self, lead: Lead) -> Report:
        """One run."""
        judged = agents.judge(self._store, lead.fence)
        changes = 0
        for agent, before in judged.changed:
            well = agent.status in _WELL
            if not before and well:
                continue  # it is new
            changes += 1
            why = agent.condition or f"last heard of {agent.silent_ms / 1000:.1f} s ago"
            level = logging.INFO if well else logging.WARNING
            logger.log(level, "agent %s is %s, was %s: %s", agent.id, agent.status, before or "new", why)
        return Report(
            counts={
                "changed": changes,
                "agents_forgotten": judged.forgotten,
                "coordinators_forgotten": self._coordinators.forget_gone(),
            }
        )


class Withdraw:
    """Takes back what agents that joined over HTTP were given, of the whole mesh: when it has ended, when they were revoked or
    are gone."""

    name, every_s = "withdraw", 2.0

    def __init__(self, store: Store, revoked: Callable[[Joined], bool]) -> None:
        self._users, self._revoked = RedisUsers(store.client), revoked
        self._own = store

    def _store(self, namespace: str) -> Store:
        if namespace == self._own.keys.namespace:
            return self._own
        return Store(replace(self._own.settings, namespace=namespace), client=self._own.client)

    def run_once(self, lead: Lead) -> Report:
        """One run."""
        left = joining.sweep(self._users, self._store, self._revoked)
        for one in left:
            agent = f"agent {one.joined.agent}"
            logger.warning(
                "what %s of namespace %s was given is withdrawn: %s", agent, one.joined.namespace, one.why
            )
            audit.record(
                self._store(one.joined.namespace),
                subject=one.joined.subject,
                source=lead.leader,
                action="withdraw",
                object=agent,
                why=one.why,
            )
        return Report(counts={"withdrawn": len(left)})


class Hear:
    """Moves what agents have told into the audit log, of the whole mesh: not every namespace has a leader."""

    name, every_s = "hear", 1.0

    def __init__(self, store: Store) -> None:
        self._store = store
        self._foreign: set[str] = set()  # namespaces that this process's Redis user may not look at

    def run_once(self, lead: Lead) -> Report:
        """One run."""
        client = self._store.client
        names = {self._store.keys.namespace, *log.namespaces(client)} - self._foreign
        told, foreign = log.telling(client, sorted(names))
        self._foreign.update(foreign)
        return Report(counts={"told": sum(audit.move(client, name, self._store.now_ms()) for name in told)})


class Reseal:
    """Seals the messages of tasks that have not ended anew with the key in force, where what sealed them may end before they do:
    an agent's certificate, or the old secret while it is rotated. It walks over all of them, again and again: without a pause as
    long as this process knows two secrets, else every few minutes (certificates have hours left when they are used)."""

    name, every_s = "reseal", 2.0
    page = 500
    pause_s = 300.0

    def __init__(self, store: Store) -> None:
        self._store = store
        self._here: tuple[str, int] | None = None  # the key and the place in it where the next run goes on
        self._ahead: list[str] = []
        self._seen, self._walked_at = 0, float("-inf")
        self._cursor, self._bodies_seen, self._bodies_left = "0", 0, 0  # of the walk over chords
        self._kid: str | None = None  # in force when it last looked
        self.left: int | None = None
        """How many were still sealed with another key in the last whole walk; None: there is one secret only, or none yet."""

    def run_once(self, lead: Lead) -> Report:
        """One run."""
        rotating = len(self._store.settings.keyring.kids) > 1
        kid = kid_in_force(self._store.settings)
        if self._kid not in (None, kid):
            audit.record(
                self._store,
                subject="mesh",
                source=lead.leader,
                action="rotate",
                object=f"key {kid}",
                why=f"every process that is alive knows it; it signs in the place of {self._kid}",
            )
        self._kid = kid
        if self._here is None and not rotating and time.monotonic() - self._walked_at < self.pause_s:
            return Report(counts={"resealed": 0})
        done = self._reseal_bodies() if rotating else 0
        for _ in range(_PAGES):
            ids = self._next()
            if ids is None:
                self.left = self._seen + self._bodies_left if rotating else None
                self._walked_at = time.monotonic()
                return Report(counts={"resealed": done})
            if passing := resealing.passing(self._store, ids):
                done += resealing.reseal(self._store, passing)
                kinds = resealing.sealed_with(self._store, passing)
                self._seen += kinds.total() - kinds[kid]
        return Report(counts={"resealed": done}, more=True)

    def _reseal_bodies(self) -> int:
        """The next pages of chords, whose bodies are in no queue yet; how many were sealed anew."""
        done = 0
        for _ in range(_PAGES):
            self._cursor, bodies = self._store.chords.bodies(self._cursor)
            resealed, left = resealing.reseal_bodies(self._store, bodies)
            done, self._bodies_seen = done + resealed, self._bodies_seen + left
            if self._cursor == "0":
                self._bodies_left, self._bodies_seen = self._bodies_seen, 0
                break
        return done

    def _next(self) -> list[str] | None:
        """The next page of ids; None at the end of a walk."""
        client, keys = self._store.client, self._store.keys
        if self._here is None:
            ready = sorted(name.decode() for name in client.execute("SMEMBERS", keys["ready"]))
            self._ahead = [keys["scheduled"], keys["leases"], *(keys.of("queue", name) for name in ready)]
            self._here, self._seen = (self._ahead.pop(0), 0), 0
        while True:
            key, place = self._here
            found = client.execute("ZRANGE", key, place, place + self.page - 1)
            if found:
                self._here = key, place + self.page
                return [name.decode() for name in found]
            if not self._ahead:
                self._here = None
                return None
            self._here = self._ahead.pop(0), 0


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

    def __init__(
        self, leadership: Leadership, loops: Iterable[Loop], *, always: Iterable[Callable[[], None]] = ()
    ) -> None:
        self.leadership, self.loops = leadership, tuple(loops)
        self._always = tuple(always)  # every second or more often, whoever leads
        self.last = {loop.name: Last() for loop in self.loops}
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._away = threading.Event()
        self._lead_taken = threading.Event()

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

    def stop(self) -> None:
        """Resign, so that another leads at once, and let the runs under way end; what they still want is refused."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._lead_taken.set()
        self.leadership.resign()
        until = time.monotonic() + _STOP_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        self.leadership.withdraw()

    def _keep_lead(self) -> None:
        while not self._stop.is_set():
            for job in (self.leadership.run_once, *self._always):
                self._guarded(job)
            if self.leadership.leading:
                self._lead_taken.set()
            else:
                self._lead_taken.clear()
            self._stop.wait(self.leadership.pause_s)

    def _repeat(self, loop: Loop) -> None:
        pause = 0.0
        while not self._stop.wait(pause):
            self._lead_taken.wait(_IDLE_S)  # a new leader starts all its loops at once
            lead = self.leadership.lead
            if lead is None:
                pause = _LOOK_S
            else:
                pause = 0.0 if self._guarded(lambda: self._run(loop, lead)) else loop.every_s  # noqa: B023

    def _run(self, loop: Loop, lead: Lead) -> bool:
        last, begun = self.last[loop.name], time.monotonic()
        try:
            report = loop.run_once(lead)
        except StaleFence:
            self.leadership.over(lead)
            return False
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
