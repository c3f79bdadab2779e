"""Why a task waits: what keeps each agent from it, when it is expected to start, and what would change that.

Agents are looked at in one order of reasons, the lasting ones first. The start is expected by the queueing that the scripts do: a
task starts when as many slots have become free as are needed for what is served before it and for itself, and with S slots that
are busy for m ms a task, one becomes free every m / S ms. Who may not know which agents there are is told of nameless ones.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from mesh.core.agents import Health
from mesh.core.durations import duration
from mesh.core.places import Strategy, parse_place
from mesh.core.requirements import capabilities_of

__all__ = [
    "Agent",
    "Before",
    "Expected",
    "Obstacle",
    "Task",
    "Verdict",
    "advice",
    "expected",
    "judge",
    "serves",
]

_MOST_NAMED = 3


class Agent(Protocol):
    """What matters of an agent."""

    @property
    def id(self) -> str: ...
    @property
    def capabilities(self) -> tuple[str, ...]: ...
    @property
    def region(self) -> str | None: ...
    @property
    def status(self) -> Health: ...
    @property
    def slots(self) -> int: ...
    @property
    def held(self) -> int: ...
    @property
    def cordoned(self) -> bool: ...
    @property
    def absent(self) -> bool: ...
    @property
    def silent_ms(self) -> int: ...


class Obstacle(StrEnum):
    """What keeps an agent from a task, the lasting ones first; with the last three it takes such tasks, but not this one now."""

    LEFT = "left"
    LACKS = "lacks"
    DRAINING = "draining"
    SILENT = "silent"
    CORDONED = "cordoned"
    PLACED = "placed"  # a strategy has given the task to another agent
    REGION = "region"  # the task is offered to another region first
    FULL = "full"


_NOT_NOW = (Obstacle.PLACED, Obstacle.REGION, Obstacle.FULL)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task that waits, or would. Times are ms from now; None: there is none, or it is not known."""

    needs: frozenset[str]
    priority: int = 4
    agent: str | None = None  # that a strategy has placed it with
    region: str | None = None  # that it is offered to first
    spills_in_ms: int | None = None  # ... until then
    due_in_ms: int | None = None  # it is scheduled
    expires_in_ms: int | None = None
    mean_run_ms: float | None = None  # of the recent attempts of its requirement


@dataclass(frozen=True, kw_only=True)
class Before:
    """What waits in a place (see `mesh.core.places`) and is served before the task.

    `urgent`: how many of these `tasks` no priority would get past; `mean_run_ms`: of their attempts, None if not known;
    `elsewhere`: the task itself waits in another place.
    """

    place: str
    tasks: int
    urgent: int = 0
    mean_run_ms: float | None = None
    elsewhere: bool = False


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What keeps one agent from the task; `obstacle` and `why` None: nothing does. `agent` '': it is not told which."""

    agent: str
    obstacle: Obstacle | None
    why: str | None
    slots: int
    free_slots: int

    @property
    def capable(self) -> bool:
        """Whether it takes such tasks, if perhaps not this one now."""
        return self.obstacle is None or self.obstacle in _NOT_NOW


@dataclass(frozen=True, kw_only=True)
class Expected:
    """When it is expected to start: ms from now, 0 now, None not known; `how` that was found out, as a sentence.

    `ahead`: tasks that the same agents serve before it; `short`: slots that would have to be free besides those that are.
    """

    start_ms: int | None
    how: str
    ahead: int = 0
    urgent: int = 0
    slots: int = 0
    short: int = 0


def judge(task: Task, agent: Agent, shown: Callable[[str], bool] = lambda _: True) -> Verdict:
    """What keeps an agent from a task. `shown`: whether an agent's id may be told."""
    missing = sorted(task.needs - set(agent.capabilities))
    holder = f"agent {task.agent}" if task.agent and shown(task.agent) else "another agent"
    spill = f" for {duration(task.spills_in_ms)} more" if task.spills_in_ms else ""
    rows = (
        (Obstacle.LEFT, agent.status is Health.OFFLINE, "it has left"),
        (Obstacle.LACKS, missing, f"it does not offer {' and '.join(missing)}"),
        (Obstacle.DRAINING, agent.status is Health.DRAINING, "it is draining"),
        (Obstacle.SILENT, agent.absent or agent.status is Health.UNHEALTHY,
         f"it has been silent for {agent.silent_ms // 1000} s"),
        (Obstacle.CORDONED, agent.cordoned, "it is cordoned"),
        (Obstacle.PLACED, task.agent not in (None, agent.id), f"the task was placed with {holder}"),
        (Obstacle.REGION, task.region not in (None, agent.region),
         f"it is of another region: the task is offered to region {task.region} first{spill}"),
        (Obstacle.FULL, not _free(agent), f"all its slots are full ({agent.slots} of {agent.slots})"),
    )  # fmt: skip
    obstacle, why = next(((name, why) for name, holds, why in rows if holds), (None, None))
    return Verdict(
        agent=agent.id if shown(agent.id) else "",
        obstacle=obstacle,
        why=why,
        slots=agent.slots,
        free_slots=0 if obstacle in (Obstacle.LEFT, Obstacle.SILENT) else _free(agent),
    )


def serves(agent: Agent, place: str) -> bool:
    """Whether an agent consumes a place."""
    requirement, region, owner = parse_place(place)
    if owner is not None:
        return owner == agent.id
    return capabilities_of(requirement) <= set(agent.capabilities) and region in (None, agent.region)


def _free(agent: Agent) -> int:
    return max(0, agent.slots - agent.held)


class _Crew:
    """The slots of some agents, by what they serve: agents that offer the same in one region are looked at once."""

    def __init__(self, agents: Iterable[Agent]) -> None:
        self._own: Counter[str] = Counter()
        self._kinds: Counter[tuple[frozenset[str], str | None]] = Counter()
        for agent in agents:
            self._own[agent.id] += agent.slots
            self._kinds[frozenset(agent.capabilities), agent.region] += agent.slots

    def slots(self, place: str) -> int:
        """How many serve a place."""
        requirement, region, owner = parse_place(place)
        if owner is not None:
            return self._own[owner]
        needed = capabilities_of(requirement)
        return sum(
            slots
            for (offered, where), slots in self._kinds.items()
            if needed <= offered and region in (None, where)
        )


def expected(task: Task, agents: Sequence[Agent], before: Sequence[Before]) -> Expected:
    """When a task is expected to start."""
    judged = [(agent, judge(task, agent)) for agent in agents]
    able = [agent for agent, verdict in judged if verdict.capable]
    if not able:
        return Expected(start_ms=None, how="No agent could take it.")
    if task.due_in_ms is not None:
        return Expected(start_ms=max(0, task.due_in_ms), how="Its time comes then.")
    working = [agent for agent in agents if judge(_ANY, agent).capable]
    now = [agent for agent, verdict in judged if verdict.obstacle in (None, Obstacle.FULL)]
    first = _among(task, now, working, before)
    if task.spills_in_ms is None or len(now) == len(able):
        return first
    later = _among(task, able, working, before)
    if later.start_ms is None or (first.start_ms is not None and first.start_ms <= task.spills_in_ms):
        return first
    spilled_ms = max(task.spills_in_ms, later.start_ms)
    if first.start_ms is not None and first.start_ms <= spilled_ms:
        return first
    spill = f"Other regions are offered it in {duration(task.spills_in_ms)}."
    return replace(later, start_ms=spilled_ms, how=f"{spill} {later.how}")


_ANY = Task(needs=frozenset())


def _among(
    task: Task, takers: Sequence[Agent], working: Sequence[Agent], before: Sequence[Before]
) -> Expected:
    """When some agents are expected to start it.

    What they share with others of what waits in a place is their part of the slots that serve it.
    """
    slots, free = sum(agent.slots for agent in takers), sum(map(_free, takers))
    if not slots:
        return Expected(start_ms=None, how="None of the agents that could take it is offered it.")
    mine, everybodys = _Crew(takers), _Crew(working)
    tasks = others = urgent = work_ms = 0.0
    for one in before:
        share = mine.slots(one.place) / (everybodys.slots(one.place) or 1)
        tasks += share * one.tasks
        others += share * one.tasks * one.elsewhere
        urgent += share * one.urgent
        work_ms += share * one.tasks * (one.mean_run_ms or task.mean_run_ms or 0.0)
    ahead = math.ceil(round(tasks, 6))
    short = max(0, ahead + 1 - free)
    are = "1 task is" if ahead == 1 else f"{ahead} tasks are" if ahead else "No task is"
    of_others = math.ceil(round(others, 6))
    shared = f" ({of_others} of other queues)" if of_others else ""
    how = f"{are} served before it{shared}, {'1 slot is' if free == 1 else f'{free} slots are'} free"
    start_ms: int | None = 0
    if short and task.mean_run_ms is None:
        start_ms = None
        how += "; how long an attempt runs is not known: none of its requirement has ended yet"
    elif short:
        mean_ms = (work_ms + (task.mean_run_ms or 0.0)) / (tasks + 1)
        start_ms = round(short * mean_ms / slots)
        how += f", and an attempt holds one of {slots} for {duration(mean_ms)} on average"
    return Expected(
        start_ms=start_ms,
        how=f"{how}.",
        ahead=ahead,
        urgent=math.ceil(round(urgent, 6)),
        slots=slots,
        short=short,
    )


def advice(task: Task, verdicts: Sequence[Verdict], start: Expected) -> list[str]:
    """What would have it start sooner, a sentence each, to be done by whoever reads it; nothing for what starts now."""
    of: dict[Obstacle | None, list[Verdict]] = {}
    for verdict in verdicts:
        of.setdefault(verdict.obstacle, []).append(verdict)
    able = any(verdict.capable for verdict in verdicts)
    if (able and task.due_in_ms is not None) or start.start_ms == 0:
        return []
    cordoned, silent = of.get(Obstacle.CORDONED, []), of.get(Obstacle.SILENT, [])
    placed, regional = _free_of(of.get(Obstacle.PLACED, [])), _free_of(of.get(Obstacle.REGION, []))
    gains = math.ceil(start.short * start.slots / (start.short + 2 * start.slots)) if start.slots else 0
    needs = ",".join(sorted(task.needs))
    past = start.ahead - start.urgent
    rows = (
        (cordoned, f"Uncordon {_named(cordoned)}{_command('mesh agent uncordon', cordoned)}."),
        (not able, f"Start an agent with --capabilities {needs}."),
        (not able and silent, f"Bring {_named(silent)} back: it offers {needs}, but is silent."),
        (placed, f"Submit such tasks with strategy {Strategy.CAPABILITY_MATCH}: other agents have {placed} free slots."),
        (regional and task.spills_in_ms is not None,
         f"Wait {duration(task.spills_in_ms or 0)}: then other regions are offered it, which have {regional} free slots."),
        (able and start.short and gains,
         f"Start agents with --capabilities {needs}: {_slots_text(gains)} more than the {start.slots} there are "
         f"would {'have it start at once' if gains >= start.short else 'halve the wait'}."),
        (past > 0 and task.priority < 9,
         f"Submit it with a higher priority than {task.priority}: 9 would get past {past} of the {start.ahead} tasks before it."),
        (start.start_ms is not None and task.expires_in_ms is not None and start.start_ms > task.expires_in_ms,
         f"Let it expire later: it does in {duration(max(0, task.expires_in_ms or 0))}, before it would start."),
    )  # fmt: skip
    return [sentence for holds, sentence in rows if holds]


def _free_of(verdicts: Iterable[Verdict]) -> int:
    return sum(verdict.free_slots for verdict in verdicts)


def _slots_text(number: int) -> str:
    return "1 slot" if number == 1 else f"{number} slots"


def _named(verdicts: Sequence[Verdict]) -> str:
    """Agents by name, as far as these are told; few of many."""
    names = [verdict.agent for verdict in verdicts if verdict.agent]
    many = len(verdicts)
    if not names:
        return "the agent" if many == 1 else f"one of the {many} agents"
    return (
        names[0]
        if many == 1
        else f"one of {', '.join(names[:_MOST_NAMED])}" + (" ..." if many > _MOST_NAMED else "")
    )


def _command(command: str, verdicts: Sequence[Verdict]) -> str:
    name = next((verdict.agent for verdict in verdicts if verdict.agent), "")
    return (
        f": {command} {name}" if name else " that are cordoned" if len(verdicts) > 1 else " that is cordoned"
    )
