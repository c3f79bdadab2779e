"""Restores in Redis: the epoch, the tasks that a backup left incomplete, agents that are registered without being there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from mesh.core.states import State
from mesh.store.client import Client
from mesh.store.keys import NAMESPACES, Keys
from mesh.store.scripts import Arg, Bound, Key, Prefix, script

__all__ = ["Incomplete", "Restores"]
_pack = msgspec.msgpack.Encoder().encode
_PAGE = 40  # tasks that one script ends: others wait for some milliseconds at most
_READ = 500  # records read in one round trip
_MOVED = 200  # tasks that one script moves from the queue of an agent


@script
def begin_epoch(
    ready: Key,
    scheduled: Key,
    leases: Key,
    leader: Key,
    epoch: Key,
    restoring: Key,
    prefix: Prefix,
    everything: Arg[int],
    tasks: Arg[str],
) -> None: ...


@script
def restore(
    ready: Key,
    scheduled: Key,
    leases: Key,
    deadlines: Key,
    counters: Key,
    dead: Key,
    chords_due: Key,
    epoch: Key,
    restoring: Key,
    prefix: Prefix,
    keep_ms: Arg[int],
    limit: Arg[int],
) -> None: ...


@script
def enlist(
    ready: Key,
    agents: Key,
    present: Key,
    epoch: Key,
    prefix: Prefix,
    agent: Arg[str],
    known: Arg[str],
    fields: Arg[bytes],
    cordon: Arg[str],
    limit: Arg[int],
) -> None: ...


ALL = (begin_epoch, restore, enlist)


class Incomplete(NamedTuple):
    """A task that had not ended: `state` that it was in, `agent` that held it or '', `now` the state that it is in."""

    id: str
    type: str
    state: State
    agent: str
    now: State


class Restores:
    """The restores of one namespace. `keep_ms`: retention of results."""

    def __init__(self, client: Client, keys: Keys, *, keep_ms: int) -> None:
        self._client, self._keys, self._keep_ms = client, keys, keep_ms
        self.bound: dict[str, Bound] = {one.name: one.bind(client, keys) for one in ALL}

    def epoch(self) -> dict[str, str]:
        """The fields of the key `epoch`; {} if nothing was ever restored or missed."""
        raw = [word.decode() for word in self._client.execute("HGETALL", self._keys["epoch"])]
        return dict(zip(raw[::2], raw[1::2], strict=True))

    def begin(self, policy: str) -> tuple[int, str, bool]:
        """Begin an epoch: (it, its policy, whether it goes on with a restore that was interrupted)."""
        number, tasks, goes_on = self.bound["begin_epoch"](int(policy == "fail"), policy)
        return int(number), tasks.decode(), bool(goes_on)

    def page(self) -> tuple[bool, list[Incomplete]]:
        """Deal with some of the tasks that were put aside: (whether there are more, what was done)."""
        more, flat = self.bound["restore"](self._keep_ms, _PAGE)
        words = [word.decode() for word in flat]
        rows = [
            Incomplete(words[at], words[at + 1], State(words[at + 2]), words[at + 3], State(words[at + 4]))
            for at in range(0, len(words), 5)
        ]
        return bool(more), rows

    def put_parked_aside(self, before_ms: int) -> int:
        """Put aside what is scheduled without a time (it waits for a canvas of its own) since before `before_ms`; how many.

        Nothing lists these tasks: their records are looked for, unless the counters say that there are none.
        """
        if not self._has_parked():
            return 0
        found = [one.id for one in self._parked(before_ms)]
        for first in range(0, len(found), _READ):
            entries = [word for one in found[first : first + _READ] for word in (0, one)]
            self._client.pipeline(
                ("SADD", self._keys["restoring"], "parked"),
                ("ZADD", self._keys.of("aside", "parked"), *entries),
            )
        return len(found)

    def _has_parked(self) -> bool:
        """Whether more tasks are scheduled than have a time; the counters are exact."""
        timed, raw = self._client.pipeline(
            ("ZCARD", self._keys["scheduled"]), ("HGETALL", self._keys["counters"])
        )
        counted = [
            int(number)
            for name, number in zip(raw[::2], raw[1::2], strict=True)
            if name.endswith(b"|scheduled")
        ]
        return sum(counted) > int(timed)

    def _parked(self, before_ms: int) -> Iterator[Incomplete]:
        cursor, prefix = b"0", self._keys.of("task", "")
        while True:
            cursor, names = self._client.execute("SCAN", cursor, "MATCH", f"{prefix}*", "COUNT", 1000)
            ids = [name.decode().removeprefix(prefix) for name in names]
            looks = [("HMGET", self._keys.of("task", one), "state", "queued", "type", "queue") for one in ids]
            scores = [("ZSCORE", self._keys["scheduled"], one) for one in ids]
            replies = self._client.pipeline(*looks, *scores) if ids else []
            for one, row, score in zip(ids, replies, replies[len(ids) :], strict=False):
                state, queued, kind, queue = row
                if state == b"scheduled" and score is None and int(queued or 0) <= before_ms:
                    yield Incomplete(one, (kind or queue).decode(), State.SCHEDULED, "", State.SCHEDULED)
            if cursor == b"0":
                return

    def end(self) -> None:
        """The restore is done."""
        seconds, _ = self._client.execute("TIME")
        self._client.execute("HSET", self._keys["epoch"], "ended", int(seconds) * 1000)

    def incomplete(self) -> Iterator[Incomplete]:
        """Every task that has not ended, as `page` would meet it; nothing is changed."""
        ready, aside = self._client.pipeline(
            ("SMEMBERS", self._keys["ready"]), ("SMEMBERS", self._keys["restoring"])
        )
        sources = [self._keys["leases"], self._keys["scheduled"]]
        sources += [self._keys.of("queue", name.decode()) for name in ready]
        sources += [self._keys.of("aside", name.decode()) for name in aside]
        seen: set[str] = set()
        for source in sources:
            at = 0
            while page := self._client.execute("ZRANGE", source, at, at + _READ - 1):
                at += len(page)
                fresh = [name for one in page if (name := one.decode()) not in seen]
                seen.update(fresh)
                yield from self._looked_at(fresh)
        if self._has_parked():
            yield from (one for one in self._parked(2**53) if one.id not in seen)

    def _looked_at(self, ids: Sequence[str]) -> Iterator[Incomplete]:
        looks = [("HMGET", self._keys.of("task", one), "state", "type", "queue", "agent") for one in ids]
        for one, (state, kind, queue, agent) in zip(
            ids, self._client.pipeline(*looks) if looks else [], strict=True
        ):
            if state is not None:
                held = state in (b"leased", b"running") and agent
                holder = agent.decode().partition("#")[0] if held else ""
                now = State(state.decode())
                yield Incomplete(one, (kind or queue).decode(), now, holder, now)

    def enlist(self, agent: str, known: str, fields: dict[str, Any], cordoned: bool | None) -> str:
        """Register an agent as offline (moved | live); `known`: its last beat as it was seen, '' if it had no record."""
        flat = [word for name, value in fields.items() for word in (name, str(value))]
        cordon = "" if cordoned is None else str(int(cordoned))
        self._client.execute("SADD", NAMESPACES, self._keys.namespace)
        while (answer := self.bound["enlist"](agent, known, _pack(flat), cordon, _MOVED)) == b"more":
            pass
        return str(answer.decode())

    def went_back(self, by: str, lost_ms: int) -> None:
        """Note that Redis holds less than it did: it has lost about `lost_ms` (0: not known). Forgotten at the next restore."""
        seconds, _ = self._client.execute("TIME")
        self._client.execute(
            "HSET", self._keys["epoch"], "rewound", int(seconds) * 1000, "by", by, "lost", lost_ms
        )
