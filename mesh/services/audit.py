"""The audit log: who did or was refused what, from where, on what, and why (not). No bodies, no tokens, no secrets.

Each entry goes to the logger `mesh.audit` at once, as one line of JSON, and to a stream in Redis that all of the mesh share.
A process writes to Redis from a thread of its own, so that nobody waits for it, and nobody can fill it: of what one source is
refused, ten entries a second are written, and then how many more there were.
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
from mesh.store.store import Store

__all__ = ["Audit", "entries", "operator", "record", "tell"]
_CURSOR = re.compile(r"[1-9][0-9]{0,14}-[0-9]{1,15}")  # an id of the stream
logger = logging.getLogger("mesh.audit")
internal = logging.getLogger(__name__)

_REFUSALS_A_SECOND = 10
_MOST_SOURCES = 10_000  # told apart; all others together are one more
_MOST_WAITING = 10_000  # entries, while Redis is away
_LONGEST = 300  # characters of a field: attackers choose some of them
_MOST_READ = 20_000  # entries looked at for one page
_PAUSE_S = 0.5
_TOGETHER = 500

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
    store: Store, *, subject: str, source: str, action: str, object: str, allowed: bool = True, why: str = ""
) -> None:
    """Write one entry now. Raises `StoreUnavailable`."""
    entry = _entry(
        namespace=store.keys.namespace, subject=subject, source=source, action=action, object=object,
        allowed=allowed, why=why,
    )  # fmt: skip
    _tell(entry)
    log.append(store.client, [entry])


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


class Audit:
    """Entries of one process, written by a thread that starts with the first. `namespace`: of those that name none."""

    def __init__(self, client: Client, namespace: str) -> None:
        self._client, self._namespace = client, namespace
        self._waiting: deque[Entry] = deque()
        self._sources: dict[
            str, list[Any]
        ] = {}  # source -> [second, entries in it, the last one left out, how many]
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
            if not allowed and self._is_too_much(source, entry, time.monotonic()):
                return
            self._put(entry)

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

    def _is_too_much(self, source: str, entry: Entry, now: float) -> bool:
        source = limited_as(source)  # whoever has one address of IPv6 has very many
        if source not in self._sources and len(self._sources) >= _MOST_SOURCES:
            source = ""
        window = self._sources.setdefault(source, [now, 0, None, 0])
        if now - window[0] >= 1:
            self._sum_up(window)
            window[0], window[1] = now, 0
        window[1] += 1
        if window[1] <= _REFUSALS_A_SECOND:
            return False
        window[2], window[3] = entry, window[3] + 1
        return True

    def _sum_up(self, window: list[Any]) -> None:
        last, many = window[2], window[3]
        window[2], window[3] = None, 0
        if last is not None:
            self._put({**last, "many": str(many), "why": f"{many} more like these; the last: {last['why']}"})

    def _settle(self, now: float) -> None:
        for source, window in list(self._sources.items()):
            if self._stopping or now - window[0] >= 1:
                self._sum_up(window)
                del self._sources[source]

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
                log.append(self._client, some)
            except Exception:
                with self._lock:
                    self._waiting.extendleft(reversed(some))
                raise


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
