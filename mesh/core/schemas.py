"""Whether a JSON Schema that somebody announces may be used to check payloads: what it costs is bounded by its own size.

A few `$ref`s to each other say a schema of any size, or one without an end; checking a payload by it holds the whole process.
So a schema is walked with its references followed, as a validator does, and only so far.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

__all__ = ["trouble"]
_MOST_VALUES = 10_000  # with every reference followed
_DEEPEST = 100
_LONGEST = 1000  # characters of a reference
_MOVES = ("$dynamicRef", "$recursiveRef")  # where they lead depends on the way there


def trouble(schema: Any) -> str:
    """Why a schema is not used, as the end of a sentence that begins with 'it', '' for one that is.

    Takes at most 10,000 steps, whatever the schema.
    """
    if not isinstance(schema, Mapping):
        return "" if isinstance(schema, bool) else "is no JSON Schema"
    dialect = schema.get("$schema")
    base = ("$id", "id") if isinstance(dialect, str) and "draft-04" in dialect else ("$id",)
    waiting: list[tuple[Any, int, frozenset[str]]] = [(schema, 0, frozenset())]
    seen = 1
    while waiting:
        value, depth, inside = waiting.pop()
        if depth > _DEEPEST:
            return f"is nested deeper than {_DEEPEST} levels"
        if not isinstance(value, Mapping | list | tuple):
            continue
        seen += len(value)
        if seen > _MOST_VALUES:
            return f"has more than {_MOST_VALUES:,} values once its references are followed"
        if not isinstance(value, Mapping):
            waiting += ((one, depth + 1, inside) for one in value)
            continue
        if any(isinstance(value.get(name), str) for name in _MOVES):
            return "uses a dynamic reference"
        if depth and any(isinstance(value.get(name), str) for name in base):
            return "has a part with an $id of its own"
        waiting += ((one, depth + 1, inside) for one in value.values())
        reference = value.get("$ref")
        if isinstance(reference, str):
            if reference in inside:
                return f"refers to itself ({reference[:100]})"
            try:
                target = _target(schema, reference)
            except (LookupError, ValueError):
                return f"refers to something that is not in it ({reference[:100]})"
            seen += 1 + reference.count("/")
            waiting.append((target, depth + 1, inside | {reference}))
    return ""


def _target(schema: Mapping[str, Any], reference: str) -> Any:
    """What '#/...' points at. Raises `LookupError`, `ValueError`."""
    if len(reference) > _LONGEST:
        raise LookupError(reference)
    start, _, pointer = unquote(reference).partition("#")
    if start or (pointer and not pointer.startswith("/")):
        raise LookupError(reference)
    found: Any = schema
    for word in pointer.split("/")[1:]:
        name = word.replace("~1", "/").replace("~0", "~")
        found = found[int(name)] if isinstance(found, list | tuple) else found[name]
    return found
