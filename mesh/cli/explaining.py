"""How the answers of `mesh task why` and `mesh execute --explain` are laid out for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mesh.cli.show import clean, table
from mesh.core.durations import duration

__all__ = ["explained"]

_MOST = 20  # agents; the JSON has all
_COLUMNS = ("agent", "slots", "free", "what_keeps_it")


def explained(answer: Mapping[str, Any], first: str) -> str:
    """The sentence `first`, when it is expected to start, the agents (those that come nearest first), and the advice."""
    parts = [clean(first)]
    if answer["expected_start_how"]:
        parts.append(f"{_start(answer)}\n{clean(answer['expected_start_how'])}")
    if answer["agents"] and answer["expected_start_how"]:
        rows = sorted(answer["agents"], key=lambda row: (row["why"] is not None, not row["capable"]))
        shown = [
            {
                "agent": row["agent"],
                "slots": row["slots"],
                "free": row["free_slots"],
                "what_keeps_it": row["why"] or "nothing",
            }
            for row in rows[:_MOST]
        ]
        more = f"\n... and {len(rows) - _MOST} more: -o json has all" if len(rows) > _MOST else ""
        parts.append(table(shown, _COLUMNS, key="agent") + more)
    if answer["advice"]:
        parts.append("\n".join(["What would change it:", *(f"- {clean(one)}" for one in answer["advice"])]))
    return "\n\n".join(parts)


def _start(answer: Mapping[str, Any]) -> str:
    start_ms = answer["expected_start_ms"]
    if start_ms is None:
        return "Expected start: not known."
    return "Expected start: now." if start_ms == 0 else f"Expected start: in about {duration(start_ms)}."
