"""Tokens that do not count any more: single ones by their `jti`, all of a subject by the least time of issue that still counts.

Never by a token's text, which has no place in Redis. Who checks tokens holds all of it in memory and refreshes it every second: a
request costs no round trip, and what a process knows to be revoked stays so while Redis is away, and when it comes back older.
"""

from __future__ import annotations

import time

from mesh.core.tokens import KINDS, Claims
from mesh.store.client import Client
from mesh.store.keys import NOT_BEFORE, REVOCATIONS, REVOKED

__all__ = ["Revocations"]
_LONGEST_S = max(row.longest_s for row in KINDS.values())


class Revocations:
    """Of the whole mesh. `refresh` first; `is_revoked` answers from memory. Safe for threads."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._known: tuple[frozenset[str], dict[str, int]] = frozenset(), {}
        self._version: bytes | None = b"never looked"

    def is_revoked(self, claims: Claims) -> bool:
        """Whether these claims were revoked, as far as this process knows."""
        return self.covers(claims.jti, claims.subject, claims.issued_at)

    def covers(self, jti: str, subject: str, issued_at: int) -> bool:
        """The same for a token of which only this is remembered."""
        revoked, least = self._known
        return jti in revoked or issued_at < least.get(subject, 0)

    def refresh(self) -> None:
        """Learn what others have revoked. Raises `StoreUnavailable`."""
        version = self._client.execute("GET", REVOCATIONS)
        if version == self._version:
            return
        revoked, least = self._client.pipeline(("ZRANGE", REVOKED, 0, -1), ("HGETALL", NOT_BEFORE))
        known, subjects = self._known[0], dict(self._known[1])
        for name, at in zip(least[::2], least[1::2], strict=True):
            subjects[name.decode()] = max(int(at), subjects.get(name.decode(), 0))
        # Never less than before: Redis may have come back older, or empty.
        self._known, self._version = (known | {jti.decode() for jti in revoked}, subjects), version

    def revoke(self, jti: str, expires_at: int | None = None) -> None:
        """One token from now on. `expires_at`: when it ends by itself, s; None: not known. Raises `StoreUnavailable`."""
        now = int(time.time())
        self._client.pipeline(
            ("ZREMRANGEBYSCORE", REVOKED, "-inf", f"({now}"),
            ("ZADD", REVOKED, now + _LONGEST_S if expires_at is None else expires_at, jti),
            ("INCR", REVOCATIONS),  # after what it tells of
        )
        self.refresh()

    def revoke_subject(self, subject: str) -> int:
        """All tokens that a subject has; what is issued to it from the next second on counts again: that second.

        Raises `StoreUnavailable`.
        """
        least = int(time.time()) + 1
        flat = self._client.execute("HGETALL", NOT_BEFORE)
        over = [name for name, at in zip(flat[::2], flat[1::2], strict=True) if int(at) < least - _LONGEST_S]
        self._client.pipeline(
            *([("HDEL", NOT_BEFORE, *over)] if over else []),
            ("HSET", NOT_BEFORE, subject, least),
            ("INCR", REVOCATIONS),
        )
        self.refresh()
        return least
