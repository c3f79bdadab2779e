"""Writes into the documentation, and into files of deploy/, what is kept in one table of the sources.

Run it as `python docs/generate.py`.

A test fails when one is behind its table.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import yaml

from mesh.cli.run import EXIT_CODES, group
from mesh.coordinator.app import create_app
from mesh.coordinator.front import Front
from mesh.coordinator.service import Coordinator
from mesh.core.policies import ACTIONS, DEFAULT_POLICIES
from mesh.core.redis_rights import acl_file
from mesh.core.states import CELERY_STATUS, RULES, State
from mesh.settings import TABLE, Settings
from mesh.tasks import data_processing, task_execution
from mesh.telemetry.alerts import ALERTS, RECORDS, rules
from mesh.telemetry.dashboard import ROWS, dashboard
from mesh.telemetry.metrics import TABLE as METRICS

DOCS = Path(__file__).resolve().parent


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _names(states: Iterable[State]) -> str:
    chosen = set(states)
    return " ".join(f"`{state}`" for state in State if state in chosen) or "(nothing)"


def states() -> str:
    """The moves of a task, and Celery's word for each state."""
    lines = ["| move | from | to | only its holder | when |", "|---|---|---|---|---|"]
    for verb, rule in RULES.items():
        holder = "yes" if rule.fenced else ""
        lines.append(_row((f"`{verb}`", _names(rule.sources), _names(rule.targets), holder, rule.meaning)))
    lines += ["", "| state | in Celery |", "|---|---|"]
    lines += [_row((f"`{state}`", word)) for state, word in CELERY_STATUS.items()]
    return "\n".join(lines)


def exit_codes() -> str:
    """What the exit codes of `mesh` mean."""
    rows = [_row((str(code), meaning)) for code, meaning in EXIT_CODES.items()]
    return "\n".join(["| exit code | meaning |", "|---|---|", *rows])


def common_options() -> str:
    """The options that every command of `mesh` takes."""
    ctx = click.Context(group, info_name="mesh", **group.context_settings)
    return _options(ctx, [param for param in group.get_params(ctx) if param.name != "version"])


def commands() -> str:
    """Every command of `mesh`: its usage, what it does, and the options of its own."""
    root = click.Context(group, info_name="mesh", **group.context_settings)
    shared = {param.name for param in group.get_params(root)}
    parts = []
    for ctx in _walk(root):
        usage = " ".join([ctx.command_path, *ctx.command.collect_usage_pieces(ctx)])
        parts += [f"### `{ctx.command_path}`", f"```text\n{usage}\n```", _help(ctx.command)]
        own = [param for param in ctx.command.get_params(ctx) if param.name not in shared]
        table = _options(ctx, own)
        parts += [table] if table else []
    return "\n\n".join(parts)


def _walk(ctx: click.Context) -> Iterator[click.Context]:
    assert isinstance(ctx.command, click.Group)
    for name in ctx.command.list_commands(ctx):
        command = ctx.command.get_command(ctx, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=ctx)
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield inner
        if isinstance(command, click.Group):
            yield from _walk(inner)


def _help(command: click.Command) -> str:
    """The paragraphs of a help text; one that is laid out by hand stays so."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    laid_out = [
        f"```text\n{part.removeprefix(chr(8)).strip(chr(10))}\n```" if part.startswith("\b") else part
        for part in paragraphs
    ]
    return "\n\n".join(laid_out)


def _options(ctx: click.Context, params: Iterable[click.Parameter]) -> str:
    records = [param.get_help_record(ctx) for param in params]
    rows = [
        _row((f"`{names}`".replace("|", "\\|"), " ".join(text.replace("|", "\\|").split())))
        for names, text in filter(None, records)
        if text
    ]
    return "\n".join(["| option | meaning |", "|---|---|", *rows]) if rows else ""


def settings() -> str:
    """Every setting: its variable, its place in the file, its default."""
    lines = ["| variable | in the file | default | unit | why |", "|---|---|---|---|---|"]
    for row in TABLE:
        names = ", ".join(f"`{name}`" for name in row.env)
        default = f"`{row.default}`" if row.default else ""
        lines.append(_row((names, f"`{row.path}`", default, row.unit, row.why.replace("|", "\\|"))))
    return "\n".join(lines)


def routes() -> str:
    """Every route of the HTTP API: its parameters, an example of what it takes and of what it answers."""
    coordinator = Coordinator(Settings(), port=1, complete_chords=lambda groups: None)
    document = create_app(Front(coordinator)).openapi()
    parts = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts += [f"### {operation['summary']}", f"```text\n{method.upper()} {path}\n```"]
            if operation.get("description"):
                parts.append(" ".join(operation["description"].split()))
            rows = [
                _row((f"`{one['name']}`", one["in"], " ".join(one.get("description", "").split())))
                for one in operation.get("parameters", [])
                if one["name"] != "namespace"
            ]
            if rows:
                parts.append("\n".join(["| parameter | in | meaning |", "|---|---|---|", *rows]))
            body = _example(operation.get("requestBody", {}))
            if body is not None:
                parts.append(f"takes\n\n```json\n{json.dumps(body, indent=1)}\n```")
            for code, answer in operation["responses"].items():
                shown = _example(answer) if code.startswith("2") else None
                if shown is not None:
                    parts.append(f"{code}\n\n```json\n{json.dumps(shown, indent=1)}\n```")
    return "\n\n".join(parts)


def _example(part: dict[str, Any]) -> Any:
    """The first example of a body or an answer."""
    for content in part.get("content", {}).values():
        if "example" in content:
            return content["example"]
        for example in content.get("examples", {}).values():
            return example["value"]
    return None


def payload_keys(schema: dict[str, Any]) -> Callable[[], str]:
    """The keys of a task type's payload."""

    def make() -> str:
        lines = ["| key | meaning | default |", "|---|---|---|"]
        for name, row in schema["properties"].items():
            default = json.dumps(row["default"]) if "default" in row else ""
            words = row.get("description", "")
            if "enum" in row:
                words += f" One of {', '.join(map(str, row['enum']))}."
            lines.append(_row((f"`{name}`", words, default)))
        return "\n".join(lines)

    return make


def metric_table() -> str:
    """Every metric."""
    rows = [
        _row((f"`{row.full_name}`", row.kind, " ".join(f"`{one}`" for one in row.labels), row.of, row.help))
        for row in METRICS
    ]
    return "\n".join(["| metric | kind | labels | of | meaning |", "|---|---|---|---|---|", *rows])


def alert_rules() -> str:
    """The rules of Prometheus."""
    text: str = yaml.safe_dump(rules(), sort_keys=False, width=1000, allow_unicode=True)
    return text


def grafana_dashboard() -> str:
    """The dashboard that Grafana imports."""
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


def dashboard_rows() -> str:
    """What each row of the dashboard answers, and by which panels."""
    rows = [
        _row((f"**{row.title}**", row.answers, "; ".join(one.title for one in row.panels))) for row in ROWS
    ]
    return "\n".join(["| row | answers | panels |", "|---|---|---|", *rows])


def runbooks() -> str:
    """A section for each alert."""
    parts = []
    for one in ALERTS:
        steps = "\n".join(f"{number}. {step}" for number, step in enumerate(one.steps, 1))
        says = re.sub(r"{{ \$(?:labels\.)?(\w+).*?}}", r"*\1*", one.says)
        held = f" for {one.for_s} s" if one.for_s else ""
        expr = one.expr.replace("{window}", f"{one.window_s}s")
        parts.append(
            f"### {one.name}\n\n**{one.severity}**: {says}\n\n```promql\n{expr}\n```\n\nHolds{held}. {one.causes}\n\n{steps}"
        )
    return "\n\n".join(parts)


def records() -> str:
    """The recording rules."""
    rows = [_row((f"`{one.name}`", one.help)) for one in RECORDS]
    return "\n".join(["| series | meaning |", "|---|---|", *rows])


#: (page, marker): what stands between `<!-- marker -->` and `<!-- end of marker -->`.
def policies() -> str:
    """What the shipped table allows."""
    table = json.loads(DEFAULT_POLICIES.read_text(encoding="utf-8"))
    lines = [_row(("agent type", *(f"`{one}`" for one in ACTIONS), "for")), "|---" * (len(ACTIONS) + 2) + "|"]
    for agent_type, spaces in table.items():
        for rights in spaces.values():
            cells = []
            for action in ACTIONS:
                value = rights.get(action, "")
                cells.append(
                    " ".join(f"`{one}`" for one in ([value] if isinstance(value, str) else value) if one)
                )
            lines.append(_row((f"`{agent_type}`", *cells, rights["why"])))
    return "\n".join(lines)


SECTIONS: dict[tuple[str, str], Callable[[], str]] = {
    ("how-it-works.md", "states"): states,
    ("reference/cli.md", "exit codes"): exit_codes,
    ("reference/cli.md", "common options"): common_options,
    ("reference/cli.md", "commands"): commands,
    ("reference/settings.md", "settings"): settings,
    ("reference/api.md", "routes"): routes,
    ("security.md", "policies"): policies,
    ("metrics.md", "metrics"): metric_table,
    ("metrics.md", "records"): records,
    ("alerts.md", "runbooks"): runbooks,
    ("grafana.md", "rows"): dashboard_rows,
    ("task-types.md", "task-execution"): payload_keys(task_execution.PAYLOAD_SCHEMA),
    ("task-types.md", "data-processing"): payload_keys(data_processing.PAYLOAD_SCHEMA),
}


def filled(page: str, text: str) -> str:
    """The page's text with all its generated sections as they should be."""
    for (name, marker), make in SECTIONS.items():
        if name == page:
            head, begin, rest = text.partition(f"<!-- {marker} -->\n")
            _, end, tail = rest.partition(f"<!-- end of {marker} -->")
            if not (begin and end):
                raise ValueError(f"{page} has no section {marker!r}")
            text = f"{head}{begin}{make()}\n{end}{tail}"
    return text


#: File of the repository -> its whole text.
FILES: dict[str, Callable[[], str]] = {
    "deploy/redis/users.acl": acl_file,
    "deploy/prometheus/rules.yml": alert_rules,
    "deploy/grafana/agent-mesh.json": grafana_dashboard,
}


def main() -> None:
    """Rewrite all pages and files."""
    for name, make in FILES.items():
        (DOCS.parent / name).write_text(make(), encoding="utf-8")
    for page in {name for name, _ in SECTIONS}:
        path = DOCS / page
        path.write_text(filled(page, path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
