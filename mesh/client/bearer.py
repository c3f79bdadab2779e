"""What a client shows to coordinators: the token that it was given, or, where the secret is known, tokens of its own."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Mapping

from mesh.core import tokens
from mesh.settings import Settings

__all__ = ["Bearer"]

_SUBJECT, _AGENT_TYPE = "mesh", "admin"
_LIFE_S = 300
_RENEWED_S = 150.0  # before its end: a slow call, or a clock that is ahead, still finds it valid


class Bearer:
    """The Authorization header of each request. Safe for threads."""

    def __init__(self, settings: Settings, token: str | None) -> None:
        self._settings = settings
        self._token = token or settings.token
        self._made: tuple[str, float] | None = None  # an own token, and when to make another (monotonic)
        self._turn = 0  # which of the secrets signs it
        self._lock = threading.Lock()

    def headers(self) -> dict[str, str]:
        """None without token and secret: coordinators will say so. Raises `Invalid` for a secret that can be guessed."""
        token = self._token or self._own()
        return {} if token is None else {"authorization": f"Bearer {token}"}

    def refused(self, sent: Mapping[str, str]) -> bool:
        """A coordinator did not believe what these headers say: whether there is another token to show.

        While the secret is rotated, some coordinators may know only one of the two; callers cannot ask which.
        """
        text = sent.get("authorization", "").removeprefix("Bearer ")
        with self._lock:
            if self._made is None or len(self._settings.keyring.kids) < 2:
                return False
            if self._made[0] == text:
                self._turn, self._made = self._turn + 1, None
            return True

    def _own(self) -> str | None:
        if not self._settings.jwt_secret:
            return None
        with self._lock:
            if self._made is None or self._made[1] < time.monotonic():
                self._made = self._make(), time.monotonic() + _LIFE_S - _RENEWED_S
            return self._made[0]

    def _make(self) -> str:
        ring = self._settings.keyring
        return tokens.issue(
            "api", ring, ring.kids[self._turn % len(ring.kids)], subject=_SUBJECT, agent_type=_AGENT_TYPE,
            namespaces=[self._settings.namespace], ttl_s=_LIFE_S, now_s=time.time(), jti=secrets.token_hex(16),
        )  # fmt: skip
