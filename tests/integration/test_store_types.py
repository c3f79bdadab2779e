"""Task types in Redis: told by agents, believed for a while, forgotten after a day."""

from __future__ import annotations

import json

import pytest

from mesh.errors import Invalid
from mesh.services import types
from mesh.store.store import Store
from mesh.store.types import KEPT_MS


def age(store: Store, name: str, ms: int) -> None:
    """As if a type had been told so many ms ago."""
    key = store.keys["types"]
    seen, _, row = store.client.execute("HGET", key, name).partition(b" ")
    store.client.execute("HSET", key, name, b"%d %b" % (int(seen) - ms, row))


def test_types_are_told_and_found(store: Store) -> None:
    schema = {"type": "object", "properties": {"é": {"type": "string"}}}
    assert store.types.advertise({"ocr": {"requires": ["gpu"], "payload_schema": schema}, "b": {}}) == 2
    assert store.types.get("ocr") == {"requires": ["gpu"], "payload_schema": schema}
    assert store.types.get("unknown") is None
    assert list(store.types.all()) == ["b", "ocr"]
    info = types.find(store, "ocr")
    assert info is not None and (info.requires, info.payload_schema) == (("gpu",), schema)
    assert json.dumps(info.to_json()) and "schema_text" not in info.to_json()
    assert [one.name for one in types.advertised(store)] == ["b", "ocr"]


def test_the_last_word_counts(store: Store) -> None:
    store.types.advertise({"ocr": {"description": "old"}})
    store.types.advertise({"ocr": {"description": "new"}})
    assert [one.description for one in types.advertised(store)] == ["new"]
    assert store.types.advertise({}) == 1


def test_what_nobody_has_told_for_a_day_is_forgotten(store: Store) -> None:
    store.types.advertise({"ocr": {}, "old": {}})
    age(store, "old", KEPT_MS - 60_000)
    assert list(store.types.all()) == ["ocr", "old"]
    age(store, "old", 120_000)
    assert store.types.get("old") is None and list(store.types.all()) == ["ocr"]
    assert types.find(store, "old") is None
    assert store.client.execute("HLEN", store.keys["types"]) == 2
    assert store.types.advertise({"ocr": {}}) == 1


def test_an_answer_is_believed_for_a_while(store: Store) -> None:
    """Submitting asks for each task: the registry must not be asked each time."""
    store.types.advertise({"ocr": {}})
    first = types.find(store, "ocr")
    store.client.execute("DEL", store.keys["types"])
    assert types.find(store, "ocr") is first
    for number in range(10_001):
        store.types.cache[str(number)] = (0.0, None)
    assert types.find(store, "other") is None
    assert len(store.types.cache) == 1, "what is remembered is bounded"


def test_near_misses_come_from_types_and_capabilities(store: Store) -> None:
    store.types.advertise({"data-processing": {}})
    store.agents.join("a", {"name": "a", "capabilities": "ocr,translate"})
    assert types.unknown_hint(store, "dataprocessing") == "Did you mean data-processing?"
    assert types.unknown_hint(store, "translat") == "Did you mean translate?"
    assert types.unknown_hint(store, "data-processing") == types.unknown_hint(store, "translate") == ""


def test_a_schema_that_would_hold_its_readers_is_not_used(store: Store) -> None:
    """Whoever writes to Redis may advertise one, of any type."""
    definitions = {f"d{one}": {"allOf": [{"$ref": f"#/$defs/d{one + 1}"}] * 2} for one in range(60)}
    schema = {"$ref": "#/$defs/d0", "$defs": {**definitions, "d60": {"type": "string"}}}
    store.types.advertise({"nasty": {"payload_schema": schema}, "plain": {}})
    store.client.execute("HSET", store.keys["types"], "deep", b'%d {"a":%b' % (store.now_ms(), b"[" * 50_000))
    info = types.find(store, "nasty")
    assert info is not None and info.payload_schema is None
    with pytest.raises(Invalid, match=r"Task type nasty takes no tasks: .* is nested deeper than 100 levels"):
        types.check(info, "x")
    assert json.dumps([one.to_json() for one in types.advertised(store)]).count("name") == 2
