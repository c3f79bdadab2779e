"""Agents in Redis: registration, beat, leave; requirements; who leads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from mesh.errors import StaleFence
from mesh.store.client import Client
from mesh.store.keys import NAMESPACES, Keys
from mesh.store.scripts import Arg, Args, Key, Prefix, script
from mesh.store.tasks import Entry

_pack = msgspec.msgpack.Encoder().encode


@script
def join(
    agents: Key,
    prefix: Prefix,
    agent: Arg[str],
    gone: Arg[str],
    rejoin: Arg[str],
    lost_ms: Arg[int],
    fields: Arg[bytes],
) -> None: ...


@script
def offer(
    present: Key,
    sequence: Key,
    prefix: Prefix,
    agent: Arg[str],
    incarnation: Arg[str],
    queues: Args[str],
) -> None: ...


@script
def cordon(
    ready: Key,
    present: Key,
    sequence: Key,
    prefix: Prefix,
    agent: Arg[str],
    how: Arg[str],
    grace_ms: Arg[str],
    incarnation: Arg[str],
    limit: Arg[int],
) -> None: ...


@script
def renew(
    ready: Key,
    scheduled: Key,
    leases: Key,
    deadlines: Key,
    counters: Key,
    dead: Key,
    agents: Key,
    present: Key,
    requirements_version: Key,
    chords_due: Key,
    poisoned: Key,
    pulse: Key,
    grace: Key,
    prefix: Prefix,
    keep_ms: Arg[int],
    lease_ms: Arg[int],
    renew_ms: Arg[int],
    agent: Arg[str],
    incarnation: Arg[str],
    fields: Arg[bytes],
    entries: Args[str],
) -> None: ...


@script
def leave(
    ready: Key, present: Key, prefix: Prefix, agent: Arg[str], incarnation: Arg[str], limit: Arg[int]
) -> None: ...


@script
def evict(leases: Key, prefix: Prefix, holder: Arg[str], cursor: Arg[int], limit: Arg[int]) -> None: ...


@script
def lead(leader: Key, coordinator: Arg[str], lead_ms: Arg[int]) -> None: ...


@script
def resign(leader: Key, lead: Arg[str]) -> None: ...


@script
def judge(agents: Key, leader: Key, prefix: Prefix, lead: Arg[str], verdicts: Args[str]) -> None: ...


ALL = (join, offer, cordon, renew, leave, evict, lead, resign, judge)
_PAGE = 1000  # tasks that one script moves


@dataclass(frozen=True, kw_only=True)
class Joined:
    """The answer to a registration: `incarnation` is ours if `taken` is False, else the other's."""

    taken: bool
    incarnation: int
    before: int = 0  # incarnation that the id had before us, 0 if none
    beat_age_ms: int = 0  # how long ago the other has beaten


@dataclass(frozen=True, kw_only=True)
class Lead:
    """Who leads a namespace, as the caller was told when it asked for the lead."""

    mine: bool
    term: int
    leader: str
    ends_in_ms: int

    @property
    def fence(self) -> str:
        """What the scripts that only the leader runs compare: nobody else has ever had this one."""
        return f"{self.leader}#{self.term}"


@dataclass(frozen=True, kw_only=True)
class Beat:
    """The answer to a beat; `words`: held | settled | lost, one for each attempt named."""

    known: str  # known | absent | unknown | restored | usurped
    requirements_version: int
    next_lease_end_ms: int  # -1: no lease at all
    chords_due: list[str]
    words: list[str]
    asked: str  # cordoned | drain | ''
    now_ms: int
    before_ms: int  # the beat before this one that Redis knows of, 0 if none
    drain_ms: int  # ... for a drain: what is left of its time; else -1


class Agents:
    """The agents of one namespace."""

    def __init__(self, client: Client, keys: Keys, *, lease_ms: int, renew_ms: int, keep_ms: int) -> None:
        self._client, self._keys = client, keys
        self._lease_ms, self._renew_ms, self._keep_ms = lease_ms, renew_ms, keep_ms
        self.bound = {one.name: one.bind(client, keys) for one in ALL}
        self.cache: dict[str, Any] = {}  # belongs to `mesh.services.agents`

    def join(
        self,
        agent: str,
        fields: dict[str, Any],
        *,
        gone: int | None = None,
        rejoin: int | None = None,
    ) -> Joined:
        """Register an agent; refused (`taken`) while another life of that id beats."""
        flat = [word for name, value in fields.items() for word in (name, str(value))]
        if not self._client.execute(
            "SISMEMBER", NAMESPACES, self._keys.namespace
        ):  # a full Redis takes no SADD
            self._client.execute("SADD", NAMESPACES, self._keys.namespace)
        answer = self.bound["join"](
            agent,
            "" if gone is None else gone,
            "" if rejoin is None else rejoin,
            self._lease_ms,
            _pack(flat),
        )
        number = int(answer[2])
        if answer[0] == b"taken":
            return Joined(taken=True, incarnation=int(answer[1]), beat_age_ms=number)
        return Joined(taken=False, incarnation=int(answer[1]), before=number)

    def renew(self, agent: str, incarnation: int, fields: dict[str, Any], entries: Sequence[Entry]) -> Beat:
        """One beat: renew exactly these attempts."""
        flat = [word for name, value in fields.items() for word in (name, str(value))]
        words = [word for entry in entries for word in (entry.id, entry.fence)]
        answer = self.bound["renew"](
            self._keep_ms, self._lease_ms, self._renew_ms, agent, incarnation, _pack(flat), *words
        )
        return Beat(
            known=answer[0].decode(),
            requirements_version=int(answer[2]),
            next_lease_end_ms=int(answer[3]),
            chords_due=[group.decode() for group in answer[4]],
            words=[word.decode() for word in answer[5]],
            asked=answer[6].decode(),
            now_ms=int(answer[1]),
            before_ms=int(answer[7]),
            drain_ms=int(answer[8]),
        )

    def offer(self, agent: str, incarnation: int, queues: Sequence[str]) -> str:
        """Say which queues an agent consumes: tasks are placed with it from now on (moved | fenced)."""
        answer: bytes = self.bound["offer"](agent, incarnation, *queues)
        return answer.decode()

    def cordon(
        self, agent: str, how: str, *, grace_ms: int | None = None, incarnation: int | None = None
    ) -> str:
        """`how`: cordon | uncordon | drain (within `grace_ms`, None: the agent's own time); the agent hears of it at once.

        Only to one life of it if `incarnation` is given. Answers moved | missing | fenced | draining (not taken back).
        """
        grace, life = ("" if one is None else one for one in (grace_ms, incarnation))
        return self._paged("cordon", agent, how, grace, life)

    def leave(self, agent: str, incarnation: int) -> str:
        """Deregister (moved | fenced); the record stays for a day, as offline."""
        return self._paged("leave", agent, incarnation)

    def _paged(self, script: str, agent: str, *words: str | int) -> str:
        while (answer := self.bound[script](agent, *words, _PAGE)) == b"more":
            pass
        return str(answer.decode())

    def consumers(self, queue: str) -> int:
        """How many agents take what waits in a queue."""
        return int(self._client.execute("ZCARD", self._keys.of("consumers", queue)))

    def evict(self, holder: str) -> int:
        """End the leases of a holder (`agent#incarnation`) whose life is known to be over; how many."""
        cursor, ended = 0, 0
        while cursor >= 0:
            page, cursor = self.bound["evict"](holder, cursor, 500)
            ended += page
        return ended

    def requirements(self) -> tuple[int, list[str]]:
        """(version, texts) of the registered requirements of several capabilities."""
        version, names = self._client.pipeline(
            ("GET", self._keys["requirements_version"]), ("HKEYS", self._keys["requirements"])
        )
        return int(version or 0), [name.decode() for name in names]

    def get(self, agent: str) -> dict[str, str] | None:
        """One registration as it is stored, or None."""
        raw = self._client.execute("HGETALL", self._keys.of("agent", agent))
        return _pairs(raw) if raw else None

    def all(self) -> list[dict[str, str]]:
        """Every registration, sorted by id."""
        names = self.names()
        if not names:
            return []
        replies = self._client.pipeline(*[("HGETALL", self._keys.of("agent", name)) for name in names])
        return sorted((_pairs(raw) for raw in replies if raw), key=lambda row: row["id"])

    def now_ms(self) -> int:
        """Redis's clock."""
        seconds, micros = self._client.execute("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    def names(self) -> list[str]:
        """The ids on the list, also of those whose records have gone with their retention."""
        return [name.decode() for name in self._client.execute("ZRANGE", self._keys["agents"], 0, -1)]

    def judge(self, lead: str, verdicts: Mapping[str, str]) -> int:
        """Record the health of agents, '' for one whose record has gone: how many went from the list.

        Raises `StaleFence` if the lead is over.
        """
        gone = self.bound["judge"](lead, *[word for verdict in verdicts.items() for word in verdict])
        if gone is None:
            raise StaleFence(f"The lead {lead} is over: nothing was changed.")
        return int(gone)

    def lead(self, coordinator: str, lead_ms: int) -> Lead:
        """Take or keep the lead."""
        mine, term, leader, ends_in_ms = self.bound["lead"](coordinator, lead_ms)
        return Lead(mine=bool(mine), term=term, leader=leader.decode(), ends_in_ms=ends_in_ms)

    def resign(self, lead: str) -> bool:
        """Give the lead up; False if it was over."""
        return bool(self.bound["resign"](lead))


def _pairs(raw: Sequence[bytes]) -> dict[str, str]:
    texts = [value.decode() for value in raw]
    return dict(zip(texts[::2], texts[1::2], strict=True))
