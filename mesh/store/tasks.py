"""Task records in Redis: the scripts that move them, and how they are read.

Each script answers with a word for what it did (`mesh.core.states.Answer`); a refused move is an answer, not an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from mesh.core.requirements import is_compound
from mesh.core.states import LIVE, TERMINAL, State
from mesh.core.timings import BOUNDS_MS, Kind, Timing
from mesh.errors import StaleFence
from mesh.store.client import Client, pack, pack_words
from mesh.store.keys import Keys
from mesh.store.scripts import Bound, call_together
from mesh.store.task_scripts import ALL

__all__ = ["Entry", "Fetched", "Record", "Settlement", "Tasks", "Template"]

_pack = msgspec.msgpack.Encoder().encode


_COMMON, _OWN = 9, 4  # arguments of a template and of a task, see submit.lua
_ALONE = 5  # of both in submit_one.lua


class Template:
    """What publications have in common, packed once; `lua/submit.lua` says what `kind` means.

    `placing`: `<strategy>|<region>`, '' for whoever comes first. `extra`: more fields of the record: name, value, name, ...
    """

    __slots__ = ("alone", "packed", "queue", "times")

    def __init__(
        self,
        *,
        queue: str,
        type: str,
        priority: int = 4,
        delay_ms: int | None = None,
        expires_ms: int | None = None,
        deadline_ms: int | None = None,
        kind: str = "create",
        placing: str = "",
        extra: tuple[Any, ...] = (),
    ) -> None:
        self.queue = queue
        self.times = {"delay_ms": delay_ms, "expires_ms": expires_ms, "deadline_ms": deadline_ms}
        delay = "" if delay_ms is None else delay_ms
        expires = "" if expires_ms is None else expires_ms
        deadline = "" if deadline_ms is None else deadline_ms
        more = _pack(list(extra)) if extra else b""
        words = (queue, type, priority, delay, expires, deadline, kind, placing, more)
        self.packed = b"".join(pack_words(words))
        # What `submit_one.lua` takes of it; None: it says more.
        plain = words[2:] == (4, "", "", "", "create", "", b"") and not is_compound(queue)
        self.alone = b"".join(pack_words((queue, type))) if plain else None

    def publication(self, task_id: str, message: bytes, token: str = "") -> Publication:
        """One task; `lua/submit.lua` says what `token` means."""
        name, mark = task_id.encode(), token.encode()
        packed = b"$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
            len(name), name, len(message), message, len(mark), mark
        )  # fmt: skip
        return Publication(self, packed)


class Publication(NamedTuple):
    """One task to be published: what it has in common with others, and its own id, message and token, packed."""

    template: Template
    packed: bytes


def _parts(publications: Sequence[Publication]) -> tuple[list[bytes], int]:
    """(packed arguments of `submit.lua`, how many they are)."""
    numbers: dict[Template, bytes] = {}
    tasks = []
    for template, packed in publications:
        number = numbers.get(template)
        if number is None:
            (number,) = pack_words((len(numbers) + 1,))
            numbers[template] = number
        tasks.append(number + packed)
    head = [*pack_words((len(numbers),)), *(template.packed for template in numbers)]
    return head + tasks, 1 + len(numbers) * _COMMON + len(tasks) * _OWN


class Fetched(NamedTuple):
    """One leased task."""

    id: str
    queue: str
    fence: str
    run: int
    redelivered: bool
    watched: bool
    message: bytes
    priority: int


class Fetch(NamedTuple):
    """The answer to one fetch."""

    next_due_ms: int  # until the next scheduled task, -1 if none is
    tasks: list[Fetched]
    now_ms: int  # Redis's clock


class Settlement(NamedTuple):
    """The end of one attempt; `document` is Celery's result document (b'' if nobody made one)."""

    id: str
    fence: str
    state: State
    document: bytes = b""
    keep: bool = False
    ran_ms: int | None = None
    reason: str = ""
    error: str = ""  # one line; only with a reason
    proof: bytes = b""  # names the message that was run; Redis is not told

    def words(self) -> tuple[Any, ...]:
        """The seven values that `settle.lua` takes."""
        ran = "" if self.ran_ms is None else self.ran_ms
        return (
            self.id,
            self.fence,
            str(self.state),
            self.document,
            "1" if self.keep else "0",
            ran,
            f"{self.reason}\n{self.error}" if self.error else self.reason,
        )


class Entry(NamedTuple):
    """One attempt by name: id and fence."""

    id: str
    fence: str


class Crashed(NamedTuple):
    """What became of a task whose process died."""

    word: str
    state: str  # that it is in now, '' if nothing moved
    chord: str  # that became due by it, or ''
    sentence: str  # that is kept of it


class Reaped(NamedTuple):
    """What was taken back."""

    again: int  # tasks queued again
    aside: list[str]  # ids that were put aside as poison
    next_end_ms: int  # until there is more to do, -1 if nothing is known
    chords_due: list[str]
    claimed: list[str]  # poison whose end the caller has to tell, then `told`


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that ended without ending its task. Times are ms of Redis's clock."""

    run: int
    attempt: int
    agent: str | None
    leased: int
    started: int | None  # None: it never did
    ended: int
    how: str  # failed | timed_out | crashed | lost (its agent died before the start) | released | replaced
    error: str | None  # one line


_decode_attempt = msgspec.json.Decoder(Attempt).decode
_TIMES = ("created", "queued", "leased", "started", "ended", "crashed", "expires_at", "deadline_at")
_COUNTS = ("priority", "run", "attempt", "failures", "crashes")


@dataclass(frozen=True, kw_only=True)
class Record:
    """A task's record as it is in Redis. Times are ms of Redis's clock, None where the task has not been there."""

    id: str
    state: State
    type: str
    queue: str
    priority: int = 4
    run: int = 1
    attempt: int = 0
    failures: int = 0
    crashes: int = 0
    agent: str | None = None
    fence: str = ""
    error: str | None = None
    reason: str | None = None
    created: int | None = None
    queued: int | None = None
    leased: int | None = None
    started: int | None = None
    ended: int | None = None
    crashed: int | None = None
    expires_at: int | None = None
    deadline_at: int | None = None
    past: tuple[Attempt, ...] = ()  # the oldest first
    other: Mapping[str, str] = field(default_factory=dict)

    @property
    def ended_already(self) -> bool:
        """Whether the task is in a terminal state."""
        return self.state in TERMINAL


def parse_record(task_id: str, raw: Sequence[bytes]) -> Record | None:
    """The record from the reply of HGETALL; None if there is none."""
    if not raw:
        return None
    texts = [value.decode() for value in raw]
    fields: dict[str, str] = dict(zip(texts[::2], texts[1::2], strict=True))
    numbers = {name: int(float(fields.pop(name))) for name in (*_TIMES, *_COUNTS) if name in fields}
    numbers.setdefault("queued", numbers.get("created", 0))
    agent = fields.pop("agent", None)
    past = tuple(_decode_attempt(line) for line in fields.pop("past", "").splitlines())
    known: dict[str, Any] = {
        name: fields.pop(name) for name in ("type", "queue", "fence", "error", "reason") if name in fields
    }
    return Record(
        id=task_id,
        state=State(fields.pop("state")),
        agent=agent.partition("#")[0] if agent else None,
        past=past,
        other=fields,
        **{"type": known["queue"], **known, **numbers},
    )


class Look:
    """A plain command in the place of a script, see `call_together`."""

    pack = staticmethod(pack)


class Tasks:
    """The task records of one namespace. `keep_ms`: retention of results; see the settings of the same names."""

    def __init__(
        self,
        client: Client,
        keys: Keys,
        *,
        keep_ms: int,
        ignored_keep_ms: int,
        dead_keep_ms: int,
        max_crashes: int,
        lease_ms: int,
        renew_ms: int,
        spill_ms: int,
    ) -> None:
        self._client = client
        self._keys = keys
        self.lease_ms, self.renew_ms = lease_ms, renew_ms
        self._spill_ms = spill_ms
        self._keep = (keep_ms, ignored_keep_ms, dead_keep_ms)
        self._max_crashes = max_crashes
        self.cache: dict[Any, Any] = {}  # belongs to `mesh.services.tasks`
        self._look = Look()
        self.bound: dict[str, Bound] = {one.name: one.bind(client, keys) for one in ALL}

    # -- producers

    def submit(self, publications: Sequence[Publication]) -> list[str]:
        """Publish tasks in one step; one word each: moved | exists | conflict | full."""
        if len(publications) == 1:
            template, packed = publications[0]
            if template.alone is not None:
                one = self.bound["submit_one"]
                word = one.call(one.pack_parts((template.alone, packed), _ALONE))
                if word is not None:
                    return [word.decode()]
        bound = self.bound["submit"]
        return [word.decode() for word in bound.call(bound.pack_parts(*_parts(publications)))]

    def submit_batches(self, batches: Iterable[Sequence[Publication]]) -> Iterator[list[str]]:
        """`submit` for many batches, one step each: one is sent while the server still works on the one before."""
        bound = self.bound["submit"]
        for answer in bound.stream(bound.pack_parts(*_parts(batch)) for batch in batches):
            yield [word.decode() for word in answer]

    def cancel(self, task_id: str, reason: str) -> tuple[str, str, str]:
        """Cancel a task that has not ended: (moved | missing | stale, state it was in, chord due by it)."""
        answer = self.bound["cancel"](self._keep[0], task_id, reason)
        return answer[0].decode(), answer[1].decode(), answer[2].decode()

    def conclude(self, task_id: str, state: State, document: bytes) -> tuple[str, str]:
        """Record an outcome for an id that nobody holds: (moved | fenced | stale, chord due by it)."""
        answer = self.bound["conclude"](self._keep[0], task_id, str(state), document)
        return answer[0].decode(), answer[1].decode()

    # -- holders

    def fetch_words(
        self,
        *,
        holder: str,
        isolated: bool,
        nonce: str,
        limit: int,
        held: int,
        queues: Sequence[str],
        patience_ms: int | None = None,
    ) -> tuple[Bound, list[Any]]:
        """A fetch that the caller sends himself, on the connection of its own event loop.

        `patience_ms`: see `fetch.lua`; half a lease, so that recovery stays within two leases where no agent is ever idle.
        """
        words: list[Any] = [
            self._keep[0],
            holder,
            int(isolated),
            self.lease_ms // 2 if patience_ms is None else patience_ms,
            self.lease_ms,
            nonce,
            limit,
            held,
            *queues,
        ]
        return self.bound["fetch"], words

    @staticmethod
    def fetched(reply: Any) -> Fetch:
        """A fetch's reply, read."""
        tasks = [
            Fetched(
                one.decode(),
                queue.decode(),
                fence.decode(),
                int(run),
                bool(marks & 1),
                bool(marks & 2),
                message,
                int(priority),
            )
            for one, queue, fence, run, marks, message, priority in reply[2]
        ]
        return Fetch(int(reply[1]), tasks, int(reply[0]))

    def fetch(self, **options: Any) -> list[Fetched]:
        """Lease tasks now; the options of `fetch_words`."""
        bound, words = self.fetch_words(**options)
        return self.fetched(bound(*words)).tasks

    def end_words(self, entry: Entry) -> tuple[Look, list[Any]]:
        """Ask how an attempt ended that somebody else has settled, to be sent by the caller; see `ended_by`."""
        return self._look, ["HMGET", self._keys.of("task", entry.id), "state", "fence"]

    @staticmethod
    def ended_by(reply: Any, entry: Entry) -> bool:
        """Whether the task ended with this very attempt."""
        return reply[0] is not None and reply[0].decode() in TERMINAL and reply[1] == entry.fence.encode()

    def start_words(self, started: Iterable[tuple[str, str, int]]) -> tuple[Bound, list[Any]]:
        """Record accepted attempts (id, fence, ms since), to be sent by the caller."""
        return self.bound["start"], [word for entry in started for word in entry]

    def settle_words(self, settlements: Iterable[Settlement]) -> tuple[Bound, list[Any]]:
        """End attempts, to be sent by the caller."""
        words: list[Any] = [*self._keep]
        for settlement in settlements:
            words.extend(settlement.words())
        return self.bound["settle"], words

    @staticmethod
    def settled(reply: Any) -> tuple[list[str], list[str]]:
        """A settle's reply as (one word an attempt, chords that became due)."""
        return [word.decode() for word in reply[0]], [group.decode() for group in reply[1]]

    def start(self, started: Iterable[tuple[str, str, int]]) -> list[str]:
        """Record that a pool has accepted attempts: (id, fence, ms since)."""
        bound, words = self.start_words(started)
        return [word.decode() for word in bound(*words)]

    def settle(self, settlements: Iterable[Settlement]) -> tuple[list[str], list[str]]:
        """End attempts; (one word each, chords that became due)."""
        bound, words = self.settle_words(settlements)
        return self.settled(bound(*words))

    def release(self, entries: Iterable[Entry]) -> list[str]:
        """Give attempts back, uncounted; one word each."""
        words = [word for entry in entries for word in (entry.id, entry.fence)]
        return [word.decode() for word in self.bound["release"](*words)] if words else []

    def crash(self, entry: Entry, sentence: str) -> Crashed:
        """Its process died: counted, and put aside as poison at the limit."""
        answer = self.bound["crash"](self._keep[2], self._max_crashes, entry.id, entry.fence, sentence)
        return Crashed(*(word.decode() for word in answer))

    def retry(
        self,
        entry: Entry,
        *,
        queue: str,
        task_type: str,
        priority: int,
        message: bytes,
        delay_ms: int | str | None,
        failed: bool,
        timed_out: bool = False,
        problem: str = "",
    ) -> str:
        """The running attempt publishes its id again; `delay_ms` may be 'parked', see retry.lua. `problem`: one line."""
        delay = "" if delay_ms is None else delay_ms
        how = "timed_out" if timed_out else "failed" if failed else "replaced"
        answer: bytes = self.bound["retry"](
            entry.id, entry.fence, queue, task_type, priority, message, delay, how, problem
        )
        return answer.decode()

    def replay(self, task_id: str, run: int, message: bytes) -> str:
        """Run an ended task again, with this message, if it is still at this run (moved | missing | stale | full)."""
        answer: bytes = self.bound["replay"](task_id, run, message)
        return answer.decode()

    def ring(self, bell: bytes) -> None:
        """Give back a bell's token: whoever took it cannot fetch."""
        self._client.pipeline(("RPUSH", bell, "1"), ("LTRIM", bell, 0, 0))

    def annotate(self, task_id: str, fence: str, document: bytes) -> str:
        """Store a result document that ends nothing."""
        answer: bytes = self.bound["annotate"](self._keep[0], task_id, fence, document)
        return answer.decode()

    # -- loops

    def reap(self, limit: int = 200, claim: int = 0) -> Reaped:
        """Take back what lost its lease; claim so many poisoned tasks, see reap.lua."""
        answer = self.bound["reap"](
            self._keep[2], self._max_crashes, self.lease_ms, self.renew_ms, limit, claim
        )
        again, aside, next_end_ms, *names = answer
        ids, due, claimed = ([one.decode() for one in several] for several in (aside, *names))
        return Reaped(int(again), ids, int(next_end_ms), due, claimed)

    def told(self, task_ids: Sequence[str]) -> None:
        """Whoever waits for the end of these poisoned tasks knows it."""
        self._client.execute("ZREM", self._keys["poisoned"], *task_ids)

    def tick(self, lead: str, limit: int = 500) -> tuple[int, int, int, list[str], int, int]:
        """Promote and end what is late: (promoted, expired, dead letters forgotten, chords due for 2 s, left their region,
        timed out).

        `lead`: the lead that the caller holds, see `mesh.store.agents.Lead`. Raises `StaleFence` if it is over.
        """
        answer = self.bound["tick"](lead, self._keep[0], self._keep[2], self._spill_ms, limit)
        if answer is None:
            raise StaleFence(f"The lead {lead} is over: nothing was changed.")
        promoted, expired, forgotten, chords, spilled, timed_out = answer
        due = [group.decode() for group in chords]
        return int(promoted), int(expired), int(forgotten), due, int(spilled), int(timed_out)

    def reseal(self, words: Sequence[str | bytes]) -> int:
        """Replace messages (id, what is there, what is to be there; of each task) that are still as they were; how many."""
        return int(self.bound["reseal"](*words))

    # -- readers

    def record(self, task_id: str) -> Record | None:
        """One record, or None."""
        return parse_record(task_id, self._client.execute("HGETALL", self._keys.of("task", task_id)))

    def records(self, task_ids: Sequence[str]) -> list[Record | None]:
        """Many records in one round trip."""
        replies = self._client.pipeline(*[("HGETALL", self._keys.of("task", one)) for one in task_ids])
        return [parse_record(one, raw) for one, raw in zip(task_ids, replies, strict=True)]

    def fields(self, task_ids: Sequence[str], names: Sequence[str]) -> list[list[bytes | None]]:
        """These fields of many records in one round trip, as they are stored; None for each that a record does not have."""
        tail = b"".join(pack_words(names))
        words, key = b"*%d\r\n$5\r\nHMGET\r\n" % (2 + len(names)), self._keys.of("task", "")
        commands = [b"%b%b%b" % (words, *pack_words((key + one,)), tail) for one in task_ids]
        return [self._client.checked(reply) for reply in self._client.calls(commands, len(commands))]

    def outcome(self, task_id: str) -> tuple[State | None, int, bytes | None]:
        """(state, failures, result document) of a task in one round trip; state None: no such record."""
        return self.outcomes([task_id])[0]

    def outcomes(self, task_ids: Sequence[str]) -> list[tuple[State | None, int, bytes | None]]:
        """`outcome` of several tasks in one round trip."""
        commands: list[tuple[str, ...]] = []
        for one in task_ids:
            commands.append(("HMGET", self._keys.of("task", one), "state", "failures"))
            commands.append(("GET", self._keys.of("result", one)))
        replies = self._client.pipeline(*commands) if commands else []
        return [
            (State(state.decode()) if state else None, int(failures or 0), document)
            for (state, failures), document in zip(replies[::2], replies[1::2], strict=True)
        ]

    def message(self, task_id: str) -> bytes | None:
        """The stored message of a task, or None once it is no longer needed."""
        message: bytes | None = self._client.execute("GET", self._keys.of("message", task_id))
        return message

    def recent(self, limit: int = 100) -> list[Record]:
        """The newest tasks, newest first."""
        ids = self._client.execute("ZRANGE", self._keys["recent"], 0, limit - 1, "REV")
        return [record for record in self.records([one.decode() for one in ids]) if record] if ids else []

    def dead_letters(self, limit: int = 100) -> list[Record]:
        """Dead letters, newest first."""
        ids = self._client.execute("ZRANGE", self._keys["dead"], 0, limit - 1, "REV")
        return [record for record in self.records([one.decode() for one in ids]) if record] if ids else []

    def counts(self) -> dict[str, dict[str, int]]:
        """Queue -> state -> tasks, now in it for live states, ever ended in it for terminal ones; exact. Events (retries, late
        results) are counted beside them.
        """
        raw = self._client.execute("HGETALL", self._keys["counters"])
        table: dict[str, dict[str, int]] = {}
        for name, value in zip(raw[::2], raw[1::2], strict=True):
            queue, _, state = name.decode().rpartition("|")
            table.setdefault(queue, {})[state] = int(value)
        return table

    def timings(self) -> dict[tuple[str, Kind], Timing]:
        """(queue, kind) -> how long its attempts have taken."""
        raw = self._client.execute("HGETALL", self._keys["timings"])
        buckets: dict[tuple[str, Kind], list[int]] = {}
        sums: dict[tuple[str, Kind], int] = {}
        recent: dict[tuple[str, Kind], float] = {}
        for name, value in zip(raw[::2], raw[1::2], strict=True):
            queue, kind, bucket = name.decode().rsplit("|", 2)
            one = (queue, Kind(kind))
            if bucket == "sum":
                sums[one] = int(value)
            elif bucket == "recent":
                recent[one] = float(value.partition(b":")[0])
            else:
                buckets.setdefault(one, [0] * (len(BOUNDS_MS) + 1))[int(bucket) - 1] = int(value)
        return {
            one: Timing(buckets=tuple(numbers), sum_ms=sums.get(one, 0), recent_ms=recent.get(one))
            for one, numbers in buckets.items()
        }

    def size(self, queue: str) -> int:
        """Tasks that wait for a requirement, wherever they were placed."""
        return int(self._client.execute("HGET", self._keys["counters"], f"{queue}|queued") or 0)

    def places(self) -> list[str]:
        """Where anything waits that was placed: the names of regions' and agents' queues that are not empty."""
        names = self._client.execute("SMEMBERS", self._keys["ready"])
        return sorted(name.decode() for name in names if b"@@" in name)

    def waiting(self, queue: str, limit: int = 1000) -> list[str]:
        """Ids at the head of a queue."""
        ids = self._client.execute("ZRANGE", self._keys.of("queue", queue), 0, limit - 1)
        return [one.decode() for one in ids]

    def live(self) -> Iterator[tuple[str, State, int]]:
        """(queue, state, tasks) for every live state that holds any."""
        for queue, states in self.counts().items():
            for name, number in states.items():
                if number and name in LIVE:
                    yield queue, State(name), number

    def together(self, calls: Sequence[tuple[Bound | Look, Sequence[Any]]]) -> list[Any]:
        """Several scripts in one round trip."""
        return call_together(self._client, calls)
