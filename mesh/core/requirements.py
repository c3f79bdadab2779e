"""A requirement is the set of capabilities that a task needs; its canonical text is the name of its queue.

So matching costs work for each new requirement or changed agent, never for each task: an agent consumes every queue
whose requirement it satisfies.
"""

from __future__ import annotations

from collections.abc import Iterable

SEPARATOR = "+"


def canonical(capabilities: Iterable[str]) -> str:
    """The canonical text of a set of capabilities: sorted, without repetition, joined by `+`."""
    return SEPARATOR.join(sorted({part for name in capabilities for part in name.split(SEPARATOR) if part}))


def capabilities_of(requirement: str) -> frozenset[str]:
    """The capabilities that a requirement's text names."""
    return frozenset(part for part in requirement.split(SEPARATOR) if part)


def satisfies(offered: frozenset[str], requirement: str) -> bool:
    """Whether an agent that offers these capabilities may take tasks of this requirement."""
    needed = capabilities_of(requirement)
    return bool(needed) and needed <= offered


def is_compound(requirement: str) -> bool:
    """Whether agents must be told of this requirement: one capability's queue they know by themselves."""
    return SEPARATOR in requirement
