"""`Mesh`: one namespace, in a user's hand. What it does is done by a port: straight on Redis, or over HTTP."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mesh.client.handle import Completions, Handle
from mesh.client.ports import Page, Port, Settled
from mesh.core.agents import AgentInfo
from mesh.core.replay import Change
from mesh.errors import Invalid
from mesh.services.tasks import DEFAULTS, Options, check_task_id
from mesh.services.types import TypeInfo
from mesh.settings import Settings

if TYPE_CHECKING:
    from mesh.store.store import Store

__all__ = ["Mesh"]
_PAGE = 1000


class Mesh:
    """A namespace of the mesh. Safe for threads, and in a forked child.

    Settings come from the environment and the configuration file; the arguments override them. With `coordinator_url` it
    speaks HTTP to the coordinators named there (comma-separated, the first is preferred), with `token` as its right; else
    straight to Redis; if neither is given, HTTP only where COORDINATOR_URL is set and REDIS_URL is not.
    """

    def __init__(
        self,
        *,
        namespace: str | None = None,
        redis_url: str | None = None,
        coordinator_url: str | None = None,
        token: str | None = None,
        settings: Settings | None = None,
    ) -> None:
        if redis_url is not None and coordinator_url is not None:
            raise Invalid(
                "Mesh takes redis_url or coordinator_url, not both: they are two ways to the same namespace."
            )
        settings = settings or Settings.load()
        changes: dict[str, Any] = {
            "namespace": namespace,
            "redis_url": redis_url,
            "coordinator_url": coordinator_url,
        }
        self.settings = dataclasses.replace(settings, **{k: v for k, v in changes.items() if v is not None})
        over_http = coordinator_url is not None or (
            redis_url is None and settings.was_set("coordinator_url") and not settings.was_set("redis_url")
        )
        self._port: Port = _http(self.settings, token) if over_http else _direct(self.settings, token)

    # -- submitting

    def submit(
        self,
        task_type: str,
        payload: Any = None,
        *,
        requires: Sequence[str] = (),
        priority: int = 4,
        countdown_s: float | None = None,
        expires_s: float | None = None,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
        retries: int | None = None,
        strategy: str | None = None,
        region: str | None = None,
        task_id: str | None = None,
        labels: Mapping[str, str] | None = None,
        ignore_result: bool = False,
        unsatisfiable: str = "warn",
    ) -> Handle:
        """Submit one task.

        `payload`: anything that JSON can say (None: the task takes no argument). `requires`: capabilities beyond those of
        the type. `priority`: 0 to 9, 9 first. `expires_s`: to be started by then (else
        `expired`); `timeout_s` bounds one attempt (retried, in the end `timed_out`); `deadline_s`: to have ended by then, in
        whatever state it is (else `timed_out`). `strategy` and `region`: who gets it, see
        `mesh.core.places`. `task_id` makes it idempotent: the same id is the same task. `unsatisfiable`: what if no agent
        can take it now: "warn" (it waits), "accept" (silently), "reject".

        Raises `Invalid`, `Conflict`, `Unsatisfiable`, `StoreUnavailable`, `CoordinatorUnavailable`; then nothing was
        submitted, or, if the mesh went away in the middle, submitting again with the same `task_id` is safe.
        """
        plain = priority == 4 and not (
            requires
            or countdown_s
            or expires_s is not None
            or timeout_s is not None
            or deadline_s is not None
            or retries is not None
            or strategy
            or region
            or labels
            or ignore_result
        )
        options = (
            DEFAULTS
            if plain
            else Options(
                requires=requires,  # type: ignore[arg-type] # becomes a tuple there
                priority=priority,
                countdown_s=countdown_s,
                expires_s=expires_s,
                timeout_s=timeout_s,
                deadline_s=deadline_s,
                retries=retries,
                strategy=strategy,
                region=region,
                ignore_result=ignore_result,
                labels=labels or {},
            )
        )
        new, sentence = self._port.submit(task_type, payload, options, task_id, unsatisfiable)
        if sentence is not None:
            warnings.warn(sentence, UserWarning, stacklevel=2)
        return Handle(self._port, new)

    def submit_many(
        self, task_type: str, payloads: Iterable[Any], *, unsatisfiable: str = "warn", **options: Any
    ) -> list[Handle]:
        """Submit many tasks of one type; the options of `submit` except `task_id`."""
        ids, sentence = self._port.submit_many(task_type, payloads, _options(options), unsatisfiable)
        if sentence is not None:
            warnings.warn(sentence, UserWarning, stacklevel=2)
        port = self._port
        return [Handle(port, one) for one in ids]

    def explain(self, task_type: str, **options: Any) -> dict[str, Any]:
        """Who could take such a task, and why the others would not; nothing is submitted. The options of `submit`.

        {queue, capable: [ids], not_capable: [{agent, why}], ahead, free_slots, agents, expected_start_ms, advice, ...}: see
        `mesh.services.explaining`. Raises `Invalid`.
        """
        return self._port.explain(task_type, _options(options))

    # -- tasks

    def handle(self, task_id: str) -> Handle:
        """The handle of a task that somebody has submitted."""
        return Handle(self._port, check_task_id(task_id))

    def as_completed(self, handles: Iterable[Handle], timeout_s: float | None = None) -> Completions:
        """The handles as their tasks end, each once, by `for` or `async for`. Raises `ResultTimeout`."""
        return Completions(self._port, handles, timeout_s)

    def tasks(
        self,
        *,
        state: str | None = None,
        type: str | None = None,
        capability: str | None = None,
        agent: str | None = None,
        since_ms: int | None = None,
        limit: int = 100,
    ) -> list[dict[str, Any]]:
        """The newest tasks (of the newest 10,000), as `Handle.record` shows them. `since_ms`: submitted then or later."""
        filters = {
            "state": state,
            "type": type,
            "capability": capability,
            "agent": agent,
            "since_ms": since_ms,
        }
        return _pages(self._port.tasks, filters, limit)

    def dead_letters(
        self,
        *,
        type: str | None = None,
        capability: str | None = None,
        reason: str | None = None,
        since_ms: int | None = None,
        limit: int = 100,
    ) -> list[dict[str, Any]]:
        """Tasks that were put aside, newest first, as `Handle.record` shows them. `since_ms`: put aside then or later."""
        filters = {"type": type, "capability": capability, "reason": reason, "since_ms": since_ms}
        return _pages(self._port.dead_letters, filters, limit)

    def audit(
        self,
        *,
        subject: str | None = None,
        action: str | None = None,
        allowed: bool | None = None,
        since_ms: int | None = None,
        limit: int = 100,
    ) -> list[dict[str, Any]]:
        """The newest entries of the audit log: {id, time, namespace, subject, source, action, object, allowed, why, many}.

        On Redis those of the namespace; over HTTP those of the namespaces that the token names. Raises `Refused`.
        """
        filters = {"subject": subject, "action": action, "allowed": allowed, "since_ms": since_ms}
        return _pages(self._port.audit, filters, limit)

    def replay(self, task_ids: Sequence[str]) -> Settled:
        """Run dead letters again, as new runs: (ids that are queued again, [(id, error)] of those that are not)."""
        return self._settle_dead("replay", task_ids)

    def discard(self, task_ids: Sequence[str]) -> Settled:
        """Take tasks off the dead letters: (ids that were, [(id, error)] of those that were none)."""
        return self._settle_dead("discard", task_ids)

    def _settle_dead(self, verb: str, task_ids: Sequence[str]) -> Settled:
        done: list[str] = []
        refused: list[Any] = []
        for first in range(0, len(task_ids), _PAGE):
            ids, others = self._port.settle_dead(verb, task_ids[first : first + _PAGE])
            done += ids
            refused += others
        return done, refused

    # -- the namespace

    def agents(
        self, *, capability: str | None = None, status: str | None = None, region: str | None = None
    ) -> list[AgentInfo]:
        """The agents of the namespace, by id."""
        return self._port.agents(capability=capability, status=status, region=region)

    def cordon(self, agent_id: str) -> None:
        """No new work for an agent; what waited for it alone goes to others. Raises `NotFound`."""
        self._port.cordon(agent_id, True)

    def uncordon(self, agent_id: str) -> None:
        """New work for an agent again. Raises `NotFound`, `Conflict` (it drains: that is not taken back)."""
        self._port.cordon(agent_id, False)

    def drain(self, agent_id: str, *, grace_s: float | None = None) -> None:
        """Let an agent finish what it runs, and leave. What still runs after `grace_s` seconds (None: its own
        MESH_DRAIN_GRACE_MS) goes to others, uncounted. Raises `NotFound`, `Invalid`.
        """
        self._port.drain(agent_id, grace_s)

    def overview(self) -> dict[str, Any]:
        """The namespace in short: {namespace, coordinators, leader, agents: {health: number}, queues: {name: {state: number}},
        states}."""
        return self._port.overview()

    def top(self) -> dict[str, Any]:
        """What `mesh top` shows, counted so far; see `mesh.core.top.between` for what has happened between two of them."""
        return self._port.top()

    def capacity(self, *, within_s: int = 300) -> dict[str, Any]:
        """What to add so that what waits has started within that time; see `mesh.services.capacity.advice`."""
        return self._port.capacity(within_s)

    def replayed(
        self,
        *,
        agents: int | None = None,
        slots: int | None = None,
        without_region: str | None = None,
        requires: Sequence[str] = (),
    ) -> dict[str, Any]:
        """How long the newest tasks would have waited with so many agents or slots of those that offer `requires`, or without a
        region; see `mesh.services.forecast.forecast`. Raises `Invalid`."""
        change = Change(
            agents=agents, slots=slots, without_region=without_region, requires=frozenset(requires)
        )
        return self._port.replayed(change)

    def capabilities(self) -> list[dict[str, Any]]:
        """What is offered or asked for: {capability, agents, slots, free_slots, backlog, oldest_age_ms, ...}."""
        return self._port.capabilities()

    def queues(self) -> list[dict[str, Any]]:
        """Queues by name: {queue, depth, oldest_age_ms, states: {state: tasks now, or ever ended}, ...}."""
        return self._port.queues()

    def types(self) -> list[TypeInfo]:
        """The task types that agents advertise, by name."""
        return self._port.types()

    def restore(
        self, agents: Sequence[Mapping[str, Any]], *, tasks: str | None = None, dry_run: bool = False
    ) -> dict[str, Any]:
        """Restore the registry to `agents` (`mesh discover -o json`), and end all of before a backup of Redis was restored.

        What had not ended is failed or, `tasks="requeue"`, queued again if it was held; `dry_run` only tells. The report is that
        of `mesh.services.restore.restore`. Over HTTP it has to be done within the time-out of a call; if it breaks off, call it
        again: it goes on. Raises `Invalid`, `Conflict` (agents are alive, and `tasks` is not given), `StoreUnavailable`.
        """
        return self._port.restore(agents, tasks, dry_run)

    # -- the connection

    def recorded(self) -> Mesh:
        """Write what is done through this to the audit log, as this user's: the command line does. Over HTTP it always is."""
        if hasattr(self._port, "recorded"):
            self._port.recorded = True
        return self

    @property
    def store(self) -> Store:
        """What the direct client holds of Redis. Raises `Invalid` over HTTP, where there is none."""
        store: Store | None = getattr(self._port, "store", None)
        if store is None:
            raise Invalid("This needs Redis: give REDIS_URL (or redis_url) instead of a coordinator's URL.")
        return store

    def close(self) -> None:
        """Stop waiting and close the connections."""
        self._port.close()

    def __enter__(self) -> Mesh:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _direct(settings: Settings, token: str | None) -> Port:
    from mesh.client.direct import Direct

    if token is not None:
        raise Invalid(
            "token= goes with coordinator_url=: Redis knows no tokens, its URL carries user and password."
        )
    return Direct(settings)


def _http(settings: Settings, token: str | None) -> Port:
    from mesh.client.http import Http  # whoever has Redis does without an HTTP client

    return Http(settings, token)


def _options(given: dict[str, Any]) -> Options:
    if not given:
        return DEFAULTS
    try:
        return Options(**given)
    except TypeError as error:
        raise Invalid(f"{str(error).rpartition(' ')[2]} is not an option here.") from error


def _pages(
    read: Callable[[Mapping[str, Any], str | None, int], Page], filters: Mapping[str, Any], limit: int
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while len(found) < limit:
        page, cursor = read(filters, cursor, min(_PAGE, limit - len(found)))
        found += page
        if cursor is None:
            break
    return found
