"""Which task types a message names: its own, and those that it makes an agent run or publish.

Celery hides calls in calls: `celery.map` runs what its argument names, and a message carries callbacks, error callbacks, the rest
of a chain and a chord's body, each a *signature* (`{"task": type, ...}`, or the bare name) that may carry more of them. Whoever
signs the message is answerable for all.

Celery puts a result before the arguments of what follows, and data into a frame over data: neither may say which type runs. So a
frame that follows something counts only where its own parts come by keyword, which Celery never takes from a result, or where it
is immutable; and what runs over data is no frame itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["MOST_NAMES", "named_types"]

MOST_NAMES = 100_000
"""Values that are looked at in one message; a larger canvas is refused."""
_CELERY = "celery."
#: Celery's own types that do nothing but run or publish what they name -> the keyword under which they name it. A result that is
#: put before their arguments can then only be too many: their first parameter is that (but for `chord_unlock`, its second).
_FRAMES = {
    "celery.map": "task",
    "celery.starmap": "task",
    "celery.chunks": "task",
    "celery.group": "tasks",
    "celery.chain": "tasks",
    "celery.chord": "header",
    "celery.chord_unlock": "callback",
}
_IDLE = "celery.accumulate"  # does nothing at all
_NOT_NAMED = _FRAMES.keys() | {_IDLE}
_OVER_DATA = frozenset({"celery.map", "celery.starmap", "celery.chunks"})  # run one type over values
_KINDS_OVER_DATA = frozenset({"xmap", "xstarmap", "chunks"})  # the same as kinds of signatures
#: Names under which signatures stand: in a message, and in the options and arguments of a signature.
_PLACES = frozenset(
    {
        "callbacks", "errbacks", "chain", "chord", "link", "link_error",
        "task", "tasks", "header", "body", "callback", "on_error",
    }
)  # fmt: skip


def named_types(
    task_type: str, args: Any, kwargs: Any, embed: Mapping[str, Any], headers: Mapping[str, Any]
) -> Iterator[str]:
    """Every type that a message names, some more than once; Celery's own frames aside, what is in them counts.

    `embed`: the callbacks and the like in a message's body. Raises `ValueError` for one too large to be looked through, or where
    a type could come from data or from a result.
    """
    looked = 0
    first = {"task": task_type, "args": args, "kwargs": kwargs}
    # What is to be looked at, and whether signatures stand there, so that bare names count.
    left: list[tuple[Any, bool]] = [*_carried(task_type, first), *_parts(embed), *_parts(headers)]
    if task_type not in _NOT_NAMED:
        yield task_type
    while left:
        one, is_place = left.pop()
        looked += 1
        if looked > MOST_NAMES:
            raise ValueError(f"its canvas has more than {MOST_NAMES:,} parts")
        if isinstance(one, str):
            if is_place:
                _check_fed(one, {})
                if one not in _NOT_NAMED:
                    yield one
        elif isinstance(one, (list, tuple)):
            left.extend((part, is_place) for part in one)
        elif isinstance(one, Mapping):
            name = one.get("task")
            if not isinstance(name, str):
                left.extend(_parts(one))
                continue
            _check_fed(name, one)
            if name not in _NOT_NAMED:
                yield name
            left.extend(_carried(name, one))


def _check_fed(name: str, signature: Mapping[str, Any]) -> None:
    """A frame that follows something. Raises `ValueError` where a result would say what it runs."""
    key, kwargs = _FRAMES.get(name), signature.get("kwargs")
    if key is None or signature.get("immutable") is True or (isinstance(kwargs, Mapping) and key in kwargs):
        return
    raise ValueError(f"a result would say what a {name} runs: give it {key}= by name, or make it immutable")


def _carried(name: str, signature: Mapping[str, Any]) -> Iterator[tuple[Any, bool]]:
    """What a signature makes its runner run or publish beside its own type; the arguments of a plain one are only data."""
    options, args, kwargs = (signature.get(part) for part in ("options", "args", "kwargs"))
    if isinstance(options, Mapping):
        yield from _parts(options)
    kind = signature.get("subtask_type")
    if not kind and (name == _IDLE or not name.startswith(_CELERY)):
        return
    over_data = name in _OVER_DATA or (isinstance(kind, str) and kind in _KINDS_OVER_DATA)
    if isinstance(args, (list, tuple)):
        if over_data:
            args = args[:1]
            _check_inner(args)
        yield from ((part, over_data) for part in args)
    if isinstance(kwargs, Mapping):
        if over_data and "task" in kwargs:
            _check_inner([kwargs["task"]])
        _check_more(kwargs.get("kwargs"))
        yield from (part for part, key in zip(_parts(kwargs), kwargs, strict=True) if key != "it")


def _check_inner(inner: Sequence[Any]) -> None:
    """What is run over data. Raises `ValueError` where that is a frame, whose type would come from the data."""
    for one in inner:
        kind = one.get("subtask_type") if isinstance(one, Mapping) else None
        name = one.get("task") if isinstance(one, Mapping) else one
        if kind or not isinstance(name, str) or name.startswith(_CELERY):
            raise ValueError("what it runs over data is no task type of its own")


def _check_more(more: Any) -> None:
    """Keywords that a chord adds to those of its header. Raises `ValueError` where they would say what a frame there runs."""
    while isinstance(more, Mapping):
        if not more.keys().isdisjoint(_FRAMES.values()):
            raise ValueError("the keywords of a chord would say what its header runs")
        more = more.get("kwargs")


def _parts(values: Mapping[str, Any]) -> Iterator[tuple[Any, bool]]:
    for name, value in values.items():
        if name == "headers" and isinstance(value, Mapping) and "task" in value:
            raise ValueError("its headers would name another type")  # Celery puts them over the message's own
        yield value, name in _PLACES
