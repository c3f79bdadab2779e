"""What `mesh verify` does to a mesh and when: a pure function of the seed, so that a run can be repeated."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mesh.errors import Invalid

__all__ = ["BATCH", "FAULTS", "Item", "Step", "choose_faults", "make_load", "make_plan"]

#: Name -> (whom it may hit, the shortest and longest seconds until it is healed, what is done).
FAULTS = {
    "kill-agent": ("agents", 2, 12, "SIGKILL to an agent and its pool; started again later"),
    "pause-agent": ("agents", 4, 20, "SIGSTOP to an agent and its pool; it goes on later"),
    "kill-coordinator": ("coordinators", 2, 10, "SIGKILL to a coordinator; started again later"),
    "restart-redis": ("redis", 0.5, 4, "SIGKILL to Redis; started again on its append-only file"),
    "partition": ("both", 4, 20, "an agent or a coordinator is cut off from Redis"),
}
#: How a partition looks to those behind it.
PARTITIONS = ("cut", "freeze", "drop requests", "drop replies")
_FIRST_S = (2.0, 4.0)  # before the first fault
_GAP_S = (2.0, 6.0)  # between two of them
_START_S = 8.0  # what a process takes, at most, until it works again
#: (seconds that a task takes, of a hundred tasks): short ones, and enough that are still running when a fault comes.
_DURATIONS = ((0.0, 20), (0.1, 20), (0.5, 25), (1.0, 20), (2.0, 15))
_WAYS = ("one", "batch", "http")
BATCH = 8
_SCHEDULED, _URGENT, _IMPATIENT = 0.15, 0.25, 0.1  # shares of the tasks


@dataclass(frozen=True, kw_only=True)
class Step:
    """One fault: `at_s` after the start, healed `for_s` later. `how`: of a partition."""

    at_s: float
    fault: str
    target: str
    for_s: float
    how: str = ""

    def __str__(self) -> str:
        what = f"{self.fault} ({self.how})" if self.how else self.fault
        return f"{what} {self.target} for {self.for_s:.1f} s"

    def to_json(self) -> dict[str, Any]:
        """For reports."""
        return {
            "at_s": self.at_s,
            "fault": self.fault,
            "how": self.how,
            "target": self.target,
            "for_s": self.for_s,
        }


@dataclass(frozen=True, kw_only=True)
class Item:
    """One task to submit, `at_s` after the start. `impatient`: a submission that fails is not tried again."""

    at_s: float
    number: int
    way: str
    seconds: float
    priority: int = 4
    countdown_s: float | None = None
    impatient: bool = False


def choose_faults(text: str, *, coordinators: int) -> tuple[str, ...]:
    """The faults of a list like `kill-agent,partition`, `all` or `none`. Raises `Invalid`."""
    if text == "none":
        return ()
    if text == "all":
        return tuple(name for name in FAULTS if coordinators or name != "kill-coordinator")
    chosen = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in chosen if name not in FAULTS]
    if unknown or not chosen:
        raise Invalid(
            f"{unknown[0] if unknown else text!r} is no fault: choose of {', '.join(FAULTS)}, or all, or none."
        )
    if "kill-coordinator" in chosen and not coordinators:
        raise Invalid("kill-coordinator needs a coordinator: raise --coordinators.")
    return chosen


def make_plan(
    seed: int, *, duration_s: float, faults: Sequence[str], agents: Sequence[str], coordinators: Sequence[str]
) -> list[Step]:
    """Faults of all the chosen kinds in turn, in an order of the dice; each ends within `duration_s`.

    They overlap, but one agent is always spared and ready: else no task could be recovered within any bound.
    """
    dice = random.Random(f"plan {seed}")
    busy: dict[str, float] = {}  # target -> until when something is done to it
    steps: list[Step] = []
    bag: list[str] = []
    at_s = dice.uniform(*_FIRST_S)
    while faults and at_s < duration_s:
        bag = bag or dice.sample(list(faults), len(faults))
        fault = bag.pop()
        whom, shortest, longest, _ = FAULTS[fault]
        for_s = round(dice.uniform(shortest, max(shortest, min(longest, duration_s - at_s))), 1)
        pool = {"agents": [*agents], "coordinators": [*coordinators], "redis": ["redis"]}.get(
            whom, [*agents, *coordinators]
        )
        free = [name for name in pool if busy.get(name, 0.0) <= at_s]
        ready = [name for name in agents if busy.get(name, 0.0) <= at_s]
        if len(ready) <= 1:
            free = [name for name in free if name not in agents]
        target, how = dice.choice(free or [""]), dice.choice(PARTITIONS) if fault == "partition" else ""
        if target and at_s + for_s <= duration_s:
            steps.append(Step(at_s=round(at_s, 1), fault=fault, target=target, for_s=for_s, how=how))
            busy[target] = at_s + for_s + _START_S
        at_s += dice.uniform(*_GAP_S)
    return steps


def make_load(seed: int, *, tasks: int, duration_s: float) -> list[Item]:
    """Tasks of mixed length, priority and time, evenly over `duration_s`, submitted in each of the ways."""
    dice = random.Random(f"load {seed}")
    lengths, weights = zip(*_DURATIONS, strict=True)
    items = []
    way, left = "one", 0
    for number in range(tasks):
        if not left:
            way = dice.choice(_WAYS)
            left = BATCH if way == "batch" else 1
        left -= 1
        items.append(
            Item(
                at_s=round(number * duration_s / tasks, 3),
                number=number,
                way=way,
                seconds=dice.choices(lengths, weights)[0],
                priority=dice.randint(0, 9) if dice.random() < _URGENT else 4,
                countdown_s=round(dice.uniform(0.2, 4.0), 1) if dice.random() < _SCHEDULED else None,
                impatient=dice.random() < _IMPATIENT,
            )
        )
    return items
