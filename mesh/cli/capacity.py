"""`mesh capacity`: what to add, and what waits would be with other agents."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import click

from mesh.cli import complete
from mesh.cli.commands import Command
from mesh.cli.options import names, open_mesh, output, remote, watch
from mesh.cli.show import clean, table, to_json
from mesh.cli.watching import present
from mesh.core.durations import duration

COLUMNS = (
    "requirement", "backlog", "oldest_age_ms", "running", "mean_run_ms", "agents", "slots", "free_slots", "slots_wanted",
    "agents_to_add",
)  # fmt: skip
_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600}
_LONGEST_S = 86_400


class Within(click.ParamType[int]):
    """A time as `90s`, `5m` or `1h`. Converted to seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Seconds."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d{1,6})([smh]?)", value)
        seconds = int(found[1]) * _UNITS_S[found[2]] if found else 0
        if not 1 <= seconds <= _LONGEST_S:
            self.fail(f"{value!r} is not a time from 1s to 24h: write 90s, 5m or 1h.", param, ctx)
        return seconds


WAITS = (
    "requirement", "tasks", "unserved", "was_p50_ms", "was_p95_ms", "was_max_ms", "would_p50_ms", "would_p95_ms",
    "would_max_ms",
)  # fmt: skip
_LEFT_OUT = {
    "gone": "without a record", "unfinished": "had not ended", "never_started": "never started",
    "earlier_attempts": "earlier attempts", "strategies": "were placed by a strategy",
}  # fmt: skip


@click.command("capacity", cls=Command)
@click.option("--within", type=Within(), metavar="TIME", default="5m", show_default=True,
              help="The time in which what waits is to have started: 90s, 5m, 1h.")  # fmt: skip
@click.option(
    "--replay",
    is_flag=True,
    help="How long the newest tasks would have waited with the agents there are, or with those of the next options.",
)
@click.option(
    "--agents", type=click.IntRange(0, 100_000), metavar="N", help="With --replay: N agents, as big as now."
)
@click.option(
    "--slots",
    type=click.IntRange(0, 1_000_000),
    metavar="N",
    help="With --replay: N slots, shared out as now.",
)
@click.option(
    "--without-region",
    metavar="NAME",
    shell_complete=complete.regions,
    help="With --replay: no agent of that region.",
)
@click.option(
    "--requires",
    metavar="A,B",
    shell_complete=complete.capabilities,
    help="With --agents or --slots: of the agents that offer these; the others stay as they are.",
)
@watch
@output
@remote
def command(
    within: int,
    replay: bool,
    agents: int | None,
    slots: int | None,
    without_region: str | None,
    requires: str | None,
    watch: float | None,
    output: str,
) -> None:  # fmt: skip
    """What to add: agents, so that what waits has started within a time; coordinators.

    A row is a requirement: what needs gpu+ocr is not served by one agent with gpu and another with ocr. Slots wanted: backlog x
    mean run / time, of about the last 100 runs. JSON: what GET .../capacity answers.

    --replay simulates the recorded arrivals and run times of the newest 3,000 tasks, by the mesh's rules of who takes what.
    JSON: what GET .../capacity/replay answers.
    """
    change: dict[str, Any] = {
        "agents": agents,
        "slots": slots,
        "without_region": without_region,
        "requires": names(requires),
    }
    given = [name for name, value in change.items() if value not in (None, [])]
    if given and not replay:
        raise click.UsageError(f"--{given[0].replace('_', '-')} goes with --replay.")
    with open_mesh() as mesh:
        if replay:
            present(lambda: _waits(mesh.replayed(**change), output), output, watch)
        else:
            present(lambda: _text(mesh.capacity(within_s=within), output), output, watch)


def _text(told: Mapping[str, Any], output: str) -> str:
    rows = told["requirements"]
    if output == "name":
        return "\n".join(row["requirement"] for row in rows)
    if output != "table":
        return to_json(told, compact=output == "jsonl")
    parts = [table(rows, COLUMNS, key="requirement")] if rows else ["No work, and none that agents have run."]
    if told["total"] > len(rows):
        parts[0] += f"\n... and {told['total'] - len(rows)} more"
    do = [f"{row['requirement']}: {row['advice']}" for row in rows if row["advice"]]
    do += [told["advice"]] if told["advice"] else []
    enough = f"Enough: what waits starts within {duration(told['within_s'] * 1000)}."
    parts.append("\n".join(["What to do:", *(f"- {clean(one)}" for one in do)]) if do else enough)
    parts.append(
        f"{told['namespace']}: {_many(told['agents'], 'agent')}, {_many(told['coordinators'], 'coordinator')} "
        f"({told['size']}: {_many(told['agents_each'], 'agent')} each), {_many(told['backlog'], 'waiting task')}."
    )
    return "\n\n".join(parts)


def _waits(told: Mapping[str, Any], output: str) -> str:
    rows = told["requirements"]
    if output == "name":
        return "\n".join(row["requirement"] for row in rows)
    if output != "table":
        return to_json(told, compact=output == "jsonl")
    if not rows:
        return "No task has ended of which a record is kept."
    shown = (
        WAITS if any(row["unserved"] for row in rows) else tuple(one for one in WAITS if one != "unserved")
    )
    parts = [table(rows, shown, key="requirement")]
    if told["total"] > len(rows):
        parts[0] += f"\n... and {told['total'] - len(rows)} more"
    unserved = [row["requirement"] for row in rows if row["unserved"]]
    if unserved:
        parts.append(f"Nobody would take tasks of {clean(', '.join(unserved))}.")
    parts.append(
        f"Replayed: {_many(told['tasks'], 'task')} of {told['from_at']} to {told['until_at']}, on {_many(told['slots'], 'slot')}."
    )
    counted = [
        f"{told['left_out'][name]} {what}" for name, what in _LEFT_OUT.items() if told["left_out"][name]
    ]
    sentences = [*told["leaves_out"], *([f"Here: {', '.join(counted)}."] if counted else [])]
    parts.append("\n".join(["Left out:", *(f"- {one}" for one in sentences)]))
    return "\n\n".join(parts)


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
