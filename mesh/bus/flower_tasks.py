"""Tasks as Flower shows them: also those that it has not seen itself, and by what their newest attempt tells.

Flower knows what it has heard since it began; the mesh knows its newest tasks anyway (10,000 at most). So a Flower that was
restarted, or started late, shows the tasks of all agents: it is told of them as events that it has missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from celery.events import state

from mesh.core.states import CELERY_STATUS, State
from mesh.store.store import Store
from mesh.store.tasks import Record

__all__ = ["Task", "events_of", "past_events"]
_PAGE = 500
_LONGEST = 200  # characters of a result, as Celery's own events have it
_ENDS = {"SUCCESS": "task-succeeded", "FAILURE": "task-failed", "REVOKED": "task-revoked"}
Event = dict[str, Any]


class Task(state.Task):  # type: ignore[misc]
    """Celery's, which takes events as they come: what an attempt tells after the next one's is late, and changes no state.

    Agents tell events in batches, each in its own. Theirs say which attempt they are of (`mesh.bus.request`).
    """

    attempt = 0
    worker: Any
    exception: Any
    shown_on: Any = None  # Celery sets `worker` before it looks at the event
    _fields = (*state.Task._fields, "attempt")

    def event(
        self,
        type_: str,
        timestamp: float | None = None,
        local_received: float | None = None,
        fields: Event | None = None,
        **more: Any,
    ) -> None:
        """See `celery.events.state.Task`."""
        told = fields or {}
        late = told.get("attempt", self.attempt) < self.attempt
        if type_ == "received":  # Celery tells it before there is an attempt to ask
            late = (told.get("retries") or 0) < (self.retries or 0)
        if not late:
            self.shown_on = self.worker
            super().event(type_, timestamp, local_received, fields, **more)
            return
        self.worker = self.shown_on
        if type_ == "retried":
            self.retried, self.exception = timestamp, self.exception or told.get("exception")


def past_events(store: Store, limit: int) -> Iterator[list[Event]]:
    """The events of the newest tasks that an agent has had, some tasks at a time. Raises `StoreUnavailable`."""
    hosts = {row["id"]: row.get("address", "") for row in store.agents.all()}
    ids = [one.decode() for one in store.client.execute("ZRANGE", store.keys["recent"], 0, limit - 1, "REV")]
    for first in range(0, len(ids), _PAGE):
        page = ids[first : first + _PAGE]
        outcomes = store.tasks.outcomes(page)
        yield [
            event
            for record, (_, _, document) in zip(store.tasks.records(page), outcomes, strict=True)
            if record is not None
            for event in events_of(record, hosts, document)
        ]


def events_of(record: Record, hosts: dict[str, str], document: bytes | None) -> Iterable[Event]:
    """What the agent that has had a task last would have told of it; nothing if none has. `hosts`: agent -> its host."""
    if record.agent is None or record.leased is None:
        return
    hostname = f"{record.agent}@{hosts.get(record.agent, '')}"

    def event(kind: str, at_ms: int, **more: Any) -> Event:
        at_s = at_ms / 1000
        common = {
            "type": kind,
            "uuid": record.id,
            "hostname": hostname,
            "timestamp": at_s,
            "local_received": at_s,
        }
        return {**common, "clock": 0, "pid": 0, "utcoffset": 0, **more}

    yield event(
        "task-received", record.leased, name=record.type, args="", kwargs="", retries=record.failures,
        eta=None, expires=None, root_id=None, parent_id=None,
    )  # fmt: skip
    if record.started is not None and record.state is not State.LEASED:
        yield event("task-started", record.started)
    end = _ENDS.get(CELERY_STATUS[record.state])
    if end is None or record.ended is None:
        return
    if end == "task-succeeded":
        ran_s = (record.ended - (record.started or record.ended)) / 1000
        yield event(end, record.ended, result=_shown(document), runtime=ran_s)
    elif end == "task-failed":
        yield event(end, record.ended, exception=record.error or record.reason or "", traceback="")
    else:
        yield event(end, record.ended, terminated=False, signum=None, expired=record.state is State.EXPIRED)


def _shown(document: bytes | None) -> str:
    try:
        result = msgspec.json.decode(document or b"{}").get("result")
    except (ValueError, AttributeError):
        return ""
    text = repr(result)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
