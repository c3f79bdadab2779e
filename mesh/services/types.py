"""What is known of task types without having their code: requirement, schemas, examples; checked where tasks are submitted.

Agents advertise the types of their `@task`s; so a client, the command line and the HTTP service all say at once what is wrong
with a payload, and route a task by what its type requires.
"""

from __future__ import annotations

import difflib
import functools
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from mesh.bus.described import place_of, wrong_payload
from mesh.core.names import check_name
from mesh.core.requirements import canonical
from mesh.core.schemas import trouble
from mesh.errors import Invalid
from mesh.store.store import Store

_BELIEVED_S = 5.0  # how long an answer of the registry is taken for true
_UNKNOWN_S = 1.0  # ... and that it does not know a type
_CACHED = 10_000
_MASK = "\0"  # stands for the value in the validator's messages; we show it shortened
_SHOWN, _OPTIONS = 100, 20  # characters of a value, and choices, that a sentence has


@dataclass(frozen=True, kw_only=True)
class TypeInfo:
    """One task type as its agents describe it; None: it does not say, or leaves it to the settings."""

    name: str
    queue: str | None = None  # of a task of Celery's own kind: where its application routes it
    requires: tuple[str, ...] = ()  # beyond the capability of its own name, or of its queue
    description: str = ""
    payload_schema: dict[str, Any] | None = None  # JSON Schema
    result_schema: dict[str, Any] | None = None
    examples: list[Any] = field(default_factory=list)  # payloads
    timeout_s: float | None = None  # bounds one attempt
    retries: int | None = None
    retry_delay_s: float | None = None  # the longest wait before the first retry; it doubles
    retry_delay_cap_s: float | None = None
    no_retry_for: tuple[str, ...] = ()  # names of exceptions
    schema_text: str = field(default="", compare=False, repr=False)  # names its validator in the cache
    schema_trouble: str = field(
        default="", compare=False, repr=False
    )  # why there is none, though one is advertised

    @property
    def requirement(self) -> str:
        """The queue of its tasks, unless a task requires more."""
        return canonical([self.queue or self.name, *self.requires])

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        shown = {name: value for name, value in self.__dict__.items() if not name.startswith("schema_")}
        return {**shown, "requires": list(self.requires), "no_retry_for": list(self.no_retry_for)}


def advertised(store: Store) -> list[TypeInfo]:
    """Every type that an agent has advertised within the last day, by name."""
    return [_info(name, row) for name, row in store.types.all().items()]


def check_name_of(task_type: str) -> None:
    """Raise `Invalid` for what cannot be a type's name. (Names of Celery's own tasks may be more than our names.)"""
    if not isinstance(task_type, str) or not task_type:
        check_name("task type", task_type)


def find(store: Store, task_type: str) -> TypeInfo | None:
    """What is known of a type, None if no agent has told; an answer is believed for 5 s. Raises `Invalid`,
    `StoreUnavailable`.
    """
    cache, now = store.types.cache, time.monotonic()
    check_name_of(task_type)
    known = cache.get(task_type)
    if known is not None and known[0] > now:
        info: TypeInfo | None = known[1]
        return info
    row = store.types.get(task_type)
    info = _info(task_type, row) if row is not None else None
    if len(cache) >= _CACHED:
        cache.clear()
    cache[task_type] = (now + (_UNKNOWN_S if info is None else _BELIEVED_S), info)
    return info


def near_misses(name: str, names: Iterable[str]) -> list[str]:
    """Those of `names` that somebody who wrote `name` may have meant, the likeliest first; at most three."""
    by_key: dict[str, str] = {_key(one): one for one in names if one != name}
    return [by_key[key] for key in difflib.get_close_matches(_key(name), by_key, n=3, cutoff=0.7)]


def unknown_hint(store: Store, task_type: str) -> str:
    """'' for a known type, or if nothing is like it; else a question: 'Did you mean data-processing?'."""
    known = set(store.types.all())
    if task_type in known:
        return ""
    offered = {one for row in store.agents.all() for one in row.get("capabilities", "").split(",") if one}
    near = near_misses(task_type, known | offered) if task_type not in offered else []
    return f"Did you mean {' or '.join(near)}?" if near else ""


def check(info: TypeInfo, payload: Any) -> None:
    """Raise `Invalid`, naming the place, unless the payload fits its type's schema (a type without one takes anything)."""
    if info.schema_trouble:
        raise Invalid(
            f"Task type {info.name} takes no tasks: the schema of its payload is not used, since it {info.schema_trouble}."
        )
    if info.payload_schema is None:
        return
    validator = _validator(info.schema_text)
    if validator is None:
        return
    try:
        if validator.is_valid(payload):
            return
    except ValueError:  # a pydantic model, a date ...: what will be sent is judged
        payload = _as_sent(payload)
        if validator.is_valid(payload):
            return
    errors = [_plainest(error) for error in validator.iter_errors(payload)]
    path, why = errors[0]
    raise wrong_payload(info.name, place_of(path), why, len(errors) - 1)


def _key(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _info(name: str, row: Mapping[str, Any]) -> TypeInfo:
    schema = row.get("payload_schema")
    why = "" if schema is None else trouble(schema)
    if why:
        schema = None
    return TypeInfo(
        name=name,
        queue=row.get("queue"),
        requires=tuple(row.get("requires") or ()),
        description=row.get("description") or "",
        payload_schema=schema,
        result_schema=row.get("result_schema"),
        examples=row.get("examples") or [],
        timeout_s=row.get("timeout_s"),
        retries=row.get("retries"),
        retry_delay_s=row.get("retry_delay_s"),
        retry_delay_cap_s=row.get("retry_delay_cap_s"),
        no_retry_for=tuple(row.get("no_retry_for", ())),
        schema_text="" if schema is None else json.dumps(schema, sort_keys=True),
        schema_trouble=why,
    )


def _as_sent(payload: Any) -> Any:
    def plain(value: Any) -> Any:
        if hasattr(value, "model_dump"):
            return value.model_dump(mode="json")
        raise TypeError(f"{type(value).__name__} is not JSON")

    try:
        return msgspec.json.decode(msgspec.json.encode(payload, enc_hook=plain))
    except (TypeError, ValueError, RecursionError):
        return None  # submitting it says what is wrong


@functools.lru_cache(maxsize=256)
def _validator(schema_text: str) -> Any:
    """The validator of a schema, None for one that is none; it fetches nothing from anywhere."""
    import jsonschema_rs  # a client that submits types without schemas does without

    try:
        return jsonschema_rs.validator_for(json.loads(schema_text), mask=_MASK, offline=True)
    except (ValueError, jsonschema_rs.ReferencingError):
        return None


def _plainest(error: Any) -> tuple[list[str | int], str]:
    """Where and why; of several alternatives, the one that the value comes closest to."""
    path = list(error.instance_path)
    branches = [branch for branch in getattr(error.kind, "context", None) or [] if branch]
    if not branches:
        return path, _why(error)
    apart = [branch for branch in branches if not _is_of_another_type(branch[0], path)]
    if not apart:
        kinds = [kind for branch in branches for kind in branch[0].kind.types]
        return path, f"{_shown(error.instance)} is not {_any_of(kinds)}"
    return _plainest(max(apart, key=_closeness)[0])


def _is_of_another_type(error: Any, path: list[str | int]) -> bool:
    return error.kind.name == "type" and len(error.instance_path) == len(path)


def _closeness(branch: list[Any]) -> tuple[bool, int, int]:
    """Not the alternative that is marked as another one; the one whose fault lies deepest; the one with fewest faults."""
    marked = any(error.kind.name in ("const", "enum") for error in branch)
    return not marked, max(len(error.instance_path) for error in branch), -len(branch)


def _why(error: Any) -> str:
    kind = error.kind
    if kind.name == "required":
        return f"{kind.property} is missing"
    if kind.name == "propertyNames":
        return f"unknown key {_shown(kind.error.instance)}"
    if kind.name == "enum":
        options = ", ".join(_shown(one) for one in kind.options[:_OPTIONS])
        return f"{_shown(error.instance)} is not one of {options}{' ...' if len(kind.options) > _OPTIONS else ''}"
    if kind.name == "additionalProperties":
        first, *others = kind.unexpected
        return f"unknown key {_shown(first)}{f' and {len(others)} more' if others else ''}"
    if kind.name == "type":
        return f"{_shown(error.instance)} is not {_any_of(kind.types)}"
    text: str = error.message
    return text.replace(_MASK, _shown(error.instance))


def _any_of(kinds: Iterable[str]) -> str:
    names = dict.fromkeys(kinds)
    return " or ".join(
        name if name == "null" else f"{'an' if name[0] in 'aio' else 'a'} {name}" for name in names
    )


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
