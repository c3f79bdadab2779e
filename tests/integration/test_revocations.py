"""Revocations: from memory, known to all who look, forgotten when the tokens have ended anyhow."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Iterator

import pytest

from mesh.core.tokens import KINDS, Claims
from mesh.store.client import Client
from mesh.store.keys import NOT_BEFORE, REVOCATIONS, REVOKED
from mesh.store.revocations import Revocations

NOW = int(time.time())


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    made = Client(redis_url)
    yield made
    made.close()


def claims(subject: str | None = None, **changed: int) -> Claims:
    made = Claims(
        kind="api",
        kid="00000000",
        jti=uuid.uuid4().hex,
        subject=subject or uuid.uuid4().hex[:12],
        agent_type="producer",
        namespaces=("production",),
        capabilities=None,
        submit=None,
        public_key=None,
        issued_at=NOW,
        not_before=NOW,
        expires_at=NOW + 3600,
    )
    return dataclasses.replace(made, **changed)


def test_one_token_here_at_once_and_elsewhere_with_the_next_look(client: Client) -> None:
    told, other = Revocations(client), Revocations(client)
    other.refresh()
    token, another = claims(), claims()
    told.revoke(token.jti, token.expires_at)
    assert told.is_revoked(token) and not told.is_revoked(another)
    assert not other.is_revoked(token)
    other.refresh()
    assert other.is_revoked(token) and not other.is_revoked(another)


def test_all_tokens_of_a_subject_but_those_of_later(client: Client) -> None:
    revocations = Revocations(client)
    before = claims()
    least = revocations.revoke_subject(before.subject)
    assert int(time.time()) <= least <= int(time.time()) + 1
    assert revocations.is_revoked(before)
    assert revocations.is_revoked(dataclasses.replace(before, jti="of-the-same-second", issued_at=least - 1))
    assert not revocations.is_revoked(dataclasses.replace(before, issued_at=least))
    assert not revocations.is_revoked(claims())


def test_it_asks_for_all_only_when_something_has_changed(client: Client) -> None:
    revocations = Revocations(client)
    revocations.refresh()
    token = claims()
    client.execute("ZADD", REVOKED, NOW + 3600, token.jti)
    revocations.refresh()
    assert not revocations.is_revoked(token), "nobody said so"
    client.execute("INCR", REVOCATIONS)
    revocations.refresh()
    assert revocations.is_revoked(token)


def test_what_has_ended_is_forgotten(client: Client) -> None:
    revocations = Revocations(client)
    ended, long_ago = claims(expires_at=NOW - 5), claims()
    revocations.revoke(ended.jti, ended.expires_at)
    client.execute("HSET", NOT_BEFORE, long_ago.subject, NOW - KINDS["api"].longest_s - 10)
    revocations.revoke(claims().jti)
    revocations.revoke_subject(claims().subject)
    assert client.execute("ZSCORE", REVOKED, ended.jti) is None
    assert client.execute("HGET", NOT_BEFORE, long_ago.subject) is None


def test_a_redis_that_comes_back_empty_lets_nobody_in_again(client: Client) -> None:
    revocations, token, other = Revocations(client), claims(), claims()
    revocations.revoke(token.jti, token.expires_at)
    revocations.revoke_subject(other.subject)
    client.pipeline(("DEL", REVOKED), ("DEL", NOT_BEFORE), ("DEL", REVOCATIONS))
    revocations.refresh()
    assert revocations.is_revoked(token) and revocations.is_revoked(other)
