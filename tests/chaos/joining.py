"""Many agents of one process: registrations and beats as of real ones, on connections of their own, without pools."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mesh.settings import Settings
from mesh.store.store import Store
from mesh.workers.identity import join


class Joiner:
    """One agent: joins, offers its queues, beats, and hears of requirements."""

    def __init__(self, settings: Settings, agent_id: str) -> None:
        self.settings = dataclasses.replace(settings, agent_id=agent_id)
        self.heard: dict[str, float] = {}  # requirement -> when
        self.joined_at = 0.0
        self.error: Exception | None = None

    def run(self, start: threading.Event, stop: threading.Event, capabilities: tuple[str, ...]) -> None:
        """Until `stop`, from `start` on."""
        start.wait()
        store = Store(self.settings)
        try:
            me = join(store, self.settings, capabilities, port=0, slots=1)
            store.agents.offer(me.agent_id, me.incarnation, capabilities)
            self.joined_at = time.time()
            version = -1
            while not stop.is_set():
                beat = store.agents.renew(me.agent_id, me.incarnation, {"state": "ready"}, [])
                if beat.requirements_version != version:
                    version, names = store.agents.requirements()
                    self.heard.update((name, time.time()) for name in names if name not in self.heard)
                stop.wait(self.settings.lease_renew_ms / 1000)
            store.agents.leave(me.agent_id, me.incarnation)
        except Exception as error:
            self.error = error
        finally:
            store.close()


@contextmanager
def joining(
    settings: Settings, number: int, capabilities: tuple[str, ...], prefix: str
) -> Iterator[list[Joiner]]:
    """So many agents that join at the same moment, and leave at the end of the block."""
    start, stop = threading.Event(), threading.Event()
    agents = [Joiner(settings, f"{prefix}{index}") for index in range(number)]
    threads = [threading.Thread(target=one.run, args=(start, stop, capabilities)) for one in agents]
    for thread in threads:
        thread.start()
    start.set()
    try:
        yield agents
    finally:
        stop.set()
        for thread in threads:
            thread.join()
