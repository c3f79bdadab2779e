"""The HTTP port: the coordinator's routes. Each submission carries an id of the client's making: repeating it is safe."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from mesh.client.bearer import Bearer
from mesh.client.calls import Caller, Endpoints, error_of
from mesh.client.longpoll import LongPoll
from mesh.client.ports import Page, Settled, Tell
from mesh.core.agents import AgentInfo
from mesh.core.replay import Change
from mesh.core.states import State
from mesh.errors import Invalid, NotFound, Refused
from mesh.services import tasks, views
from mesh.services.tasks import DEFAULTS, Options
from mesh.services.types import TypeInfo
from mesh.settings import Settings

__all__ = ["Http"]
_BATCH = 2000  # submissions of one request
_BATCH_BYTES = 8_000_000

_OPTIONS = {field.name: getattr(DEFAULTS, field.name) for field in dataclasses.fields(Options)}


class Http:
    """Through coordinators. Safe for threads, and in a forked child."""

    pushes_progress = False

    def __init__(self, settings: Settings, token: str | None) -> None:
        self.settings = settings
        self._calls = Caller(settings, Bearer(settings, token), Endpoints(settings.coordinator_urls))
        self._root = f"/v1/namespaces/{quote(settings.namespace, safe='')}"
        self._polling: LongPoll | None = None
        self._lock = threading.Lock()

    # -- submitting

    def submit(
        self, task_type: str, payload: Any, options: Options, task_id: str | None, unsatisfiable: str
    ) -> tuple[str, str | None]:
        """(id, a sentence if no agent can take it now)."""
        if task_id is not None:
            tasks.check_task_id(task_id)
        common = self._common(task_type, options, unsatisfiable)
        body = self._submission(common, task_type, payload, task_id or tasks.new_id())
        answer = self._calls.call("POST", f"{self._root}/tasks", body)
        return answer["id"], answer.get("warning")

    def submit_many(
        self, task_type: str, payloads: Iterable[Any], options: Options, unsatisfiable: str
    ) -> tuple[list[str], str | None]:
        """(ids in order, a sentence if no agent can take them now). Raises the first error of any."""
        common = self._common(task_type, options, unsatisfiable)
        made = [self._submission(common, task_type, payload, tasks.new_id()) for payload in payloads]
        ids: list[str] = []
        sentence: str | None = None
        for batch in _batches(made):
            answer = self._calls.call(
                "POST", f"{self._root}/tasks:batch", b'{"tasks":[%b]}' % b",".join(batch)
            )
            for item in answer["items"]:
                if "code" in item:
                    raise error_of(item["status"], item)
                ids.append(item["id"])
                sentence = sentence or item.get("warning")
        return ids, sentence

    @staticmethod
    def _common(task_type: str, options: Options, unsatisfiable: str) -> bytes:
        """What the submissions of one call have in common: the beginning of their bodies."""
        body: dict[str, Any] = {"type": task_type, "unsatisfiable": unsatisfiable}
        if options is not DEFAULTS:
            given = {name: getattr(options, name) for name in _OPTIONS}
            body |= {name: value for name, value in given.items() if value != _OPTIONS[name]}
        try:
            return msgspec.json.encode(body)[:-1]
        except TypeError as error:
            raise Invalid(f"The options of task {task_type} cannot be written as JSON: {error}.") from error

    def _submission(self, common: bytes, task_type: str, payload: Any, task_id: str) -> bytes:
        name = msgspec.json.encode(task_id)
        written = tasks.payload_json(task_type, payload, self.settings.max_payload_bytes)
        return b'%b,"task_id":%b,"payload":%b}' % (common, name, written)

    # -- waiting

    @property
    def listening(self) -> bool:
        """Always: nothing is connected before it is needed."""
        return True

    def listen(self) -> None:
        """Start the thread that waits."""
        with self._lock:
            if self._polling is None or not self._polling.alive:
                self._polling = LongPoll(self.settings, self._calls, f"{self._root}/tasks:wait")

    def watch(self, task_ids: Sequence[str], tell: Tell) -> None:
        """See `Port`."""
        self.listen()
        if self._polling is not None:
            self._polling.watch(task_ids, tell)

    def forget(self, task_ids: Sequence[str], tell: Tell) -> None:
        """See `Port`."""
        if self._polling is not None:
            self._polling.forget(task_ids, tell)

    def value(self, task_id: str, ended: Mapping[str, Any]) -> Any:
        """See `Port`."""
        if ended["state"] is None:
            raise NotFound(f"There is no task {task_id!r} in namespace {self.settings.namespace!r}.")
        return tasks.value_of(ended)

    # -- one task

    def record(self, task_id: str, *, patient: bool = True) -> dict[str, Any]:
        """See `Handle`."""
        record: dict[str, Any] = self._calls.call("GET", self._task(task_id), patient=patient)
        return record

    def progress(self, task_id: str) -> dict[str, Any] | None:
        """See `Handle`."""
        value: dict[str, Any] | None = self.record(task_id).get("progress")
        return value

    def why(self, task_id: str) -> dict[str, Any]:
        """See `Handle`."""
        why: dict[str, Any] = self._calls.call("GET", f"{self._task(task_id)}/why")
        return why

    def cancel(self, task_id: str, reason: str) -> bool:
        """See `Handle`; after a lost answer the repeated call says False for what the first has cancelled."""
        body = msgspec.json.encode({"reason": reason})
        return bool(self._calls.call("POST", f"{self._task(task_id)}:cancel", body)["cancelled"])

    def retry(self, task_id: str) -> None:
        """See `Handle`. Not repeated: the second call would find it queued, and refuse."""
        self._calls.call("POST", f"{self._task(task_id)}:retry", repeat=False)

    def _task(self, task_id: str) -> str:
        return f"{self._root}/tasks/{quote(task_id, safe='')}"

    # -- the namespace

    def agents(self, *, capability: str | None, status: str | None, region: str | None) -> list[AgentInfo]:
        """See `Mesh`."""
        rows = self._list("agents", capability=capability, status=status, region=region)
        return msgspec.convert(rows, list[AgentInfo])

    def cordon(self, agent_id: str, on: bool) -> None:
        """See `Mesh`."""
        self._calls.call("POST", f"{self._agent(agent_id)}:{'cordon' if on else 'uncordon'}")

    def drain(self, agent_id: str, grace_s: float | None) -> None:
        """See `Mesh`."""
        body = None if grace_s is None else msgspec.json.encode({"grace_ms": round(grace_s * 1000)})
        self._calls.call("POST", f"{self._agent(agent_id)}:drain", body)

    def _agent(self, agent_id: str) -> str:
        return f"{self._root}/agents/{quote(agent_id, safe='')}"

    def overview(self) -> dict[str, Any]:
        """See `Mesh`; coordinators are known of the namespace that they lead themselves."""
        cluster: dict[str, Any] = {}
        with contextlib.suppress(Refused):  # coordinators of a namespace that the token is not for
            cluster = self._calls.call("GET", "/v1/cluster")
        own = cluster.get("namespace") == self.settings.namespace
        agents = Counter(row["status"] for row in self._list("agents"))
        return {
            "namespace": self.settings.namespace,
            "coordinators": cluster["coordinators"] if own else [],
            "leader": cluster["leader"] if own else None,
            "epoch": cluster["epoch"] if own else None,
            "keys": cluster["keys"] if own else None,
            "agents": dict(sorted(agents.items())),
            "queues": {row["queue"]: row["states"] for row in self._list("queues")},
            "states": [str(state) for state in State],
        }

    def top(self) -> dict[str, Any]:
        """See `Mesh`."""
        counted: dict[str, Any] = self._calls.call("GET", f"{self._root}/top")
        return counted

    def capacity(self, within_s: int) -> dict[str, Any]:
        """See `Mesh`."""
        told: dict[str, Any] = self._calls.call("GET", f"{self._root}/capacity?within_s={within_s}")
        return told

    def replayed(self, change: Change) -> dict[str, Any]:
        """See `Mesh`."""
        asked = {
            "agents": change.agents,
            "slots": change.slots,
            "without_region": change.without_region,
            "requires": ",".join(sorted(change.requires)) or None,
        }
        query = urlencode({name: value for name, value in asked.items() if value is not None})
        told: dict[str, Any] = self._calls.call("GET", f"{self._root}/capacity/replay?{query}")
        return told

    def capabilities(self) -> list[dict[str, Any]]:
        """See `Mesh`."""
        return self._list("capabilities")

    def queues(self) -> list[dict[str, Any]]:
        """See `Mesh`."""
        return self._list("queues")

    def types(self) -> list[TypeInfo]:
        """See `Mesh`."""
        return msgspec.convert(self._list("types"), list[TypeInfo])

    def tasks(self, filters: Mapping[str, Any], cursor: str | None, limit: int) -> Page:
        """See `Port`."""
        return self._page("tasks", "tasks", filters, cursor, limit)

    def dead_letters(self, filters: Mapping[str, Any], cursor: str | None, limit: int) -> Page:
        """See `Port`."""
        return self._page("dead-letters", "dead_letters", filters, cursor, limit)

    def audit(self, filters: Mapping[str, Any], cursor: str | None, limit: int) -> Page:
        """See `Port`."""
        return self._page("/v1/audit", "entries", filters, cursor, limit)

    def settle_dead(self, verb: str, task_ids: Sequence[str]) -> Settled:
        """See `Port`."""
        if not task_ids:
            return [], []
        body = msgspec.json.encode({"ids": list(task_ids)})
        answer = self._calls.call("POST", f"{self._root}/dead-letters:{verb}", body, repeat=False)
        return answer["ids"], [
            (one["id"], error_of(one["problem"]["status"], one["problem"])) for one in answer["refused"]
        ]

    def explain(self, task_type: str, options: Options) -> dict[str, Any]:
        """See `Mesh`."""
        body = self._common(task_type, options, "accept") + b"}"
        answer: dict[str, Any] = self._calls.call("POST", f"{self._root}/tasks:explain", body)
        return answer

    def restore(
        self, agents: Sequence[Mapping[str, Any]], tasks: str | None, dry_run: bool
    ) -> dict[str, Any]:
        """See `Mesh`. Not repeated: if the first call has ended, the second would be another restore."""
        body = msgspec.json.encode({"namespace": self.settings.namespace, "agents": agents, "tasks": tasks})
        path = f"/v1/snapshots:restore?dry_run={str(dry_run).lower()}"
        report: dict[str, Any] = self._calls.call("POST", path, body, repeat=dry_run)
        return report

    def _page(self, path: str, name: str, filters: Mapping[str, Any], cursor: str | None, limit: int) -> Page:
        words = {**filters, "cursor": cursor, "limit": limit}
        words["since"] = views.iso(words.pop("since_ms"))
        answer = self._calls.call("GET", self._query(path, words))
        return answer[name], answer["next_cursor"]

    def _list(self, name: str, **filters: Any) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self._calls.call("GET", self._query(name, filters))[name]
        return rows

    def _query(self, path: str, filters: Mapping[str, Any]) -> str:
        given = {
            key: str(value).lower() if isinstance(value, bool) else value
            for key, value in filters.items()
            if value is not None
        }
        return (path if path[0] == "/" else f"{self._root}/{path}") + (
            f"?{urlencode(given)}" if given else ""
        )

    def close(self) -> None:
        """Stop waiting and close the connections."""
        with self._lock:
            polling, self._polling = self._polling, None
        if polling is not None and polling.alive:
            polling.stop()
        self._calls.close()


def _batches(bodies: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    first = size = 0
    for index, body in enumerate(bodies):
        size += len(body)
        if index > first and (index - first == _BATCH or size > _BATCH_BYTES):
            yield bodies[first:index]
            first, size = index, len(body)
    if first < len(bodies):
        yield bodies[first:]
