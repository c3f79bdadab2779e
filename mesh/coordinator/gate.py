"""Who calls: the token of a request, verified once and then remembered until it ends or is revoked."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from mesh.core import tokens
from mesh.core.tokens import Claims
from mesh.errors import Unauthenticated
from mesh.settings import Settings

__all__ = ["Gate", "Identity"]

_MOST_KNOWN = 10_000
_MOST_GRANTED = 1_000
_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] ([^ ]+)")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Identity:
    """Who calls. `granted`: what was found to be allowed to him, (namespace, task type)."""

    claims: Claims
    granted: set[tuple[str, str]] = field(default_factory=set)

    def grant(self, namespace: str, task_type: str) -> None:
        """Remember it; the policies of a process do not change."""
        if len(self.granted) >= _MOST_GRANTED:
            self.granted.clear()
        self.granted.add((namespace, task_type))


class Gate:
    """Verifies tokens. `revoked` says from memory whether one is: it is asked for each request."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._known: dict[tuple[str, bytes], Identity] = {}
        self.revoked: Callable[[Claims], bool] = lambda _: False

    def identity(self, kind: str, headers: Iterable[tuple[bytes, bytes]]) -> Identity:
        """Who sends these headers, by a token of `kind`. Raises `Unauthenticated`."""
        given = [value for name, value in headers if name == b"authorization"]
        if len(given) != 1:
            many = "several headers" if given else "no header"
            raise Unauthenticated(reason=f"there is {many} Authorization")
        key = (kind, given[0])
        identity = self._known.get(key)
        if identity is None:
            identity = self._verified(kind, given[0])
            while len(self._known) >= _MOST_KNOWN:
                self._known.pop(next(iter(self._known)), None)
            self._known[key] = identity
        try:
            self.check(identity)
        except Unauthenticated:
            self._known.pop(key, None)
            raise
        return identity

    def _verified(self, kind: str, header: bytes) -> Identity:
        match = _BEARER.fullmatch(header.decode("latin-1"))
        if match is None:
            raise Unauthenticated(reason="the header Authorization is not `Bearer` and a token")
        return Identity(claims=tokens.verify(kind, match[1], self._settings.keyring, now_s=time.time()))

    def check(self, identity: Identity) -> None:
        """Raise `Unauthenticated` once the token has expired or was revoked."""
        if identity.claims.expires_at <= time.time():
            raise Unauthenticated(reason=f"it has expired (subject {identity.claims.subject})")
        if self.revoked(identity.claims):
            raise Unauthenticated(reason=f"it was revoked (subject {identity.claims.subject})")
