"""Words for the shell's completion, from the live registry: within a second, or none at all."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

from mesh.cli.options import open_mesh
from mesh.errors import MeshError

if TYPE_CHECKING:
    from mesh.client import Mesh

__all__ = ["agents", "capabilities", "dead_letters", "regions", "tasks", "types"]
_LIMIT_S = 1.0
_ONE_CALL_MS = 500
_MOST_TASKS = 100
Complete = Callable[[click.Context, click.Parameter, str], list[str]]


def _words(ask: Callable[[Mesh], Iterable[str | None]]) -> Complete:
    def complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
        before, comma, begun = incomplete.rpartition(",")  # of a list, the last part is completed
        return [f"{before}{comma}{word}" for word in _ask(ask) if word.startswith(begun)]

    return complete


def _ask(ask: Callable[[Mesh], Iterable[str | None]]) -> list[str]:
    """In a thread: not even a name server that is silent may hold the shell."""
    found: list[str] = []

    def work() -> None:
        with contextlib.suppress(Exception), mesh:
            found.extend(sorted({word for word in ask(mesh) if word}))

    with contextlib.redirect_stderr(io.StringIO()):
        try:
            mesh = _quick_mesh()  # connects to nothing yet
        except MeshError:
            return []
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(_LIMIT_S)
        return list(found)


def _quick_mesh() -> Mesh:
    return open_mesh(
        redis_connect_timeout_ms=_ONE_CALL_MS,
        redis_socket_timeout_ms=_ONE_CALL_MS,
        transport_timeout_ms=_ONE_CALL_MS,
        transport_retries=0,
    )


agents = _words(lambda mesh: (one.id for one in mesh.agents()))
capabilities = _words(lambda mesh: (name for one in mesh.agents() for name in one.capabilities))
regions = _words(lambda mesh: (one.region for one in mesh.agents()))
types = _words(lambda mesh: (one.name for one in mesh.types()))
tasks = _words(lambda mesh: (one["id"] for one in mesh.tasks(limit=_MOST_TASKS)))
dead_letters = _words(lambda mesh: (one["id"] for one in mesh.dead_letters(limit=_MOST_TASKS)))
