"""Tokens that do not count any more: single ones by their `jti`, all of a subject by the least time of issue that still counts.

Never by a token's text, which has no place in Redis. Who checks tokens holds all of it in memory and refreshes it every second: a
request costs no round trip, and what a process knows to be revoked stays so while Redis is away. When Redis comes back older or
empty, whoever knows more writes it back, for those that start later. Nothing is kept for longer than the longest token lives.
"""

from __future__ import annotations

import secrets
import time

from mesh.core.tokens import KINDS, Claims
from mesh.errors import Conflict
from mesh.store.client import Client
from mesh.store.keys import NOT_BEFORE, REVOCATIONS, REVOKED

__all__ = ["Revocations"]
_LONGEST_S = max(row.longest_s for row in KINDS.values())
_MOST = 50_000  # of tokens, and of subjects: each process reads all of them whenever one is added


class Revocations:
    """Of the whole mesh. `refresh` first; `is_revoked` answers from memory. Safe for threads."""

    def __init__(self, client: Client, *, most: int = _MOST) -> None:
        self._client, self._most = client, most
        self._known: tuple[dict[str, int], dict[str, int]] = {}, {}  # jti -> its end; subject -> least; s
        self._version: bytes | None = b"never looked"

    def is_revoked(self, claims: Claims) -> bool:
        """Whether these claims were revoked, as far as this process knows."""
        return self.covers(claims.jti, claims.subject, claims.issued_at)

    def covers(self, jti: str, subject: str, issued_at: int) -> bool:
        """The same for a token of which only this is remembered."""
        ends, least = self._known
        return jti in ends or issued_at < least.get(subject, 0)

    def refresh(self) -> None:
        """Learn what others have revoked, and write back what Redis has lost. Raises `StoreUnavailable`."""
        version = self._client.execute("GET", REVOCATIONS)
        if version == self._version:
            return
        revoked, flat = self._client.pipeline(
            ("ZRANGE", REVOKED, 0, -1, "WITHSCORES"), ("HGETALL", NOT_BEFORE)
        )
        there = {jti.decode(): int(float(end)) for jti, end in zip(revoked[::2], revoked[1::2], strict=True)}
        before = {name.decode(): int(at) for name, at in zip(flat[::2], flat[1::2], strict=True)}
        now = int(time.time())
        ends = {jti: end for jti, end in {**self._known[0], **there}.items() if end >= now}
        least = {
            name: max(at, before.get(name, 0))
            for name, at in {**before, **self._known[1]}.items()
            if at >= now - _LONGEST_S
        }
        self._known, self._version = (ends, least), version
        lost = [word for jti, end in ends.items() if jti not in there for word in (end, jti)]
        older = [word for name, at in least.items() if before.get(name, 0) < at for word in (name, at)]
        if lost or older:
            self._tell(
                *([("ZADD", REVOKED, *lost)] if lost else []),
                *([("HSET", NOT_BEFORE, *older)] if older else []),
            )

    def revoke(self, jti: str, expires_at: int | None = None) -> None:
        """One token from now on. `expires_at`: when it ends by itself, s; None: not known. Raises `StoreUnavailable`, `Conflict`
        if too many are revoked already."""
        now = int(time.time())
        _, others, known = self._client.pipeline(
            ("ZREMRANGEBYSCORE", REVOKED, "-inf", f"({now}"), ("ZCARD", REVOKED), ("ZSCORE", REVOKED, jti)
        )
        if others >= self._most and known is None:
            raise Conflict(
                f"{others} tokens are revoked already, as many as can be: revoke all tokens of a subject, or change the secret."
            )
        latest = now + _LONGEST_S
        self._tell(("ZADD", REVOKED, latest if expires_at is None else min(expires_at, latest), jti))
        self.refresh()

    def revoke_subject(self, subject: str) -> int:
        """All tokens that a subject has; what is issued to it from the next second on counts again: that second.

        Raises `StoreUnavailable`, `Conflict` if too many are revoked already.
        """
        least = int(time.time()) + 1
        flat = self._client.execute("HGETALL", NOT_BEFORE)
        before = dict(zip(flat[::2], map(int, flat[1::2]), strict=True))
        over = [name for name, at in before.items() if at < least - _LONGEST_S]
        others = before.keys() - {*over, subject.encode()}
        if len(others) >= self._most:
            raise Conflict(
                f"The tokens of {len(others)} subjects are revoked already, as many as can be: change the secret."
            )
        self._tell(*([("HDEL", NOT_BEFORE, *over)] if over else []), ("HSET", NOT_BEFORE, subject, least))
        self.refresh()
        return least

    def _tell(self, *changes: tuple[str | bytes | int, ...]) -> None:
        # A new version behind what it tells of; not a count, which could come back to one that was seen once Redis has lost it.
        self._client.pipeline(*changes, ("SET", REVOCATIONS, secrets.randbits(62)))
