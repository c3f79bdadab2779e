"""What the bus knows of its process: the settings by namespace, the stores, and the agent if this process is one.

Celery builds transports and result backends by class name, deep inside; this module is where they find our objects.
A forked pool child forgets the agent: it settles by itself, or leaves that to its parent.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from mesh.bus.holdings import Holdings
from mesh.settings import Settings
from mesh.store.store import Store

_settings: dict[str, Settings] = {}
_stores: dict[str, Store] = {}
holdings: Holdings | None = None  # of this process, if it is an agent's main process
#: Told when this process has ended a task that waited: no worker will ever say so to Flower otherwise.
on_revoked: Callable[[str], None]

#: Set while something is published on behalf of a chord that is complete: (kind, token) of the publication.
publishing_for: ContextVar[str | None] = ContextVar("publishing_for", default=None)


def configure(settings: Settings) -> None:
    """Make a namespace's settings known to the channels and backends of this process."""
    if _settings.get(settings.namespace) != settings:
        _stores.pop(settings.namespace, None)
    _settings[settings.namespace] = settings


def settings_of(namespace: str) -> Settings:
    """The settings that `configure` was told for this namespace."""
    return _settings[namespace]


def store_of(namespace: str) -> Store:
    """The store of this namespace, one for the process."""
    store = _stores.get(namespace)
    if store is None:
        store = _stores[namespace] = Store(_settings[namespace])
    return store


def _nobody(task_id: str) -> None:
    """Nobody is told."""


on_revoked = _nobody


def become_agent(held: Holdings | None, revoked: Callable[[str], None] = _nobody) -> None:
    """This process is an agent's main process from now on (None: no longer)."""
    global holdings, on_revoked
    holdings, on_revoked = held, revoked


@contextlib.contextmanager
def publishing_as(token: str) -> Iterator[None]:
    """Publications inside are those of a parent run named by `token`: the first of them wins."""
    reset = publishing_for.set(token)
    try:
        yield
    finally:
        publishing_for.reset(reset)


os.register_at_fork(after_in_child=lambda: become_agent(None))
