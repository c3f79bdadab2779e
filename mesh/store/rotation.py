"""The signing key in force: chosen by what the live coordinators and agents say that they know.

Only processes that have two secrets look, at most every two seconds. While Redis is away the last choice stands.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from mesh.core.rotation import sign_with
from mesh.errors import StoreUnavailable
from mesh.settings import Settings
from mesh.store.client import Client
from mesh.store.coordinators import Coordinators
from mesh.store.keys import Keys

__all__ = ["HEARD_OF_S", "LOOK_S", "Kids", "Rotation", "known_kids", "rotation_of"]
LOOK_S = 2.0
HEARD_OF_S = 60
"""An agent that was heard of so lately counts, also if it has left: it may be on its way back, as it was."""


Kids = tuple[str, ...]


def known_kids(client: Client, keys: Keys) -> tuple[list[Kids], list[Kids]]:
    """What (the coordinators of the mesh, the agents of the namespace) say that they know, each. Raises `StoreUnavailable`."""
    coordinators = [_parts(str(row.get("kids") or "")) for row in Coordinators(client, keys).all()]
    listed = client.execute("ZRANGE", keys["agents"], 0, -1, "WITHSCORES")
    seconds, _ = client.execute("TIME")
    since_ms = (int(seconds) - HEARD_OF_S) * 1000
    names = [
        name.decode() for name, beat in zip(listed[::2], listed[1::2], strict=True) if float(beat) >= since_ms
    ]
    rows = client.pipeline(*[("HGET", keys.of("agent", name), "kids") for name in names]) if names else []
    return coordinators, [_parts((row or b"").decode()) for row in rows]


def _parts(text: str) -> Kids:
    return tuple(kid for kid in text.split(",") if kid)


class Rotation:
    """Of one namespace, for one process. Safe for threads and forked children."""

    def __init__(self, settings: Settings, client: Client | None = None) -> None:
        self._kids: Sequence[str] = settings.keyring.kids
        self._settings, self._client = settings, client
        self._keys = Keys(settings.namespace)
        self._chosen = self._kids[0]
        self._look_at = 0.0
        self._lock = threading.Lock()

    def signing(self) -> str:
        """The kid to sign with now."""
        if len(self._kids) > 1 and time.monotonic() >= self._look_at and self._lock.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._lock.release()
        return self._chosen

    def _look(self) -> None:
        client = self._client or self._own()
        try:
            coordinators, agents = known_kids(client, self._keys)
            self._chosen = sign_with(self._kids, [*coordinators, *agents])
        except StoreUnavailable:
            pass  # nobody can be told anything now
        finally:
            self._look_at = time.monotonic() + LOOK_S
            if client is not self._client:
                client.close()

    def _own(self) -> Client:
        """For one look: the next may come from another thread, which under gevent must not use this one's sockets."""
        settings = self._settings
        return Client(
            settings.redis_url,
            connect_timeout_ms=settings.redis_connect_timeout_ms,
            socket_timeout_ms=settings.redis_socket_timeout_ms,
        )


_rotations: dict[tuple[str, str, str | None, str | None], Rotation] = {}


def rotation_of(settings: Settings) -> Rotation:
    """The one of this process for these settings. Raises `Invalid` without a secret."""
    name = (settings.redis_url, settings.namespace, settings.jwt_secret, settings.jwt_secret_new)
    found = _rotations.get(name)
    if found is None:
        found = _rotations[name] = Rotation(settings)
    return found
