"""Redis users of joined agents: one each, with a random password and the rights of the role `agent` in its namespace.

What was issued is written down under one key of the whole mesh, without the passwords: of those only hashes, as Redis keeps them.
Redis forgets its users when it restarts or when a replica takes over; from what is written down they are made anew, and the
password that an agent has is good again. Two passwords are alive during a renewal: the one in use, and the new one.

Where Redis has no users, or the coordinator's own may not make any, agents are refused; or they get what the coordinator itself
logs in with, if that was asked for.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
from dataclasses import dataclass

import msgspec

from mesh.core.redis_rights import rules
from mesh.errors import StoreUnavailable
from mesh.store.client import Client, ResponseError, pack
from mesh.store.keys import JOINED

__all__ = ["OWN", "SHARED", "Joined", "Login", "RedisUsers", "hashed"]
logger = logging.getLogger(__name__)

OWN, SHARED = "own", "shared"
# How a server says that it has no users, or none with selectors, or that this one may not make any. Whatever else it refuses is
# an error: the shared access is far more than an agent's own.
_NO_USERS = re.compile(r"NOPERM|no permissions|unknown (?:sub)?command|ACL SETUSER modifier", re.IGNORECASE)
_PASSWORD_BYTES = 32


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """What was issued to one agent. Times in ms by Redis's clock."""

    namespace: str
    agent: str
    life: str  # of the agent: one joining
    subject: str  # of the join token, and when and as what it was issued: what a revocation names
    jti: str
    issued_at_s: int
    capabilities: tuple[str, ...]
    kid: str = ""  # of the key that its certificate is signed with
    reach: str
    hashes: tuple[str, ...] = ()  # of the passwords, the newest first
    expires_ms: int
    seen_ms: int  # when the agent was last heard of over HTTP


@dataclass(frozen=True, kw_only=True)
class Login:
    """What an agent logs in with; `reach`: own or shared."""

    reach: str
    username: str | None
    password: str | None

    def __repr__(self) -> str:
        return f"Login(reach={self.reach!r}, username={self.username!r})"


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Joined).decode


def hashed(secret: str) -> str:
    """What Redis keeps of a password, and an agent's record of its life (SHA-256, 64 hexadecimal digits): both are random, so
    that is enough."""
    return hashlib.sha256(secret.encode()).hexdigest()


class RedisUsers:
    """The users of joined agents on one Redis. Everything here raises `StoreUnavailable`.

    `shared`: where no users can be made, agents get the login of `client` itself.
    """

    def __init__(self, client: Client, *, shared: bool = False) -> None:
        self._client, self._shared = client, shared
        self._prefix = f"mesh:{client.database}:"
        self._told = False  # why agents get no users of their own

    def name(self, joined: Joined) -> str:
        """Of its user. Users belong to the server: the databases of one must not share them."""
        return f"{self._prefix}{joined.namespace}:{joined.agent}"

    def get(self, namespace: str, agent: str) -> Joined | None:
        """What was issued to an agent, if it has not been withdrawn."""
        raw = self._client.execute("HGET", JOINED, f"{namespace}/{agent}")
        return _decode(raw) if raw else None

    def all(self) -> list[Joined]:
        """What was issued to all agents of the mesh."""
        return [_decode(raw) for raw in self._client.execute("HVALS", JOINED)]

    def issue(self, joined: Joined, *, in_use: str | None = None) -> tuple[Joined, Login]:
        """A new password for an agent; the one whose hash is `in_use` stays good until the next. If no user can be made, nothing
        is written down, unless the login is shared."""
        password = secrets.token_urlsafe(_PASSWORD_BYTES)
        hashes = [hashed(password)] + [one for one in joined.hashes if one == in_use]
        own = msgspec.structs.replace(joined, reach=OWN, hashes=tuple(hashes))
        before = self.get(joined.namespace, joined.agent)
        self.note(own)  # before there is a user that nobody would withdraw
        refusal = self._make(own)
        if refusal is None:
            return own, Login(reach=OWN, username=self.name(own), password=password)
        if not self._shared:
            if before is None:
                self._forget(own)
            else:
                self.note(before)
            raise _no_users(refusal)
        shared = msgspec.structs.replace(joined, reach=SHARED, hashes=())
        self.note(shared)
        user, shared_password = self._client.login
        return shared, Login(reach=SHARED, username=user, password=shared_password)

    def note(self, joined: Joined) -> None:
        """Write down what is issued now."""
        self._client.execute("HSET", JOINED, f"{joined.namespace}/{joined.agent}", _encode(joined))

    def restore(self, joined: Joined, *, always: bool = False) -> None:
        """Make the user anew if Redis has forgotten it; `always`: also what it may do, which may have changed."""
        if joined.reach == OWN and (
            always or self._client.execute("ACL", "GETUSER", self.name(joined)) is None
        ):
            refusal = self._make(joined)
            if refusal is not None and not self._shared:
                raise _no_users(refusal)

    def _make(self, joined: Joined) -> ResponseError | None:
        """Make the user; why Redis can make none."""
        words = rules("agent", joined.namespace, database=self._client.database)
        command = [
            "ACL",
            "SETUSER",
            self.name(joined),
            "reset",
            "on",
            *(f"#{one}" for one in joined.hashes),
            *words,
        ]
        reply = self._client.calls([pack(command)], 1)[0]
        if not isinstance(reply, ResponseError) or not _NO_USERS.search(str(reply)):
            self._client.checked(reply)
            return None
        if not self._told:
            self._told = True
            what = (
                "Joined agents get the coordinator's own access to Redis, which is no user of their own to be limited"
                if self._shared
                else "Agents that want to join are refused, no Redis user can be made for them"
            )
            logger.warning("%s: %s", what, reply)
        return reply

    def forget_strays(self) -> int:
        """Delete users that nobody was issued, and how many: of a server that was away when they were withdrawn."""
        reply = self._client.calls([pack(["ACL", "USERS"])], 1)[0]
        if isinstance(reply, ResponseError):
            return 0  # no users here, or none of ours
        names = [one.decode() for one in self._client.checked(reply)]
        ours = [one for one in names if one.startswith(self._prefix)]
        issued = (
            {self.name(one) for one in self.all()} if ours else set()
        )  # after the users: they are written down first
        strays = [one for one in ours if one not in issued]
        return int(self._client.execute("ACL", "DELUSER", *strays)) if strays else 0

    def withdraw(self, joined: Joined) -> bool:
        """Delete the user, which ends its connections, and forget it; False if it has joined anew meanwhile."""
        now = self.get(joined.namespace, joined.agent)
        if now is None or now.life != joined.life:
            return False
        if joined.reach == OWN:
            self._client.execute("ACL", "DELUSER", self.name(joined))
        self._forget(joined)
        return True

    def _forget(self, joined: Joined) -> None:
        self._client.execute("HDEL", JOINED, f"{joined.namespace}/{joined.agent}")


def _no_users(refusal: ResponseError) -> StoreUnavailable:
    return StoreUnavailable(
        f"No agent can join over HTTP: Redis makes no users here ({str(refusal).rstrip('.')}); let the coordinator's own user "
        "make some (ACL SETUSER, docs/redis-users.md), or set MESH_SHARED_REDIS_LOGIN=true on the coordinator, and agents get "
        "its login."
    )
