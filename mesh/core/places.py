"""Places: where a task of a requirement waits, and the strategies that choose one.

Usually it waits in the requirement's own queue, where whichever capable agent is free takes it. A preferred region has a queue
beside it, `<requirement>@@<region>`, while agents of that region serve it; a strategy that chooses an agent puts the task into
that agent's own queue, `@@<agent>`. When the region or the agent cannot serve, a script moves what waits there back.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from mesh.errors import Invalid

_MARK = "@@"


class Strategy(StrEnum):
    """Who gets a task."""

    CAPABILITY_MATCH = "capability-match"  # whichever capable agent is free takes it
    ROUND_ROBIN = "round-robin"  # each in turn
    LEAST_LOADED = "least-loaded"  # the one with the fewest waiting and held tasks a slot
    RANDOM = "random"


def check_strategy(name: str) -> str:
    """The name of a strategy. Raises `Invalid`."""
    if name not in set(Strategy):
        raise Invalid(f"Strategy {name!r} is not one of {', '.join(Strategy)}.")
    return name


def placing(strategy: str, region: str | None) -> str:
    """What the store is told: `<strategy>|<region>`, or '' where it has nothing to choose."""
    if strategy == Strategy.CAPABILITY_MATCH and not region:
        return ""
    return f"{strategy}|{region or ''}"


def parse_placing(text: str) -> tuple[str, str | None]:
    """(strategy, region) of a record's `placing`."""
    strategy, _, region = text.partition("|")
    return strategy or str(Strategy.CAPABILITY_MATCH), region or None


def regional(queues: Iterable[str], region: str | None) -> list[str]:
    """The queues that an agent of this region consumes: its region's before the common ones."""
    names = list(queues)
    return [f"{name}{_MARK}{region}" for name in names] + names if region else names


def own_queue(agent: str) -> str:
    """The queue of what strategies have given to one agent."""
    return f"{_MARK}{agent}"


def parse_place(name: str) -> tuple[str, str | None, str | None]:
    """(requirement, region, agent) of a place; the requirement of an agent's own queue is '': it holds tasks of several."""
    requirement, mark, rest = name.partition(_MARK)
    if not mark:
        return requirement, None, None
    return (requirement, rest, None) if requirement else ("", None, rest)
