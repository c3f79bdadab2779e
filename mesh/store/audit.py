"""The audit log: one stream of the whole mesh, which only grows at its end and forgets its oldest entries.

Agents may not write to it: the command that adds to a stream also cuts it off. They write to the stream `told` of their
namespace, from which it is moved into the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from mesh.core.names import NAMESPACE
from mesh.store.client import Client, ResponseError, pack
from mesh.store.connections import code_of
from mesh.store.keys import AUDIT, MOVED, MOVING, NAMESPACES, Keys

__all__ = ["FIELDS", "Told", "append", "namespaces", "newest", "telling"]

FIELDS = ("namespace", "subject", "source", "action", "object", "allowed", "why", "many")
_KEPT = 100_000  # entries, of about 250 bytes each
_KEPT_TOLD = 10_000  # in `told`, as long as nobody moves them
_PAGE = 500
_MOST_NAMESPACES = 1000  # looked at at a time: agents can add names that are none of a namespace
_BUDGET_S = 3600
_LONGEST_MOVE_MS = 10_000


def append(client: Client, entries: Sequence[Mapping[str, str]], key: str = AUDIT) -> None:
    """Write entries to the log or to a stream `told`, in order, in one round trip. Raises `StoreUnavailable`."""
    kept = _KEPT if key == AUDIT else _KEPT_TOLD
    commands: list[tuple[str | int, ...]] = [
        ("XADD", key, "MAXLEN", "~", kept, "*", *(word for name in FIELDS for word in (name, entry[name])))
        for entry in entries
    ]
    if commands:
        client.pipeline(*commands)


def newest(
    client: Client, *, before: str | None, since_ms: int | None
) -> Iterator[tuple[str, dict[str, str]]]:
    """(id, fields), the newest first; the id is `<ms of Redis's clock>-<number>`. `before`: those older than this id."""
    end = "+" if before is None else f"({before}"
    oldest = "-" if since_ms is None else max(0, since_ms)
    while True:
        page = client.execute("XREVRANGE", AUDIT, end, oldest, "COUNT", _PAGE)
        for raw, flat in page:
            words = [word.decode(errors="replace") for word in flat]
            yield raw.decode(), dict(zip(words[::2], words[1::2], strict=True))
        if len(page) < _PAGE:
            return
        end = f"({page[-1][0].decode()}"


# -- what agents have told


def namespaces(client: Client) -> list[str]:
    """Names under which agents have registered, or have said so; where there are very many, some of them."""
    found = client.execute("SRANDMEMBER", NAMESPACES, _MOST_NAMESPACES)
    names = [name.decode(errors="replace") for name in found]
    return [name for name in names if NAMESPACE.fullmatch(name) and name != "mesh"]


def telling(client: Client, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those of these namespaces whose agents have told something; those that this user may not look at. One round trip."""
    commands = [pack(("XLEN", Keys(name)["told"])) for name in names]
    told, foreign = [], []
    for name, reply in zip(names, client.calls(commands, len(commands)), strict=True):
        code = code_of(reply) if isinstance(reply, ResponseError) else ""
        if code == "NOPERM":
            foreign.append(name)
        elif code == "WRONGTYPE" or client.checked(reply):
            told.append(name)
    return told, foreign


class Told:
    """The stream `told` of one namespace, and its budget: how many of its entries are moved within an hour."""

    def __init__(self, client: Client, namespace: str) -> None:
        self._client = client
        self._key = Keys(namespace)["told"]
        self._moving, self._moved = MOVING + namespace, MOVED + namespace

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Whether nobody else moves its entries, nor will meanwhile: what two moved would be in the log twice."""
        free = self._client.execute("SET", self._moving, 1, "NX", "PX", _LONGEST_MOVE_MS) is not None
        try:
            yield free
        finally:
            if free:
                self._client.execute("DEL", self._moving)

    def spent(self) -> int:
        """How many were moved within the hour that began with the first of them."""
        _, spent = self._client.pipeline(("SET", self._moved, 0, "NX", "EX", _BUDGET_S), ("GET", self._moved))
        return int(spent or 0)

    def oldest(self, count: int) -> list[tuple[str, list[bytes]]] | None:
        """(id, field and value in turn) of at most so many entries; None: somebody has put something else there.

        Raises `StoreUnavailable`, also for whoever may not remove what is here.
        """
        try:
            _, page = self._client.pipeline(
                ("XDEL", self._key, "0-0"), ("XRANGE", self._key, "-", "+", "COUNT", count)
            )
        except ResponseError as error:
            if code_of(error) != "WRONGTYPE":
                raise
            return None
        return [(raw.decode(), words) for raw, words in page]

    def remove(self, ids: Sequence[str]) -> None:
        """These are in the log now."""
        self._client.pipeline(("XDEL", self._key, *ids), ("INCRBY", self._moved, len(ids)))

    def cut(self) -> int:
        """Remove all; how many there were."""
        return int(self._client.execute("XTRIM", self._key, "MAXLEN", 0))

    def reset(self) -> None:
        """Remove what stands there, whatever it is."""
        self._client.execute("DEL", self._key)
