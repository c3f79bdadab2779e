"""What `mesh verify` does: start a mesh, submit numbered tasks, break things by plan, heal, wait, judge."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from mesh.cli.fleet import Fleet, Member, stoppable
from mesh.cli.show import clean, line
from mesh.client import Mesh
from mesh.core.states import HELD
from mesh.errors import Invalid, MeshError
from mesh.settings import Settings
from mesh.store.client import safe_url
from mesh.store.embedded import free_port
from mesh.verify.evidence import Observer, collect
from mesh.verify.load import Load
from mesh.verify.plan import Step, make_load, make_plan
from mesh.verify.proxy import Proxy
from mesh.verify.witness import Check, Evidence, Fault, check, percentile, recoveries

__all__ = ["Outcome", "Run", "Verify"]
SLOTS = 4  # an agent: one that is left alone must keep up, or recovery would measure the backlog
_PAUSE_S = 0.1
_SETTLE_S = 120.0  # for the tasks to end once everything is healed, beyond what the backlog takes
_QUIET_S = 15.0  # for leases and the like to go once all tasks have ended
_START_AGAIN_S = (
    30.0  # a process that ends so soon, because Redis was away, is started again, as by a supervisor
)
_UNAVAILABLE = 5
_SHOWN = 5  # offenders of a check in the table


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is asked for. `faults`: names of `mesh.verify.plan.FAULTS`; `keep`: leave logs, effects and the namespace."""

    tasks: int
    duration_s: float
    agents: int
    coordinators: int
    pool: str
    faults: tuple[str, ...]
    seed: int
    keep: bool = False

    def to_json(self) -> dict[str, Any]:
        """For reports."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of it. `took_s`: from the first submission to the last end; `recoveries_s`: sorted."""

    run: Run
    plan: list[Step]
    faults: list[Fault]
    checks: list[Check]
    recoveries_s: list[float]
    submitted: int
    acknowledged: int
    retried: int
    executed: int
    took_s: float

    @property
    def good(self) -> bool:
        """Whether every check passed."""
        return all(one.passed for one in self.checks)

    def recovery(self) -> dict[str, Any]:
        """Seconds from a fault to the next begin of what it interrupted."""
        shares = {"p50_s": 0.5, "p99_s": 0.99, "max_s": 1.0}
        figures = {name: round(percentile(self.recoveries_s, share), 2) for name, share in shares.items()}
        return {"interrupted": len(self.recoveries_s), **figures}

    def to_json(self) -> dict[str, Any]:
        """The whole report."""
        return {
            "good": self.good,
            "run": self.run.to_json(),
            "tasks": {
                "submitted": self.submitted,
                "acknowledged": self.acknowledged,
                "submitted_again": self.retried,
                "attempts": self.executed,
            },
            "took_s": round(self.took_s, 1),
            "checks": [one.to_json() for one in self.checks],
            "recovery": self.recovery(),
            "plan": [step.to_json() for step in self.plan],
            "faults": [
                {"fault": one.kind, "target": one.target, "at_ms": round(one.at_ms), "held": len(one.held)}
                for one in self.faults
            ],
        }

    def table(self) -> str:
        """For people."""
        lines = []
        for one in self.checks:
            lines.append(line("ok" if one.passed else "fail", one.name, one.sentence))
            lines += [line("", "", f"- {offender}") for offender in one.offenders[:_SHOWN]]
            if len(one.offenders) > _SHOWN:
                lines.append(line("", "", f"- and {len(one.offenders) - _SHOWN} more"))
        figures = self.recovery()
        lines.append("")
        lines.append(
            f"{self.acknowledged} of {self.submitted} tasks acknowledged ({self.retried} submitted more than once), "
            f"{self.executed} attempts begun, {len(self.faults)} faults, {self.took_s:.0f} s"
        )
        if self.recoveries_s:
            lines.append(
                f"recovery of {figures['interrupted']} interrupted attempts: p50 {figures['p50_s']:.1f} s, "
                f"p99 {figures['p99_s']:.1f} s, longest {figures['max_s']:.1f} s"
            )
        lines.append(
            "Nothing was lost, nothing was recorded twice."
            if self.good
            else f"CHECKS FAILED. The same faults again: --seed {self.run.seed}"
        )
        return "\n".join(lines)


@dataclass(kw_only=True)
class _Process:
    """One agent or coordinator over all its lives."""

    name: str
    launch: Callable[[], Member]
    proxy: Proxy | None
    member: Member
    started: float
    harmed: bool = False  # a fault is at work on it


@dataclass(kw_only=True)
class _Mesh:
    """The mesh under test, while it runs."""

    fleet: Fleet
    effects: Path
    observer: Observer
    processes: dict[str, _Process] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)  # processes that no fault ended

    @property
    def agents(self) -> list[_Process]:
        return [one for one in self.processes.values() if one.name.startswith("agent-")]


class Verify:
    """One run. Raises `Invalid` for what cannot be done to the Redis that the settings name."""

    def __init__(self, settings: Settings, console: Console, run: Run) -> None:
        self.settings, self.console, self.asked = settings, console, run
        own = not settings.was_set("redis_url")
        if "restart-redis" in run.faults and not own:
            raise Invalid(
                "restart-redis would stop a Redis that others use: leave it out of --chaos, or unset REDIS_URL."
            )
        if "partition" in run.faults and not own and urlsplit(settings.redis_url).scheme != "redis":
            raise Invalid(
                "partition needs a plain redis:// URL to stand in between: leave it out of --chaos."
            )
        self.agents = [f"agent-{number + 1}" for number in range(run.agents)]
        self.coordinators = [f"coordinator-{number + 1}" for number in range(run.coordinators)]
        self.plan = make_plan(
            run.seed,
            duration_s=run.duration_s,
            faults=run.faults,
            agents=self.agents,
            coordinators=self.coordinators,
        )

    def run(self) -> Outcome:
        """All of it; whatever happens, what was started is stopped."""
        fleet = Fleet(
            settings=self.settings,
            namespace=f"verify-{secrets.token_hex(4)}",
            # The faults of this run are not the tasks' own: none of them is poison.
            environment={"MESH_MAX_CRASHES": "1000"},
            keep=self.asked.keep,
        )
        with stoppable(), fleet, contextlib.ExitStack() as stack:
            try:
                outcome = self._work(fleet, stack)
            finally:
                with self.console.status("stopping everything"):
                    for member in fleet.members:
                        member.signal(signal.SIGCONT)
                    fleet.stop_members()
                    fleet.forget_namespace()
            if self.asked.keep:
                self._say(f"kept: logs and effects in {fleet.directory}, namespace {fleet.namespace}")
        return outcome

    def _work(self, fleet: Fleet, stack: contextlib.ExitStack) -> Outcome:
        self._say(f"Redis        {'started, ' if fleet.server else ''}{safe_url(fleet.redis_url)}")
        self._say(f"namespace    {fleet.namespace}, made for this run; seed {self.asked.seed}")
        effects = fleet.directory / "effects"
        effects.touch()
        observer = Observer(fleet.mesh.store)
        mesh = _Mesh(fleet=fleet, effects=effects, observer=observer)
        with self.console.status("starting coordinators and agents"):
            remote = self._start(mesh, stack)
        for step in self.plan:
            self._say(f"planned {step.at_s:6.1f} s  {step}")
        begun = time.monotonic()
        with observer:
            load = Load(
                make_load(self.asked.seed, tasks=self.asked.tasks, duration_s=self.asked.duration_s),
                direct=fleet.mesh,
                remote=remote,
                effects=effects,
                on_submit=observer.watch,
            )
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            with Progress(*columns, console=self.console) as progress:
                bar = progress.add_task("tasks that ended", total=self.asked.tasks)
                load.start()
                try:
                    self._act(mesh, load, begun, lambda: self._show(progress, bar, mesh))
                    ledger = load.end(_SETTLE_S)
                except BaseException:
                    load.end(0)
                    raise
                ids = [one.id for one in ledger if one.acknowledged]
                self._wait_for_ends(mesh, ids, lambda: self._show(progress, bar, mesh))
            took_s = time.monotonic() - begun
        evidence = self._collect(mesh, ledger)
        return self._outcome(mesh, evidence, load.problems, took_s)

    def _say(self, sentence: str) -> None:
        self.console.print(clean(sentence), soft_wrap=True, markup=False)

    def _show(self, progress: Progress, bar: TaskID, mesh: _Mesh) -> None:
        progress.update(bar, completed=len(mesh.observer.ended))

    # -- starting

    def _start(self, mesh: _Mesh, stack: contextlib.ExitStack) -> Mesh | None:
        """Everything; a mesh over HTTP if there are coordinators."""
        fleet, ports = mesh.fleet, {name: free_port() for name in self.coordinators}
        for name in (*self.coordinators, *self.agents):
            proxy = stack.enter_context(self._proxy(fleet)) if "partition" in self.asked.faults else None
            more = {"REDIS_URL": proxy.url(fleet.redis_url)} if proxy else {}

            def launch(name: str = name, more: dict[str, str] = more) -> Member:
                if name in ports:
                    return fleet.start_coordinator(name, port=ports[name], **more)
                (member,) = fleet.start_agents(
                    [name], pool=self.asked.pool, concurrency=SLOTS, include=("mesh.verify.task",), **more
                )
                return member

            mesh.processes[name] = _Process(
                name=name, launch=launch, proxy=proxy, member=launch(), started=time.monotonic()
            )
        for name in self.coordinators:
            fleet.coordinator_url(mesh.processes[name].member)
        fleet.wait_for_agents([one.member for one in mesh.agents])
        for one in mesh.processes.values():
            self._say(f"{one.name:12} pid {one.member.process.pid}")
        if not ports:
            return None
        settings = dataclasses.replace(fleet.settings, transport_retries=1, transport_timeout_ms=10_000)
        url = ",".join(f"http://127.0.0.1:{port}" for port in ports.values())
        remote = Mesh(namespace=fleet.namespace, coordinator_url=url, settings=settings)
        return stack.enter_context(remote)

    def _proxy(self, fleet: Fleet) -> Proxy:
        parts = urlsplit(fleet.redis_url)
        return Proxy(parts.hostname or "localhost", parts.port or 6379)

    # -- faults

    def _act(self, mesh: _Mesh, load: Load, begun: float, show: Callable[[], None]) -> None:
        """Carry out the plan, and wait until all has been submitted; at the end everything is healed."""
        due: list[tuple[float, Step, bool]] = []
        for step in self.plan:
            due += [(step.at_s, step, False), (step.at_s + step.for_s, step, True)]
        due.sort(key=lambda one: one[0])
        while due or time.monotonic() < begun + self.asked.duration_s:
            now = time.monotonic() - begun
            if due and now >= due[0][0]:
                _, step, heal = due.pop(0)
                self._say(f"{now:14.1f} s  {'healed: ' if heal else ''}{step}")
                (self._heal if heal else self._break)(mesh, step)
            self._supervise(mesh)
            show()
            time.sleep(_PAUSE_S)

    def _break(self, mesh: _Mesh, step: Step) -> None:
        server = mesh.fleet.server
        if step.fault == "restart-redis" and server is not None:
            spared = [one.name for one in mesh.agents if not one.harmed]
            held = self._held(mesh, spared)
            mesh.faults.append(self._fault(step, held))
            server.kill()
            return
        process = mesh.processes[step.target]
        process.harmed = True
        member = process.member
        at_ms = time.time_ns() / 1_000_000
        if step.fault == "partition" and process.proxy is not None:
            _break_network(process.proxy, step.how)
        else:
            member.signal(signal.SIGSTOP)  # what it holds stays what it is while it is written down
        held = self._held(mesh, [step.target])
        if step.fault.startswith("kill-"):
            at_ms = time.time_ns() / 1_000_000
            member.kill()
            mesh.fleet.members.remove(member)
        mesh.faults.append(self._fault(step, held, at_ms))

    @staticmethod
    def _fault(step: Step, held: tuple[tuple[str, int], ...], at_ms: float | None = None) -> Fault:
        return Fault(
            kind=step.fault, target=step.target, at_ms=at_ms or time.time_ns() / 1_000_000, held=held
        )

    def _heal(self, mesh: _Mesh, step: Step) -> None:
        if step.fault == "restart-redis":
            if mesh.fleet.server is not None:
                mesh.fleet.server.start()
            return
        process = mesh.processes[step.target]
        if step.fault.startswith("kill-"):
            process.member, process.started = process.launch(), time.monotonic()
        elif step.fault == "partition" and process.proxy is not None:
            process.proxy.heal()
        else:
            process.member.signal(signal.SIGCONT)
        process.harmed = False

    def _held(self, mesh: _Mesh, agents: Sequence[str]) -> tuple[tuple[str, int], ...]:
        """The attempts that these agents hold, as far as Redis can say now."""
        waiting = sorted(mesh.observer.waiting)
        try:
            records = mesh.fleet.mesh.store.tasks.records(waiting) if waiting else []
        except MeshError:
            return ()
        return tuple(
            (one.id, one.attempt) for one in records if one and one.agent in agents and one.state in HELD
        )

    def _supervise(self, mesh: _Mesh) -> None:
        """Note who ended without a fault, and start it again."""
        for process in mesh.processes.values():
            code = process.member.process.poll()
            if code is None or process.member not in mesh.fleet.members:
                continue
            mesh.fleet.members.remove(process.member)
            soon = time.monotonic() - process.started < _START_AGAIN_S
            if not (soon and code == _UNAVAILABLE):
                mesh.ended.append(f"{process.name}: ended with {code}: {process.member.last_words()}")
            process.member, process.started = process.launch(), time.monotonic()

    # -- the end

    def _wait_for_ends(self, mesh: _Mesh, ids: Sequence[str], show: Callable[[], None]) -> None:
        backlog_s = len(mesh.observer.waiting) / self.asked.agents
        deadline = time.monotonic() + _SETTLE_S + backlog_s
        while not mesh.observer.ended.issuperset(ids) and time.monotonic() < deadline:
            self._supervise(mesh)
            show()
            time.sleep(_PAUSE_S)
        show()

    def _collect(self, mesh: _Mesh, ledger: Sequence[Any]) -> Evidence:
        """The evidence, once nothing is left in any queue, or after a while."""
        deadline = time.monotonic() + _QUIET_S
        while True:
            evidence = collect(
                mesh.fleet.mesh.store,
                ledger,
                mesh.effects,
                observer=mesh.observer,
                faults=mesh.faults,
                surprises=mesh.ended,
                bound_s=2 * self.settings.lease_ms / 1000,
            )
            if time.monotonic() > deadline or not any(evidence.left.values()):
                return evidence
            time.sleep(_PAUSE_S)

    def _outcome(self, mesh: _Mesh, evidence: Evidence, problems: Sequence[str], took_s: float) -> Outcome:
        evidence = dataclasses.replace(evidence, surprises=(*evidence.surprises, *problems))
        return Outcome(
            run=self.asked,
            plan=self.plan,
            faults=mesh.faults,
            checks=check(evidence),
            recoveries_s=sorted(one.seconds for one in recoveries(evidence)),
            submitted=len(evidence.ledger),
            acknowledged=sum(one.acknowledged for one in evidence.ledger),
            retried=sum(one.tries > 1 for one in evidence.ledger),
            executed=sum(one.what == "begin" for one in evidence.effects),
            took_s=took_s,
        )


def _break_network(proxy: Proxy, how: str) -> None:
    what, _, direction = how.partition(" ")
    if what == "drop":
        proxy.drop("requests" if direction == "requests" else "replies")
    elif what == "freeze":
        proxy.freeze()
    else:
        proxy.cut()
