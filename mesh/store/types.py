"""Task types in Redis: what agents say about the types that they have the code of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from mesh.store.client import Client
from mesh.store.keys import Keys
from mesh.store.scripts import Arg, Args, Key, script

_to_json = msgspec.json.Encoder().encode
_from_json = msgspec.json.Decoder(dict[str, Any]).decode
KEPT_MS = 86_400_000


@script
def advertise(types: Key, kept_ms: Arg[int], rows: Args[bytes]) -> None: ...


ALL = (advertise,)


class Types:
    """The task types of one namespace. `cache` belongs to `mesh.services.types`."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client, self._keys = client, keys
        self.bound = {one.name: one.bind(client, keys) for one in ALL}
        self.cache: dict[str, Any] = {}

    def advertise(self, rows: Mapping[str, Mapping[str, Any]]) -> int:
        """Tell task types by name, and forget those that nobody has told for a day; how many are known."""
        words = [word for name, row in rows.items() for word in (name.encode(), _to_json(row))]
        return int(self.bound["advertise"](KEPT_MS, *words))

    def get(self, name: str) -> dict[str, Any] | None:
        """The row of one type, or None."""
        clock, raw = self._client.pipeline(("TIME",), ("HGET", self._keys["types"], name))
        return _row(raw, clock)

    def all(self) -> dict[str, dict[str, Any]]:
        """Name -> row of every type, by name."""
        clock, raw = self._client.pipeline(("TIME",), ("HGETALL", self._keys["types"]))
        rows = {name.decode(): _row(value, clock) for name, value in zip(raw[::2], raw[1::2], strict=True)}
        return {name: row for name, row in sorted(rows.items()) if row is not None}


def _row(raw: bytes | None, clock: Sequence[bytes]) -> dict[str, Any] | None:
    if raw is None:
        return None
    seen, _, text = raw.partition(b" ")
    try:
        return _from_json(text) if int(seen) >= int(clock[0]) * 1000 - KEPT_MS else None
    except (ValueError, RecursionError):  # nothing that an agent of ours tells
        return None
