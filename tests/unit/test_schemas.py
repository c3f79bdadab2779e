"""Schemas that would hold whoever checks a payload by them: refused, after a bounded number of steps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from mesh.core.schemas import trouble

STEPS = [0]


class Counted(dict[str, Any]):
    """A dictionary that counts how often somebody goes through it or looks something up."""

    def values(self) -> Any:
        STEPS[0] += 1 + len(self)
        return super().values()

    def __getitem__(self, name: str) -> Any:
        STEPS[0] += 1
        return super().__getitem__(name)


def counted(value: Any) -> Any:
    if isinstance(value, dict):
        return Counted({name: counted(one) for name, one in value.items()})
    return [counted(one) for one in value] if isinstance(value, list) else value


def twice(name: str, word: str) -> dict[str, Any]:
    return {word: [{"$ref": f"#/$defs/{name}"}, {"$ref": f"#/$defs/{name}"}]}


def doubling(word: str, times: int = 60) -> dict[str, Any]:
    """2^times values in a few lines."""
    definitions: dict[str, Any] = {f"d{one}": twice(f"d{one + 1}", word) for one in range(times)}
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{times}": {"type": "string"}}}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


def parts(count: int) -> Iterator[tuple[str, Any]]:
    return ((f"p{one}", {"type": "string"}) for one in range(count))


NASTY = {
    "doubling anyOf": (doubling("anyOf"), "nested deeper than 100 levels"),
    "doubling allOf": (doubling("allOf", 15), "more than 10,000 values"),
    "itself": ({"anyOf": [{"properties": {"a": {"$ref": "#"}}}] * 2}, r"refers to itself \(#\)"),
    "each other": (
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"not": {"$ref": "#/$defs/a"}}}},
        r"refers to itself \(#/\$defs/a\)",
    ),
    "by other names": (
        {"a~b": {"anyOf": [{"$ref": "#/a~0b"}, {"$ref": "#/a%7E0b"}]}, "$ref": "#/a~0b"},
        "refers to itself",
    ),
    "a chain": (
        {"$ref": "#/$defs/0", "$defs": {str(one): {"$ref": f"#/$defs/{one + 1}"} for one in range(5000)}},
        "nested deeper than 100 levels|more than 10,000",
    ),
    "deep": (nested(400), "nested deeper than 100 levels"),
    "broad": ({"properties": dict(parts(6000))}, "more than 10,000 values"),
    "a long list": ({"enum": list(range(1_000_000))}, "more than 10,000 values"),
    "elsewhere": ({"$ref": "https://example.com/schema"}, "refers to something that is not in it"),
    "an anchor": ({"$ref": "#here", "$defs": {"a": {"$anchor": "here"}}}, "refers to something"),
    "nowhere": ({"$ref": "#/$defs/a"}, "refers to something that is not in it"),
    "another base": ({"$defs": {"a": {"$id": "a", "$ref": "#"}}}, r"\$id of its own"),
    "another base of old": (
        {"$schema": "http://json-schema.org/draft-04/schema#", "definitions": {"a": {"id": "a", "$ref": "#"}}},
        r"\$id of its own",
    ),
    "dynamic": ({"items": {"$dynamicRef": "#node"}}, "dynamic reference"),
    "none": (["type"], "is no JSON Schema"),
}  # fmt: skip


@pytest.mark.parametrize(("schema", "why"), NASTY.values(), ids=NASTY)
def test_it_is_refused_in_time(schema: Any, why: str) -> None:
    watched, STEPS[0] = counted(schema), 0
    said = trouble(watched)
    assert re.search(why, said) and STEPS[0] <= 120_000


@pytest.mark.parametrize(
    "schema",
    [
        {}, True, nested(90), {"properties": dict(parts(3000))}, doubling("anyOf", 8),
        {"properties": {"$id": {"type": "string"}, "$ref": {"type": "string"}, "id": {"const": {"id": "x"}}}},
        {"$id": "https://example.com/a", "$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "string"}}},
        {"properties": {"a": {"$ref": "#/$defs/p"}, "b": {"$ref": "#/$defs/p"}}, "$defs": {"p": {"type": "object"}}},
    ],
)  # fmt: skip
def test_what_people_write_is_used(schema: Any) -> None:
    assert trouble(schema) == ""
