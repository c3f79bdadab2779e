"""How the answers of `mesh task why` and `mesh execute --explain` are laid out for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mesh.cli.show import clean, table
from mesh.core.durations import duration

__all__ = ["explained"]

_MOST = 20  # rows; the JSON has all
_MOST_NAMED = 5
_COLUMNS = ("agents", "slots", "free", "what_keeps_it", "which")


def explained(answer: Mapping[str, Any], first: str) -> str:
    """The sentence `first`, when it is expected to start, what keeps which agents from it, and the advice."""
    parts = [clean(first)]
    if answer["expected_start_how"]:
        parts.append(f"{_start(answer)}\n{clean(answer['expected_start_how'])}")
        rows = _grouped(answer["agents"])
        more = f"\n... and {len(rows) - _MOST} more: -o json has all" if len(rows) > _MOST else ""
        parts += [table(rows[:_MOST], _COLUMNS, key="what_keeps_it") + more] if rows else []
    if answer["advice"]:
        parts.append("\n".join(["What would change it:", *(f"- {clean(one)}" for one in answer["advice"])]))
    return "\n\n".join(parts)


def _start(answer: Mapping[str, Any]) -> str:
    start_ms = answer["expected_start_ms"]
    if start_ms is None:
        return "Expected start: not known."
    return "Expected start: now." if start_ms == 0 else f"Expected start: in about {duration(start_ms)}."


def _grouped(agents: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each reason: those that could take it first, of the others the rare reasons."""
    groups: dict[tuple[bool, bool, str], list[Mapping[str, Any]]] = {}
    for agent in agents:
        kind = (agent["why"] is not None, not agent["capable"], agent["why"] or "nothing")
        groups.setdefault(kind, []).append(agent)
    ordered = sorted(groups.items(), key=lambda item: (item[0][:2], len(item[1]), item[0][2]))
    return [
        {
            "agents": len(members),
            "slots": sum(one["slots"] for one in members),
            "free": sum(one["free_slots"] for one in members),
            "what_keeps_it": why,
            "which": _names([one["agent"] for one in members if one["agent"]]),
        }
        for (*_, why), members in ordered
    ]


def _names(agents: list[str]) -> str:
    return ",".join(agents[:_MOST_NAMED]) + (" ..." if len(agents) > _MOST_NAMED else "")
