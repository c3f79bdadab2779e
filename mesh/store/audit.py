"""The audit log: one stream of the whole mesh, which only grows at its end and forgets its oldest entries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mesh.store.client import Client
from mesh.store.keys import AUDIT

__all__ = ["FIELDS", "append", "newest"]

FIELDS = ("namespace", "subject", "source", "action", "object", "allowed", "why", "many")
_KEPT = 100_000  # entries, of about 250 bytes each
_PAGE = 500


def append(client: Client, entries: Sequence[Mapping[str, str]]) -> None:
    """Write entries, in order, in one round trip. Raises `StoreUnavailable`."""
    commands: list[tuple[str | int, ...]] = [
        ("XADD", AUDIT, "MAXLEN", "~", _KEPT, "*", *(word for name in FIELDS for word in (name, entry[name])))
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
