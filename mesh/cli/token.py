"""`mesh token`: what a token says, whether it is valid, and how to end one before its time."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from mesh.cli.commands import Group
from mesh.cli.options import common, load_settings
from mesh.cli.show import one_text, say
from mesh.errors import Invalid, StoreUnavailable, Unauthenticated

if TYPE_CHECKING:
    from mesh.core.tokens import Claims
    from mesh.settings import Settings

_TIMES = {"iat": "issued_at", "nbf": "not_before_at", "exp": "expires_at"}


@click.group("token", cls=Group)
def group() -> None:
    """Look into tokens, revoke them."""


@group.command("inspect")
@click.argument("token", required=False)
@click.option("-o", "--output", type=click.Choice(("table", "json")), default="table", show_default=True,
              help="How to print.")  # fmt: skip
@common
def inspect_command(token: str | None, output: str) -> None:
    """Show what TOKEN says, and whether it is valid. Without TOKEN, or with -, it is read from standard input.

    JSON: valid, why (not), kind, kid, claims. Exit code 0 if it is valid, else 4.
    """
    from mesh.core import tokens

    text = given(token)
    kind, header, claims = tokens.unverified(text)
    why = why_not(load_settings(), kind, text)
    if output == "json":
        shown: dict[str, Any] = {
            "valid": not why,
            "why": why or None,
            "kind": kind,
            "kid": header.get("kid"),
            "claims": claims,
        }
    else:
        shown = {"valid": not why, "why": why, "kind": kind, "kid": header.get("kid"), **_for_people(claims)}
    click.echo(one_text(shown, output, key="kind"))
    if why:
        raise click.exceptions.Exit(Unauthenticated.exit_code)


def given(token: str | None) -> str:
    """The token that the user gave, or that standard input has."""
    if token is None or token == "-":
        token = sys.stdin.read(100_000)
    return token.strip()


def _for_people(claims: dict[str, Any]) -> dict[str, Any]:
    from mesh.services.views import iso

    shown = {}
    for name, value in claims.items():
        if name in _TIMES and type(value) is int and 0 <= value < 2**36:
            shown[_TIMES[name]] = iso(value * 1000)
        else:
            shown[name] = value
    return shown


def why_not(settings: Settings, kind: str | None, text: str) -> str:
    """'' if the token is valid, else the reason."""
    from mesh.core import tokens

    if kind is None:
        return "it is not a token of a mesh"
    try:
        claims = tokens.verify(kind, text, settings.keyring, now_s=time.time())
    except Unauthenticated as error:
        return error.reason
    except Invalid as error:
        return f"it could not be verified: {error}"
    from mesh.store.client import Client
    from mesh.store.revocations import Revocations

    client = Client(settings.redis_url)
    try:
        revocations = Revocations(client)
        revocations.refresh()
        return "it was revoked" if revocations.is_revoked(claims) else ""
    except StoreUnavailable:
        say("Warning: Redis does not answer, so nobody knows whether it was revoked.")
        return ""
    finally:
        client.close()


@group.command("revoke")
@click.argument("token", required=False, metavar="[JTI|TOKEN]")
@click.option("--subject", metavar="NAME", help="All tokens that this subject has now.")
@common
def revoke_command(token: str | None, subject: str | None) -> None:
    """End a token, named by its jti or its text, or all tokens of a subject: every coordinator refuses it within two seconds.

    What is issued to the subject from the next second on is valid again.
    """
    if (token is None) == (subject is None):
        raise click.UsageError("Name one token, or a --subject.", click.get_current_context())
    from mesh.core import tokens
    from mesh.core.names import check_name
    from mesh.services import audit
    from mesh.store.revocations import Revocations
    from mesh.store.store import Store

    settings = load_settings()
    jti, claims = (None, None) if token is None else _named(settings, token)
    if subject is not None:
        check_name("subject", subject)
    store = Store(settings)
    try:
        revocations = Revocations(store.client)
        if jti is not None:
            revocations.revoke(jti, None if claims is None else claims.expires_at)
        elif subject is not None:
            revocations.revoke_subject(subject)
        what = f"token {jti}" if jti is not None else f"all tokens of {subject}"
        who, where = audit.operator()
        for namespace in (tokens.EVERY,) if claims is None else claims.namespaces:
            audit.tell(
                store, subject=who, source=where, action="revoke token", object=what, namespace=namespace
            )
        click.echo(f"revoked: {what}")
    finally:
        store.close()


def _named(settings: Settings, token: str) -> tuple[str, Claims | None]:
    """(jti, what the token says if it is shown and valid) of what the user typed. Raises `Invalid`."""
    from mesh.core import tokens

    token = token.strip()
    if "." not in token:
        return tokens.check_jti(token), None
    kind, _, said = tokens.unverified(token)
    jti = said.get("jti")
    if kind is None or not isinstance(jti, str):
        raise Invalid("That is neither a token nor the jti of one: `mesh token inspect` shows what it says.")
    try:
        return jti, tokens.verify(kind, token, settings.keyring, now_s=time.time())
    except (Unauthenticated, Invalid):  # of another secret, or without one: when it ends is not certain
        return tokens.check_jti(jti), None
