"""Messages that wait longer than what they are sealed with: sealed anew by a holder of the secret, with the one in force.

Two things end before a task does: a secret, when it is rotated, and the certificate of the agent that published it. A message is
opened before it is sealed again, as where it is fetched; what would be refused there stays as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from mesh.bus.opening import open_body, open_task
from mesh.core.envelopes import Rejected, Sealer, by_agent, kid_of
from mesh.store.signing import RootSigner, body_sealer, keys_of, kid_in_force, signer_of
from mesh.store.store import Store

__all__ = ["passing", "reseal", "reseal_bodies", "sealed_with"]
_HEADER_ENDS = 15


def sealed_with(store: Store, ids: Sequence[str]) -> Counter[str]:
    """With which secret's keys the messages of these tasks say that they are sealed: kid ('' for none) -> tasks."""
    return Counter(kid_of(head) or "" for head in _heads(store, ids) if head)


def passing(store: Store, ids: Sequence[str]) -> list[str]:
    """Those of these tasks whose messages say that they are sealed with another secret than the one in force, or by an agent."""
    kid = kid_in_force(store.settings)
    return [one for one, head in zip(ids, _heads(store, ids), strict=True) if head and _passes(head, kid)]


def _heads(store: Store, ids: Sequence[str]) -> list[bytes]:
    commands = [("GETRANGE", store.keys.of("message", one), 0, _HEADER_ENDS) for one in ids]
    return store.client.pipeline(*commands) if commands else []


def _passes(sealed: bytes, kid: str) -> bool:
    return kid_of(sealed) not in (None, kid) or by_agent(sealed)


def reseal(store: Store, ids: Sequence[str]) -> int:
    """Seal the messages of these tasks with the secret in force, where that is `passing`; how many were.

    They are believed no longer than before. Raises `Invalid` without a secret, `StoreUnavailable`.
    """
    if not ids:
        return 0
    now_ms = (
        store.now_ms()
    )  # what has expired stays as it is, certificates too: nobody knows when it was sealed
    signer, keys, kid = signer_of(store.settings), keys_of(store.settings), kid_in_force(store.settings)
    assert isinstance(signer, RootSigner)
    replies = store.client.pipeline(
        *[
            command
            for one in ids
            for command in (
                ("HGET", store.keys.of("task", one), "queue"),
                ("GET", store.keys.of("message", one)),
            )
        ]
    )
    words: list[str | bytes] = []
    sealers: dict[tuple[str, int], Sealer] = {}
    for task_id, queue, stored in zip(ids, replies[::2], replies[1::2], strict=True):
        if queue is None or stored is None or not _passes(stored, kid):
            continue
        name = queue.decode()
        try:
            opened = open_task(keys, name, task_id, stored, now_ms)
        except Rejected:
            continue
        sealer = sealers.get((name, opened.not_after_ms))
        if sealer is None:
            sealer = sealers[name, opened.not_after_ms] = signer.sealer(name, opened.not_after_ms)
        words += (task_id, stored, sealer(task_id, opened.message))
    return store.tasks.reseal(words) if words else 0


def reseal_bodies(store: Store, bodies: Mapping[str, bytes]) -> tuple[int, int]:
    """The same for bodies of chords, by group: (how many were, how many are still to be). They outlive certificates anyway.

    Raises `Invalid` without a secret, `StoreUnavailable`.
    """
    kid = kid_in_force(store.settings)
    passing = {group: body for group, body in bodies.items() if kid_of(body) not in (None, kid)}
    done = left = 0
    for group, body in passing.items():
        try:
            message = open_body(store, group, body)
        except Rejected:
            continue
        if store.chords.reseal(group, body, body_sealer(store)(group, message)):
            done += 1
        else:
            left += 1
    return done, left
