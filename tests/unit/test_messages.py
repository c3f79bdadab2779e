"""The stored form of a message: one reader, which refuses what is none, and reads the same as who runs it."""

import math
from typing import Any

import pytest

from mesh.bus import messages
from mesh.bus.holdings import Holding


def delivered(message: bytes) -> Any:
    return messages.Message(
        messages.Delivery(Holding("i", "f", 1, "q", 4), message, False), channel=None
    ).payload


def packed(*words: Any) -> bytes:
    return messages._encode(list(words))


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff{",
        packed(["ok"], b"[]", 0, None, None, None),
        packed("ok", b"[]", 0, None, None, [1]),
        packed("ok", b"[]", 0, None, [1], None),
        packed("ok", b"[]", 0, None, "[1]", "{}"),
        packed("ok", b"[]", 1, None, None, None),
        packed("ok", b"[]", 0, "base64", None, None),
        packed("ok", b"[]", 0, None, {"compression": "application/x-lzma"}, None),
        packed("ok", b"[]", 0, None, {"timelimit": 5}, None),
        packed("ok", b"[]", 0, None, {"retries": "x"}, None),
    ],
)
def test_what_is_none_is_refused_by_every_reader(message: bytes) -> None:
    for read in (delivered, messages.anew, messages.next_try, lambda one: list(messages.types_in(one))):
        with pytest.raises(ValueError):
            read(message)
    assert messages.chain_of(message) == []


@pytest.mark.parametrize(
    "arguments", [b"\xff{", b'"args"', b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000, b"[], {}, {}", b"1"]
)
def test_so_are_arguments_that_are_none(arguments: bytes) -> None:
    with pytest.raises(ValueError):
        delivered(messages.of_arguments("ok", arguments))
    with pytest.raises(ValueError):
        list(messages.types_in(messages.of_arguments("celery.map", arguments)))


def test_what_only_python_calls_json_is_read_as_celery_reads_it() -> None:
    ((number,), kwargs, _) = delivered(messages.of_arguments("ok", b"[NaN]"))
    assert math.isnan(number) and kwargs == {}


def test_nobody_decompresses_what_an_agent_has_signed() -> None:
    with pytest.raises(ValueError, match="compressed"):
        list(messages.types_in(messages.encode("ok", b"x", headers={"compression": "gzip"})))
