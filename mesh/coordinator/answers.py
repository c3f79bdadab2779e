"""JSON answers: plain values to bytes."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from fastapi.responses import JSONResponse

__all__ = ["Json", "encode"]

_encode = msgspec.json.Encoder(enc_hook=str).encode


def encode(value: Any) -> bytes:
    """`value` as JSON. What only Python's reader lets into a string (half a surrogate pair) stays escaped."""
    try:
        return _encode(value)
    except (ValueError, OverflowError):
        return json.dumps(value, default=str).encode()


class Json(JSONResponse):
    """An answer in JSON."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return encode(content)
