"""`mesh auth`: tokens for callers over HTTP, and for agents that join by it."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import click

from mesh.cli.commands import Group
from mesh.cli.options import common, load_settings, names
from mesh.cli.show import to_json
from mesh.core.policies import ACTIONS
from mesh.errors import Invalid, Refused

if TYPE_CHECKING:
    from mesh.core.tokens import Claims
    from mesh.settings import Settings

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
    if settings.was_set("redis_url"):  # tokens can be made where there is no mesh yet
        _record(settings, claims)
    if output == "table":
        click.echo(text)
        return
    shown = {
        name: getattr(claims, name)
        for name in ("kind", "jti", "subject", "agent_type", "namespaces", "capabilities")
    }
    click.echo(to_json({"token": text, **shown, "expires_at": iso(claims.expires_at * 1000)}))


def _record(settings: Settings, claims: Claims) -> None:
    from mesh.services import audit
    from mesh.store.store import Store

    store = Store(settings)
    try:
        who, where = audit.operator()
        for namespace in claims.namespaces:
            audit.tell(
                store, subject=who, source=where, action="issue token", namespace=namespace,
                object=f"token {claims.jti} for {claims.subject}", why=f"{claims.kind}, type {claims.agent_type}",
            )  # fmt: skip
    finally:
        store.close()


@group.command("explain")
@click.argument("token")
@click.argument("action", type=click.Choice(tuple(ACTIONS)))
@click.argument("thing", required=False, metavar="[OBJECT]")
@common
def explain_command(token: str, action: str, thing: str | None) -> None:
    """Say whether TOKEN allows ACTION in the namespace, and by which row of the policies, or which right is missing.

    OBJECT is a capability (register), a task type (submit), one of audit, dead-letters, restore, tokens (administer), or
    own or any: whose task or agent it is (read, cancel, drain; any by default). TOKEN - is read from standard input. It goes
    by the policies of this place (MESH_POLICY_FILE). Exit code 0 if it is allowed, else 4.
    """
    from mesh.cli.token import given, why_not
    from mesh.core import tokens
    from mesh.core.policies import Object, decide

    settings = load_settings()
    text = given(token)
    kind, _, _ = tokens.unverified(text)
    allowed, why = False, why_not(settings, kind, text)
    if not why and kind is not None:
        claims = tokens.verify(kind, text, settings.keyring, now_s=time.time())
        own = _is_own(action, thing)
        name = "" if own is not None else thing or ""
        asked = Object(namespace=settings.namespace, name=name, owner=claims.subject if own else None)
        decision = decide(settings.policies, claims, action, asked)
        allowed, why = decision.allowed, decision.why
        if kind != _SHOWN[action]:
            allowed, why = (
                False,
                f"{action} takes a token of kind {_SHOWN[action]}, and this is one of kind {kind}",
            )
    click.echo(f"{'allowed' if allowed else 'refused'}: {why}.")
    if not allowed:
        raise click.exceptions.Exit(Refused.exit_code)


_SHOWN = {action: "join" if action == "register" else "api" for action in ACTIONS}


def _is_own(action: str, thing: str | None) -> bool | None:
    """Whether the thing belongs to the caller; None: the action is about a name."""
    if action not in ("read", "cancel", "drain"):
        if not thing:
            raise Invalid(f"`mesh auth explain` needs the OBJECT: what to {action}.")
        return None
    if thing not in (None, "own", "any"):
        raise Invalid(f"OBJECT of {action} is own or any, not {thing!r}.")
    return thing == "own"
