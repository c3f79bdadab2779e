"""Who leads a namespace: one coordinator at a time, for as long as it renews its lead.

The lead lies in Redis and ends by Redis's clock. A leader trusts its own only until `LEAD_MS` after it *asked* for it, so its
trust ends before the lead does, whatever the network did with the answer; and every script that only the leader runs compares
the lead again (`lua/lib/leads.lua`). So a leader that was stopped, cut off or slow starts no run on a lead that is over, and
what it has begun changes nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from mesh.errors import MeshError
from mesh.store.agents import Lead
from mesh.store.coordinators import Coordinators
from mesh.store.store import Store
from mesh.telemetry.metrics import Pulse

__all__ = ["LEAD_MS", "Leadership"]
logger = logging.getLogger(__name__)

LEAD_MS = 3000
_RENEW_S = 1.0
_TRY_S = 0.4  # a follower asks so often for a lead that was given up, and at once when one has run out


class Leadership:
    """Takes and keeps the lead, and says so to everybody. `run_once` belongs to one thread, the rest is safe for all."""

    def __init__(
        self, store: Store, coordinators: Coordinators, coordinator: str, fields: Callable[[], dict[str, Any]]
    ) -> None:
        self._store, self._coordinators = store, coordinators
        self._id, self._fields = coordinator, fields
        self._known: Lead | None = None  # what Redis said last
        self._trusted: tuple[Lead, float] | None = None  # our own, and until when by the monotonic clock
        self._resigned = False
        self.pulse = Pulse()

    @property
    def lead(self) -> Lead | None:
        """The lead that this coordinator holds now, by its own clock."""
        trusted = self._trusted
        return trusted[0] if trusted is not None and time.monotonic() < trusted[1] else None

    @property
    def leading(self) -> bool:
        """Whether this coordinator leads now, by its own clock."""
        return self.lead is not None

    @property
    def term(self) -> int:
        """The term that Redis named last, 0 before that."""
        return self._known.term if self._known else 0

    @property
    def leader(self) -> str:
        """The leader that Redis named last, '' before that."""
        return self._known.leader if self._known else ""

    @property
    def pause_s(self) -> float:
        """Until the next run."""
        if self.leading:
            return _RENEW_S
        ends_in_s = self._known.ends_in_ms / 1000 if self._known and not self._known.mine else _TRY_S
        return min(_TRY_S, ends_in_s + 0.01)

    def run_once(self) -> None:
        """Take or keep the lead; announce. Raises `StoreUnavailable`."""
        try:
            self._ask()
        finally:
            if self._trusted is not None and not self.leading:
                self._lose("it could not be renewed in time")
        self._coordinators.announce(self._id, self._fields())

    def _ask(self) -> None:
        asked_at, before = time.monotonic(), self._trusted
        known = self.term
        with self.pulse.beat():
            self._known = found = self._store.agents.lead(self._id, LEAD_MS)
        if found.term < known:
            logger.warning(
                "Redis has gone back in time, from term %d to %d: see docs/backup.md", known, found.term
            )
            self._store.restores.went_back(self._id, 0)
        if before is not None and before[0].fence != found.fence:
            self._lose(f"{found.leader} leads, term {found.term}")
            before = None
        if not found.mine:
            return
        self._trusted = (found, asked_at + LEAD_MS / 1000)
        if before is None:
            logger.info("leads namespace %s, term %d", self._store.keys.namespace, found.term)
        if self._resigned:  # while the question was under way
            self.resign()

    def over(self, lead: Lead) -> None:
        """A script has refused this lead."""
        trusted = self._trusted
        if trusted is not None and trusted[0].fence == lead.fence:
            self._lose("Redis says that it is over")

    def _lose(self, why: str) -> None:
        lost, self._trusted = self._trusted, None
        if lost is not None:
            logger.warning(
                "does not lead namespace %s any more (term %d): %s",
                self._store.keys.namespace,
                lost[0].term,
                why,
            )

    def resign(self) -> None:
        """Give the lead up, for good; if that fails it runs out by itself."""
        self._resigned = True
        trusted, self._trusted = self._trusted, None
        if trusted is not None:
            self._guarded(lambda: self._store.agents.resign(trusted[0].fence))

    def withdraw(self) -> None:
        """Say that this coordinator does not run any more."""
        self._guarded(lambda: self._coordinators.withdraw(self._id))

    @staticmethod
    def _guarded(work: Callable[[], object]) -> None:
        try:
            work()
        except MeshError as error:
            logger.warning("stops without saying so: %s", error)
