"""What `mesh demo` does: map, kill, reduce, compare."""

from __future__ import annotations

import contextlib
import importlib
import json
import secrets
import signal
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mesh.cli.fleet import Fleet, Member, stoppable
from mesh.cli.show import table
from mesh.client import Handle
from mesh.core.states import HELD, State
from mesh.errors import Invalid, TaskFailed
from mesh.settings import Settings
from mesh.store.tasks import Record

__all__ = ["Demo", "Outcome"]
TYPE = "data-processing"
AGENTS = ("agent-1", "agent-2", "agent-3")
SLOTS = 2
LEASE_MS, RENEW_MS = 4000, 1000  # instead of 10 s and 3 s: the demo waits for a lease to end
WAIT_S = 120.0
_SKIP = {"site-packages", "test", "tests", "__pycache__"}
_ROOM = 0.8  # of what a payload may hold, for the partials of one reduce


@dataclass(frozen=True, kw_only=True)
class Kill:
    """The agent that was killed, and the tasks it had then: `running` of them had started."""

    agent: str
    pid: int
    at_ms: int
    held: tuple[str, ...]
    running: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of it. `totals` and `alone`: what the agents and the single process say. Times in seconds."""

    totals: dict[str, Any]
    alone: dict[str, Any]
    tasks: int
    lost: int
    retried: int
    taken_over: int
    killed: str | None
    seconds: dict[str, float]

    @property
    def good(self) -> bool:
        """Whether both say the same, and no task was lost."""
        return self.totals == self.alone and not self.lost

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**self.__dict__, "equal": self.totals == self.alone}

    def table(self) -> str:
        """For people."""
        names = [name for name, value in self.totals.items() if isinstance(value, int)]
        rows = [
            {
                "total": name.replace("_", " "),
                "agents": f"{self.totals[name]:,}".rjust(12),
                "one process": f"{self.alone.get(name, 0):,}".rjust(12),
                "equal": "yes" if self.totals[name] == self.alone.get(name) else "NO",
            }
            for name in names
        ]
        lines = [table(rows, ["total", "agents", "one process", "equal"]), ""]
        if self.totals.get("top"):
            same = "yes" if self.totals["top"] == self.alone.get("top") else "NO"
            shown = ", ".join(f"{name} {number:,}" for name, number in self.totals["top"][:5])
            lines.append(f"most frequent: {shown} ... (the same in both: {same})")
        times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        lines.append(
            f"tasks: {self.tasks}, lost: {self.lost}, taken over from {self.killed or 'nobody'}: {self.taken_over}, "
            f"retried after an error: {self.retried}"
        )
        lines.append(f"time: {times}")
        good = "The results are equal and nothing was lost."
        lines.append(good if self.good else "THE RESULTS DIFFER OR TASKS WERE LOST.")
        return "\n".join(lines)


def _partitions(folder: Path, parts: int) -> tuple[str, list[list[str]]]:
    """(what to count, files by task): Python's structure where there are Python files, words elsewhere."""
    # The engine belongs to the floor above, like the tasks that a user names: it is reached by name.
    engine = importlib.import_module("mesh.tasks.engine_files")
    for function, pattern in (("count-python", "*.py"), ("count-words", "*")):
        lists = engine.list_partitions(folder, pattern=pattern, parts=parts, skip=_SKIP)
        if lists:
            return function, lists
    raise Invalid(f"There are no files below {folder}: name another folder with --folder.")


class Demo:
    """One run. `folder` None: Python's standard library."""

    def __init__(
        self, settings: Settings, console: Console, *, folder: Path | None, parts: int, with_flower: bool
    ) -> None:
        self.settings, self.console = settings, console
        self.folder = (folder or Path(sysconfig.get_paths()["stdlib"])).resolve()
        self.function, self.lists = _partitions(self.folder, parts)
        self.with_flower = with_flower
        self.kill: Kill | None = None
        self.seconds: dict[str, float] = {}

    def run(self) -> Outcome:
        """All of it; whatever happens, what was started is stopped."""
        fleet = Fleet(
            settings=self.settings,
            namespace=f"demo-{secrets.token_hex(4)}",
            environment={
                "MESH_DATA_DIRS": str(self.folder),
                "MESH_LEASE_MS": str(LEASE_MS),
                "MESH_LEASE_RENEW_MS": str(RENEW_MS),
            },
        )
        with stoppable(), fleet:
            try:
                outcome = self._work(fleet)
            finally:
                with self._timed("stop"), self.console.status("stopping everything"):
                    fleet.stop_members()
                    fleet.forget_namespace()
        self._say("Everything that was started is stopped.")
        return outcome

    def _work(self, fleet: Fleet) -> Outcome:
        with self._timed("start"):
            agents = self._start(fleet)
        files = [file for files in self.lists for file in files]
        self._say(
            f"{len(files):,} files below {self.folder} in {len(self.lists)} tasks; leases of {LEASE_MS / 1000:g} s "
            f"instead of {self.settings.lease_ms / 1000:g} s, so that you need not wait long"
        )
        columns = (TextColumn("{task.description:7}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console) as progress:
            with self._timed("map"):
                handles, partials = self._map(fleet, agents, progress)
            with self._timed("reduce"):
                reduces, totals = self._reduce(fleet, partials, progress)
        with self._timed("one process"), self.console.status("the same in a single process, to compare"):
            alone = importlib.import_module("mesh.tasks.engine_files").local_totals(files, self.function)
        records = fleet.mesh.store.tasks.records([handle.id for handle in (*handles, *reduces)])
        kill = self.kill
        return Outcome(
            totals=totals,
            alone=alone,
            tasks=len(records),
            lost=sum(record is None or record.state is not State.SUCCEEDED for record in records),
            retried=sum(record.failures for record in records if record),
            taken_over=sum(
                record.agent != kill.agent for record in records if record and kill and record.id in kill.held
            ),
            killed=kill.agent if kill else None,
            seconds={name: round(seconds, 1) for name, seconds in self.seconds.items()},
        )

    def _say(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)

    @contextlib.contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.seconds[what] = time.monotonic() - begun

    def _start(self, fleet: Fleet) -> list[Member]:
        say = self._say
        say(f"Redis        {'started, ' if fleet.server else ''}{_shown_url(fleet.redis_url)}")
        with self.console.status("starting a coordinator, three agents and Flower"):
            coordinator = fleet.start_coordinator()
            agents = fleet.start_agents(list(AGENTS), capabilities=TYPE, concurrency=SLOTS)
            flower = fleet.start_flower() if self.with_flower else None
            say(f"namespace    {fleet.namespace}, made for this run")
            say(f"coordinator  {fleet.coordinator_url(coordinator)}/health")
            fleet.wait_for_agents(agents)
            pids = ", ".join(f"{agent.name} (pid {agent.process.pid})" for agent in agents)
            say(f"agents       {pids}, {SLOTS} slots each")
            if flower is not None:
                say(f"Flower       {fleet.flower_url(flower)}")
        return agents

    # -- map

    def _map(
        self, fleet: Fleet, agents: list[Member], progress: Progress
    ) -> tuple[list[Handle], list[dict[str, Any]]]:
        mesh = fleet.mesh
        payloads = [{"operation": "map", "function": self.function, "files": files} for files in self.lists]
        bar = progress.add_task("map", total=len(payloads))
        handles = mesh.submit_many(TYPE, payloads)
        waiting = {handle.id for handle in handles}
        for handle in mesh.as_completed(handles, timeout_s=WAIT_S):
            waiting.discard(handle.id)
            progress.advance(bar)
            if self.kill is None and waiting and 3 * len(waiting) <= 2 * len(handles):
                self.kill = self._try_kill(fleet, agents, sorted(waiting))
            elif self.kill is not None and handle.id in self.kill.held:
                record = fleet.mesh.store.tasks.record(handle.id)
                if (
                    record is not None and record.agent != self.kill.agent
                ):  # else it had ended just before, and only its news came late
                    seconds = ((record.leased or 0) - self.kill.at_ms) / 1000
                    self._say(
                        f"  task {handle.id[:8]} taken over by {record.agent}, {seconds:.1f} s after the kill"
                    )
        return handles, [handle.result(timeout_s=WAIT_S) for handle in handles]

    def _try_kill(self, fleet: Fleet, agents: list[Member], waiting: list[str]) -> Kill | None:
        """Kill an agent that has work; None if none has now. It is frozen first: what it has stays what it is."""
        tasks = fleet.mesh.store.tasks
        busy = Counter(
            record.agent for record in tasks.records(waiting) if record and record.state is State.RUNNING
        )
        if not busy:
            return None
        victim = next(agent for agent in agents if agent.name == busy.most_common(1)[0][0])
        victim.signal(signal.SIGSTOP)
        held = [record for record in tasks.records(waiting) if record and _holds(victim.name, record)]
        running = sum(record.state is State.RUNNING for record in held)
        if not running:
            victim.signal(signal.SIGCONT)
            return None
        at_ms = fleet.mesh.store.agents.now_ms()
        victim.kill()
        more = f" and held {len(held) - running} more" if len(held) > running else ""
        self._say(
            f"[bold red]{victim.name} killed[/] with SIGKILL (pid {victim.process.pid}) while it ran "
            f"{running} {'task' if running == 1 else 'tasks'}{more}"
        )
        return Kill(
            agent=victim.name,
            pid=victim.process.pid,
            at_ms=at_ms,
            held=tuple(record.id for record in held),
            running=running,
        )

    # -- reduce

    def _reduce(
        self, fleet: Fleet, partials: list[dict[str, Any]], progress: Progress
    ) -> tuple[list[Handle], dict[str, Any]]:
        """Reduce in as many levels as payloads of bounded size need."""
        mesh, done = fleet.mesh, []
        bar = progress.add_task("reduce", total=None)
        while True:
            groups = _pack(partials, int(self.settings.max_payload_bytes * _ROOM))
            final = len(groups) == 1
            payloads = [
                {"operation": "reduce", "function": self.function, "partials": group, "final": final}
                for group in groups
            ]
            handles = mesh.submit_many(TYPE, payloads)
            done += handles
            progress.update(bar, total=len(done) + (not final))
            for _ in mesh.as_completed(handles, timeout_s=WAIT_S):
                progress.advance(bar)
            partials = [handle.result(timeout_s=WAIT_S) for handle in handles]
            if final:
                return done, partials[0]


def _holds(agent: str, record: Record) -> bool:
    return record.agent == agent and record.state in HELD


def _pack(partials: list[dict[str, Any]], limit: int) -> list[list[dict[str, Any]]]:
    """Groups of partials that fit into a payload each; raises `TaskFailed` if no two do."""
    groups: list[list[dict[str, Any]]] = [[]]
    room = limit
    for partial in partials:
        size = len(json.dumps(partial))
        if groups[-1] and size > room:
            groups.append([])
            room = limit
        groups[-1].append(partial)
        room -= size
    if len(groups) > 1 and len(groups) == len(partials):
        raise TaskFailed(
            "The totals of this folder are too large for payloads: raise MESH_MAX_PAYLOAD_BYTES."
        )
    return groups


def _shown_url(url: str) -> str:
    from mesh.store.client import safe_url

    return safe_url(url)
