"""The direct port: services on Redis. No coordinator is needed for anything here."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mesh.client.listener import Ended, Listener
from mesh.client.ports import Page, Settled, Tell
from mesh.core.agents import AgentInfo
from mesh.core.replay import Change
from mesh.core.states import HELD
from mesh.core.tokens import EVERY
from mesh.errors import NotFound
from mesh.services import (
    agents,
    audit,
    capacity,
    dead_letters,
    explaining,
    forecast,
    listing,
    tasks,
    top,
    types,
    views,
)
from mesh.services import restore as restores
from mesh.services.tasks import Options
from mesh.services.types import TypeInfo
from mesh.settings import Settings
from mesh.store.store import Store

__all__ = ["Direct"]
_OFFERED_FOR_S = 5.0  # how long "somebody can take it" is believed
_MISSED_FOR_S = 1.0  # ... and "nobody can"
_OFFERS = 10_000
_WAITS = re.compile(r": the task waits until one [a-z ]+(?=\.)")


class Direct:
    """Straight on Redis. Safe for threads, and in a forked child."""

    pushes_progress = True

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.recorded = False  # in the audit log
        self.store = Store(settings)
        self._listener: Listener | None = None
        self._lock = threading.Lock()

    # -- submitting

    def submit(
        self, task_type: str, payload: Any, options: Options, task_id: str | None, unsatisfiable: str
    ) -> tuple[str, str | None]:
        """(id, a sentence if no agent can take it now)."""
        sentence = self._unmet(task_type, options, unsatisfiable)
        return tasks.submit(self.store, task_type, payload, options, task_id), sentence

    def submit_many(
        self, task_type: str, payloads: Iterable[Any], options: Options, unsatisfiable: str
    ) -> tuple[list[str], str | None]:
        """(ids in order, a sentence if no agent can take them now)."""
        sentence = self._unmet(task_type, options, unsatisfiable)
        return tasks.submit_many(self.store, task_type, payloads, options), sentence

    def _unmet(self, task_type: str, options: Options, unsatisfiable: str) -> str | None:
        queue = tasks.requirement(self.store, task_type, options.requires)
        return agents.unmet_warning(self.store, task_type, queue, unsatisfiable)

    # -- waiting

    @property
    def listening(self) -> bool:
        """Whether the shared connection is there."""
        listener = self._listener
        return listener is not None and listener.alive

    def listen(self) -> None:
        """Make the shared connection. Raises `StoreUnavailable`."""
        with self._lock:
            if self._listener is None or not self._listener.alive:
                self._listener = Listener(self.store)

    def watch(self, task_ids: Sequence[str], tell: Tell) -> None:
        """See `Port`."""
        self.listen()
        if self._listener is not None:
            self._listener.watch(task_ids, tell)

    def forget(self, task_ids: Sequence[str], tell: Tell) -> None:
        """See `Port`."""
        if self._listener is not None:
            self._listener.forget(task_ids, tell)

    def value(self, task_id: str, ended: Ended) -> Any:
        """See `Port`."""
        if ended.state is None:
            raise NotFound(f"There is no task {task_id!r} in namespace {self.settings.namespace!r}.")
        return tasks.value_of(views.end(task_id, ended.state, ended.document))

    # -- one task

    def record(self, task_id: str, *, patient: bool = True) -> dict[str, Any]:
        """See `Handle`; Redis answers or not, there is no patience in it."""
        return views.task(tasks.get(self.store, task_id))

    def progress(self, task_id: str) -> dict[str, Any] | None:
        """See `Handle`."""
        state, _, document = self.store.tasks.outcome(task_id)
        return views.progress(document) if state in HELD else None

    def why(self, task_id: str) -> dict[str, Any]:
        """See `Handle`."""
        return explaining.why(self.store, task_id)

    def cancel(self, task_id: str, reason: str) -> bool:
        """See `Handle`."""
        done = tasks.cancel(self.store, task_id, reason)
        self._record("cancel", f"task {task_id}", "" if done else "it had ended")
        return done

    def retry(self, task_id: str) -> None:
        """See `Handle`."""
        tasks.retry(self.store, task_id)
        self._record("retry", f"task {task_id}")

    # -- the namespace

    def agents(self, *, capability: str | None, status: str | None, region: str | None) -> list[AgentInfo]:
        """See `Mesh`."""
        return agents.discover(self.store, capability=capability, status=status, region=region)

    def cordon(self, agent_id: str, on: bool) -> None:
        """See `Mesh`."""
        agents.cordon(self.store, agent_id, on)
        self._record("cordon" if on else "uncordon", f"agent {agent_id}")

    def drain(self, agent_id: str, grace_s: float | None) -> None:
        """See `Mesh`."""
        agents.drain(self.store, agent_id, None if grace_s is None else round(grace_s * 1000))
        self._record("drain", f"agent {agent_id}")

    def overview(self) -> dict[str, Any]:
        """See `Mesh`."""
        return views.namespace(self.store)

    def top(self) -> dict[str, Any]:
        """See `Mesh`."""
        return top.counted(self.store)

    def capacity(self, within_s: int) -> dict[str, Any]:
        """See `Mesh`."""
        return capacity.advice(self.store, within_s=within_s)

    def replayed(self, change: Change) -> dict[str, Any]:
        """See `Mesh`."""
        return forecast.forecast(self.store, change)

    def capabilities(self) -> list[dict[str, Any]]:
        """See `Mesh`."""
        return listing.capabilities(self.store)

    def queues(self) -> list[dict[str, Any]]:
        """See `Mesh`."""
        return listing.queues(self.store)

    def types(self) -> list[TypeInfo]:
        """See `Mesh`."""
        return types.advertised(self.store)

    def tasks(self, filters: Mapping[str, Any], cursor: str | None, limit: int) -> Page:
        """See `Port`."""
        return listing.tasks(self.store, **filters, cursor=cursor, limit=limit)

    def dead_letters(self, filters: Mapping[str, Any], cursor: str | None, limit: int) -> Page:
        """See `Port`."""
        return listing.dead_letters(self.store, **filters, cursor=cursor, limit=limit)

    def audit(self, filters: Mapping[str, Any], cursor: str | None, limit: int) -> Page:
        """See `Port`."""
        own = [self.settings.namespace, EVERY]
        if cursor is None:  # there may be no coordinator that does it
            audit.move(self.store.client, self.settings.namespace, self.store.now_ms())
        return audit.entries(self.store.client, **filters, namespaces=own, cursor=cursor, limit=limit)

    def settle_dead(self, verb: str, task_ids: Sequence[str]) -> Settled:
        """See `Port`."""
        done = (dead_letters.replay if verb == "replay" else dead_letters.discard)(self.store, task_ids)
        for one in done[0]:
            self._record(verb, f"task {one}")
        return done

    def explain(self, task_type: str, options: Options) -> dict[str, Any]:
        """See `Mesh`."""
        return explaining.explain(self.store, task_type, options)

    def restore(
        self, agents: Sequence[Mapping[str, Any]], tasks: str | None, dry_run: bool
    ) -> dict[str, Any]:
        """See `Mesh`."""
        rows = restores.check_rows(agents, self.settings.namespace)
        report = restores.restore(self.store, rows, tasks=tasks, dry_run=dry_run)
        if not dry_run:
            self._record("restore", f"namespace {self.settings.namespace}", f"tasks: {tasks or 'fail'}")
        return report

    def _record(self, action: str, what: str, why: str = "") -> None:
        """It is done: that it could not be written down is a warning."""
        if self.recorded:
            subject, source = audit.operator()
            try:
                audit.record(self.store, subject=subject, source=source, action=action, object=what, why=why)
            except Exception as error:
                warnings.warn(f"This is not in the audit log: {error}", UserWarning, stacklevel=2)

    def close(self) -> None:
        """Stop listening and close the connections."""
        with self._lock:
            listener, self._listener = self._listener, None
        if listener is not None:
            listener.stop()
        self.store.close()
