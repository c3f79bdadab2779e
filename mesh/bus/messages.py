"""Celery's task messages in compact form: what differs from a template.

A message of Celery's protocol 2 repeats a dozen headers that are nearly always the same. What is stored is
`[type, body, content type, content encoding, headers, properties]` in msgpack, the last four None where they are as the
template says, and of the usual body only the arguments; the agent builds the full message again.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec
from kombu import serialization
from kombu.serialization import prepare_accept_content
from kombu.transport import base, virtual
from kombu.utils.json import dumps as json_dumps
from kombu.utils.json import loads as json_loads

from mesh.core.canvas import named_types

JSON, UTF8 = "application/json", "utf-8"
CALL_HEADER = "mesh_call"  # on the way to the store: what the call said that Celery's message does not keep
RETRIES_HEADER = (
    "mesh_retries"  # how often a failure of this task is tried again, where the submitter said it
)
ATTEMPT_HEADER = "mesh"  # on the way to the task: which attempt this is

_HEADERS: dict[str, Any] = {
    "lang": "py",
    "shadow": None,
    "eta": None,
    "expires": None,
    "group": None,
    "group_index": None,
    "retries": 0,
    "timelimit": [None, None],
    "parent_id": None,
    "argsrepr": "",
    "kwargsrepr": "{}",
    "origin": "mesh",
    "ignore_result": False,
    "replaced_task_nesting": 0,
    "stamped_headers": None,
    "stamps": {},
}
_NOT_STORED = frozenset({"id", "task", CALL_HEADER, ATTEMPT_HEADER})
_OWN_PROPERTIES = frozenset(
    {
        "correlation_id",
        "delivery_info",
        "delivery_tag",
        "delivery_mode",
        "priority",
        "body_encoding",
        "reply_to",
        "strategy",
        "region",
        "deadline_s",
    }
)
_encode = msgspec.msgpack.Encoder().encode
_from_json = msgspec.json.Decoder().decode
_Words = tuple[
    str, bytes, str | int | None, str | None, dict[str, Any] | str | None, dict[str, Any] | str | None
]
_decode = msgspec.msgpack.Decoder(_Words).decode
_MISSING = object()
_ARGUMENTS_ONLY = (
    0  # in place of the content type: the body is the positional arguments alone, the rest is `_REST`
)
_REST = b', {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'  # as Celery's JSON ends


def encode(
    task_type: str,
    body: bytes,
    *,
    content_type: str | None = None,
    content_encoding: str | None = None,
    headers: dict[str, Any] | None = None,
    properties: dict[str, Any] | None = None,
) -> bytes:
    """The stored form; None stands for what the template says."""
    kind: str | int | None = content_type
    plain = content_type is None and content_encoding is None and not (headers or {}).get("compression")
    if plain and body.endswith(_REST):
        body, kind = body[1 : -len(_REST)], _ARGUMENTS_ONLY
    return _pack(task_type, body, kind, content_encoding, headers, properties)


def of_arguments(task_type: str, arguments: bytes, headers: dict[str, Any] | None = None) -> bytes:
    """The stored form of a call with these positional arguments (a JSON array)."""
    return _pack(task_type, arguments, _ARGUMENTS_ONLY, None, headers, None)


def _pack(
    task_type: str,
    body: bytes,
    kind: str | int | None,
    content_encoding: str | None,
    headers: dict[str, Any] | None,
    properties: dict[str, Any] | None,
) -> bytes:
    words = [task_type, body, kind, content_encoding, headers or None, properties or None]
    try:
        return _encode(words)
    except (TypeError, ValueError):  # headers of types that only Kombu's JSON knows
        words[4:] = [json_dumps(headers or {}), json_dumps(properties or {})]
        return _encode(words)


def compact(task_id: str, payload: dict[str, Any]) -> bytes:
    """The stored form of a message as Kombu's producer hands it to a channel."""
    headers, properties = payload.get("headers") or {}, payload["properties"]
    body = payload["body"]
    content_type, content_encoding = payload.get("content-type"), payload.get("content-encoding")
    return encode(
        headers.get("task") or "",
        body if isinstance(body, bytes) else str(body).encode(),
        content_type=None if content_type == JSON else content_type,
        content_encoding=None if content_encoding == UTF8 else content_encoding,
        headers={
            name: value
            for name, value in headers.items()
            if name not in _NOT_STORED
            and _HEADERS.get(name, _MISSING) != value
            and not (name == "root_id" and value == task_id)
        },
        properties={
            name: value
            for name, value in properties.items()
            if name not in _OWN_PROPERTIES or (name == "reply_to" and value)
        },
    )


class Unpacked(NamedTuple):
    """A stored message whose parts are of the right kinds."""

    type: str
    body: bytes
    content_type: str | int | None
    content_encoding: str | None
    headers: dict[str, Any] | None
    properties: dict[str, Any] | None


def unpack(message: bytes) -> Unpacked:
    """The parts of the stored form: the one reader of it. Raises `ValueError` for what is none."""
    try:
        task_type, body, kind, encoding, headers, properties = _decode(message)
        if isinstance(headers, str):
            headers = json_loads(headers)
        if isinstance(properties, str):
            properties = json_loads(properties)
    except Exception as error:  # whatever an attacker can think of
        raise ValueError(f"it is not a stored message: {type(error).__name__}") from error
    if headers or properties or type(kind) is int or encoding:
        for part in (headers, properties):
            if part is not None and type(part) is not dict:
                raise ValueError("its headers are not an object")
        if headers and not _in_order(headers):
            raise ValueError("its headers are not those of a task")
        if type(kind) is int and (
            kind != _ARGUMENTS_ONLY or encoding is not None or (headers and "compression" in headers)
        ):
            raise ValueError("bare arguments are neither encoded nor compressed")
    return Unpacked(task_type, body, kind, encoding, headers, properties)  # type: ignore[arg-type]


def _in_order(headers: dict[str, Any]) -> bool:
    """Whether what Celery counts with is a number where it is there."""
    limits = headers.get("timelimit", (None, None))
    return (
        isinstance(headers.get("retries", 0), (int, type(None)))
        and isinstance(limits, (list, tuple))
        and len(limits) == 2
        and all(isinstance(limit, (int, float, type(None))) for limit in limits)
    )


def _read(body: bytes) -> Any:
    """Arguments, keywords and what is embedded, of a body of plain JSON. Raises `ValueError`."""
    try:
        try:
            read = _from_json(body)
        except msgspec.DecodeError:
            read = json_loads(body)  # NaN and the like, as Celery reads them
        args, kwargs, embed = read
    except Exception as error:
        raise ValueError(f"its body cannot be read: {type(error).__name__}") from error
    if type(args) is list and type(kwargs) is dict and (embed is None or type(embed) is dict):
        return read
    raise ValueError("its body is not that of a task")


def readable(message: bytes) -> tuple[Unpacked, bytes, Any]:
    """(the parts, the whole body, what is in it or None) of a stored message; raises `ValueError` for one that cannot be read.

    Plain JSON is read once, here; Kombu's reader is for what only Kombu's JSON can say, and reads later.
    """
    words = unpack(message)
    body, kind = words.body, words.content_type
    if kind == _ARGUMENTS_ONLY:
        body, kind = b"[%b%b" % (body, _REST), None
    plain = kind is None and words.content_encoding is None and b'"__type__"' not in body
    if not plain or (words.headers and "compression" in words.headers):
        return words, body, None
    return words, body, _read(body)


def anew(message: bytes) -> bytes:
    """The stored form of the same task before its first attempt: retries and due times forgotten."""
    words = unpack(message)
    headers, properties = words.headers, words.properties
    headers = {
        name: value for name, value in (headers or {}).items() if name not in ("retries", "eta", "expires")
    }
    return _pack(words[0], words[1], words[2], words[3], headers, properties)


def next_try(message: bytes) -> bytes:
    """The stored form of the same task with one more retry behind it, for an attempt that cannot say so itself."""
    words = unpack(message)
    headers, properties = words.headers, words.properties
    headers = {**(headers or {}), "retries": int((headers or {}).get("retries") or 0) + 1}
    return _pack(words[0], words[1], words[2], words[3], headers, properties)


def part_index(group_index: Any, task_id: str) -> str:
    """The name of a task's part in its chord; a task that was added to the chord has its parent's index, but not its id."""
    return task_id if group_index is None else f"{group_index}.{task_id}"


class ChainMember(NamedTuple):
    """A task that was to follow: its id, and its place in a chord's header if it has one."""

    id: str
    group: str | None
    part: str


def chain_of(message: bytes) -> list[ChainMember]:
    """What was to follow a stored task when it succeeds."""
    try:
        words = unpack(message)
        if words.content_type == _ARGUMENTS_ONLY:
            return []
        embedded = json_loads(words[1])[2]
        chain = [(element["options"], element["options"]["task_id"]) for element in embedded["chain"] or []]
    except (
        ValueError,
        TypeError,
        LookupError,
        RecursionError,
    ):  # nothing that Celery wrote as JSON, or a signature without an id
        return []
    return [
        ChainMember(task_id, str(group), part_index(options.get("group_index"), task_id))
        if "chord" in options and (group := options.get("group_id"))
        else ChainMember(task_id, None, "")
        for options, task_id in chain
    ]


def failure(task_id: str, sentence: str) -> bytes:
    """Celery's result document of a task that nobody ran."""
    result = {"exc_type": "RuntimeError", "exc_message": [sentence], "exc_module": "builtins"}
    document: dict[str, Any] = {"status": "FAILURE", "result": result, "traceback": None, "children": []}
    return msgspec.json.encode({**document, "date_done": None, "task_id": task_id})


def request_of(task_id: str, queue: str, message: bytes, accept: Iterable[str]) -> dict[str, Any]:
    """What Celery's Context of a stored task knows of its callbacks, its chain and its chord; not its arguments.

    `accept`: content types that may be read.
    """
    _, body, content_type, content_encoding, headers, _ = unpack(message)
    request = {"root_id": task_id, **(headers or {}), "id": task_id, "delivery_info": {"routing_key": queue}}
    if content_type == _ARGUMENTS_ONLY:
        return request
    read = serialization.loads(
        body, content_type or JSON, content_encoding or UTF8, accept=prepare_accept_content(accept)
    )
    return {**request, **(read[2] if isinstance(read, (list, tuple)) and len(read) == 3 else {})}


def types_in(message: bytes) -> Iterator[str]:
    """Every task type that a stored message names, see `mesh.core.canvas`. Raises `ValueError` for one that cannot be told."""
    try:
        task_type, body, content_type, content_encoding, headers, _ = unpack(message)
        headers = headers or {}
        if "compression" in headers:
            raise ValueError("its content is compressed")  # a few bytes could become any number
        if content_type == _ARGUMENTS_ONLY:
            args: Any = json_loads(body) if task_type.startswith("celery.") else []
            if not isinstance(args, list):
                raise ValueError("its arguments are no list")
            yield from named_types(task_type, args, {}, {}, headers)
            return
        if content_type not in (None, JSON) or {"id", "task"} & headers.keys():
            raise ValueError("its content is not JSON")
        read = serialization.loads(body, JSON, content_encoding or UTF8, accept={JSON})
        args, kwargs, embed = read if isinstance(read, list) else (None, None, None)
        embed = {} if embed is None else embed
        if not (isinstance(args, list) and isinstance(kwargs, dict) and isinstance(embed, dict)):
            raise ValueError("its body is not that of a task")
        yield from named_types(task_type, args, kwargs, embed, headers)
    except ValueError:
        raise
    except Exception as error:  # whatever an attacker can think of
        raise ValueError(f"it cannot be read: {type(error).__name__}") from error


class Delivery:
    """One leased task on its way from the channel to the worker. Raises `ValueError` for a message that cannot be read."""

    __slots__ = ("body", "holding", "read", "redelivered", "words")

    def __init__(self, holding: Any, message: bytes, redelivered: bool) -> None:
        self.holding = holding
        self.redelivered = redelivered
        self.words, self.body, self.read = readable(message)


@functools.cache
def _known() -> frozenset[str]:
    """What Celery does not take for a header of the caller's own."""
    from celery.app.task import Context  # half of what a client's start would cost: only agents need it

    return frozenset({*Context.__dict__, *_HEADERS, "id", "task", "root_id", "compression"})


class Message(virtual.Message):  # type: ignore[misc]
    """A message as the worker sees it: from a `Delivery`, or from Kombu's own payload (events, replies)."""

    holding: Any = None

    def __init__(self, payload: Any, channel: Any = None, **kwargs: Any) -> None:
        if type(payload) is not Delivery:
            super().__init__(payload, channel=channel, **kwargs)
            return
        holding = payload.holding
        self._raw = None
        self.holding = holding
        task_type, body, content_type, content_encoding, changed, more = payload.words
        task_id = holding.id
        headers = {
            **_HEADERS,
            "root_id": task_id,
            "timelimit": [None, None],
            "stamps": {},
        }
        own: dict[str, Any] = {}
        if content_type == _ARGUMENTS_ONLY:
            headers["argsrepr"] = body[:1024].decode(UTF8, "replace")
            body, content_type = payload.body, None
        if changed:
            headers.update(changed)
            own = {name: value for name, value in changed.items() if name not in _known()}
        headers["id"], headers["task"] = task_id, task_type
        headers["headers"] = own  # or Celery looks for them itself, in each task anew
        headers[ATTEMPT_HEADER] = {"fence": holding.fence, "run": holding.run}
        delivery_info = {"exchange": "", "routing_key": holding.queue, "redelivered": payload.redelivered}
        properties = {
            "correlation_id": task_id,
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": delivery_info,
            "priority": holding.priority,
            "delivery_tag": holding.tag,
        }
        if more:
            properties.update(more)
        base.Message.__init__(
            self,
            body=body,
            channel=channel,
            delivery_tag=holding.tag,
            content_type=content_type or JSON,
            content_encoding=content_encoding or UTF8,
            headers=headers,
            properties=properties,
            delivery_info=delivery_info,
            **kwargs,
        )
        self._decoded_cache = payload.read

    @property
    def plain(self) -> bool:
        """Whether the body has been read already."""
        return self._decoded_cache is not None
