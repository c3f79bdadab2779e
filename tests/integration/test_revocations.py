"""Revocations: from memory, known to all who look, forgotten when the tokens have ended anyhow."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Iterator

import pytest

from mesh.core.tokens import KINDS, Claims
from mesh.errors import Conflict
from mesh.store.client import Client
from mesh.store.embedded import start_server
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
    client.execute("SET", REVOCATIONS, uuid.uuid4().hex)
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


def test_how_many_may_be_revoked_is_bounded() -> None:
    with start_server() as server:
        client = Client(server.url)
        try:
            revocations = Revocations(client, most=3)
            made = [claims() for _ in range(4)]
            for one in made[:3]:
                revocations.revoke(one.jti, NOW + 10 * KINDS["api"].longest_s)
                revocations.revoke_subject(one.subject)
            assert max(map(float, client.execute("ZRANGE", REVOKED, 0, -1, "WITHSCORES")[1::2])) <= (
                time.time() + KINDS["api"].longest_s
            )
            with pytest.raises(Conflict, match="3 tokens are revoked already"):
                revocations.revoke(made[3].jti)
            with pytest.raises(Conflict, match="3 subjects"):
                revocations.revoke_subject(made[3].subject)
            assert not revocations.is_revoked(made[3])
            revocations.revoke(made[0].jti)
            revocations.revoke_subject(made[0].subject)
            client.execute("ZADD", REVOKED, NOW - 5, made[1].jti)
            client.execute("HSET", NOT_BEFORE, made[1].subject, NOW - KINDS["api"].longest_s - 10)
            revocations = Revocations(client, most=3)  # one that remembers nothing of them
            revocations.revoke(made[3].jti)
            revocations.revoke_subject(made[3].subject)
            assert revocations.is_revoked(made[3])
        finally:
            client.close()


def test_what_has_ended_leaves_the_memory_too(client: Client) -> None:
    revocations, ended = Revocations(client), claims(expires_at=NOW - 5)
    revocations.revoke(ended.jti, ended.expires_at)
    assert not revocations.covers(ended.jti, ended.subject, ended.issued_at)


def test_an_emptied_redis_learns_again_what_those_who_run_know() -> None:
    with start_server() as server:
        clients = [Client(server.url) for _ in range(3)]
        try:
            one, two, third = (Revocations(each) for each in clients)
            token, other, later, unseen = claims(), claims(), claims(), claims()
            one.revoke(token.jti, token.expires_at)
            one.revoke_subject(other.subject)
            two.refresh()
            one.revoke(later.jti, later.expires_at)  # only one knows
            clients[0].execute("FLUSHALL")
            two.revoke(unseen.jti, unseen.expires_at)  # two writes back what it knows, before one looks
            one.refresh()
            third.refresh()
            for revoked in (token, other, later, unseen):
                assert third.is_revoked(revoked)
            assert not third.is_revoked(claims())
            two.refresh()
            version = clients[0].execute("GET", REVOCATIONS)
            for each in (one, two, third):
                each.refresh()
            assert clients[0].execute("GET", REVOCATIONS) == version, "they have come to rest"
            assert int(clients[0].execute("ZSCORE", REVOKED, token.jti)) == token.expires_at
        finally:
            for each in clients:
                each.close()


def test_a_redis_that_comes_back_empty_lets_nobody_in_again(client: Client) -> None:
    revocations, token, other = Revocations(client), claims(), claims()
    revocations.revoke(token.jti, token.expires_at)
    revocations.revoke_subject(other.subject)
    client.pipeline(("DEL", REVOKED), ("DEL", NOT_BEFORE), ("DEL", REVOCATIONS))
    revocations.refresh()
    assert revocations.is_revoked(token) and revocations.is_revoked(other)
