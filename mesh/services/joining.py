"""Agents that join over HTTP: what one is given that has shown a join token, for how long, and how it is taken back.

An agent is given access to Redis (a user of its own, where Redis has users), the keys of the tasks that it may take, and a
certificate for what it publishes. One *life* is one joining: a name that only the agent and the store know, by which it renews
and leaves, so that nobody takes back what another life of the same agent id was given. The agent's record in its namespace has
the hash of its life: it proves that the record is its own, and not of an agent that holds the secret, or of another joining.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from mesh.core import tokens
from mesh.core.envelopes import TaskKeys
from mesh.core.names import check_name
from mesh.core.setting_rows import split_hosts
from mesh.core.tokens import Claims
from mesh.errors import Conflict
from mesh.services.views import iso
from mesh.settings import Settings
from mesh.store.redis_users import OWN, Joined, Login, RedisUsers, hashed
from mesh.store.signing import CERTIFICATE_S
from mesh.store.store import Store

__all__ = ["Beat", "Issuer", "Left", "join", "leave", "redis_url_for_agents", "refresh", "sweep"]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Issuer:
    """What a coordinator issues with: its settings (the keys, the policies), and which of the keys signs now."""

    settings: Settings
    users: RedisUsers
    kid: Callable[[], str]


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What an agent says when it renews: which life it is, what it has."""

    life: str
    public_key: bytes
    capabilities: tuple[str, ...]
    kids: tuple[str, ...]  # of the task keys that it has
    password_hash: str | None  # of the password that it has
    refused: bool  # Redis does not take it, or not for all that it does
    renew: bool  # it wants new ones


def join(
    issuer: Issuer, store: Store, agent: str, claims: Claims, capabilities: Iterable[str], public_key: bytes
) -> dict[str, Any]:
    """All that an agent needs to work. Raises `Conflict` while another agent of this id lives, `StoreUnavailable`."""
    check_name("agent id", agent)
    namespace = store.keys.namespace
    now_ms = store.agents.now_ms()
    before = issuer.users.get(namespace, agent)
    _check_free(store, agent, before, now_ms)
    if before is not None:
        issuer.users.withdraw(before)
    return _grant(
        issuer, _joined(issuer, store, agent, claims, tuple(capabilities), now_ms), claims, public_key
    )


def _check_free(store: Store, agent: str, before: Joined | None, now_ms: int, *, life: str = "") -> None:
    """Raise `Conflict` if an agent of this id lives, unless it is the one of this `life`."""
    record = store.agents.get(agent) or {}
    if life and _is_of(record, life):
        return
    beat_ms = 0 if "left" in record else int(record.get("beat", 0))
    seen_ms = before.seen_ms if before is not None else 0
    if now_ms - max(beat_ms, seen_ms) < store.settings.lease_ms:
        where = f" (pid {record['pid']} on {record['address']})" if beat_ms and "address" in record else ""
        raise Conflict(
            f"Agent id {agent!r} is already running in namespace {store.keys.namespace!r}{where}: "
            f"give this agent another id, or stop that one."
        )


def _is_of(record: Mapping[str, str], life: str) -> bool:
    return record.get("life") == hashed(life)


def _joined(
    issuer: Issuer,
    store: Store,
    agent: str,
    claims: Claims,
    capabilities: tuple[str, ...],
    now_ms: int,
    *,
    life: str = "",
) -> Joined:
    return Joined(
        namespace=store.keys.namespace,
        agent=agent,
        life=life or secrets.token_urlsafe(16),
        subject=claims.subject,
        jti=claims.jti,
        issued_at_s=claims.issued_at,
        capabilities=capabilities,
        kid=issuer.kid(),
        reach=OWN,
        expires_ms=now_ms + issuer.settings.credentials_ttl_s * 1000,
        seen_ms=now_ms,
    )


def refresh(issuer: Issuer, store: Store, agent: str, claims: Claims, beat: Beat) -> dict[str, Any]:
    """An agent's heartbeat: until when its credentials are good, and new ones where it needs some.

    Its Redis user is made anew if Redis has forgotten it, and all is issued anew if what was issued is lost. Raises `Conflict`
    if another agent has joined as this one since, or lives under its id.
    """
    check_name("agent id", agent)
    namespace, now_ms = store.keys.namespace, store.agents.now_ms()
    known = issuer.users.get(namespace, agent)
    if known is not None and known.life != beat.life:
        raise Conflict(f"Another agent has joined as {agent!r} in namespace {namespace!r} since.")
    if known is None:
        _check_free(store, agent, None, now_ms, life=beat.life)
    fresh = _joined(issuer, store, agent, claims, beat.capabilities, now_ms, life=beat.life)
    if (
        known is None
        or beat.renew
        or beat.capabilities != known.capabilities
        or set(beat.kids) != set(issuer.settings.keyring.kids)
        or known.kid != fresh.kid  # what it publishes must be believed when the other key is gone
        or (known.reach == OWN and beat.password_hash not in known.hashes)
        or (known.reach != OWN and beat.refused)
    ):
        fresh = msgspec.structs.replace(fresh, hashes=known.hashes if known else ())
        return _grant(issuer, fresh, claims, beat.public_key, in_use=beat.password_hash)
    issuer.users.restore(known, always=beat.refused)
    seen = msgspec.structs.replace(
        known, seen_ms=now_ms, subject=claims.subject, jti=claims.jti, issued_at_s=claims.issued_at
    )
    issuer.users.note(seen)
    return {**_times(seen), "granted": None}


def _times(joined: Joined) -> dict[str, Any]:
    left_s = max(0.0, (joined.expires_ms - joined.seen_ms) / 1000)
    return {
        "id": joined.agent,
        "namespace": joined.namespace,
        "life": joined.life,
        "expires_at": iso(joined.expires_ms),
        "expires_in_s": left_s,
    }


def _grant(
    issuer: Issuer, joined: Joined, claims: Claims, public_key: bytes, *, in_use: str | None = None
) -> dict[str, Any]:
    """Access to Redis, task keys, certificate."""
    settings = issuer.settings
    given, login = issuer.users.issue(joined, in_use=in_use)
    certificate = tokens.issue(
        "task",
        settings.keyring,
        joined.kid,
        subject=claims.subject,
        agent_type=claims.agent_type,
        namespaces=[joined.namespace],
        ttl_s=CERTIFICATE_S,
        now_s=joined.seen_ms / 1000,
        jti=secrets.token_hex(16),
        submit=settings.policies.patterns(claims.agent_type, joined.namespace, "submit"),
        public_key=public_key,
    )
    keys = TaskKeys.of_keyring(settings.keyring, joined.namespace)
    return {
        **_times(given),
        "granted": {
            "agent_type": claims.agent_type,
            "redis": _redis(settings, login),
            "task_keys": keys.to_json(joined.capabilities),
            "certificate": certificate,
            "kids": list(settings.keyring.kids),
        },
    }


def _redis(settings: Settings, login: Login) -> dict[str, Any]:
    return {
        "url": redis_url_for_agents(settings),
        "username": login.username,
        "password": login.password,
        "reach": login.reach,
    }


def redis_url_for_agents(settings: Settings) -> str:
    """The URL of Redis that agents are told: without a user and password, which are theirs."""
    url = settings.agent_redis_url or settings.redis_url
    _, user, _ = split_hosts(url)
    return re.sub(rf"^([^:]+://){re.escape(user)}@", r"\1", url) if user else url


def leave(issuer: Issuer, store: Store, agent: str, life: str) -> bool:
    """Take back what this life of an agent was given; False if that was done before, or it has joined anew since."""
    known = issuer.users.get(store.keys.namespace, agent)
    return known is not None and known.life == life and issuer.users.withdraw(known)


# -- taking back from those who do not come to leave


@dataclass(frozen=True, kw_only=True)
class Left:
    """What a sweep has taken back, and why."""

    joined: Joined
    why: str


def sweep(
    users: RedisUsers, store_of: Callable[[str], Store], revoked: Callable[[Joined], bool]
) -> list[Left]:
    """Withdraw what was revoked, has expired, or belongs to agents of whom nothing was heard for the threshold of health.

    Who was revoked leaves at once: its attempts go to others.
    """
    left = []
    for joined in users.all():
        store = store_of(joined.namespace)
        why = "it was revoked" if revoked(joined) else _why_over(joined, store)
        if why and users.withdraw(joined):
            if why == "it was revoked":
                _put_out(store, joined)
            left.append(Left(joined=joined, why=why))
    users.forget_strays()
    return left


def _why_over(joined: Joined, store: Store) -> str:
    now_ms = store.agents.now_ms()
    if now_ms > joined.expires_ms:
        return "it has expired"
    limit_ms = store.settings.unhealthy_threshold_ms
    if now_ms - joined.seen_ms <= limit_ms:
        return ""
    record = store.agents.get(joined.agent) or {}
    lives = _is_of(record, joined.life) and "left" not in record
    return "" if lives and now_ms - int(record.get("beat", 0)) <= limit_ms else "the agent is gone"


def _put_out(store: Store, joined: Joined) -> None:
    """Its leases end, and it is told of no more; another agent of its id is left alone."""
    record = store.agents.get(joined.agent) or {}
    if not _is_of(record, joined.life) or "left" in record:
        return
    incarnation = int(record["incarnation"])
    store.agents.leave(joined.agent, incarnation)
    if store.agents.evict(f"{joined.agent}#{incarnation}"):
        store.tasks.reap()
