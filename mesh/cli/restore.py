"""`mesh restore`: the registry from its backup, and what becomes of the tasks of a restored Redis."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from mesh.cli.commands import Command
from mesh.cli.options import open_mesh, output, remote
from mesh.cli.show import one_text, say, table, to_json
from mesh.errors import Invalid

_SHOWN = 20


@click.command("restore", cls=Command)
@click.option(
    "--file",
    "name",
    required=True,
    metavar="FILE",
    help="What `mesh discover -o json` printed; - is standard input.",
)
@click.option("--tasks", type=click.Choice(("fail", "requeue")),
              help="Tasks that had not ended: all fail (the default), or those that agents held run again.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@output
@remote
def command(name: str, tasks: str | None, dry_run: bool, yes: bool, output: str) -> None:
    """Restore the registry of a namespace from FILE, after Redis was restored from its backup.

    Shows first what differs, then asks. Agents of FILE come back as offline; those that beat now are left alone. No lease and no
    attempt of before counts any more. Tasks that had not ended are failed with the reason `restored`, or queued again, and
    listed: -o json has all of them. If it is interrupted, run it again: it goes on.
    """
    with open_mesh() as mesh:
        agents = _read(name, mesh.settings.namespace)
        planned = mesh.restore(agents, tasks=tasks, dry_run=True)
        if dry_run:
            click.echo(_text(planned, output))
            return
        if not yes:
            if not sys.stdin.isatty() or name == "-":
                raise click.UsageError(
                    "This changes the namespace: look at --dry-run, then add --yes.",
                    click.get_current_context(),
                )
            say(_text(planned, "table"))
            if not click.confirm("Go on?", err=True):
                say("Nothing was changed.")
                return
        click.echo(_text(mesh.restore(agents, tasks=tasks), output))


def _read(name: str, namespace: str) -> list[dict[str, Any]]:
    """The agents in the file, looked through. Raises `Invalid`."""
    import msgspec

    from mesh.services.restore import read_backup  # `mesh restore --help` does without

    try:
        raw = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise Invalid(f"{name} cannot be read: {error.strerror}.") from error
    read_backup(raw, namespace, "Standard input" if name == "-" else name)
    rows: list[dict[str, Any]] = msgspec.json.decode(raw)
    return rows


def _text(report: dict[str, Any], output: str) -> str:
    if output in ("json", "jsonl"):
        return to_json(report, compact=output == "jsonl")
    if output == "name":
        return "\n".join(row["id"] for row in report["tasks"]["list"])
    return "\n".join([*_agents_lines(report), *_tasks_lines(report)])


def _agents_lines(report: dict[str, Any]) -> list[str]:
    agents = report["agents"]
    titles = {
        "add": "to add" if report["dry_run"] else "added",
        "change": "to change" if report["dry_run"] else "changed",
        "unchanged": "unchanged",
        "live": "live, left alone",
        "not_in_file": "not in the file",
    }
    rows: dict[str, Any] = {}
    for key, title in titles.items():
        ids = [one["id"] if isinstance(one, dict) else one for one in agents[key]]
        if ids:
            more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
            rows[f"agents {title}"] = f"{len(ids)}: {', '.join(ids[:_SHOWN])}{more}"
    lines = [one_text(rows, "table")] if rows else ["agents  none"]
    for one in agents["change"][:_SHOWN]:
        for field, both in one["fields"].items():
            lines.append(f"  {one['id']} {field}: {_plain(both['from'])} -> {_plain(both['to'])}")
    return lines


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{name}={one}" for name, one in value.items()) or "none"
    return ",".join(map(str, value)) or "none" if isinstance(value, (list, tuple)) else str(value)


def _tasks_lines(report: dict[str, Any]) -> list[str]:
    tasks, would = report["tasks"], "would be " if report["dry_run"] else ""
    done = f"{would}failed" if tasks["policy"] == "fail" else f"{would}queued again if held"
    if not tasks["list"]:
        return ["tasks   none that had not ended"]
    again = ", by the policy of the restore that this goes on with" if report["continues"] else ""
    states = sorted({state for row in tasks["types"].values() for state in row})
    rows = [
        {"type": name, **{state: row.get(state, 0) for state in states}}
        for name, row in tasks["types"].items()
    ]
    lines = ["", f"{len(tasks['list'])} tasks had not ended, and {'' if would else 'were '}{done}{again}:"]
    lines += [table(rows, ["type", *states], key="type"), ""]
    lines.append(table(tasks["list"][:_SHOWN], ["id", "type", "state", "agent", "now"], key="id"))
    if len(tasks["list"]) > _SHOWN:
        lines.append(f"and {len(tasks['list']) - _SHOWN} more: -o json has all")
    return lines
