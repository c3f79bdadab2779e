"""`mesh top`: a namespace at work, drawn anew every two seconds."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from mesh.cli.commands import Command
from mesh.cli.options import WATCH_S, open_mesh, output, remote
from mesh.cli.show import table, to_json
from mesh.cli.watching import present, until_key
from mesh.core.durations import duration
from mesh.core.top import between

_HEAD = 4  # lines above the tables
#: List of the frame -> the columns of its table.
_TABLES = {
    "queues": (
        "queue", "depth", "oldest_age_ms", "running", "ended_per_s", "failed_per_s", "wait_mean_ms", "wait_p95_ms",
        "run_mean_ms", "run_p95_ms",
    ),
    "capabilities": ("capability", "agents", "slots", "free_slots", "backlog"),
    "agents": ("id", "status", "cordoned", "running", "slots", "region", "capabilities", "silent_ms"),
    "failures": ("ended_at", "state", "type", "agent", "id", "error"),
}  # fmt: skip
_KEYS = {"queues": "queue", "capabilities": "capability", "agents": "id", "failures": "id"}


@click.command("top", cls=Command)
@click.option("--interval", type=click.FloatRange(min=0.1), metavar="S", default=WATCH_S, show_default=True,
              help="Seconds from one frame to the next.")  # fmt: skip
@click.option("--once", is_flag=True, help="Print one frame, of what happens within the interval, and end.")
@output
@remote
def command(interval: float, once: bool, output: str) -> None:
    """Watch a namespace: agents, queues, capabilities with free slots, throughput, times and failures. q quits.

    Rates and times are those of the last interval. Lists have what needs looking after first; on a terminal as much as fits.
    JSON, an object a frame: namespace, at_ms, interval_ms, health (agents by it), cordoned, slots, busy, totals, all (all queues
    together), queues, capabilities, agents, failures.
    """
    with open_mesh() as mesh:
        before: Mapping[str, Any] | None = mesh.top() if once else None

        def view() -> str:
            nonlocal before
            now = mesh.top()
            frame, before = between(before, now), now
            return _text(frame, output)

        if once:
            time.sleep(interval)
            click.echo(view())
            return
        with until_key(b"q") as pause:
            present(view, output, interval, pause=pause)


def _text(frame: Mapping[str, Any], output: str) -> str:
    if output == "name":
        return str(frame["namespace"])
    if output != "table":
        return to_json(frame, compact=output == "jsonl")
    lines = _head(frame)
    lists = {name: frame[name] for name in _TABLES if frame[name]}
    room = shutil.get_terminal_size().lines - _HEAD - 2 * len(lists) if sys.stdout.isatty() else sys.maxsize
    for name, most in zip(lists, shares([len(rows) for rows in lists.values()], room), strict=True):
        total = frame["totals"].get(name, len(lists[name]))
        shown = lists[name][: most if total <= most else max(1, most - 1)]
        lines += ["", table(shown, _TABLES[name], key=_KEYS[name])]
        if total > len(shown) and most > 1:
            lines.append(f"... and {total - len(shown)} more")
    return "\n".join(lines)


def shares(wanted: Sequence[int], room: int) -> list[int]:
    """How many lines each gets of `room`: those that want most are cut first, none below one."""
    given = list(wanted)
    while sum(given) > room and max(given, default=1) > 1:
        given[given.index(max(given))] -= 1
    return given


def _head(frame: Mapping[str, Any]) -> list[str]:
    every = frame["all"]
    agents = ", ".join(f"{number} {status}" for status, number in frame["health"].items()) or "none"
    cordoned = f", {frame['cordoned']} cordoned" if frame["cordoned"] else ""
    oldest = f" (the oldest for {_time(every['oldest_age_ms'])})" if every["depth"] else ""
    since = f"in the last {_time(frame['interval_ms'])}" if frame["interval_ms"] is not None else "so far"
    keys = "   q: quit" if sys.stdout.isatty() and sys.stdin.isatty() else ""
    return [
        f"{frame['namespace']}   {since}{keys}",
        f"agents  {agents}{cordoned}; {frame['busy']} of {frame['slots']} slots busy",
        f"tasks   {every['depth']} wait{oldest}, {every['running']} run, {every['scheduled']} are scheduled; "
        f"{_number(every['ended_per_s'])} end a second, {_number(every['failed_per_s'])} of them not well",
        f"times   wait {_time(every['wait_mean_ms'])} (95 %: {_time(every['wait_p95_ms'])}), "
        f"run {_time(every['run_mean_ms'])} (95 %: {_time(every['run_p95_ms'])})",
    ]


def _time(ms: float | None) -> str:
    return "-" if ms is None else duration(ms)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
