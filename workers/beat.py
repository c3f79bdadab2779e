"""The agent's beat: renews leases and registration, reaps what others lost, hears of new requirements.

It runs in a native thread (also under gevent) with connections of its own: whatever the tasks and the event loop do, the leases
are renewed. Between beats it waits at the agent's nudge list, so that a cancellation or a new requirement reaches it at once.
"""

from __future__ import annotations

import _thread
import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from ..bus.holdings import UNSTARTED_LIMIT_S, Holding, Holdings
from ..errors import StoreUnavailable
from ..settings import Settings
from ..store.agents import Beat as BeatAnswer
from ..store.client import NETWORK_ERRORS, pack
from ..store.store import Store
from ..store.tasks import Entry
from ..telemetry.metrics import Pulse
from .identity import Membership

logger = logging.getLogger(__name__)
POOL_SLACK_S = 2.0  # a pool that watches time limits itself has ended an attempt by then
_PAUSE_S = 0.5  # between tries while Redis is away
_REGISTERED_MS = 86_400_000  # a registration stays so long after the last beat
_LATE_S = 1.0  # an answer that is so late does not come: beats must go on
_CLAIM = 20  # poisoned tasks whose end is told at a time
_ADVERTISE_S = 3600.0  # task types are forgotten when nobody has told them for a day


def start_native_thread(function: Callable[[], None]) -> None:
    """A thread that gevent does not turn into a greenlet."""
    try:
        from gevent import monkey
    except ImportError:
        original = None
    else:
        original = (
            monkey.get_original("_thread", "start_new_thread")
            if monkey.is_module_patched("threading")
            else None
        )
    if original is not None:
        original(function, ())
    else:
        threading.Thread(target=function, daemon=True, name="mesh-beat").start()


class Beat:
    """One agent's beat. `on_main(function)` runs a function in the agent's main loop."""

    def __init__(
        self,
        settings: Settings,
        membership: Membership,
        holdings: Holdings,
        *,
        on_main: Callable[[Callable[[], Any]], None],
        on_requirements: Callable[[list[str]], None],
        on_chords_due: Callable[[list[str]], None],
        on_poison: Callable[[list[str]], None],
        on_lost: Callable[[Holding], None],
        on_overrun: Callable[[Holding, Store], None],
        pool_stops: bool,
        on_absent: Callable[[], None],
        on_asked: Callable[[str, int], None],
        on_usurped: Callable[[], None],
        load: Callable[[], dict[str, Any]],
        renew: Callable[[Store], None],
        types: dict[str, dict[str, Any]],
    ) -> None:
        self.settings, self.membership, self.holdings = settings, membership, holdings
        # Connections of its own: sockets are not shared with greenlets of another hub, and one that is dead must be found out
        # while there is still time to renew.
        patience_ms = max(1000, min(settings.redis_socket_timeout_ms, settings.lease_renew_ms))
        self._store = Store(dataclasses.replace(settings, redis_socket_timeout_ms=patience_ms))
        self._on_main, self._on_requirements, self._on_chords_due = on_main, on_requirements, on_chords_due
        self._on_poison = on_poison
        self._on_lost, self._on_usurped, self._load, self._renew = on_lost, on_usurped, load, renew
        self._on_absent, self._on_asked = on_absent, on_asked
        self._asked, self._drain_by = "", 0.0
        self._on_overrun = on_overrun
        self._slack_s = POOL_SLACK_S if pool_stops else 0.0
        self._version = -1
        self._stopping = False
        self._finished = _thread.allocate_lock()
        self._reap_at: float | None = None
        self._types = types
        self._told_ms = 0  # when Redis has confirmed a beat, by its own clock
        self.last_beat = self._advertised = time.monotonic()
        self.reaped = 0
        self.pulse = Pulse()

    def start(self) -> None:
        """Begin to beat."""
        start_native_thread(self._run)

    def stop(self) -> None:
        """No more beats after the one under way."""
        self._stopping = True

    def _run(self) -> None:
        interval = self.settings.lease_renew_ms / 1000
        waiting = None
        while not self._stopping:
            try:
                self.beat()
                if waiting is None:
                    waiting = self._store.client.connection()
                    waiting.connect()
                self._until_next(waiting, time.monotonic() + interval)
            except (StoreUnavailable, *NETWORK_ERRORS) as error:
                if waiting is not None:
                    waiting.disconnect()
                    waiting = None
                logger.warning("beat: %s", error)
                time.sleep(_PAUSE_S)
            except Exception:
                logger.exception("beat")
                time.sleep(_PAUSE_S)
        if waiting is not None:
            waiting.disconnect()

    def _until_next(self, connection: Any, next_beat: float) -> None:
        """Wait for the next beat or a nudge; reap in between when a lease ends."""
        key = self._store.keys.of("nudge", self.membership.agent_id)
        while not self._stopping:
            now = time.monotonic()
            if self._reap_at is not None and now >= self._reap_at:
                self._reap()
                continue
            overrun_at = self._next_overrun()
            if now >= overrun_at:
                self._end_overruns()
                continue
            until = min(next_beat, overrun_at, next_beat if self._reap_at is None else self._reap_at)
            if now >= next_beat:
                return
            pause = max(0.01, until - now)
            connection.send_packed_command([pack(["BLPOP", key, pause])], check_health=False)
            if not connection.can_read(pause + _LATE_S):
                raise StoreUnavailable("the connection for nudges is silent")
            if connection.read_response() is not None:
                return

    def beat(self) -> None:
        """Renew exactly what this agent holds, and nothing beyond its time limit."""
        self._end_overruns()
        held = [holding for holding in self.holdings.held() if not holding.dropped]
        entries = [Entry(holding.id, holding.fence) for holding in held]
        with self.pulse.beat():
            answer = self._store.agents.renew(
                self.membership.agent_id, self.membership.incarnation, self._load(), entries
            )
        self.last_beat = time.monotonic()
        if answer.known == "usurped":
            self._on_usurped()
            return
        self._look_back(answer)
        if answer.known in ("unknown", "restored"):
            self._rejoin()
        elif answer.known == "absent":
            self._on_absent()
        else:
            self._obey(answer.asked, answer.drain_ms)
        for holding, word in zip(held, answer.words, strict=True):
            if word == "lost" and not holding.ended:
                holding.drop()
                self._on_main(lambda lost=holding: self._on_lost(lost))  # type: ignore[misc]
        self._give_back_unstarted()
        self._hear(answer)
        if self.last_beat - self._advertised > _ADVERTISE_S:
            self._advertise()
        if answer.next_lease_end_ms >= 0:
            self._reap_at = time.monotonic() + answer.next_lease_end_ms / 1000 + 0.02
        else:
            self._reap_at = None
        self._renew(self._store)  # last: what the store has answered is acted on whatever becomes of this

    def _look_back(self, answer: BeatAnswer) -> None:
        """Say so if Redis does not know what it has confirmed before: it was restored, or has lost its last writes."""
        told_ms, self._told_ms = self._told_ms, answer.now_ms
        lost_ms = told_ms - answer.before_ms
        forgotten = not told_ms or answer.now_ms - told_ms > _REGISTERED_MS  # its record has ended by itself
        if answer.known == "restored" or forgotten or lost_ms <= self.settings.lease_ms:
            return
        far = f" by about {lost_ms // 1000} s" if answer.before_ms else ""
        logger.warning(
            "Redis has gone back in time%s: it was restored from a backup, or has lost its data; see docs/backup.md",
            far,
        )
        self._store.restores.went_back(self.membership.agent_id, lost_ms if answer.before_ms else 0)

    def _overruns_at(self, holding: Holding) -> float:
        at = holding.overruns_at
        return float("inf") if at is None or holding.request is None else at + self._slack_s

    def _next_overrun(self) -> float:
        """When the next attempt will have run past its time limit and its pool's own watch over it."""
        return min(map(self._overruns_at, self.holdings.held()), default=float("inf"))

    def _end_overruns(self) -> None:
        """End attempts that their pool could not stop in time: their leases, not what they do."""
        now = time.monotonic()
        for holding in self.holdings.held():
            if self._overruns_at(holding) <= now:
                logger.warning("task %s (attempt %s) runs past its time limit", holding.id, holding.fence)
                self._on_overrun(holding, self._store)

    def _rejoin(self) -> None:
        """Redis has lost its data, or forgot us: register again under the same incarnation."""
        self._store.agents.join(
            self.membership.agent_id,
            self.membership.fields,
            rejoin=self.membership.incarnation,
        )
        self._version = -1
        self._advertise()
        self._on_absent()

    def _advertise(self) -> None:
        self._store.types.advertise(self._types)
        self._advertised = self.last_beat

    def _obey(self, asked: str, drain_ms: int) -> None:
        """Hand an operator's word on when it is new: also a drain with another end than before."""
        drain_by = self.last_beat + drain_ms / 1000 if asked == "drain" else 0.0
        if asked != self._asked or abs(drain_by - self._drain_by) > 1.0:
            self._asked, self._drain_by = asked, drain_by
            self._on_asked(asked, drain_ms)

    def _give_back_unstarted(self) -> None:
        takes_none = self.holdings.closed or self.holdings.cordoned
        late = self.holdings.unstarted(older_than_s=-1.0 if takes_none else UNSTARTED_LIMIT_S)
        if not late:
            return
        if not takes_none:
            # What waited so long for a start shows that this agent is slower than it thought: it fetches less from now on.
            self.holdings.run_time.average_s = max(self.holdings.run_time.average_s, UNSTARTED_LIMIT_S)
        for holding in late:
            holding.drop()
        self._store.tasks.release([Entry(holding.id, holding.fence) for holding in late])
        for holding in late:
            self._on_main(lambda gone=holding: self.holdings.forget(gone))  # type: ignore[misc]

    def _hear(self, answer: BeatAnswer) -> None:
        if answer.requirements_version != self._version:
            self._version, names = self._store.agents.requirements()
            self._on_requirements(names)
        if answer.chords_due:
            self._on_chords_due(answer.chords_due)

    def _reap(self) -> None:
        again, aside, next_end_ms, due, claimed = self._store.tasks.reap(claim=_CLAIM)
        if again or aside:
            self.reaped += again + len(aside)
            logger.warning(
                "took back tasks of lost agents: %d queued again, %d put aside as poison", again, len(aside)
            )
        if claimed:
            self._on_poison(claimed)
        if due:
            self._on_chords_due(due)
        self._reap_at = time.monotonic() + max(0.5, next_end_ms / 1000 + 0.02) if next_end_ms >= 0 else None
