"""What a request brings: its body."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import Depends, Request
from starlette.exceptions import HTTPException

from mesh.coordinator.front import Front
from mesh.core import strict_json
from mesh.errors import Invalid
from mesh.services.types import near_misses

__all__ = ["BODY", "FrontOf", "decode", "decode_part", "front_of", "posted", "read"]

T = TypeVar("T", bound=msgspec.Struct)
BODY = "The request body"
_UNKNOWN = re.compile(r"unknown field `([^`]*)`")


def front_of(request: Request) -> Front:
    """What the handlers share."""
    front: Front = request.app.state.front
    return front


async def _front(request: Request) -> Front:
    return front_of(request)


FrontOf = Annotated[Front, Depends(_front)]


# -- bodies


async def read(request: Request, limit: int) -> bytes:
    """The body, of at most `limit` bytes; 413 for a bigger one, as soon as that is known."""
    announced = request.headers.get("content-length", "")
    size = int(announced) if announced.isdigit() else 0
    chunks: list[bytes] = []
    if size <= limit:
        size = 0
        async for chunk in request.stream():
            chunks.append(chunk)
            size += len(chunk)
            if size > limit:
                break
        else:
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    raise HTTPException(
        413,
        f"The request body is bigger than the {limit:,} bytes allowed: pass a reference to the data instead.",
        {"Connection": "close"},  # or the rest of it would have to be read
    )


def decode(decoder: msgspec.json.Decoder[T], raw: bytes, what: str = BODY) -> T:
    """The decoded body. Raises `Invalid`, also for what readers of JSON may take differently."""
    strict_json.check(raw, what)
    return decode_part(decoder, raw, what)


def decode_part(decoder: msgspec.json.Decoder[T], raw: bytes | msgspec.Raw, what: str) -> T:
    """As `decode`, of a body that has been looked at as a whole."""
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise Invalid(f"{what} is wrong: {error}.{_known(decoder.type, str(error))}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"{what} is not JSON: {error}.") from None


def _known(model: type[msgspec.Struct], sentence: str) -> str:
    """What an unknown field may have been meant to be."""
    unknown = _UNKNOWN.search(sentence)
    if unknown is None:
        return ""
    names = [one.encode_name for one in msgspec.structs.fields(model)]
    near = near_misses(unknown[1], names)
    return f" Did you mean {' or '.join(near)}?" if near else f" Known: {', '.join(names)}."


def posted(model: type[T], *, optional: bool = False) -> Any:
    """A dependency: the body as `model`; `optional`: an empty one is `model()`."""
    decoder = msgspec.json.Decoder(model)

    async def body(request: Request) -> T:
        raw = await read(request, front_of(request).single_limit)
        return model() if optional and not raw else decode(decoder, raw)

    return Depends(body)
