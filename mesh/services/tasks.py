"""What can be done with tasks: submit, look, wait for the end, cancel."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from mesh.bus import documents, messages
from mesh.core.names import check_name
from mesh.core.requirements import canonical
from mesh.core.states import TERMINAL, State
from mesh.errors import (
    Cancelled,
    Conflict,
    DeadLettered,
    Invalid,
    NotFound,
    TaskFailed,
    TimedOut,
    Unsatisfiable,
)
from mesh.store.store import Store
from mesh.store.tasks import Record, Template

_EMBED = b', {}, {"callbacks":null,"errbacks":null,"chain":null,"chord":null}]'
_BATCH = 500  # tasks published by one script: some milliseconds of Redis's time
_BATCH_BYTES = 4_000_000
_HARD_AFTER_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a task is to be run; None leaves a choice to its type or the settings."""

    requires: tuple[str, ...] = ()
    priority: int = 4  # 0-9, 9 first
    countdown_s: float | None = None
    expires_s: float | None = None
    timeout_s: float | None = None  # bounds one attempt
    ignore_result: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)


DEFAULTS = Options()


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
    """What the tasks of one submission have in common."""

    task_type: str
    headers: dict[str, Any] | None
    template: Template

    @property
    def queue(self) -> str:
        """The requirement."""
        return self.template.queue


def _shape(task_type: str, options: Options) -> _Shape:
    return _plain_shape(task_type) if options is DEFAULTS else _make_shape(task_type, options)


@functools.lru_cache(maxsize=4096)
def _plain_shape(task_type: str) -> _Shape:
    return _make_shape(task_type, DEFAULTS)


def _make_shape(task_type: str, options: Options) -> _Shape:
    if not isinstance(options.priority, int) or not 0 <= options.priority <= 9:
        raise Invalid(f"Priority {options.priority!r} is not a whole number from 0 to 9 (9 is first).")
    for name in ("countdown_s", "expires_s", "timeout_s"):
        value = getattr(options, name)
        if value is not None and not (isinstance(value, (int, float)) and 0 <= value < 10**9):
            raise Invalid(f"{name} {value!r} is not a number of seconds from 0 on.")
    headers: dict[str, Any] = {}
    if options.timeout_s is not None:
        headers["timelimit"] = [options.timeout_s + _HARD_AFTER_S, options.timeout_s]
    if options.ignore_result:
        headers["ignore_result"] = True
    template = Template(
        queue=requirement_of(task_type, options.requires),
        type=task_type,
        priority=options.priority,
        delay_ms=int(options.countdown_s * 1000) if options.countdown_s else None,
        expires_ms=None if options.expires_s is None else int(options.expires_s * 1000),
        extra=("labels", json.dumps(dict(options.labels))) if options.labels else (),
    )
    return _Shape(task_type, headers or None, template)


def new_id() -> str:
    """An id that nobody else has: 128 random bits as a UUID's text."""
    text = os.urandom(16).hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _publication(shape: _Shape, payload: Any, task_id: str | None, limit: int) -> tuple[str, bytes]:
    """(id, the packed publication)."""
    try:
        body = b"[[]" + _EMBED if payload is None else b"[[" + _to_json(payload) + b"]" + _EMBED
    except (TypeError, ValueError, RecursionError) as error:
        raise Invalid(f"The payload of task {shape.task_type} cannot be written as JSON: {error}.") from error
    if len(body) > limit:
        raise Invalid(
            f"The payload of task {shape.task_type} has {len(body):,} bytes, more than the {limit:,} allowed "
            "(MESH_MAX_PAYLOAD_BYTES): pass a reference to the data instead."
        )
    token = ""
    if task_id is None:
        task_id = new_id()
    else:
        content = b"\0".join((shape.task_type.encode(), shape.queue.encode(), body))
        token = hashlib.blake2b(content, digest_size=16).hexdigest()
    message = messages.encode(shape.task_type, body, headers=shape.headers)
    return task_id, shape.template.publication(task_id, message, token)


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

    Raises `Invalid`, `Conflict` (the id is in use by other content), `Unsatisfiable` (too many requirements),
    `StoreUnavailable`.
    """
    if task_id is not None:
        check_task_id(task_id)
    shape = _shape(task_type, options)
    new, publication = _publication(shape, payload, task_id, store.settings.max_payload_bytes)
    _check(store.tasks.submit([publication])[0], new, shape)
    return new


def submit_many(
    store: Store, task_type: str, payloads: Iterable[Any], options: Options = DEFAULTS
) -> list[str]:
    """Publish many tasks of one type, some hundreds in a step; their ids in order. All payloads are checked first."""
    shape = _shape(task_type, options)
    limit = store.settings.max_payload_bytes
    made = [_publication(shape, payload, None, limit) for payload in payloads]
    ids = [task_id for task_id, _ in made]
    at = 0
    for answer in store.tasks.submit_batches(_batches([publication for _, publication in made])):
        for word in answer:
            _check(word, ids[at], shape)
            at += 1
    return ids


def _batches(publications: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    first = size = 0
    for index, publication in enumerate(publications):
        size += len(publication)
        if index > first and (index - first == _BATCH or size > _BATCH_BYTES):
            yield publications[first:index]
            first, size = index, len(publication)
    if first < len(publications):
        yield publications[first:]


def _check(word: str, task_id: str, shape: _Shape) -> None:
    if word == "conflict":
        raise Conflict(
            f"Task id {task_id!r} is in use by a task with another type, payload or requirement: choose another id."
        )
    if word == "full":
        raise Unsatisfiable(f"Requirement {shape.queue!r} cannot be registered: 10,000 others are in use.")


def get(store: Store, task_id: str) -> Record:
    """The record of a task. Raises `NotFound`."""
    record = store.tasks.record(task_id)
    if record is None:
        raise NotFound(f"There is no task {task_id!r} in namespace {store.settings.namespace!r}.")
    return record


def cancel(store: Store, task_id: str, reason: str = "cancelled") -> bool:
    """Cancel a task; False if it had ended before. Raises `NotFound`."""
    word, _, _ = store.tasks.cancel(task_id, reason)
    if word == "missing":
        raise NotFound(f"There is no task {task_id!r} in namespace {store.settings.namespace!r}.")
    return word == "moved"


def decode_document(document: bytes) -> dict[str, Any]:
    """The fields of a result document."""
    return documents.decode(document)


_FAILURES: dict[State, type[TaskFailed]] = {
    State.TIMED_OUT: TimedOut,
    State.CANCELLED: Cancelled,
    State.EXPIRED: Cancelled,
    State.DEAD_LETTERED: DeadLettered,
}


def outcome(store: Store, task_id: str, document: bytes | None = None) -> tuple[bool, Any]:
    """(whether the task has ended, its result). `document`: its result document if the caller has been sent it.

    A task that ended otherwise than well raises `TaskFailed` or a kind of it. Raises `NotFound`.
    """
    if document is not None:
        meta = decode_document(document)
        if meta["status"] == "SUCCESS":
            return True, meta["result"]
    state, _, stored = store.tasks.outcome(task_id)
    if state is None and stored is None:
        raise NotFound(f"There is no task {task_id!r} in namespace {store.settings.namespace!r}.")
    if state not in TERMINAL:
        return False, None
    meta = decode_document(stored) if stored else {"result": None}
    if state is State.SUCCEEDED:
        return True, meta["result"]
    raise _failure(task_id, state, meta)


def _failure(task_id: str, state: State, meta: dict[str, Any]) -> TaskFailed:
    result = meta.get("result")
    error: dict[str, Any] = result if isinstance(result, dict) else {}
    words = error.get("exc_message") or []
    said = ", ".join(str(word) for word in words) if isinstance(words, list) else str(words)
    what = (
        f"{error.get('exc_type', 'no details')}: {said}" if said else str(error.get("exc_type", "no details"))
    )
    kind = _FAILURES.get(state, TaskFailed)
    details = {
        "type": error.get("exc_type"),
        "message": said,
        "traceback": meta.get("traceback"),
    }
    return kind(
        f"Task {task_id} {state.replace('_', ' ')}: {what}", task_id=task_id, state=str(state), error=details
    )
