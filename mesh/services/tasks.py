"""What can be done with tasks: submit, look, wait for the end, cancel."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from mesh.bus import documents, messages
from mesh.bus.opening import open_stored
from mesh.core.envelopes import Rejected
from mesh.core.names import check_name
from mesh.core.places import check_strategy, placing
from mesh.core.requirements import canonical
from mesh.core.states import RULES, Reason, State, Verb
from mesh.core.tracing import Trace
from mesh.errors import (
    Cancelled,
    Conflict,
    DeadLettered,
    Invalid,
    MeshError,
    NotFound,
    Refused,
    TaskFailed,
    TimedOut,
    Unsatisfiable,
)
from mesh.services import types
from mesh.services.types import TypeInfo
from mesh.store.signing import sealer
from mesh.store.store import Store
from mesh.store.tasks import Publication, Record, Template
from mesh.telemetry.spans import Sending

_BATCH = 500  # tasks published by one script: some milliseconds of Redis's time
_BATCH_BYTES = 4_000_000
_HARD_AFTER_S = 10.0
_TIMES = ("countdown_s", "expires_s", "timeout_s", "deadline_s")
_LONGEST_S = 10**9
_SHAPES = 4096
_SHAPED_S = 0.5  # how long a shape is kept for tasks submitted one at a time


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a task is to be run; None leaves a choice to its type or the settings. Raises `Invalid`."""

    requires: tuple[str, ...] = ()
    priority: int = 4  # 0-9, 9 first
    countdown_s: float | None = None
    expires_s: float | None = None  # to be started by then
    timeout_s: float | None = None  # bounds one attempt
    deadline_s: float | None = None  # to have ended by then, whatever it takes; both from its submission on
    retries: int | None = None  # after a failure; for types made with `@task`
    strategy: str | None = None  # see `mesh.core.places.Strategy`
    region: str | None = None  # preferred; another serves if it cannot
    ignore_result: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        requires: Any = self.requires
        if isinstance(requires, str) or not isinstance(requires, Iterable):
            raise Invalid(f"requires {requires!r} is not a list of capabilities.")
        object.__setattr__(self, "requires", tuple(check_name("capability", one) for one in requires))
        if not _is_number(self.priority, int) or not 0 <= self.priority <= 9:
            raise Invalid(f"Priority {self.priority!r} is not a whole number from 0 to 9 (9 is first).")
        for name in _TIMES:
            value = getattr(self, name)
            if value is not None and not (_is_number(value, (int, float)) and 0 <= value < _LONGEST_S):
                raise Invalid(f"{name} {value!r} is not a number of seconds from 0 on.")
        if self.retries is not None and not (_is_number(self.retries, int) and 0 <= self.retries <= 1000):
            raise Invalid(f"retries {self.retries!r} is not a whole number from 0 to 1000.")
        if not isinstance(self.labels, Mapping) or not all(
            isinstance(word, str) for pair in self.labels.items() for word in pair
        ):
            raise Invalid(f"labels {self.labels!r} are not names with texts, such as {{'team': 'red'}}.")


def _is_number(value: Any, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


DEFAULTS = Options()


@dataclass(frozen=True, kw_only=True)
class Item:
    """One task of a mixed batch."""

    task_type: str
    payload: Any = None
    options: Options = DEFAULTS
    task_id: str | None = None
    by: str | None = None  # the subject that submits it, for whom it is "own"
    trace: Trace | None = None  # that its caller continues


@functools.lru_cache(maxsize=4096)
def requirement_of(task_type: str, requires: tuple[str, ...]) -> str:
    """The queue of a task: the capability of its type's name, and what it requires beyond. Raises `Invalid`."""
    check_name("task type", task_type)
    return canonical([task_type, *(check_name("capability", one) for one in requires)])


def _plain(value: Any) -> Any:
    """Pydantic models and the like, for JSON."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} is not JSON")


_to_json = msgspec.json.Encoder(enc_hook=_plain).encode


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the tasks of one submission, or those without options submitted one after the other, have in common."""

    task_type: str
    info: TypeInfo | None  # None: nobody has said anything of this type
    headers: dict[str, Any] | None
    template: Template
    seal: Callable[[str, bytes], bytes]  # good for what is published now

    @property
    def queue(self) -> str:
        """The requirement."""
        return self.template.queue


def _shape(
    store: Store, task_type: str, options: Options, by: str | None = None, trace: Trace | None = None
) -> _Shape:
    if options is not DEFAULTS or trace is not None:
        return _new_shape(store, task_type, options, by, trace)
    types.check_name_of(task_type)
    kept, now = store.tasks.cache, time.monotonic()
    known = kept.get((task_type, by))
    if known is not None and known[0] > now:
        shape: _Shape = known[1]
        return shape
    shape = _new_shape(store, task_type, options, by, None)
    if len(kept) >= _SHAPES:
        kept.clear()
    kept[task_type, by] = (now + _SHAPED_S, shape)
    return shape


def _new_shape(store: Store, task_type: str, options: Options, by: str | None, trace: Trace | None) -> _Shape:
    settings = store.settings
    strategy, region = settings.load_balancing_strategy, settings.agent_region
    info = types.find(store, task_type)
    needs = (task_type,) if info is None else (info.queue or task_type, *info.requires)
    if options is DEFAULTS and trace is None:
        common, template = _plain_shape(task_type, needs, strategy, region, by)
    else:
        common, template = _make_shape(
            task_type, needs, options, options.strategy or strategy, options.region or region, by, trace
        )
    return _Shape(task_type, info, common, template, sealer(store, template.queue, **template.times))


def requirement(store: Store, task_type: str, requires: tuple[str, ...]) -> str:
    """The queue of such a task: what its type needs, and what it needs beyond. Raises `Invalid`, `StoreUnavailable`."""
    info = types.find(store, task_type)
    if info is None:
        return requirement_of(task_type, requires)
    return requirement_of(info.queue or task_type, (*info.requires, *requires))


@functools.lru_cache(maxsize=4096)
def _plain_shape(
    task_type: str, needs: tuple[str, ...], strategy: str, region: str | None, by: str | None
) -> tuple[dict[str, Any] | None, Template]:
    return _make_shape(task_type, needs, DEFAULTS, strategy, region, by)


def _make_shape(
    task_type: str,
    needs: tuple[str, ...],
    options: Options,
    strategy: str,
    region: str | None,
    by: str | None,
    trace: Trace | None = None,
) -> tuple[dict[str, Any] | None, Template]:
    if region is not None:
        check_name("region", region)
    headers: dict[str, Any] = {} if trace is None else {**trace.headers}
    if options.retries is not None:
        headers[messages.RETRIES_HEADER] = options.retries
    if options.timeout_s is not None:
        headers["timelimit"] = [options.timeout_s + _HARD_AFTER_S, options.timeout_s]
    if options.ignore_result:
        headers["ignore_result"] = True
    template = Template(
        queue=requirement_of(needs[0], (*needs[1:], *options.requires)),
        type=task_type,
        priority=options.priority,
        delay_ms=int(options.countdown_s * 1000) if options.countdown_s else None,
        expires_ms=None if options.expires_s is None else int(options.expires_s * 1000),
        deadline_ms=None if options.deadline_s is None else int(options.deadline_s * 1000),
        placing=placing(check_strategy(strategy), region),
        extra=(
            *(("labels", json.dumps(dict(options.labels))) if options.labels else ()),
            *(("by", by) if by is not None else ()),
            *(("trace", trace.trace_id) if trace is not None else ()),
        ),
    )
    return headers or None, template


def new_id() -> str:
    """An id that nobody else has: 128 random bits as a UUID's text."""
    text = os.urandom(16).hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def payload_json(task_type: str, payload: Any, limit: int) -> bytes:
    """A payload as JSON of at most `limit` bytes; pydantic models and the like as what they say. Raises `Invalid`."""
    try:
        written = _to_json(payload)
    except (TypeError, ValueError, RecursionError) as error:
        raise Invalid(f"The payload of task {task_type} cannot be written as JSON: {error}.") from error
    if len(written) > limit:
        raise Invalid(
            f"The payload of task {task_type} has {len(written):,} bytes, more than the {limit:,} allowed "
            "(MESH_MAX_PAYLOAD_BYTES): pass a reference to the data instead."
        )
    return written


def _arguments(shape: _Shape, payload: Any, limit: int) -> bytes:
    """The arguments of a task as JSON. Raises `Invalid` for a payload that its type does not take."""
    if shape.info is not None:
        types.check(shape.info, payload)
    return b"[]" if payload is None else b"[%b]" % payload_json(shape.task_type, payload, limit)


def _publication(shape: _Shape, arguments: bytes, task_id: str | None) -> tuple[str, Publication]:
    """(id, the packed publication)."""
    token = ""
    if task_id is None:
        task_id = new_id()
    else:
        content = b"\0".join((shape.task_type.encode(), shape.queue.encode(), arguments))
        token = hashlib.blake2b(content, digest_size=16).hexdigest()
    message = messages.of_arguments(shape.task_type, arguments, shape.headers)
    return task_id, shape.template.publication(task_id, shape.seal(task_id, message), token)


def check_task_id(task_id: str) -> str:
    """An id that a caller chose. Raises `Invalid`."""
    if (
        not isinstance(task_id, str)
        or not 0 < len(task_id) <= 200
        or not task_id.isprintable()
        or " " in task_id
    ):
        raise Invalid(f"Task id {task_id!r} is not 1 to 200 printable characters without spaces.")
    return task_id


def submit(
    store: Store, task_type: str, payload: Any, options: Options = DEFAULTS, task_id: str | None = None
) -> str:
    """Publish one task; its id. The same `task_id` is the same task: again with the same content changes nothing.

    Raises `Invalid` (also where there is no key to sign with), `Conflict` (the id is in use by other content), `Unsatisfiable`
    (too many requirements), `StoreUnavailable`.
    """
    if task_id is not None:
        check_task_id(task_id)
    with Sending() as sending:
        shape = _shape(store, task_type, options, trace=sending.trace)
        arguments = _arguments(shape, payload, store.settings.max_payload_bytes)
        new, publication = _publication(shape, arguments, task_id)
        _check(store.tasks.submit([publication])[0], new, shape)
        sending.told(shape.queue, new, task_type)
    return new


def submit_many(
    store: Store, task_type: str, payloads: Iterable[Any], options: Options = DEFAULTS, by: str | None = None
) -> list[str]:
    """Publish many tasks of one type, some hundreds in a step; their ids in order. All payloads are checked first."""
    with Sending() as sending:
        shape = _shape(store, task_type, options, by, sending.trace)
        ids = _submit_all(store, shape, payloads)
        sending.told(shape.queue, None, task_type, len(ids))
    return ids


def _submit_all(store: Store, shape: _Shape, payloads: Iterable[Any]) -> list[str]:
    limit = store.settings.max_payload_bytes
    checked = [_arguments(shape, payload, limit) for payload in payloads]
    ids: list[str] = []

    def publications() -> Iterator[Publication]:
        for arguments in checked:  # made while Redis works on the batch before
            task_id, publication = _publication(shape, arguments, None)
            ids.append(task_id)
            yield publication

    at = 0
    for answer in store.tasks.submit_batches(_batches(publications())):
        for word in answer:
            _check(word, ids[at], shape)
            at += 1
    return ids


class Published(NamedTuple):
    """One task that was published; `new` False: it was there before."""

    id: str
    queue: str
    new: bool


def submit_items(store: Store, items: Sequence[Item]) -> list[Published | MeshError]:
    """Publish a mixed batch, some hundreds in a step; an answer or an error for each item: one item's is its own."""
    limit = store.settings.max_payload_bytes
    answers: list[Any] = [None] * len(items)
    made: list[tuple[int, str, _Shape, Publication]] = []
    plain: dict[tuple[str, str | None], _Shape] = {}  # of items without options
    for index, item in enumerate(items):
        try:
            if item.task_id is not None:
                check_task_id(item.task_id)
            kind = (item.task_type, item.by)
            is_plain = item.options is DEFAULTS and item.trace is None
            shape = plain.get(kind) if is_plain else None
            if shape is None:
                shape = _shape(store, item.task_type, item.options, item.by, item.trace)
                if is_plain:
                    plain[kind] = shape
            task_id, publication = _publication(shape, _arguments(shape, item.payload, limit), item.task_id)
            made.append((index, task_id, shape, publication))
        except MeshError as error:
            answers[index] = error
    at = 0
    for words in store.tasks.submit_batches(_batches(publication for *_, publication in made)):
        for word in words:
            index, task_id, shape, _ = made[at]
            at += 1
            try:
                _check(word, task_id, shape)
                answers[index] = Published(task_id, shape.queue, word != "exists")
            except MeshError as error:
                answers[index] = error
    return answers


def _batches(publications: Iterable[Publication]) -> Iterator[Sequence[Publication]]:
    batch: list[Publication] = []
    size = 0
    for publication in publications:
        size += len(publication.packed)
        if batch and (len(batch) == _BATCH or size > _BATCH_BYTES):
            yield batch
            batch, size = [], len(publication.packed)
        batch.append(publication)
    if batch:
        yield batch


def _check(word: str, task_id: str, shape: _Shape) -> None:
    if word == "conflict":
        raise Conflict(
            f"Task id {task_id!r} is in use by a task with another type, payload or requirement: choose another id."
        )
    if word == "full":
        raise Unsatisfiable(f"Requirement {shape.queue!r} cannot be registered: 10,000 others are in use.")


def missing(store: Store, task_id: str) -> NotFound:
    """The error of a task that is not there."""
    return NotFound(f"There is no task {task_id!r} in namespace {store.settings.namespace!r}.")


def get(store: Store, task_id: str) -> Record:
    """The record of a task. Raises `NotFound`."""
    record = store.tasks.record(task_id)
    if record is None:
        raise missing(store, task_id)
    return record


def owners(store: Store, task_ids: Sequence[str]) -> dict[str, str | None]:
    """Who submitted each of these tasks over HTTP, None: somebody on Redis; without those that are not there."""
    reads = [("HMGET", store.keys.of("task", one), "state", "by") for one in task_ids]
    found = store.client.pipeline(*reads) if reads else []
    return {
        task_id: None if by is None else by.decode()
        for task_id, (state, by) in zip(task_ids, found, strict=True)
        if state is not None
    }


def cancel(store: Store, task_id: str, reason: str = "cancelled") -> bool:
    """Cancel a task; False if it had ended before. Raises `NotFound`."""
    word, _, _ = store.tasks.cancel(task_id, reason)
    if word == "missing":
        raise missing(store, task_id)
    return word == "moved"


def retry(store: Store, task_id: str) -> None:
    """Run a task that failed, timed out or was put aside again: a new run of the same id.

    Raises `NotFound`, `Conflict` (it has not ended, or ended otherwise, or its message is no longer kept), `Refused` (its
    message is not what somebody who may has signed: it is run by nobody, and signed again by nobody).
    """
    record = get(store, task_id)
    if record.reason == Reason.REPLAYED:
        raise Refused(
            f"Task {task_id} is not run again: its message was a copy of one that has been run to its end."
        )
    stored, word = store.tasks.message(task_id), "stale"
    if stored is not None and record.state in RULES[Verb.REPLAY].sources:
        try:
            message = messages.anew(open_stored(store, record.queue, task_id, stored))
        except Rejected as refused:
            raise Refused(
                f"Task {task_id} is not run again: {refused.detail}. Submit it anew, under another id."
            ) from None
        sealed = sealer(store, record.queue)(task_id, message)
        word = store.tasks.replay(task_id, record.run, sealed)
    if word == "missing":
        raise missing(store, task_id)
    if word != "moved":
        raise Conflict(
            f"Task {task_id} is {record.state.replace('_', ' ')}: only one that failed, timed out or was dead-lettered, and "
            "is still kept, can be run again."
        )


def decode_document(document: bytes) -> dict[str, Any]:
    """The fields of a result document."""
    return documents.decode(document)


_FAILURES: dict[State, type[TaskFailed]] = {
    State.TIMED_OUT: TimedOut,
    State.CANCELLED: Cancelled,
    State.EXPIRED: Cancelled,
    State.DEAD_LETTERED: DeadLettered,
}


def value_of(end: Mapping[str, Any]) -> Any:
    """The result of a task that has ended, by `views.end`. Raises `TaskFailed` or a kind of it."""
    state = State(end["state"])
    if state is State.SUCCEEDED:
        return end.get("result")
    error = end.get("error") or {}
    what = error.get("type") or "no details"
    if error.get("message"):
        what = f"{what}: {error['message']}"
    raise _FAILURES.get(state, TaskFailed)(
        f"Task {end['id']} {state.replace('_', ' ')}: {what}",
        task_id=end["id"],
        state=str(state),
        error=error,
    )
