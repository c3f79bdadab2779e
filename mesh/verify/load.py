"""Submits the tasks of a run in its different ways, and keeps the ledger."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mesh.client import Mesh
from mesh.errors import MeshError
from mesh.services import tasks
from mesh.services.tasks import Options
from mesh.verify.plan import BATCH, Item
from mesh.verify.task import TYPE
from mesh.verify.witness import Submission

__all__ = ["Load"]
_PAUSE_S = 0.5  # before a submission is tried again


@dataclass(kw_only=True)
class _Entry:
    """A line of the ledger while it is written."""

    id: str
    item: Item
    tries: int = 0
    acknowledged: bool = False


class Load:
    """The submissions of one run, each way in a thread of its own.

    `direct`: a mesh on Redis; `remote`: one over HTTP, or None (then the tasks that were meant for it go the other way).
    `on_submit`: told each id before it is tried. What could not be tried until `end` is not in the ledger.
    """

    def __init__(
        self,
        items: Sequence[Item],
        *,
        direct: Mesh,
        remote: Mesh | None,
        effects: Path,
        on_submit: Callable[[str], None],
    ) -> None:
        self._direct, self._remote, self._effects, self._on_submit = direct, remote, effects, on_submit
        self._stop = threading.Event()
        self._ledger: list[_Entry] = []
        self.problems: list[str] = []  # what a submission answered that no fault explains
        ways = {
            "one": [item for item in items if item.way == "one" or (item.way == "http" and remote is None)],
            "batch": [item for item in items if item.way == "batch"],
            "http": [item for item in items if item.way == "http" and remote is not None],
        }
        self._threads = [
            threading.Thread(target=self._run, args=(way, mine), name=f"load-{way}", daemon=True)
            for way, mine in ways.items()
        ]

    def start(self) -> None:
        """Begin; times of the items count from here."""
        self._begun = time.monotonic()
        for thread in self._threads:
            thread.start()

    @property
    def done(self) -> bool:
        """Whether everything has been submitted, or given up."""
        return not any(thread.is_alive() for thread in self._threads)

    def end(self, timeout_s: float) -> list[Submission]:
        """Wait for what is under way, give up the rest after `timeout_s`; the ledger."""
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._stop.set()
        for thread in self._threads:
            thread.join()
        return [
            Submission(
                id=one.id, number=one.item.number, acknowledged=one.acknowledged, tries=max(1, one.tries)
            )
            for one in self._ledger
        ]

    @property
    def acknowledged(self) -> int:
        """How many the mesh has said yes to."""
        return sum(one.acknowledged for one in list(self._ledger))

    def _run(self, way: str, items: list[Item]) -> None:
        size = BATCH if way == "batch" else 1
        for mine in (items[first : first + size] for first in range(0, len(items), size)):
            if self._stop.wait(max(0.0, self._begun + mine[-1].at_s - time.monotonic())):
                return
            entries = [_Entry(id=f"{one.number}-{tasks.new_id()}", item=one) for one in mine]
            self._ledger.extend(entries)
            for entry in entries:
                self._on_submit(entry.id)
            self._submit(way, entries)

    def _submit(self, way: str, entries: list[_Entry]) -> None:
        """Until all are acknowledged, with the same ids; the impatient ones once."""
        waiting = entries
        while waiting:
            for entry in waiting:
                entry.tries += 1
            try:
                self._try(way, waiting)
            except MeshError as error:
                self._note(error)
            waiting = [one for one in waiting if not one.acknowledged and not one.item.impatient]
            if waiting and self._stop.wait(_PAUSE_S):
                return

    def _note(self, error: MeshError) -> None:
        if error.exit_code != _UNAVAILABLE:
            self.problems.append(f"a submission was answered: {error}")

    def _try(self, way: str, entries: list[_Entry]) -> None:
        if way == "batch":
            answers = tasks.submit_items(self._direct.store, [self._as_item(one) for one in entries])
            for entry, answer in zip(entries, answers, strict=True):
                if isinstance(answer, MeshError):
                    self._note(answer)
                else:
                    entry.acknowledged = True
            return
        mesh = self._remote if way == "http" and self._remote else self._direct
        for entry in entries:
            item = entry.item
            mesh.submit(
                TYPE,
                self._payload(item),
                priority=item.priority,
                countdown_s=item.countdown_s,
                task_id=entry.id,
                unsatisfiable="accept",
            )
            entry.acknowledged = True

    def _as_item(self, entry: _Entry) -> tasks.Item:
        options = Options(priority=entry.item.priority, countdown_s=entry.item.countdown_s)
        return tasks.Item(
            task_type=TYPE, payload=self._payload(entry.item), options=options, task_id=entry.id
        )

    def _payload(self, item: Item) -> dict[str, object]:
        return {"number": item.number, "seconds": item.seconds, "effects": str(self._effects)}


_UNAVAILABLE = 5  # exit code of everything that says: nobody there now
