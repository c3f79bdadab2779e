"""What `Mesh` and its handles need of the mesh, however they reach it: `direct` (Redis) and `http` (a coordinator)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mesh.core.agents import AgentInfo
from mesh.core.replay import Change
from mesh.errors import MeshError
from mesh.services.tasks import Options
from mesh.services.types import TypeInfo
from mesh.settings import Settings

__all__ = ["Page", "Port", "Progress", "Settled", "Tell", "Waiting"]

Tell = Callable[[str, Any], None]
"""Called with a task's id and what was pushed: `Progress`, a `MeshError` (nobody can be asked any more), or its end, for
`Port.value`. It is called in the thread that listens: it only hands on."""

Page = tuple[list[dict[str, Any]], str | None]
"""Views of tasks, and the cursor of the next page if there is one."""

Settled = tuple[list[str], list[tuple[str, MeshError]]]
"""Ids with which it was done, and those with which it was not, and why."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a running task told: {fraction, note}."""

    value: dict[str, Any]


class Waiting:
    """Who waits for the end of which task. Not locked: its owner does that, together with what it sends."""

    def __init__(self) -> None:
        self._tells: dict[str, list[Tell]] = {}

    def __len__(self) -> int:
        return len(self._tells)

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._tells

    def ids(self) -> list[str]:
        """All that somebody waits for."""
        return list(self._tells)

    def add(self, task_ids: Iterable[str], tell: Tell) -> list[str]:
        """One more who waits; the ids that nobody waited for before."""
        new = []
        for task_id in task_ids:
            tells = self._tells.setdefault(task_id, [])
            if not tells:
                new.append(task_id)
            tells.append(tell)
        return new

    def remove(self, task_ids: Iterable[str], tell: Tell) -> list[str]:
        """One less; the ids that nobody waits for any more."""
        gone = []
        for task_id in task_ids:
            tells = self._tells.get(task_id, [])
            if tell in tells:
                tells.remove(tell)
                if not tells:
                    del self._tells[task_id]
                    gone.append(task_id)
        return gone

    def of(self, task_id: str) -> tuple[Tell, ...]:
        """Who waits for it."""
        return tuple(self._tells.get(task_id, ()))

    def pop(self, task_id: str) -> tuple[Tell, ...]:
        """Who waited for it: it has ended."""
        return tuple(self._tells.pop(task_id, ()))


class Port(Protocol):
    """The operations of one namespace. What they raise is said at `Mesh` and `Handle`."""

    settings: Settings

    @property
    def pushes_progress(self) -> bool:
        """Whether those who `watch` are told of progress."""

    @property
    def listening(self) -> bool:
        """Whether `watch` will not have to connect first."""

    def submit(
        self, task_type: str, payload: Any, options: Options, task_id: str | None, unsatisfiable: str
    ) -> tuple[str, str | None]:
        """(id, a sentence if no agent can take it now)."""

    def submit_many(
        self, task_type: str, payloads: Iterable[Any], options: Options, unsatisfiable: str
    ) -> tuple[list[str], str | None]:
        """(ids in order, a sentence if no agent can take them now)."""

    def listen(self) -> None:
        """Connect for `watch`, if need be."""

    def watch(self, task_ids: Sequence[str], tell: Tell) -> None:
        """Have `tell` called for each once it has ended, also if that was before. Does not block while `listening`."""

    def forget(self, task_ids: Sequence[str], tell: Tell) -> None:
        """Undo `watch`."""

    def value(self, task_id: str, ended: Any) -> Any:
        """What the task returned, by the end that was pushed; raises what it ended with. Asks nobody."""

    def record(self, task_id: str, *, patient: bool = True) -> dict[str, Any]: ...
    def progress(self, task_id: str) -> dict[str, Any] | None: ...
    def why(self, task_id: str) -> dict[str, Any]: ...
    def cancel(self, task_id: str, reason: str) -> bool: ...
    def retry(self, task_id: str) -> None: ...
    def agents(
        self, *, capability: str | None, status: str | None, region: str | None
    ) -> list[AgentInfo]: ...
    def cordon(self, agent_id: str, on: bool) -> None: ...
    def drain(self, agent_id: str, grace_s: float | None) -> None: ...
    def overview(self) -> dict[str, Any]: ...
    def top(self) -> dict[str, Any]: ...
    def capacity(self, within_s: int) -> dict[str, Any]: ...
    def replayed(self, change: Change) -> dict[str, Any]: ...
    def capabilities(self) -> list[dict[str, Any]]: ...
    def queues(self) -> list[dict[str, Any]]: ...
    def types(self) -> list[TypeInfo]: ...
    def tasks(self, filters: Mapping[str, Any], cursor: str | None, limit: int) -> Page: ...
    def dead_letters(self, filters: Mapping[str, Any], cursor: str | None, limit: int) -> Page: ...
    def audit(self, filters: Mapping[str, Any], cursor: str | None, limit: int) -> Page: ...
    def settle_dead(self, verb: str, task_ids: Sequence[str]) -> Settled: ...
    def explain(self, task_type: str, options: Options) -> dict[str, Any]: ...
    def restore(
        self, agents: Sequence[Mapping[str, Any]], tasks: str | None, dry_run: bool
    ) -> dict[str, Any]: ...
    def close(self) -> None: ...
