"""What can be done with a whole namespace."""

from __future__ import annotations

from mesh.store.keys import MOVED, NAMESPACES
from mesh.store.store import Store

_PAGE = 1000


def drop(store: Store) -> int:
    """Remove all that a namespace has in Redis, tasks and results too; how many keys. For those made for one use."""
    cursor, removed = b"0", 0
    while True:
        cursor, keys = store.client.execute("SCAN", cursor, "MATCH", f"{store.keys.prefix}*", "COUNT", _PAGE)
        removed += int(store.client.execute("UNLINK", *keys)) if keys else 0
        if cursor == b"0":
            break
    store.client.execute("SREM", NAMESPACES, store.keys.namespace)
    store.client.execute("UNLINK", MOVED + store.keys.namespace)
    return removed
