"""What a leaked credential can do, where no other test shows it: the rest of docs/threats.md."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from mesh.client import Mesh
from mesh.errors import StoreUnavailable
from mesh.store.client import Client
from tests.acceptance.conftest import Place
from tests.acceptance.redis_users import Guarded
from tests.acceptance.test_redis_rights import refused

NAMESPACE = "mine"
CONTROL = "mesh:{mine}:kombu:/0.celery.pidbox"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    running = Guarded(tmp_path_factory.mktemp("threats"), NAMESPACE)
    yield running
    running.stop()


def test_a_producers_user_can_end_delete_and_read_tasks_of_its_namespace(guarded: Guarded) -> None:
    """Publishing writes the same keys as ending: Redis cannot tell the two apart."""
    client = Client(guarded.url("producer"))
    client.execute("HSET", "mesh:{mine}:task:1", "state", "queued")
    lua = "redis.call('HSET', 'mesh:{mine}:task:1', 'state', 'succeeded') redis.call('ZREM', 'mesh:{mine}:leases', '1')"
    client.execute("EVALSHA", client.execute("SCRIPT", "LOAD", lua), 0)
    assert client.execute("HGET", "mesh:{mine}:task:1", "state") == b"succeeded"
    assert client.execute("DEL", "mesh:{mine}:task:1") == 1
    client.close()


@pytest.mark.parametrize("role", ["producer", "flower", "agent"])
def test_remote_control_may_be_sent_to_the_agents_of_the_namespace(guarded: Guarded, role: str) -> None:
    client = Client(guarded.url(role))
    assert client.execute("PUBLISH", CONTROL, "{}") == 0
    assert refused(client, "PUBLISH", CONTROL.replace("mine", "other"), "{}")
    client.close()


def test_an_agents_user_can_do_everything_in_its_namespace(guarded: Guarded) -> None:
    client = Client(guarded.url("agent"))
    for words in (
        ("HSET", "mesh:{mine}:leader", "id", "eve"),
        ("SET", "mesh:{mine}:message:1", "x"),
        ("DEL", "mesh:{mine}:leader", "mesh:{mine}:message:1"),
    ):
        client.execute(*words)
    client.close()


def test_a_coordinators_user_can_make_itself_another_that_may_do_everything(guarded: Guarded) -> None:
    client = Client(guarded.url("coordinator"))
    client.execute("ACL", "SETUSER", "eve", "on", ">a-password-of-eve", "~*", "+@all")
    eve = Client(f"redis://eve:a-password-of-eve@127.0.0.1:{guarded.server.port}/0")
    assert eve.execute("CONFIG", "GET", "maxmemory")
    eve.close()
    client.execute("ACL", "DELUSER", "eve")
    client.close()


@pytest.mark.parametrize("role", ["producer", "flower", "agent", "coordinator"])
def test_a_password_that_is_changed_lets_nobody_in_and_cuts_off_who_is(guarded: Guarded, role: str) -> None:
    client = Client(guarded.url(role))
    client.execute("PING")
    guarded.admin.execute("ACL", "SETUSER", role, "resetpass", ">another-password-of-it")
    guarded.admin.execute("CLIENT", "KILL", "USER", role)
    with pytest.raises(StoreUnavailable):
        client.execute("PING")
    client.close()
    guarded.admin.execute("ACL", "SETUSER", role, "resetpass", f">{guarded.passwords[role]}")


def test_payloads_and_results_lie_in_redis_as_they_are_and_the_secret_does_not(place: Place) -> None:
    handle = place.mesh.submit("nobody", {"patient": "a name"}, unsatisfiable="accept")
    stored = place.mesh.store.client.execute("GET", place.mesh.store.keys.of("message", handle.id))
    assert b"a name" in stored
    assert os.environ["MESH_JWT_SECRET"].encode() not in stored


def test_who_has_the_secret_and_redis_may_do_everything(place: Place) -> None:
    with Mesh(redis_url=place.redis_url, namespace=f"{place.namespace}-2") as mesh:
        handle = mesh.submit("nobody", 1, unsatisfiable="accept")
        assert handle.cancel()
        mesh.store.client.execute("DEL", *mesh.store.client.execute("KEYS", f"{mesh.store.keys.prefix}*"))
