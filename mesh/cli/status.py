"""`mesh status`: how a namespace or one task is doing."""

from __future__ import annotations

from typing import Any

import click

from mesh.cli import complete
from mesh.cli.commands import Command
from mesh.cli.options import open_mesh, output, remote, watch
from mesh.cli.show import duration, one_text, table, to_json
from mesh.cli.watching import present


@click.command("status", cls=Command)
@click.argument("task_id", required=False, metavar="[TASK]", shell_complete=complete.tasks)
@watch
@output
@remote
def command(task_id: str | None, watch: float | None, output: str) -> None:
    """Show the record of TASK; without it, the agents, queues and coordinators of the namespace.

    JSON without TASK: namespace, coordinators, leader (id, term), epoch (restored_at, unfinished, gone_back), keys
    (in_force, known, sealed_otherwise), agents
    (health: number), queues (name: {state: number, now in it for live states, ever ended in it for the others}), states.
    """
    with open_mesh() as mesh:

        def view() -> str:
            if task_id is not None:
                handle = mesh.handle(task_id)
                return one_text({**handle.record(), "progress": handle.progress()}, output)
            return _namespace_text(mesh.overview(), output)

        present(view, output, watch)


def _epoch_lines(epoch: dict[str, Any]) -> list[str]:
    """The last restore; what Redis has lost since."""
    lines = []
    if epoch.get("restored_at"):
        more = ", and interrupted: run mesh restore again" if epoch["unfinished"] else ""
        lines.append(f"restored      {epoch['restored_at']}{more}")
    if gone := epoch.get("gone_back"):
        far = f" by about {duration(gone['lost_ms'])}" if gone["lost_ms"] else ""
        lines.append(
            f"warning       Redis went back in time{far} ({gone['by']} at {gone['noticed_at']}): see mesh doctor"
        )
    return lines


def _key_lines(keys: dict[str, Any]) -> list[str]:
    """The key in force; during a rotation, who knows which, and what is still to be sealed anew."""
    if not keys.get("known"):
        return []
    lines = [f"signing key   {keys['in_force'] or 'none: no coordinator'}"]
    if len(keys["known"]) > 1:
        for kid, row in keys["known"].items():
            lines.append(f"  {kid:<12}known to {row['coordinators']} coordinators, {row['agents']} agents")
        if keys["sealed_otherwise"] is not None:
            lines.append(f"  {keys['sealed_otherwise']} waiting tasks are sealed with another key")
    return lines


def _namespace_text(view: dict[str, Any], output: str) -> str:
    if output == "name":
        return str(view["namespace"])
    if output != "table":
        return to_json(view, compact=output == "jsonl")
    leader = view["leader"]
    agents = ", ".join(f"{number} {status}" for status, number in view["agents"].items()) or "none"
    lines = [
        f"namespace     {view['namespace']}",
        f"coordinators  {', '.join(one['id'] for one in view['coordinators']) or 'none'}",
        f"leader        {leader['id'] + ' (term ' + str(leader['term']) + ')' if leader else 'none'}",
        f"agents        {agents}",
    ]
    lines += _key_lines(view["keys"] or {})
    lines += _epoch_lines(view["epoch"] or {})
    if view["queues"]:
        states = [state for state in view["states"] if any(state in row for row in view["queues"].values())]
        rows = [
            {"queue": name, **{state: row.get(state, 0) for state in states}}
            for name, row in view["queues"].items()
        ]
        lines += ["", table(rows, ["queue", *states], key="queue")]
    return "\n".join(lines)
