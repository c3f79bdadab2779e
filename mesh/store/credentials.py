"""What this process logs in to Redis with, where that changes while it runs: an agent that has joined over HTTP.

Every connection asks anew when it connects (redis-py's `CredentialProvider`). The words lie in memory that forked children share:
what the agent's main process is given, its pool's children log in with from then on. No URL, setting or environment holds them.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable
from hashlib import blake2b

from redis.credentials import CredentialProvider

__all__ = ["REFUSALS", "Credentials", "of", "use"]
REFUSALS = ("WRONGPASS", "NOAUTH", "NOPERM")

_SIZE, _DIGEST = 1024, 16


class Credentials(CredentialProvider):
    """A user's name and password. One process sets them, at any time; all that were forked from it read them."""

    def __init__(self, username: str | None, password: str | None) -> None:
        self._memory = mmap.mmap(-1, _SIZE)
        #: Told the first word of Redis's reply when it does not take them any more, or not for this.
        self.on_refused: Callable[[str], None] = lambda code: None
        self.set(username, password)

    def set(self, username: str | None, password: str | None) -> None:
        """From now on."""
        data = json.dumps([username, password]).encode()
        if len(data) > _SIZE - _DIGEST - 2:
            raise ValueError("A user's name and password must fit into 1000 bytes.")
        digest = blake2b(data, digest_size=_DIGEST).digest()
        whole = len(data).to_bytes(2, "big") + digest + data
        self._memory[: len(whole)] = whole

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """As redis-py wants them."""
        username, password = self.current
        return (username, password or "") if username else (password or "",)

    @property
    def current(self) -> tuple[str | None, str | None]:
        """(user, password)."""
        while True:
            whole = self._memory[:]
            data = whole[2 + _DIGEST : 2 + _DIGEST + int.from_bytes(whole[:2], "big")]
            if (
                blake2b(data, digest_size=_DIGEST).digest() == whole[2 : 2 + _DIGEST]
            ):  # else they change just now
                username, password = json.loads(data)
                return username, password

    def __deepcopy__(self, memo: object) -> Credentials:
        return self

    def __repr__(self) -> str:
        return "Credentials()"


_used: dict[str, Credentials] = {}


def use(url: str, credentials: Credentials) -> None:
    """Log in with these at the Redis of this URL, in this process and those that are forked from it."""
    _used[url] = credentials


def of(url: str) -> Credentials | None:
    """What to log in with there, if not with what the URL says."""
    return _used.get(url)
