"""Which task types a message names: its own, and those that it makes an agent run or publish.

Celery hides calls in calls: `celery.map` runs what its argument names, and a message carries callbacks, error callbacks, the rest
of a chain and a chord's body, each a *signature* (`{"task": type, ...}`, or the bare name) that may carry more of them. Whoever
signs the message is answerable for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["MOST_NAMES", "named_types"]

MOST_NAMES = 100_000
"""Values that are looked at in one message; a larger canvas is refused."""
_CELERY = "celery."
_OVER_DATA = frozenset(
    {"celery.map", "celery.starmap", "celery.chunks"}
)  # (type, values): run one type over values
#: Celery's own types that do nothing but run or publish what they name; `accumulate` does nothing at all.
_FRAMES = _OVER_DATA | {
    "celery.group",
    "celery.chord",
    "celery.chain",
    "celery.chord_unlock",
    "celery.accumulate",
}
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

    `embed`: the callbacks and the like in a message's body. Raises `ValueError` for one too large to be looked through.
    """
    looked = 0
    # What is to be looked at, and whether signatures stand there, so that bare names count.
    left: list[tuple[Any, bool]] = [({"task": task_type, "args": args, "kwargs": kwargs}, True)]
    left += [*_parts(embed), *_parts(headers)]
    while left:
        one, is_place = left.pop()
        looked += 1
        if looked > MOST_NAMES:
            raise ValueError(f"its canvas has more than {MOST_NAMES:,} parts")
        if isinstance(one, str):
            if is_place and one not in _FRAMES:
                yield one
        elif isinstance(one, (list, tuple)):
            left.extend((part, is_place) for part in one)
        elif isinstance(one, Mapping):
            name = one.get("task")
            if not isinstance(name, str):
                left.extend(_parts(one))
                continue
            if name not in _FRAMES:
                yield name
            left.extend(_carried(name, one))


def _carried(name: str, signature: Mapping[str, Any]) -> Iterator[tuple[Any, bool]]:
    """What a signature makes its runner run or publish beside its own type; the arguments of a plain one are only data."""
    options, args, kwargs = (signature.get(part) for part in ("options", "args", "kwargs"))
    if isinstance(options, Mapping):
        yield from _parts(options)
    frame = name.startswith(_CELERY) and name != "celery.accumulate"
    if not (frame or signature.get("subtask_type")):
        return
    if isinstance(args, (list, tuple)):
        yield from (
            ((part, True) for part in args[:1]) if name in _OVER_DATA else ((part, False) for part in args)
        )
    if isinstance(kwargs, Mapping):
        yield from (part for part, key in zip(_parts(kwargs), kwargs, strict=True) if key != "it")


def _parts(values: Mapping[str, Any]) -> Iterator[tuple[Any, bool]]:
    for name, value in values.items():
        yield value, name in _PLACES
