"""One coordinator: its identity, its loops, and what it says of itself."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from mesh import __version__
from mesh.coordinator.leadership import Leadership
from mesh.coordinator.loops import Complete, HealthCheck, Hear, Reap, Reseal, Runner, Tick, Withdraw
from mesh.errors import Conflict, MeshError
from mesh.services.agents import counts, discover
from mesh.services.views import iso
from mesh.settings import Settings
from mesh.store.coordinators import TTL_MS, Coordinators
from mesh.store.revocations import Revocations
from mesh.store.rotation import rotation_of
from mesh.store.signing import keys_of
from mesh.store.store import Store

__all__ = ["Coordinator"]
logger = logging.getLogger(__name__)
_POLL_S = 0.2


class Coordinator:
    """Runs the loops of one namespace while it leads it. `port`: where its HTTP service answers."""

    def __init__(self, settings: Settings, *, port: int, complete_chords: Complete) -> None:
        self.settings = settings
        self.store = Store(settings)
        self.coordinators = Coordinators(self.store.client, self.store.keys)
        # The random part keeps two on one host apart, and spares a restarted one waiting for its former key to end.
        host = socket.gethostname().partition(".")[0]
        self.id = settings.coordinator_id or f"{host}-{secrets.token_hex(3)}"
        self.life = secrets.token_hex(8)
        self.port = port
        self.beats = 0
        self.stopping = False
        self.connections: Callable[[], int] = lambda: 0  # of HTTP, that are open
        self.started_at = time.time()
        self.revocations = Revocations(self.store.client)
        self.leadership = Leadership(self.store, self.coordinators, self.id, self._fields)
        self.reseal = Reseal(self.store)
        self.runner = Runner(
            self.leadership,
            (
                Reap(self.store, complete_chords),
                Tick(self.store, complete_chords),
                HealthCheck(self.store, self.coordinators),
                self.reseal,
                Hear(self.store),
                Withdraw(
                    self.store, lambda one: self.revocations.covers(one.jti, one.subject, one.issued_at_s)
                ),
            ),
            always=(self.revocations.refresh,),
        )

    def _fields(self) -> dict[str, Any]:
        self.beats += 1
        return {
            "id": self.id,
            "namespace": self.settings.namespace,
            "leads": self.leadership.leading,
            "term": self.leadership.term,
            "address": socket.gethostname(),
            "port": self.port,
            "pid": os.getpid(),
            "region": self.settings.agent_region,
            "version": __version__,
            "started_at": iso(int(self.started_at * 1000)),
            "kids": ",".join(self.settings.keyring.kids),
            "signs": rotation_of(self.settings).signing(),
            "sealed_otherwise": self.reseal.left,
            "life": self.life,
            "beats": self.beats,
        }

    def start(self) -> None:
        """Check Redis, make sure that the id is free, start the loops. Raises `StoreUnavailable`, `Conflict`."""
        logger.info("Redis: %s", self.store.check().sentence)
        self.store.preload()
        self.revocations.refresh()
        keys_of(self.settings).revoked = self.revocations.is_revoked
        self._claim_id()
        self.runner.start()

    def _claim_id(self) -> None:
        """A former life's key ends within its TTL; one that is written anew belongs to somebody who lives."""
        first: tuple[Any, Any] | None = None
        until = time.monotonic() + TTL_MS / 1000 + 1
        while (other := self.coordinators.get(self.id)) is not None:
            now = (other.get("life"), other.get("beats"))
            first = first or now
            if now != first or time.monotonic() > until:
                raise Conflict(
                    f"Coordinator id {self.id!r} is already running (pid {other.get('pid')} on "
                    f"{other.get('address')}): give this one another with --id or COORDINATOR_ID."
                )
            time.sleep(_POLL_S)

    def retire(self) -> None:
        """Not ready any more, the lead given up, the loops stopped; what is asked is still answered."""
        self.stopping = True
        self.runner.stop()

    def stop(self) -> None:
        """Stop the loops, give up the lead."""
        self.retire()
        self.store.close()

    def ready(self) -> tuple[bool, str]:
        """(whether it can do its work, why not)."""
        if self.stopping:
            return False, "It is stopping."
        try:
            self.store.client.execute("PING")
        except MeshError as error:
            return False, str(error)
        return (True, "") if self.runner.alive else (False, "A loop has ended.")

    def report(self) -> tuple[bool, dict[str, Any]]:
        """(whether all is well, the body of `/health`)."""
        now = time.monotonic()
        body: dict[str, Any] = {
            "status": "healthy",
            "id": self.id,
            "namespace": self.settings.namespace,
            "version": __version__,
            "leads": self.leadership.leading,
            "leader": self.leadership.leader or None,
            "term": self.leadership.term,
            "keys": {
                "in_force": rotation_of(self.settings).signing(),
                "known": list(self.settings.keyring.kids),
            },
            "uptime_s": round(time.time() - self.started_at, 1),
            "loops": {
                name: {
                    "counts": last.counts,
                    "runs": last.runs,
                    "seconds_ago": None if last.at is None else round(now - last.at, 3),
                    "took_ms": round(last.took_ms, 2),
                    "error": last.error,
                }
                for name, last in self.runner.last.items()
            },
        }
        try:
            self.store.client.execute("PING")
            body["redis_latency_ms"] = round((time.monotonic() - now) * 1000, 2)
            tasks: Counter[str] = Counter()
            for _, state, number in self.store.tasks.live():
                tasks[state] += number
            body["tasks"] = dict(tasks)
            body["agents"] = counts(discover(self.store))
        except MeshError as error:
            body |= {"status": "unhealthy", "redis_latency_ms": None, "detail": str(error)}
        if self.stopping:
            body |= {"status": "stopping", "detail": "It is stopping."}
        elif not self.runner.alive:
            body |= {"status": "unhealthy", "detail": "A loop has ended."}
        return body["status"] == "healthy", body
