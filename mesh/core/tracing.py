"""Trace context, as the W3C recommendation has it (https://www.w3.org/TR/trace-context/), and the ids of what nobody named.

A task that was submitted without a context has a trace all the same: its id is derived from the task's, so that nothing is made,
sent or stored for it. So is the span of an attempt, from the task's id and the attempt's fence: whoever needs it computes it.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

__all__ = ["TRACEPARENT", "TRACESTATE", "Trace", "parse", "span_id_of", "trace_id_of"]

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"  # of HTTP requests and of task messages
_FLAGS = 3  # sampled, random: what is handed on; the other bits have no meaning yet
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_MEMBER = re.compile(
    r"(?:[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{1,256}"
)
_MOST_MEMBERS, _MOST_CHARACTERS = 32, 512
_LONG = 128  # members beyond it go first


class Trace(NamedTuple):
    """A place in a trace: its id, and the span under which what comes next belongs."""

    trace_id: str  # 32 hexadecimal digits
    span_id: str  # 16
    flags: int = 0
    state: str = ""  # of the vendors on the way

    @property
    def parent(self) -> str:
        """As `traceparent`."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"

    @property
    def headers(self) -> dict[str, str]:
        """Of a request or a message."""
        head = {TRACEPARENT: self.parent}
        return {**head, TRACESTATE: self.state} if self.state else head


def parse(parent: object, state: object = None) -> Trace | None:
    """What two headers say; None if `traceparent` is missing or malformed, '' for a `tracestate` that is."""
    found = _PARENT.fullmatch(parent.strip(" \t")) if isinstance(parent, str) else None
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not trace_id.strip("0") or not span_id.strip("0"):
        return None
    return Trace(trace_id, span_id, int(flags, 16) & _FLAGS, _state(state))


def _state(state: object) -> str:
    if not isinstance(state, str) or len(state) > 16 * _MOST_CHARACTERS:
        return ""
    members = [one for part in state.split(",") if (one := part.strip(" \t"))]
    keys = {one.partition("=")[0] for one in members}
    if len(members) > _MOST_MEMBERS or len(keys) < len(members) or not all(map(_MEMBER.fullmatch, members)):
        return ""
    if len(",".join(members)) > _MOST_CHARACTERS:
        members = [one for one in members if len(one) <= _LONG]
    while len(",".join(members)) > _MOST_CHARACTERS:
        members.pop()
    return ",".join(members)


def trace_id_of(task_id: str) -> str:
    """The trace of a task that was submitted without one. Not the id itself: it may be any text, and who samples by trace ids
    wants them random in every bit, which UUIDs are not."""
    return hashlib.blake2b(task_id.encode(errors="replace"), digest_size=16, person=b"mesh trace").hexdigest()


def span_id_of(task_id: str, fence: str) -> str:
    """The span of an attempt."""
    name = f"{task_id} {fence}".encode(errors="replace")
    return hashlib.blake2b(name, digest_size=8, person=b"mesh span").hexdigest()
