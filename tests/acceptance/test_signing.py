"""An attacker who may write to Redis, and a real agent: nothing of what he plants runs, each is a dead letter with its reason."""

from __future__ import annotations

import base64
import dataclasses
import json
import pickle
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh.bus import messages
from mesh.bus.opening import open_body
from mesh.core import tokens
from mesh.core.envelopes import AgentSealer, Sealer, TaskKeys, kid_of, open_sealed
from mesh.core.keyring import Keyring
from mesh.core.states import Reason, State
from mesh.errors import Refused
from mesh.services import tasks as task_services
from mesh.services.resealing import passing, reseal, reseal_bodies, sealed_with
from mesh.services.tasks import new_id
from mesh.store.revocations import Revocations
from mesh.store.signing import AgentSigner, body_sealer, keys_of, sealer, signer_of
from mesh.store.store import Store
from tests.chaos.fleet import Fleet
from tests.conftest import SECRET
from tests.waiting import wait_until

RING = Keyring([SECRET])
HOUR_MS = 3_600_000
PLAIN = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


class Attack:
    """What he plants, and what is seen of it."""

    def __init__(self, fleet: Fleet, effects: Path) -> None:
        self.fleet, self.store, self.effects = fleet, fleet.mesh.store, effects
        self.namespace = fleet.namespace

    def note(self, line: str) -> list[str]:
        """Arguments of a task that leaves a line."""
        return [line, str(self.effects)]

    def message(self, line: str, **embed: Any) -> bytes:
        """The message of such a task."""
        body = json.dumps([self.note(line), {}, {**PLAIN, **embed}]).encode()
        return messages.encode("note", body)

    def sealed(self, task_id: str, message: bytes, queue: str = "celery") -> bytes:
        """As a holder of the secret seals it."""
        return sealer(self.store, queue)(task_id, message)

    def plant(self, task_id: str, stored: bytes, queue: str = "celery", **fields: str) -> None:
        """Write a task straight into Redis."""
        keys = self.store.keys
        row = {
            "v": "1",
            "state": "queued",
            "queue": queue,
            "type": "note",
            "score": "1",
            "created": "1",
            **fields,
        }
        self.store.client.pipeline(
            ("HSET", keys.of("task", task_id), *(word for pair in row.items() for word in pair)),
            ("SET", keys.of("message", task_id), stored),
            ("ZADD", keys.of("queue", queue), 1, task_id),
            ("SADD", keys["ready"], queue),
            ("RPUSH", keys.of("bell", queue), "1"),
        )

    def lines(self) -> list[str]:
        return self.effects.read_text().splitlines() if self.effects.exists() else []

    def ends(self, task_id: str) -> Any:
        """The record, once the task has ended."""

        def over() -> bool:
            record = self.store.tasks.record(task_id)
            return record is not None and record.ended_already

        wait_until(over, 30, f"{task_id} to end: {self.fleet.tails()}")
        return self.store.tasks.record(task_id)

    def refused(self, task_id: str) -> str:
        """Why it was put aside."""
        record = self.ends(task_id)
        assert record.state is State.DEAD_LETTERED and record.error, record
        return str(record.reason)


@pytest.fixture(scope="module")
def fleet(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    running = Fleet(redis_url, f"signing-{new_id()[:8]}", tmp_path_factory.mktemp("signing"))
    running.start(
        "solid", pool="prefork", concurrency=2, capabilities="celery,other", app="tests.chaos.rules_app"
    )
    try:
        running.ready("solid")
        yield running
    finally:
        running.close()


@pytest.fixture
def attack(fleet: Fleet, tmp_path: Path) -> Attack:
    return Attack(fleet, tmp_path / "effects")


def certified(
    namespace: str,
    *,
    ring: Keyring = RING,
    age_s: int = 0,
    submit: tuple[str, ...] = ("same",),
    subject: str = "small",
) -> AgentSigner:
    """A real agent's signer that may submit one harmless type."""
    signer = AgentSigner(namespace)
    signer.certified(
        tokens.issue(
            "task",
            ring,
            ring.kids[0],
            subject=subject,
            agent_type="worker",
            namespaces=(namespace,),
            ttl_s=3600,
            now_s=time.time() - age_s,
            jti=secrets.token_hex(16),
            submit=submit,
            public_key=signer.public_key,
        )
    )
    return signer


Made = tuple[str, bytes, str]


def unsigned(attack: Attack, line: str) -> Made:
    return new_id(), attack.message(line), "celery"


def stranger(attack: Attack, line: str) -> Made:
    ring, task_id = Keyring([secrets.token_hex(32)]), new_id()
    keys = TaskKeys.of_keyring(ring, attack.namespace)
    seal = Sealer(keys, ring.kids[0], "celery", not_after_ms=attack.store.now_ms() + HOUR_MS, nonce=b"once")
    return task_id, seal(task_id, attack.message(line)), "celery"


def forged(attack: Attack, line: str) -> Made:
    """With a kid that he has seen."""
    task_id, stored, queue = stranger(attack, line)
    return task_id, stored[:2] + bytes.fromhex(RING.kids[0]) + stored[6:], queue


def altered(old: bytes, new: bytes) -> Callable[[Attack, str], Made]:
    def make(attack: Attack, line: str) -> Made:
        task_id, headers = new_id(), {"timelimit": [60, 50], "retries": 3}
        body = json.dumps([attack.note(line), {}, PLAIN]).encode()
        stored = attack.sealed(task_id, messages.encode("note", body, headers=headers))
        assert stored.count(old) >= 1
        return task_id, stored.replace(old, new, 1), "celery"

    return make


def to_another_queue(attack: Attack, line: str) -> Made:
    task_id = new_id()
    return task_id, attack.sealed(task_id, attack.message(line)), "other"


def to_another_id(attack: Attack, line: str) -> Made:
    return new_id(), attack.sealed(new_id(), attack.message(line)), "celery"


def from_another_namespace(attack: Attack, line: str) -> Made:
    task_id = new_id()
    keys = TaskKeys.of_keyring(RING, "another")
    seal = Sealer(keys, RING.kids[0], "celery", not_after_ms=attack.store.now_ms() + HOUR_MS, nonce=b"once")
    return task_id, seal(task_id, attack.message(line)), "celery"


def too_old(attack: Attack, line: str) -> Made:
    task_id = new_id()
    seal = signer_of(attack.store.settings).sealer("celery", attack.store.now_ms() - 1)
    return task_id, seal(task_id, attack.message(line)), "celery"


def by_agent(
    make: Callable[[Attack, str], bytes] = lambda attack, line: attack.message(line), **more: Any
) -> Callable[[Attack, str], Made]:
    def made(attack: Attack, line: str) -> Made:
        task_id, signer = new_id(), certified(attack.namespace, **more)
        seal = signer.sealer("celery", attack.store.now_ms() + HOUR_MS)
        return task_id, seal(task_id, make(attack, line)), "celery"

    return made


def with_a_certificate_of_his_own(attack: Attack, line: str) -> Made:
    task_id, ring = new_id(), Keyring([secrets.token_hex(32)])
    signer = certified(attack.namespace, ring=ring, submit=("*",))
    seal = AgentSealer(
        signer._key.sign,
        signer.certificate,
        kid=RING.kids[0],
        namespace=attack.namespace,
        queue="celery",
        not_after_ms=attack.store.now_ms() + HOUR_MS,
        nonce=b"once",
    )
    return task_id, seal(task_id, attack.message(line)), "celery"


def signature(attack: Attack, line: str) -> dict[str, Any]:
    return {
        "task": "note",
        "args": attack.note(line),
        "kwargs": {},
        "options": {},
        "subtask_type": None,
        "immutable": True,
    }


def call(name: str, args: Any, kwargs: Any = None, *, headers: Any = None, **embed: Any) -> bytes:
    return messages.encode(
        name, json.dumps([args, kwargs or {}, {**PLAIN, **embed}]).encode(), headers=headers
    )


def nested(attack: Attack, line: str) -> bytes:
    same = {"task": "same", "args": [1], "kwargs": {}, "immutable": True}
    inner = {**same, "options": {"link": [signature(attack, line)]}}
    return call("same", [1], callbacks=[{**same, "options": {"link_error": [], "link": [inner]}}])


def in_another_kind(attack: Attack, line: str) -> bytes:
    group = {
        "task": "same",
        "subtask_type": "group",
        "args": [],
        "kwargs": {"tasks": [signature(attack, line)]},
        "options": {},
    }
    return call("same", [1], callbacks=[group])


def of_the_first_protocol(attack: Attack, line: str) -> bytes:
    body = {"task": "note", "id": "x", "args": attack.note(line), "kwargs": {}}
    return messages.encode("same", json.dumps(body).encode())


def pickled(attack: Attack, line: str) -> bytes:
    body = base64.b64encode(pickle.dumps((attack.note(line), {}, PLAIN)))
    return messages.encode(
        "note", body, content_type="application/x-python-serialize", content_encoding="binary"
    )


ATTACKS: dict[str, tuple[Callable[[Attack, str], Made], str]] = {
    "unsigned": (unsigned, Reason.UNSIGNED),
    "another secret": (stranger, Reason.UNKNOWN_KEY),
    "forged": (forged, Reason.FORGED),
    "other arguments": (altered(b'["', b'["x'), Reason.FORGED),
    "another type": (altered(b"\xa4note", b"\xa4same"), Reason.FORGED),
    "other headers": (altered(b"retries", b"retried"), Reason.FORGED),
    "other time limits": (altered(b"\x92<2", b"\x92<1"), Reason.FORGED),
    "fewer retries": (altered(b"\xa7retries\x03", b"\xa7retries\x00"), Reason.FORGED),
    "another queue": (to_another_queue, Reason.FORGED),
    "another id": (to_another_id, Reason.FORGED),
    "another namespace": (from_another_namespace, Reason.FORGED),
    "too old": (too_old, Reason.SIGNATURE_EXPIRED),
    "a type that its agent may not submit": (by_agent(), Reason.NOT_PERMITTED),
    "an expired certificate": (by_agent(age_s=7200, submit=("*",)), Reason.CERTIFICATE),
    "a certificate of his own": (with_a_certificate_of_his_own, Reason.CERTIFICATE),
    "in celery.starmap": (
        by_agent(lambda a, line: call("celery.starmap", [signature(a, line), [a.note(line)]])),
        Reason.NOT_PERMITTED,
    ),
    "in celery.starmap by name": (
        by_agent(lambda a, line: call("celery.starmap", ["note", [a.note(line)]])),
        Reason.NOT_PERMITTED,
    ),
    "in celery.chunks": (
        by_agent(lambda a, line: call("celery.chunks", [], {"task": "note", "it": [a.note(line)], "n": 1})),
        Reason.NOT_PERMITTED,
    ),
    "in a callback": (
        by_agent(lambda a, line: call("same", [1], callbacks=[signature(a, line)])),
        Reason.NOT_PERMITTED,
    ),
    "in a callback by name": (
        by_agent(lambda a, line: call("same", [line], callbacks=["note"])),
        Reason.NOT_PERMITTED,
    ),
    "in a callback of a callback": (by_agent(nested), Reason.NOT_PERMITTED),
    "in a callback of another kind": (by_agent(in_another_kind), Reason.NOT_PERMITTED),
    "in an error callback": (
        by_agent(lambda a, line: call("same", [], errbacks=[signature(a, line)])),
        Reason.NOT_PERMITTED,
    ),
    "in a frame in a frame": (
        by_agent(lambda a, line: call("celery.starmap", ["celery.starmap", [["note", [a.note(line)]]]])),
        Reason.NOT_PERMITTED,
    ),
    "in a frame that is fed by a result": (
        by_agent(
            lambda a, line: call(
                "same",
                ["note"],
                callbacks=[{"task": "celery.starmap", "args": [[a.note(line)]], "kwargs": {}}],
            )
        ),
        Reason.NOT_PERMITTED,
    ),
    "not JSON, by an agent": (
        by_agent(lambda a, line: messages.of_arguments("same", b"\xff{")),
        Reason.UNREADABLE,
    ),
    "too deep, by an agent": (
        by_agent(lambda a, line: messages.of_arguments("same", b"[" * 100_000 + b"]" * 100_000)),
        Reason.UNREADABLE,
    ),
    "properties that are a list": (
        by_agent(lambda a, line: messages._encode(["same", b"[]", 0, None, None, [1]])),
        Reason.NOT_PERMITTED,
    ),
    "a type that is a list": (
        lambda a, line: (
            (i := new_id()),
            a.sealed(i, messages._encode([["x"], b"[]", 0, None, None, None])),
            "celery",
        ),
        Reason.UNREADABLE,
    ),
    "arguments that are a word": (
        by_agent(lambda a, line: messages.of_arguments("same", b'"args"')),
        Reason.UNREADABLE,
    ),
    "compressed by an agent": (
        by_agent(lambda a, line: call("same", [1], headers={"compression": "gzip"}), submit=("*",)),
        Reason.NOT_PERMITTED,
    ),
    "in a chain": (
        by_agent(lambda a, line: call("same", [1], chain=[signature(a, line)])),
        Reason.NOT_PERMITTED,
    ),
    "in a chord's body": (
        by_agent(lambda a, line: call("same", [1], chord=signature(a, line))),
        Reason.NOT_PERMITTED,
    ),
    "in a header": (
        by_agent(lambda a, line: call("same", [1], headers={"callbacks": [signature(a, line)]})),
        Reason.NOT_PERMITTED,
    ),
    "in a header that names the task": (
        by_agent(lambda a, line: call("same", a.note(line), headers={"task": "note"})),
        Reason.NOT_PERMITTED,
    ),
    "in the first protocol": (by_agent(of_the_first_protocol), Reason.NOT_PERMITTED),
    "pickled by an agent": (by_agent(pickled, submit=("*",)), Reason.NOT_PERMITTED),
    "pickled by a producer": (
        lambda a, line: ((i := new_id()), a.sealed(i, pickled(a, line)), "celery"),
        "unreadable",
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_he_plants_does_not_run(attack: Attack, name: str) -> None:
    make, reason = ATTACKS[name]
    task_id, stored, queue = make(attack, name)
    attack.plant(task_id, stored, queue)
    assert attack.refused(task_id) == reason
    assert attack.lines() == []
    if reason not in (Reason.SIGNATURE_EXPIRED, Reason.CERTIFICATE, "unreadable"):
        with pytest.raises(Refused, match="is not run again"):  # nobody signs it for him
            task_services.retry(attack.store, task_id)


def test_what_an_agent_may_submit_runs(attack: Attack) -> None:
    """The control of all of the above: the same ways, with a certificate that allows it."""
    task_id, stored, queue = by_agent(nested, submit=("same", "note"))(attack, "allowed")
    attack.plant(task_id, stored, queue)
    assert attack.ends(task_id).state is State.SUCCEEDED
    wait_until(lambda: attack.lines() == ["allowed"], 20, "the callbacks to run")


def test_two_messages_cannot_be_swapped(attack: Attack) -> None:
    one, two = new_id(), new_id()
    sealed = {one: attack.sealed(one, attack.message("1")), two: attack.sealed(two, attack.message("2"))}
    attack.plant(one, sealed[two])
    attack.plant(two, sealed[one])
    assert {attack.refused(one), attack.refused(two)} == {Reason.FORGED}
    assert attack.lines() == []


def test_what_has_run_does_not_run_again(attack: Attack) -> None:
    store, keys = attack.store, attack.store.keys
    task_id = new_id()
    stored = attack.sealed(task_id, attack.message("once"))
    attack.plant(task_id, stored)
    assert attack.ends(task_id).state is State.SUCCEEDED
    ended = store.agents.now_ms()
    # Its process has recorded the end; the agent itself hears of it a moment later, and by its next beat at the latest.
    wait_until(lambda: int((store.agents.get("solid") or {})["beat"]) > ended, 20, "the agent to beat")
    # He has kept a copy, and puts it back: into the ended record, then without one.
    for forget in ((), ("task", "result", "message")):
        for family in forget:
            store.client.execute("DEL", keys.of(family, task_id))
        attack.plant(task_id, stored)
        assert attack.refused(task_id) == Reason.REPLAYED
        with pytest.raises(Refused, match="a copy"):
            task_services.retry(store, task_id)
    assert attack.lines() == ["once"]


@pytest.mark.ci
def test_what_a_revoked_agent_has_signed_does_not_run(attack: Attack) -> None:
    subject = f"gone-{new_id()[:8]}"
    make = by_agent(submit=("note",), subject=subject)
    task_id, stored, queue = make(attack, "before")
    attack.plant(task_id, stored, queue)
    assert attack.ends(task_id).state is State.SUCCEEDED
    task_id, stored, queue = make(attack, "after")
    Revocations(attack.store.client).revoke_subject(subject)
    beats: set[str] = set()

    def looked() -> bool:  # with each of its beats: the third one seen has begun behind the revocation
        beats.add((attack.store.agents.get("solid") or {})["beat"])
        return len(beats) > 2

    wait_until(looked, 30, "the agent to beat")
    attack.plant(task_id, stored, queue)
    assert attack.refused(task_id) == Reason.CERTIFICATE
    assert attack.lines() == ["before"]


def test_a_chord_that_waits_for_it_fails_as_for_a_dead_letter(attack: Attack) -> None:
    store, group, body_id = attack.store, new_id(), new_id()
    body = {**signature(attack, "body"), "options": {"task_id": body_id}}
    store.chords.arm(group, body=json.dumps(body).encode(), size=1)  # and his own body is refused as well
    task_id = new_id()
    attack.plant(task_id, attack.message("part"), chord=f"{group}|0")
    assert attack.refused(task_id) == Reason.UNSIGNED
    wait_until(
        lambda: store.client.execute("EXISTS", store.keys.of("chord", group)) == 0, 20, "the chord to be over"
    )
    record = store.tasks.record(body_id)  # who waits for the body hears of it
    assert record is not None and record.state is State.FAILED and attack.lines() == []


def test_ten_thousand_of_them_do_not_hold_up_what_is_in_order(attack: Attack, fleet: Fleet) -> None:
    store, keys = attack.store, attack.store.keys
    before = store.tasks.counts().get("celery", {}).get("refused", 0)
    ids = [new_id() for _ in range(10_000)]
    made = attack.message("flood")
    for first in range(0, len(ids), 1000):
        page = ids[first : first + 1000]
        commands: list[Any] = []
        for one in page:
            commands += [
                ("HSET", keys.of("task", one), "v", "1", "state", "queued", "queue", "celery", "score", "1"),
                ("SET", keys.of("message", one), made),
            ]
        commands.append(("ZADD", keys.of("queue", "celery"), *(word for one in page for word in (1, one))))
        store.client.pipeline(*commands)
    store.client.pipeline(("SADD", keys["ready"], "celery"), ("RPUSH", keys.of("bell", "celery"), "1"))
    valid = [new_id() for _ in range(20)]
    for one in valid:
        attack.plant(one, attack.sealed(one, attack.message(one)), score="2")
        store.client.execute("ZADD", keys.of("queue", "celery"), 2, one)  # behind all of them
    for one in valid:
        assert attack.ends(one).state is State.SUCCEEDED
    assert sorted(attack.lines()) == sorted(valid)

    def refused() -> int:
        return store.tasks.counts()["celery"].get("refused", 0) - before

    wait_until(lambda: refused() == 10_000, 30, "all to be put aside")
    said = (fleet.folder / "solid.log").read_text()
    assert "others)" in said and said.count("is not signed") < 100
    store.client.execute("DEL", *(keys.of("task", one) for one in ids))


def all_bodies(store: Store) -> dict[str, bytes]:
    cursor, found = store.chords.bodies("0")
    while cursor != "0":
        cursor, more = store.chords.bodies(cursor)
        found |= more
    return found


def test_a_rotation_seals_what_waits_anew(redis_url: str, tmp_path: Path) -> None:
    """Also what an attempt holds; not what is not in order; and never over what came meanwhile."""
    fleet = Fleet(redis_url, f"reseal-{new_id()[:8]}", tmp_path)
    attack, store, ids = Attack(fleet, tmp_path / "effects"), fleet.mesh.store, [new_id() for _ in range(3)]
    for one in ids[:2]:
        attack.plant(one, attack.sealed(one, attack.message("x")))
    attack.plant(ids[2], attack.message("x"))
    (held,) = store.tasks.fetch(holder="w#1", isolated=True, nonce="n", limit=1, held=0, queues=["celery"])
    both = Store(dataclasses.replace(store.settings, jwt_secret=secrets.token_hex(32), jwt_secret_new=SECRET))
    old_kid, new_kid = RING.kids[0], both.settings.keyring.kids[0]
    assert held.id in ids and sealed_with(both, ids) == {old_kid: 2, "": 1}
    assert reseal(both, ids) == 2 and reseal(both, ids) == 0
    assert sealed_with(both, ids) == {new_kid: 2, "": 1}
    body = body_sealer(store)("group", json.dumps({"task": "note", "args": []}).encode())
    store.chords.arm("group", body=body, size=2)
    bodies = all_bodies(store)
    assert bodies == {"group": body} and reseal_bodies(both, bodies) == (1, 0)
    anew = all_bodies(store)
    assert kid_of(anew["group"]) == new_kid and open_body(both, "group", anew["group"])
    assert reseal_bodies(both, anew) == (0, 0) and reseal_bodies(both, bodies) == (0, 1)
    for one in ids[:2]:
        stored = store.tasks.message(one)
        assert stored and open_sealed(keys_of(both.settings), "celery", one, stored, both.now_ms()).message
        assert both.tasks.reseal([one, b"what was there before", b"too late"]) == 0
    both.close()
    fleet.close()


def test_what_an_agent_published_outlives_its_certificate(redis_url: str, tmp_path: Path) -> None:
    """The mesh takes over what waits; what an agent could no longer have signed, or may not, it does not."""
    fleet = Fleet(redis_url, f"outlive-{new_id()[:8]}", tmp_path)
    attack, store, ids = Attack(fleet, tmp_path / "effects"), fleet.mesh.store, ["", "", ""]
    makers = by_agent(submit=("note",)), by_agent(submit=("note",), age_s=3601), by_agent(submit=("same",))
    for at, make in enumerate(makers):
        ids[at], stored, queue = make(attack, "x")
        attack.plant(ids[at], stored, queue)
    kid = RING.kids[0]
    assert passing(store, ids) == ids and reseal(store, ids) == 1
    assert passing(store, ids) == ids[1:] and sealed_with(store, ids) == {kid: 3}
    stored = store.tasks.message(ids[0])
    assert (
        stored
        and open_sealed(keys_of(store.settings), "celery", ids[0], stored, store.now_ms()).claims is None
    )
    fleet.close()
