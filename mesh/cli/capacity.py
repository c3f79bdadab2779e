"""`mesh capacity`: what to add."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import click

from mesh.cli.commands import Command
from mesh.cli.options import open_mesh, output, remote, watch
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


@click.command("capacity", cls=Command)
@click.option("--within", type=Within(), metavar="TIME", default="5m", show_default=True,
              help="The time in which what waits is to have started: 90s, 5m, 1h.")  # fmt: skip
@watch
@output
@remote
def command(within: int, watch: float | None, output: str) -> None:
    """What to add: agents, so that what waits has started within a time; coordinators.

    A row is a requirement: what needs gpu+ocr is not served by one agent with gpu and another with ocr. Slots wanted: backlog x
    mean run / time, of about the last 100 runs. JSON: what GET .../capacity answers.
    """
    with open_mesh() as mesh:
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


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
