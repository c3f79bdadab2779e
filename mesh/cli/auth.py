"""`mesh auth`: tokens for callers over HTTP, and for agents that join by it."""

from __future__ import annotations

import re

import click

from mesh.cli.commands import Group
from mesh.cli.options import common, load_settings, names
from mesh.cli.show import to_json

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


class Ttl(click.ParamType[int]):
    """`3600`, `90s`, `30m`, `12h` or `7d`, as seconds."""

    name = "ttl"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of seconds."""
        match = re.fullmatch(r"([0-9]{1,9})([smhd]?)", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a time like 3600, 30m, 12h or 7d.", param, ctx)
        return int(match[1]) * _UNITS[match[2]]


@click.group("auth", cls=Group, invoke_without_command=True)
@click.option("--agent-id", metavar="NAME", help="Whom the token names; audit and policies know him by it.")
@click.option(
    "--agent-type", metavar="TYPE", help="What he may do, a row of the policies: worker, producer, viewer ..."
)
@click.option("--all-namespaces", is_flag=True, help="For every namespace, not only for that of -n.")
@click.option("--capabilities", metavar="A,B", help="What an agent may register with it at most.")
@click.option(
    "--ttl",
    type=Ttl(),
    metavar="TIME",
    help="How long it is valid: 3600, 30m, 12h, 7d [MESH_JWT_EXPIRES_IN_S].",
)
@click.option("--join", is_flag=True, help="A join token: an agent that has no Redis address joins with it.")
@click.option("-o", "--output", type=click.Choice(("table", "json")), default="table", show_default=True,
              help="The token alone, or with what it says.")  # fmt: skip
@common
@click.pass_context
def group(
    ctx: click.Context,
    agent_id: str | None,
    agent_type: str | None,
    all_namespaces: bool,
    capabilities: str | None,
    ttl: int | None,
    join: bool,
    output: str,
) -> None:
    """Print an API token for callers of the HTTP API, or with --join a join token.

    Whoever has the token is the one that it names, until it ends: `mesh token revoke` ends it sooner. Wants
    MESH_JWT_SECRET. JSON: token, kind, jti, subject, agent_type, namespaces, capabilities, expires_at.
    """
    if ctx.invoked_subcommand is not None:
        return
    if not agent_id or not agent_type:
        raise click.UsageError("--agent-id and --agent-type say whom the token is for.", ctx)
    from mesh.services import tokens
    from mesh.services.views import iso

    settings = load_settings()
    text, claims = tokens.issue(
        settings,
        "join" if join else "api",
        subject=agent_id,
        agent_type=agent_type,
        namespaces=["*"] if all_namespaces else [settings.namespace],
        capabilities=None if capabilities is None else names(capabilities),
        ttl_s=ttl,
    )
    if output == "table":
        click.echo(text)
        return
    shown = {
        name: getattr(claims, name)
        for name in ("kind", "jti", "subject", "agent_type", "namespaces", "capabilities")
    }
    click.echo(to_json({"token": text, **shown, "expires_at": iso(claims.expires_at * 1000)}))
