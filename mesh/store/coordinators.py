"""The coordinators of the mesh, and who of them leads a namespace.

A coordinator is one mesh-wide key with a short TTL that it writes anew every second: who is not there does not run.
"""

from __future__ import annotations

import json
import time
from typing import Any

from mesh.store.client import Client
from mesh.store.keys import COORDINATOR, COORDINATORS, Keys

__all__ = ["TTL_MS", "Coordinators"]
TTL_MS = 6000


class Coordinators:
    """The mesh-wide list of coordinators, and the leader of one namespace."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client, self._keys = client, keys

    def announce(self, coordinator: str, fields: dict[str, Any]) -> None:
        """Say that this coordinator runs, for `TTL_MS`. `fields`: what `all` shows, with a `life` of its own."""
        self._client.pipeline(
            ("SET", COORDINATOR + coordinator, json.dumps(fields), "PX", TTL_MS),
            ("ZADD", COORDINATORS, int(time.time()), coordinator),
        )

    def withdraw(self, coordinator: str) -> None:
        """Say that it stops."""
        self._client.pipeline(("DEL", COORDINATOR + coordinator), ("ZREM", COORDINATORS, coordinator))

    def get(self, coordinator: str) -> dict[str, Any] | None:
        """What a running coordinator says of itself, or None."""
        raw = self._client.execute("GET", COORDINATOR + coordinator)
        fields: dict[str, Any] | None = json.loads(raw) if raw else None
        return fields

    def all(self) -> list[dict[str, Any]]:
        """What every running coordinator says of itself, by id."""
        names = self._client.execute("ZRANGE", COORDINATORS, 0, -1)
        if not names:
            return []
        raws = self._client.pipeline(*[("GET", COORDINATOR + name.decode()) for name in names])
        return sorted((json.loads(raw) for raw in raws if raw), key=lambda row: str(row["id"]))

    def forget_gone(self) -> int:
        """Drop those from the index that do not run any more; how many."""
        names = [name.decode() for name in self._client.execute("ZRANGE", COORDINATORS, 0, -1)]
        gone = [name for name in names if self.get(name) is None]
        return int(self._client.execute("ZREM", COORDINATORS, *gone)) if gone else 0

    def leader(self) -> tuple[int, str | None]:
        """(term, id of the coordinator that leads this namespace now, or None)."""
        (who, term, until), (seconds, micros) = self._client.pipeline(
            ("HMGET", self._keys["leader"], "id", "term", "until"), ("TIME",)
        )
        leads = who is not None and int(until) > int(seconds) * 1000 + int(micros) // 1000
        return int(term or 0), who.decode() if leads else None
