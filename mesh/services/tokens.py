"""API tokens and join tokens: issued by who holds the secret, with the key in force."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable

from mesh.core import tokens
from mesh.core.tokens import Claims
from mesh.settings import Settings
from mesh.store.rotation import rotation_of

__all__ = ["issue"]


def issue(
    settings: Settings,
    kind: str,
    *,
    subject: str,
    agent_type: str,
    namespaces: Iterable[str],
    capabilities: Iterable[str] | None = None,
    ttl_s: int | None = None,
) -> tuple[str, Claims]:
    """A token of `kind`, `api` or `join`, and what it says. `ttl_s` None: the setting's. Raises `Invalid`."""
    keyring, now_s = settings.keyring, time.time()
    text = tokens.issue(
        kind,
        keyring,
        rotation_of(settings).signing(),
        subject=subject,
        agent_type=agent_type,
        namespaces=namespaces,
        capabilities=capabilities,
        ttl_s=settings.jwt_expires_in_s if ttl_s is None else ttl_s,
        now_s=now_s,
        jti=secrets.token_hex(16),  # an argument of `mesh token revoke`: it must not begin with a dash
    )
    return text, tokens.verify(kind, text, keyring, now_s=now_s)
