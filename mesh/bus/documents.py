"""Celery's result documents, read."""

from __future__ import annotations

from typing import Any

import msgspec
from kombu.utils.json import loads


def decode(document: bytes) -> dict[str, Any]:
    """A document's fields; values of Kombu's own JSON types (dates, decimals, bytes) as Python objects."""
    if b'"__type__"' in document:
        meta: dict[str, Any] = loads(document.decode())
        return meta
    decoded: dict[str, Any] = msgspec.json.decode(document)
    return decoded
