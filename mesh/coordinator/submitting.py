"""Submissions over HTTP: many callers' tasks are published together.

Each request would cost a thread and a round trip of its own; instead, what arrives while one publication is under way goes with
the next one. Nobody is answered before Redis has answered.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from typing import Any

from mesh.coordinator import models
from mesh.coordinator.problems import busy
from mesh.core.states import State
from mesh.core.tracing import Trace
from mesh.errors import MeshError, StoreUnavailable
from mesh.services import agents as agent_services
from mesh.services import tasks as task_services
from mesh.services.tasks import DEFAULTS, Item, Options
from mesh.store.store import Store

__all__ = ["Submitter", "accept", "options_of"]

_TOGETHER = 500
_MOST_PENDING = 5_000

_NAMES = tuple(field.name for field in dataclasses.fields(Options))
_values = attrgetter(*_NAMES)
_DEFAULT_VALUES = _values(DEFAULTS)


def options_of(body: models.Options) -> Options:
    """The options that a body asks for."""
    values = _values(body)
    return DEFAULTS if values == _DEFAULT_VALUES else Options(**dict(zip(_NAMES, values, strict=True)))


def accept(
    store: Store,
    bodies: Sequence[models.Submission | MeshError],
    by: Sequence[str],
    traces: Sequence[Trace | None],
) -> list[dict[str, Any] | MeshError]:
    """Publish; for each its answer or its error (what is an error already stays it). `by`: who submits each; `traces`:
    what it continues.

    Raises `StoreUnavailable`.
    """
    answers: list[Any] = list(bodies)
    items: list[tuple[int, Item, str | None]] = []
    for index, body in enumerate(bodies):
        if not isinstance(body, models.Submission):
            continue
        try:
            options, warning = options_of(body), None
            if body.unsatisfiable != "accept":
                queue = task_services.requirement(store, body.type, options.requires)
                warning = agent_services.unmet_warning(store, body.type, queue, body.unsatisfiable)
            item = Item(
                task_type=body.type, payload=body.payload, options=options, task_id=body.task_id, by=by[index],
                trace=traces[index],
            )  # fmt: skip
            items.append((index, item, warning))
        except StoreUnavailable:
            raise
        except MeshError as error:
            answers[index] = error
    known: list[int] = []
    published = task_services.submit_items(store, [item for _, item, _ in items])
    for (index, item, warning), answer in zip(items, published, strict=True):
        if isinstance(answer, MeshError):
            answers[index] = answer
            continue
        state = State.SCHEDULED if item.options.countdown_s else State.QUEUED
        answers[index] = {"id": answer.id, "state": state, "queue": answer.queue}
        if warning is not None:
            answers[index]["warning"] = warning
        if not answer.new:
            known.append(index)
    _tell_states(store, [answers[index] for index in known])
    return answers


def _tell_states(store: Store, answers: Sequence[dict[str, Any]]) -> None:
    """Those that were there before may be further by now."""
    reads = [("HGET", store.keys.of("task", answer["id"]), "state") for answer in answers]
    for answer, state in zip(answers, store.client.pipeline(*reads) if reads else [], strict=True):
        if state is not None:
            answer["state"] = state.decode()


class Submitter:
    """Publishes what the event loop hands it, one batch at a time, in a thread of its own."""

    def __init__(self) -> None:
        self._pending: list[tuple[Store, models.Submission, str, Trace | None, asyncio.Future[Any]]] = []
        self._thread = ThreadPoolExecutor(1, "mesh-submit")
        self._under_way = False

    async def submit(
        self, store: Store, body: models.Submission, by: str, trace: Trace | None
    ) -> dict[str, Any]:
        """Publish one task of the subject `by` with what else is there; its answer. Raises `MeshError`."""
        if len(self._pending) >= _MOST_PENDING:
            raise busy("submissions")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[dict[str, Any]] = loop.create_future()
        self._pending.append((store, body, by, trace, future))
        if not self._under_way:
            self._go(loop)
        return await future

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _go(self, loop: asyncio.AbstractEventLoop) -> None:
        batch, self._pending = self._pending[:_TOGETHER], self._pending[_TOGETHER:]
        self._under_way = True
        self._thread.submit(self._publish, loop, batch)

    def _publish(self, loop: asyncio.AbstractEventLoop, batch: list[Any]) -> None:
        answers: list[Any] = [None] * len(batch)
        places: dict[Store, list[int]] = {}
        for place, (store, *_) in enumerate(batch):
            places.setdefault(store, []).append(place)
        for store, here in places.items():
            try:
                made: list[Any] = accept(store, *([batch[at][part] for at in here] for part in (1, 2, 3)))
            except Exception as error:
                made = [error] * len(here)
            for place, answer in zip(here, made, strict=True):
                answers[place] = answer
        loop.call_soon_threadsafe(self._done, loop, batch, answers)

    def _done(self, loop: asyncio.AbstractEventLoop, batch: list[Any], answers: list[Any]) -> None:
        self._under_way = False
        if self._pending:
            self._go(loop)
        for (*_, future), answer in zip(batch, answers, strict=True):
            if future.done():  # its caller is gone
                continue
            if isinstance(answer, BaseException):
                future.set_exception(answer)
            else:
                future.set_result(answer)
