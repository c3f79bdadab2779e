"""The audit log: who did or was refused what, from where, on what, and why (not). No bodies, no tokens, no secrets.

Each entry goes to the logger `mesh.audit` at once, as one line of JSON, and to a stream in Redis that all of the mesh share.
A process writes to Redis from a thread of its own, so that nobody waits for it, and nobody can fill it: of what one source is
refused, ten entries a second are written, and then how many more there were; of what all are refused, a hundred.

Agents cannot write to that stream. What they tell is moved into it, once it was looked at: see `move`.
"""

from __future__ import annotations

import getpass
import logging
import os
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Collection
from typing import Any

import msgspec

from mesh.core.sources import limited_as
from mesh.errors import Invalid, MeshError
from mesh.services import views
from mesh.store import audit as log
from mesh.store.client import Client
from mesh.store.keys import AUDIT
from mesh.store.store import Store

__all__ = ["Audit", "entries", "move", "operator", "record", "tell"]
_CURSOR = re.compile(r"[1-9][0-9]{0,14}-[0-9]{1,15}")  # an id of the stream
logger = logging.getLogger("mesh.audit")
internal = logging.getLogger(__name__)

_REFUSALS_A_SECOND = 10  # of one source
_REFUSALS_OF_ALL = 100  # a second
_MOST_SOURCES = 10_000  # told apart; all others together are one more
_MOST_WAITING = 10_000  # entries, while Redis is away
_LONGEST = 300  # characters of a field: attackers choose some of them
_MOST_READ = 20_000  # entries looked at for one page
_PAUSE_S = 0.5
_TOGETHER = 500
_MOVED_AN_HOUR = 10_000  # of what the agents of one namespace tell: a tenth of what the log keeps
_MANY = re.compile(r"[1-9][0-9]{0,5}")
_LATE_MS = 5000

Entry = dict[str, str]


def _entry(
    *,
    namespace: str,
    subject: str,
    source: str,
    action: str,
    object: str,
    allowed: bool,
    why: str,
    many: int = 1,
) -> Entry:
    words = {"namespace": namespace, "subject": subject, "source": source, "action": action, "object": object}
    text = {name: word if len(word) <= _LONGEST else word[:_LONGEST] + "..." for name, word in words.items()}
    safe = {
        name: word.encode(errors="replace").decode() for name, word in text.items()
    }  # half a surrogate pair
    return {**safe, "allowed": "1" if allowed else "0", "why": why[: 2 * _LONGEST], "many": str(many)}


def _view(entry: Entry, at: str | None) -> dict[str, Any]:
    return {
        "time": at,
        **{name: entry.get(name, "") for name in ("namespace", "subject", "source", "action", "object")},
        "allowed": entry.get("allowed") == "1",
        "why": entry.get("why", ""),
        "many": int(many)
        if (many := entry.get("many", "")).isascii() and many.isdigit() and len(many) < 16
        else 1,
    }


def _tell(entry: Entry) -> None:
    told = _view(entry, views.iso(int(time.time() * 1000)))
    level = logging.INFO if told["allowed"] else logging.WARNING
    logger.log(level, "%s", msgspec.json.encode(told).decode(), extra={"fields": told})


def record(
    store: Store, *, subject: str, source: str, action: str, object: str, allowed: bool = True, why: str = "",
    key: str = AUDIT, namespace: str | None = None,
) -> None:  # fmt: skip
    """Write one entry now; agents to the key `told` of their namespace. `namespace` None: the store's, `*`: of the whole mesh.
    Raises `StoreUnavailable`."""
    entry = _entry(
        namespace=namespace or store.keys.namespace, subject=subject, source=source, action=action, object=object,
        allowed=allowed, why=why,
    )  # fmt: skip
    _tell(entry)
    log.append(store.client, [entry], key)


def tell(store: Store, **entry: Any) -> None:
    """As `record`, for who has to go on: what cannot be written is a warning in the log."""
    try:
        record(store, **entry)
    except Exception as error:
        internal.warning("not in the audit log: %s", error)


def operator() -> tuple[str, str]:
    """(subject, source) of who works on Redis itself, as this machine knows him: `<user>@<host>`, and the process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}", f"pid {os.getpid()}"


class _Window:
    """What was refused in one second: how many entries of it were written, and those that were left out."""

    def __init__(self, since: float = float("-inf")) -> None:
        self.since, self.written = since, 0
        self._last: Entry | None = None
        self._left_out = 0

    def takes(self, entry: Entry, most: int) -> bool:
        """Whether it is to be written; else it is counted."""
        if self.written < most:
            self.written += 1
            return True
        self._last = entry
        self._left_out += int(entry["many"])
        return False

    def sum(self, what: str) -> Entry | None:
        """One entry for all that were left out."""
        last, many = self._last, self._left_out
        self._last, self._left_out = None, 0
        if last is None:
            return None
        return {**last, "many": str(many), "why": f"{many} {what}; the last: {last['why']}"}


class Audit:
    """Entries of one process, written by a thread that starts with the first. `namespace`: of those that name none; `key`: of
    the stream that they are written to, for agents `told` of their namespace."""

    def __init__(self, client: Client, namespace: str, key: str = AUDIT) -> None:
        self._client, self._namespace, self._key = client, namespace, key
        self._waiting: deque[Entry] = deque()
        self._sources: dict[str, _Window] = {}
        self._all = _Window()
        self._lost = 0
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def note(
        self, *, subject: str, source: str, action: str, object: str, allowed: bool, why: str,
        namespace: str | None = None,
    ) -> None:  # fmt: skip
        """Take an entry. Never raises, never waits for Redis."""
        entry = _entry(
            namespace=namespace or self._namespace, subject=subject, source=source, action=action, object=object,
            allowed=allowed, why=why,
        )  # fmt: skip
        with self._lock:
            if allowed:
                self._put(entry)
            else:
                self._refuse(source, entry, time.monotonic())

    def close(self) -> None:
        """Write what there is, and end the thread."""
        self._stopping = True
        self._news.set()
        if self._thread is not None:
            self._thread.join(5.0)

    # -- under the lock

    def _put(self, entry: Entry) -> None:
        _tell(entry)
        if len(self._waiting) >= _MOST_WAITING:
            self._waiting.popleft()
            self._lost += 1
        self._waiting.append(entry)
        self._news.set()
        if self._thread is None or not self._thread.is_alive():  # also in a forked child
            self._thread = threading.Thread(target=self._run, daemon=True, name="mesh-audit")
            self._thread.start()

    def _refuse(self, source: str, entry: Entry, now: float) -> None:
        source = limited_as(source)  # whoever has one address of IPv6 has very many
        if source not in self._sources and len(self._sources) >= _MOST_SOURCES:
            source = ""
        window = self._sources.setdefault(source, _Window(now))
        if now - window.since >= 1:
            self._sum_up(window, now)
            window.since, window.written = now, 0
        if window.takes(entry, _REFUSALS_A_SECOND):
            self._refuse_of_all(entry, now)

    def _refuse_of_all(self, entry: Entry, now: float) -> None:
        if now - self._all.since >= 1:
            self._sum_up_all()
            self._all.since, self._all.written = now, 0
        if self._all.takes(entry, _REFUSALS_OF_ALL):
            self._put(entry)

    def _sum_up(self, window: _Window, now: float) -> None:
        if (summed := window.sum("more like these")) is not None:
            self._refuse_of_all(summed, now)

    def _sum_up_all(self) -> None:
        if (summed := self._all.sum("more, of any source")) is not None:
            self._put({**summed, "subject": "", "source": ""})

    def _settle(self, now: float) -> None:
        for source, window in list(self._sources.items()):
            if self._stopping or now - window.since >= 1:
                self._sum_up(window, now)
                del self._sources[source]
        if self._stopping or now - self._all.since >= 1:
            self._sum_up_all()

    # -- the thread

    def _run(self) -> None:
        while True:
            self._news.wait(_PAUSE_S)
            self._news.clear()
            stopping = self._stopping
            with self._lock:
                self._settle(time.monotonic())
            try:
                self._write()
            except Exception as error:
                if not isinstance(error, MeshError):
                    internal.exception("the audit log could not be written")
                if not stopping:
                    time.sleep(_PAUSE_S)
            if stopping:
                return

    def _write(self) -> None:
        while self._waiting:
            with self._lock:
                some = [self._waiting.popleft() for _ in range(min(_TOGETHER, len(self._waiting)))]
                lost, self._lost = self._lost, 0
            if lost:
                internal.error("%d entries of the audit log are lost: Redis was away for too long", lost)
            try:
                log.append(self._client, some, self._key)
            except Exception:
                with self._lock:
                    self._waiting.extendleft(reversed(some))
                raise


# -- what agents tell


def move(client: Client, namespace: str, now_ms: int) -> int:
    """Move what the agents of a namespace have told into the log; how many entries. `now_ms`: by Redis's clock.

    Whoever has the Redis user of an agent writes there what he likes. So an entry counts for its namespace, whatever it says, and
    its source begins with `agents:`, as none of a coordinator does; what is no entry is counted, and of what is told within an
    hour beyond 10,000 entries only how many. A mover that dies may have written an entry twice: it is removed after it was
    written. Raises `StoreUnavailable`.
    """
    told = log.Told(client, namespace)
    with told.held() as free:
        return _move(client, told, namespace, now_ms) if free else 0


def _move(client: Client, told: log.Told, namespace: str, now_ms: int) -> int:
    def say(many: int, why: str) -> None:
        entry = _entry(
            namespace=namespace, subject="", source=_said_by(""), action="tell", object="audit log", allowed=False,
            why=why, many=many,
        )  # fmt: skip
        _tell(entry)
        log.append(client, [entry])

    moved = 0
    left = _MOVED_AN_HOUR - told.spent()
    while left > 0:
        asked = min(_TOGETHER, left)
        page = told.oldest(asked)
        if page is None:
            told.reset()
            say(1, "something else stood where agents leave their entries: it is removed")
            return moved + 1
        if not page:
            break
        fit = [
            entry
            for name, words in page
            if (entry := _checked(namespace, words, int(name.partition("-")[0]), now_ms)) is not None
        ]
        log.append(client, fit)
        if len(fit) < len(page):
            say(len(page) - len(fit), "what agents have left is no entry")
        told.remove([name for name, _ in page])
        moved, left = moved + len(page), left - len(page)
        if len(page) < asked:
            break
    if left <= 0 and (more := told.cut()):
        say(more, f"{more} more within the hour; the logs of the agents have them")
    return moved


def _said_by(source: str) -> str:
    return f"agents: {source}".rstrip()


def _checked(namespace: str, words: list[bytes], at_ms: int, now_ms: int) -> Entry | None:
    """An entry of agents, marked as such; None if it is none."""
    try:
        text = [word.decode() for word in words]
    except UnicodeDecodeError:
        return None
    entry = dict(zip(text[::2], text[1::2], strict=True))
    if len(text) != 2 * len(log.FIELDS) or set(entry) != set(log.FIELDS):
        return None
    why = entry["why"]
    if (
        any(len(entry[name]) > _LONGEST + 3 for name in ("subject", "source", "action", "object"))
        or len(why) > 3 * _LONGEST
        or entry["allowed"] not in ("0", "1")
        or not _MANY.fullmatch(entry["many"])
    ):
        return None
    if _LATE_MS < now_ms - at_ms <= now_ms:
        why = f"told at {views.iso(at_ms)}. {why}".rstrip()
    return {**entry, "namespace": namespace, "source": _said_by(entry["source"]), "why": why}


# -- reading


def entries(
    client: Client,
    *,
    subject: str | None = None,
    action: str | None = None,
    allowed: bool | None = None,
    since_ms: int | None = None,
    namespaces: Collection[str] | None = None,
    cursor: str | None = None,
    limit: int = 100,
) -> tuple[list[dict[str, Any]], str | None]:
    """(entries, the newest first; the cursor of the next page or None). `namespaces` None: of all. Raises `Invalid`.

    An entry: {id, time, namespace, subject, source, action, object, allowed, why, many}; `many`: for how many it stands.
    """
    if cursor is not None and not _CURSOR.fullmatch(cursor):
        raise Invalid(f"{cursor!r} is not a cursor: use `next_cursor` of the page before, as it is.")
    found: list[dict[str, Any]] = []
    last = cursor
    for looked_at, (name, entry) in enumerate(log.newest(client, before=cursor, since_ms=since_ms)):
        if len(found) == limit or looked_at == _MOST_READ:
            return found, last
        last = name
        if (
            (subject is None or entry.get("subject") == subject)
            and (action is None or entry.get("action") == action)
            and (allowed is None or (entry.get("allowed") == "1") == allowed)
            and (namespaces is None or entry.get("namespace") in namespaces)
        ):
            at = views.iso(int(name.partition("-")[0]))
            found.append({"id": name, **_view(entry, at)})
    return found, None
