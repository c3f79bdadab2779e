"""How data is printed: tables for people, JSON for programs, names for shells.

Each function makes a text, so that `--watch` can print it again and again. What tasks and agents say of themselves
reaches a terminal only with its control characters spelled out.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from mesh.core.durations import duration

__all__ = ["clean", "duration", "line", "one_text", "rows_text", "say", "table", "to_json"]

_COLORS = {
    "healthy": "green", "succeeded": "green", "ok": "green", "running": "cyan", "leased": "cyan",
    "degraded": "yellow", "draining": "yellow", "cordoned": "yellow", "warn": "yellow", "unhealthy": "red",
    "failed": "red", "timed_out": "red", "dead_lettered": "red", "fail": "red", "offline": "bright_black",
    "cancelled": "bright_black", "expired": "bright_black",
}  # fmt: skip
_NARROWEST = 8  # a column is not cut below that


def say(sentence: str) -> None:
    """Talk, on standard error."""
    click.echo("\n".join(map(clean, sentence.split("\n"))), err=True)


def to_json(value: Any, *, compact: bool = False) -> str:
    """JSON text of a plain value."""
    if compact:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    else:
        text = json.dumps(value, ensure_ascii=False, indent=2)
    # JSON allows these, some terminals obey them.
    return re.sub(r"[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text)


def rows_text(
    rows: Sequence[Mapping[str, Any]], output: str, columns: Sequence[str], *, key: str = "id"
) -> str:
    """A list. `columns`: what the table shows; JSON has everything; `name` is `key`. '' if there is nothing to print."""
    if output == "json":
        return to_json(list(rows))
    if output == "table":
        return table(rows, columns, key=key) if rows else ""
    return "\n".join(str(row[key]) if output == "name" else to_json(row, compact=True) for row in rows)


def one_text(row: Mapping[str, Any], output: str, *, key: str = "id") -> str:
    """One thing; the table has a line a field, and a table of its own for a field that is a list of things."""
    if output == "name":
        return str(row[key])
    if output != "table":
        return to_json(row, compact=output == "jsonl")
    shown = {name: value for name, value in row.items() if value not in (None, "", {}, [])}
    width = max((len(_title(name)) for name in shown), default=0)
    lines = []
    for name, value in shown.items():
        if isinstance(value, list) and all(isinstance(one, Mapping) for one in value):
            inner = table(value, list(value[0]), key=next(iter(value[0])), indent=2)
            lines.append(f"{_title(name)}\n{inner}")
        else:
            first, *more = _cell(name, value).split("\n")
            lines.append(f"{_title(name):<{width}}  {_paint(clean(first))}")
            lines += [f"{'':<{width}}  {clean(line)}" for line in more]
    return "\n".join(lines)


def table(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, key: str = "", indent: int = 0
) -> str:
    """Left-aligned columns (numbers right-aligned) under upper-case titles.

    On a terminal that is too narrow the widest columns are cut, but never `key`, and the last ones are left out; elsewhere
    nothing is. Fields whose names end with `_ms` are shown as durations, those with `_at` to the second.
    """
    cells = [[clean(_cell(name, row.get(name))) for name in columns] for row in rows]
    numeric = [bool(rows) and all(_is_number(row.get(name)) for row in rows) for name in columns]
    titles = [_title(name).upper() for name in columns]
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    if sys.stdout.isatty():
        fixed = columns.index(key) if key in columns else -1
        widths = _fit(widths, shutil.get_terminal_size().columns - indent, fixed)
    lines = []
    for line in (titles, *cells):
        padded = [
            f"{_cut(cell, width):>{width}}" if right else f"{_cut(cell, width):<{width}}"
            for cell, width, right in zip(line, widths, numeric, strict=False)  # as many as there are widths
        ]
        lines.append(" " * indent + "  ".join(map(_paint, padded)).rstrip())
    return "\n".join(lines)


def line(status: str, what: str, text: str) -> str:
    """One line of a report."""
    return f"{_paint(f'{status:<4}')}  {clean(what):<16}  {clean(text)}".rstrip()


def _fit(widths: list[int], room: int, fixed: int) -> list[int]:
    """The widths of the columns that `room` has a place for."""
    widths = list(widths)
    while sum(widths) + 2 * (len(widths) - 1) > room:
        at = max((at for at in range(len(widths)) if at != fixed), key=widths.__getitem__, default=fixed)
        if at != fixed and widths[at] > _NARROWEST:
            widths[at] -= 1
        elif len(widths) > 2:
            widths.pop()
        else:
            break
    return widths


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _title(name: str) -> str:
    for ending in ("_ms", "_at"):
        name = name.removesuffix(ending)
    return name.replace("_", " ")


def _cell(name: str, value: Any) -> str:
    if value is None or value == "":
        return "-"
    if name.endswith("_ms") and _is_number(value):
        return duration(value)
    if name.endswith("_at") and isinstance(value, str):
        return re.sub(r"\.\d+\+00:00$", "Z", value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        flat = all(not isinstance(part, (Mapping, list)) for part in value.values())
        return (",".join(f"{one}={part}" for one, part in value.items()) if flat else to_json(value)) or "-"
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value)) or "-"
    return str(value)


def clean(text: str) -> str:
    """The text with its control characters spelled out."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _paint(cell: str) -> str:
    from mesh.cli.options import colored  # options says things through this module

    color = _COLORS.get(cell.strip())
    return click.style(cell, fg=color) if color and colored() and sys.stdout.isatty() else cell
