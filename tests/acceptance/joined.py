"""Agents that are given a join token and where a coordinator is, and nothing else."""

from __future__ import annotations

import dataclasses
import os
import secrets
import time
from typing import Any

import redis

from mesh.core import tokens
from mesh.core.keyring import Keyring
from mesh.store.redis_users import Joined, RedisUsers
from tests.acceptance.conftest import Place, Running
from tests.acceptance.test_coordinator import start
from tests.waiting import wait_until

__all__ = ["Mesh", "join_token", "start"]
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "VIRTUAL_ENV", "PYTHONPATH", "COVERAGE_PROCESS_START", "TMPDIR")


def join_token(namespace: str, subject: str = "fleet", *, kind: str = "join", **more: Any) -> str:
    """Of agents of type worker for an hour, unless `more` says otherwise."""
    ring = Keyring([more.pop("secret", None) or os.environ["MESH_JWT_SECRET"]])
    claims: dict[str, Any] = {
        "subject": subject, "agent_type": "worker", "namespaces": [namespace], "ttl_s": 3600, "now_s": time.time(),
        "jti": secrets.token_hex(16), **more,
    }  # fmt: skip
    return tokens.issue(kind, ring, ring.kids[0], **claims)


@dataclasses.dataclass
class Mesh:
    """A coordinator, and the agents that join it."""

    place: Place
    url: str
    settings: dict[str, str] = dataclasses.field(default_factory=dict)  # of the agents

    def environment(self, token: str, **more: str) -> dict[str, str | None]:
        """All that an agent is given: every other variable of the place is taken away."""
        nothing: dict[str, str | None] = dict.fromkeys(self.place.environ, None)
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        mine = {"MESH_NAMESPACE": self.place.namespace, "COORDINATOR_URL": self.url, "MESH_JOIN_TOKEN": token}
        return {**nothing, **kept, **mine, **self.settings, **more}

    def agent(self, agent_id: str, *words: str, token: str | None = None, **more: str) -> Running:
        """Start one, and wait until it is there."""
        environ = self.environment(token or join_token(self.place.namespace), **more)
        return self.place.agent(agent_id, *words, **environ)

    def joined(self, agent_id: str) -> Joined | None:
        """What a coordinator has written down of it."""
        return RedisUsers(self.place.mesh.store.client).get(self.place.namespace, agent_id)

    def users(self) -> list[str]:
        """Redis users of this namespace."""
        found = self.place.mesh.store.client.execute("ACL", "USERS")
        return [one.decode() for one in found if one.startswith(f"mesh:0:{self.place.namespace}:".encode())]

    def wait_until_gone(self, agent_id: str, timeout_s: float = 30) -> None:
        wait_until(
            lambda: self.joined(agent_id) is None and not self.users(),
            timeout_s,
            f"{agent_id} to be withdrawn",
        )

    def client(self, username: str, password: str) -> redis.Redis:
        """A raw connection."""
        once = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
        port = int(self.place.redis_url.rpartition(":")[2].partition("/")[0])
        return redis.Redis(port=port, username=username, password=password, retry=once)
