"""What can be done with tasks that were put aside: run them again, or stop keeping them for that."""

from __future__ import annotations

from collections.abc import Sequence

from mesh.errors import MeshError, NotFound, StoreUnavailable
from mesh.services import listing
from mesh.services import tasks as task_services
from mesh.store.store import Store

__all__ = ["LIMIT", "discard", "replay", "select"]
LIMIT = 1000  # dead letters that one call handles


def select(
    store: Store,
    *,
    ids: Sequence[str] = (),
    type: str | None = None,
    capability: str | None = None,
    reason: str | None = None,
    since_ms: int | None = None,
) -> tuple[list[str], bool]:
    """(at most `LIMIT` ids of dead letters, whether there are more): those named, else those that the filter takes."""
    if ids:
        return list(dict.fromkeys(ids))[:LIMIT], len(ids) > LIMIT
    found, cursor = listing.dead_letters(
        store, type=type, capability=capability, reason=reason, since_ms=since_ms, limit=LIMIT
    )
    return [one["id"] for one in found], cursor is not None


def replay(store: Store, ids: Sequence[str]) -> tuple[list[str], list[tuple[str, MeshError]]]:
    """Run each again as a new run: (ids that are queued again, those that are not and why). Raises `StoreUnavailable`."""
    again: list[str] = []
    refused: list[tuple[str, MeshError]] = []
    for task_id in ids:
        try:
            task_services.retry(store, task_id)
            again.append(task_id)
        except StoreUnavailable:
            raise
        except MeshError as error:
            refused.append((task_id, error))
    return again, refused


def discard(store: Store, ids: Sequence[str]) -> tuple[list[str], list[tuple[str, MeshError]]]:
    """Take each off the list of dead letters; its record can be read until its retention ends. Answers as `replay`."""
    removals = [("ZREM", store.keys["dead"], task_id) for task_id in ids]
    removed = store.client.pipeline(*removals) if removals else []
    namespace = store.settings.namespace
    gone: list[str] = []
    refused: list[tuple[str, MeshError]] = []
    for task_id, number in zip(ids, removed, strict=True):
        if number:
            gone.append(task_id)
        else:
            refused.append(
                (task_id, NotFound(f"There is no dead letter {task_id!r} in namespace {namespace!r}."))
            )
    return gone, refused
