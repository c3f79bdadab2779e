"""The store of one namespace: everything that the floors above hold of Redis."""

from __future__ import annotations

import time

from mesh.settings import Settings
from mesh.store import agents, chords, restores, task_scripts, types
from mesh.store.agents import Agents
from mesh.store.chords import Chords
from mesh.store.client import Client
from mesh.store.durability import Durability, durability
from mesh.store.keys import Keys
from mesh.store.restores import Restores
from mesh.store.tasks import Tasks
from mesh.store.types import Types

_CLOCK_ASKED_S = 60.0


class Store:
    """Tasks, agents and chords of one namespace on one Redis; safe for threads, and for a forked child."""

    def __init__(self, settings: Settings, *, client: Client | None = None) -> None:
        self.settings = settings
        self.client = client or Client(
            settings.redis_url,
            connect_timeout_ms=settings.redis_connect_timeout_ms,
            socket_timeout_ms=settings.redis_socket_timeout_ms,
        )
        self.keys = Keys(settings.namespace)
        self._clock = (float("-inf"), 0)  # when Redis's was asked, by ours, and what it said
        keep_ms = settings.result_retention_s * 1000
        lease_ms, renew_ms = settings.lease_ms, settings.lease_renew_ms
        self.tasks = Tasks(
            self.client,
            self.keys,
            keep_ms=keep_ms,
            ignored_keep_ms=settings.ignored_retention_s * 1000,
            dead_keep_ms=settings.dead_letter_retention_s * 1000,
            max_crashes=settings.max_crashes,
            lease_ms=lease_ms,
            renew_ms=renew_ms,
            spill_ms=settings.region_spill_ms,
        )
        self.agents = Agents(self.client, self.keys, lease_ms=lease_ms, renew_ms=renew_ms, keep_ms=keep_ms)
        self.chords = Chords(self.client, self.keys, keep_ms=keep_ms)
        self.types = Types(self.client, self.keys)
        self.restores = Restores(self.client, self.keys, keep_ms=keep_ms)

    def now_ms(self) -> int:
        """Redis's clock, asked once a minute: what this machine's own says must not matter. Raises `StoreUnavailable`."""
        asked, base_ms = self._clock
        gone = time.monotonic() - asked
        if not 0 <= gone < _CLOCK_ASKED_S:
            base_ms = self.agents.now_ms()
            asked, gone = time.monotonic(), 0.0
            self._clock = asked, base_ms
        return base_ms + int(gone * 1000)

    def check(self, *, config: bool = True) -> Durability:
        """What Redis promises, see `durability`. Raises `StoreUnavailable` unless it answers and evicts nothing."""
        found = durability(self.client, config=config)
        found.refuse_eviction()
        return found

    def preload(self) -> None:
        """Teach the server all scripts."""
        for part in (self.tasks, self.agents, self.chords, self.types, self.restores):
            for bound in part.bound.values():
                bound.load()

    def close(self) -> None:
        """Close the connections."""
        self.client.close()


SCRIPTS = (*task_scripts.ALL, *agents.ALL, *chords.ALL, *types.ALL, *restores.ALL)
