"""Chords in Redis: a header's results, and the mark that its body is due."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.store.client import Client
from mesh.store.keys import Keys
from mesh.store.scripts import Arg, Bound, Key, Prefix, script


@script
def chord_arm(
    chords_due: Key,
    prefix: Prefix,
    keep_ms: Arg[int],
    group_id: Arg[str],
    body: Arg[bytes],
    size: Arg[int],
    token: Arg[str],
) -> None: ...


@script
def chord_part(
    chords_due: Key, prefix: Prefix, group_id: Arg[str], index: Arg[str], document: Arg[bytes]
) -> None: ...


@script
def chord_take(chords_due: Key, prefix: Prefix, group_id: Arg[str]) -> None: ...


@script
def chord_done(chords_due: Key, prefix: Prefix, group_id: Arg[str], armed: Arg[str]) -> None: ...


@script
def chord_reseal(prefix: Prefix, group_id: Arg[str], was: Arg[bytes], body: Arg[bytes]) -> None: ...


ALL = (chord_arm, chord_part, chord_take, chord_done, chord_reseal)


@dataclass(frozen=True, kw_only=True)
class DueChord:
    """A chord whose header is complete: its body, who (or when, ms) armed it, results in the order of the header."""

    body: bytes
    armed: str
    documents: list[bytes]


class Chords:
    """The chords of one namespace."""

    def __init__(self, client: Client, keys: Keys, *, keep_ms: int) -> None:
        self._client, self._keys, self._keep_ms = client, keys, keep_ms
        self.bound: dict[str, Bound] = {one.name: one.bind(client, keys) for one in ALL}

    def arm(self, group_id: str, *, body: bytes = b"", size: int = -1, token: str = "") -> bool:
        """Tell a chord its body or its size; True if it is due by it.

        `token`: the parent and run (`parent:run`) that publishes it, '' outside of a task; see `lua/chord_arm.lua`.
        """
        return bool(self.bound["chord_arm"](self._keep_ms, group_id, body, size, token))

    def part(self, group_id: str, index: str, document: bytes) -> bool:
        """Count the part of a task that was never published; True if the chord is due by it."""
        return bool(self.bound["chord_part"](group_id, index, document))

    def grow(self, group_id: str) -> None:
        """One more task belongs to the header (Celery's add_to_chord)."""
        key = self._keys.of("chord", group_id)
        self._client.pipeline(("HINCRBY", key, "added", 1), ("PEXPIRE", key, self._keep_ms))

    def take(self, group_id: str) -> DueChord | None:
        """Claim a due chord for 10 s; None if there is nothing to do or another process is at it."""
        answer = self.bound["chord_take"](group_id)
        if not answer:
            return None
        parts = list(zip(answer[2::2], answer[3::2], strict=True))
        parts.sort(key=lambda part: _order(part[0]))
        return DueChord(
            body=answer[0], armed=answer[1].decode(), documents=[document for _, document in parts]
        )

    def bodies(self, cursor: str) -> tuple[str, dict[str, bytes]]:
        """A page of all chords that wait: (where the next one begins, "0" at the end; bodies by group). "0" begins.

        It walks over all keys of the server: for what happens rarely.
        """
        family = self._keys.of("chord", "")
        after, found = self._client.execute("SCAN", cursor, "MATCH", f"{family}*", "COUNT", 1000)
        bodies = self._client.pipeline(*(("HGET", key, "body") for key in found)) if found else []
        names = (key.decode().removeprefix(family) for key in found)
        return after.decode(), {name: body for name, body in zip(names, bodies, strict=True) if body}

    def reseal(self, group_id: str, was: bytes, body: bytes) -> bool:
        """Another body in the place of the one that `was` there; False if it is there no longer."""
        return bool(self.bound["chord_reseal"](group_id, was, body))

    def done(self, group_id: str, armed: str = "") -> bool:
        """Nothing is due any more; False if it was armed anew since `take` said `armed` ('' does not care)."""
        return bool(self.bound["chord_done"](group_id, armed))


def _order(index: bytes) -> tuple[bool, int, bytes]:
    """Parts are named `place in the header.task id`, or by the id alone where there is no place: those come last."""
    place = index.partition(b".")[0]
    return (False, int(place), index) if place.isdigit() else (True, 0, index)
