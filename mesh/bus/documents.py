"""Celery's result documents, read; exceptions in one line."""

from __future__ import annotations

from typing import Any

import msgspec
from kombu.utils.json import loads

_LONGEST = 500  # characters


def one_line(error: BaseException) -> str:
    """An exception as one line of at most 500 characters: `ValueError: page 4 is empty`."""
    try:
        said = " ".join(str(error).split())
    except Exception:  # its own __str__ is at fault
        said = ""
    text = f"{type(error).__name__}: {said}" if said else type(error).__name__
    text = text.encode("utf-8", "replace").decode()  # half a surrogate pair cannot be stored
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def decode(document: bytes) -> dict[str, Any]:
    """A document's fields; values of Kombu's own JSON types (dates, decimals, bytes) as Python objects."""
    if b'"__type__"' in document:
        meta: dict[str, Any] = loads(document.decode())
        return meta
    decoded: dict[str, Any] = msgspec.json.decode(document)
    return decoded
