"""API tokens of the mesh under test, for whoever calls HTTP without our client."""

import os
import secrets
import time
from collections.abc import Sequence

from mesh.core import tokens
from mesh.core.keyring import Keyring


def token(
    agent_type: str = "admin",
    subject: str = "tester",
    namespaces: Sequence[str] = ("*",),
    *,
    ttl_s: int = 3600,
    kind: str = "api",
    secret: str = "",
) -> str:
    """Signed with `secret`, else with that of the environment; by default an admin's, for all namespaces."""
    ring = Keyring([secret or os.environ["MESH_JWT_SECRET"]])
    return tokens.issue(
        kind, ring, ring.kids[0], subject=subject, agent_type=agent_type, namespaces=namespaces, ttl_s=ttl_s,
        now_s=time.time(), jti=secrets.token_hex(16),
    )  # fmt: skip


def bearer(
    agent_type: str = "admin", subject: str = "tester", namespaces: Sequence[str] = ("*",)
) -> dict[str, str]:
    """The header of a request."""
    return {"Authorization": f"Bearer {token(agent_type, subject, namespaces)}"}
