"""Every Redis key of a namespace, declared once.

All keys of a namespace carry the hash tag `{<namespace>}`: a namespace lives in one cluster slot, one script may touch
all it needs, and the namespace is the unit of sharding and of ACLs. Scripts get keys through KEYS; the keys of single
records are built inside them from the prefix that is handed in (the tag keeps them in the slot), by the family names of
this table, which the script loader puts in front of each script.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Row:
    """One key (`family` False) or one key an item (`family` True: its text ends with a colon, an id follows)."""

    name: str
    text: str
    kind: str
    lives: str
    meaning: str
    family: bool = False


def _row(name: str, kind: str, lives: str, meaning: str, *, family: bool = False) -> Row:
    return Row(
        name=name,
        text=name.replace("_", "-") + (":" if family else ""),
        kind=kind,
        lives=lives,
        meaning=meaning,
        family=family,
    )


PERMANENT, RETENTION = "permanent", "until its retention ends"

TABLE: tuple[Row, ...] = (
    _row("ready", "set", PERMANENT, "names of the queues that are not empty"),
    _row("scheduled", "zset", PERMANENT, "ids of scheduled tasks by due time, ms"),
    _row("leases", "zset", PERMANENT, "ids of held tasks by the end of their lease, ms"),
    _row("deadlines", "zset", PERMANENT, "ids of tasks that run out of time, by when that may be, ms"),
    _row("recent", "zset", PERMANENT, "ids of the newest tasks by submission, ms; capped"),
    _row("dead", "zset", PERMANENT, "ids of dead letters by time, ms"),
    _row("poisoned", "zset", PERMANENT, "ids of poison whose end is still to be told, by when next, ms"),
    _row(
        "chords_due", "zset", PERMANENT, "chords whose header is complete and whose body is to be published"
    ),
    _row(
        "counters",
        "hash",
        PERMANENT,
        "`<queue>|<state>` -> tasks: now in a live state, ever ended in an end state",
    ),
    _row(
        "timings",
        "hash",
        PERMANENT,
        "`<queue>|<wait or run>|<bucket>` -> attempts, `...|sum` -> ms, `...|recent` -> mean:attempts; see `mesh.core.timings`",
    ),
    _row("sequence", "string", PERMANENT, "arrival number of the last task"),
    _row("requirements", "hash", PERMANENT, "requirement of several capabilities -> ms of its registration"),
    _row(
        "requirements_version", "string", PERMANENT, "changes with `requirements`; told in each beat's answer"
    ),
    _row("agents", "zset", PERMANENT, "agent ids by last beat, ms"),
    _row("present", "zset", PERMANENT, "agents that tasks may be placed with, by last beat, ms"),
    _row("pulse", "string", PERMANENT, "ms of the last beat or tick of anybody"),
    _row("grace", "string", "one lease", "ms before which nothing is reaped: Redis slept or was down"),
    _row("leader", "hash", PERMANENT, "who runs the loops: id, term (it only ever rises) and until when, ms"),
    _row(
        "epoch",
        "hash",
        PERMANENT,
        "the last restore: `raised` (the epoch, ms), `tasks` (policy), `ended`; `rewound`, `by`, `lost`: Redis went back in time",
    ),
    _row("restoring", "set", PERMANENT, "names of what a restore has put aside and not gone through yet"),
    _row(
        "types",
        "hash",
        PERMANENT,
        "task type -> ms of its last advertisement and its description; forgotten after a day",
    ),
    _row(
        "told",
        "stream",
        PERMANENT,
        "what agents have to say to the audit log, until it is moved there; capped",
    ),
    _row("task", "hash", RETENTION, "the record of a task; without TTL while it is live", family=True),
    _row("message", "string", RETENTION, "its message: what differs from a template", family=True),
    _row(
        "result",
        "string",
        RETENTION,
        "Celery's document of its result; also the channel of its end",
        family=True,
    ),
    _row(
        "queue",
        "zset",
        PERMANENT,
        "ids of queued tasks; score = (9 - priority) * 2^49 + arrival. `<requirement>`, `<requirement>@@<region>`, `@@<agent>`",
        family=True,
    ),
    _row("bell", "list", PERMANENT, "at most one token: the queue has work", family=True),
    _row("agent", "hash", "1 day after the last beat", "registration of an agent", family=True),
    _row(
        "consumers",
        "zset",
        PERMANENT,
        "agents that take what waits in a queue, by the turn at which they were last given a task",
        family=True,
    ),
    _row(
        "aside", "zset", PERMANENT, "ids of tasks that had not ended when the epoch was raised", family=True
    ),
    _row("nudge", "list", "60 s", "at most one token: this agent should beat now", family=True),
    _row("chord", "hash", RETENTION, "a chord: its body, the size of its header", family=True),
    _row("parts", "hash", RETENTION, "result documents of a chord's header by index", family=True),
    _row("group", "string", RETENTION, "a saved GroupResult of Celery", family=True),
    _row("kombu", "list, set", "1 h; bindings permanent", "what Kombu's own transport keeps", family=True),
)
BY_NAME = {row.name: row for row in TABLE}

BANDS = 10  # priorities
BAND = 2**49  # width of one in the scores of a queue

#: Mesh-wide keys; a slot of their own.
NAMESPACES = "mesh:{mesh}:namespaces"
COORDINATORS = "mesh:{mesh}:coordinators"
COORDINATOR = "mesh:{mesh}:coordinator:"
AUDIT = "mesh:{mesh}:audit"
MOVING = "mesh:{mesh}:moving:"  # of a namespace, for seconds: somebody moves what its agents have told into the log
MOVED = "mesh:{mesh}:moved:"  # of a namespace, for an hour: how many entries that were
JOINED = "mesh:{mesh}:joined"  # hash `<namespace>/<agent>` -> what agents that joined over HTTP were issued
#: Tokens that do not count: jti by its end, s; subject -> least time of issue, s; changes with either.
REVOKED = "mesh:{mesh}:revoked"
NOT_BEFORE = "mesh:{mesh}:not-before"
REVOCATIONS = "mesh:{mesh}:revocations"


class Keys:
    """The keys of one namespace: `keys["ready"]`, `keys.of("task", "id-1")`."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.prefix = f"mesh:{{{namespace}}}:"
        self._text = {row.name: self.prefix + row.text for row in TABLE}

    def __getitem__(self, name: str) -> str:
        return self._text[name]

    def of(self, family: str, item: str) -> str:
        """The key of one item of a family."""
        return self._text[family] + item
