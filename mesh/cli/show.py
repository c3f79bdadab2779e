"""How data is printed: tables for people, JSON for programs, names for shells."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

_COLORS = {
    "healthy": "green", "succeeded": "green", "running": "cyan", "leased": "cyan", "degraded": "yellow",
    "draining": "yellow", "unhealthy": "red", "failed": "red", "timed_out": "red", "dead_lettered": "red",
    "offline": "bright_black", "cancelled": "bright_black", "expired": "bright_black",
}  # fmt: skip


def say(sentence: str) -> None:
    """Talk, on standard error."""
    click.echo(sentence, err=True)


def to_json(value: Any, *, compact: bool = False) -> str:
    """JSON text of a plain value."""
    if compact:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return json.dumps(value, ensure_ascii=False, indent=2)


def show_rows(
    rows: Sequence[Mapping[str, Any]], output: str, columns: Sequence[str], *, key: str = "id"
) -> None:
    """Print a list. `columns`: what the table shows; JSON has everything; `name` prints `key`."""
    if output == "json":
        click.echo(to_json(rows))
    elif output == "table":
        click.echo(table(rows, columns))
    else:
        for row in rows:
            click.echo(str(row[key]) if output == "name" else to_json(row, compact=True))


def show_one(row: Mapping[str, Any], output: str, *, key: str = "id") -> None:
    """Print one thing; the table has a line a field."""
    if output == "name":
        click.echo(str(row[key]))
    elif output == "table":
        width = max(len(name) for name in row)
        for name, value in row.items():
            if value not in (None, "", {}, []):
                click.echo(f"{name:<{width}}  {_paint(_text(value))}")
    else:
        click.echo(to_json(row, compact=output == "jsonl"))


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Left-aligned columns (numbers right-aligned) under upper-case titles."""
    cells = [[_text(row.get(name)) for name in columns] for row in rows]
    numeric = [
        bool(rows) and all(isinstance(row.get(name), (int, float)) for row in rows) for name in columns
    ]
    titles = [name.replace("_", " ").upper() for name in columns]
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    lines = []
    for line in (titles, *cells):
        padded = [
            f"{cell:>{width}}" if right else f"{cell:<{width}}"
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ]
        lines.append("  ".join(map(_paint, padded)).rstrip())
    return "\n".join(lines)


def _text(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, Mapping):
        return ",".join(f"{name}={part}" for name, part in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value)) or "-"
    return str(value)


def _paint(cell: str) -> str:
    from mesh.cli.options import colored  # options says things through this module

    color = _COLORS.get(cell.strip())
    return click.style(cell, fg=color) if color and colored() and sys.stdout.isatty() else cell
