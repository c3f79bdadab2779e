"""Sealed messages: what was sealed comes out again, and nothing else does."""

import secrets
import string
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import tokens
from mesh.core.envelopes import (
    OVERHEAD,
    AgentSealer,
    Rejected,
    Sealer,
    TaskKeys,
    kid_of,
    lifetime_ms,
    open_sealed,
    peel,
)
from mesh.core.keyring import Keyring
from mesh.core.states import REFUSALS, Reason
from mesh.errors import Invalid

NOW = 1_800_000_000_000
HOUR = 3_600_000
OLD, NEW = secrets.token_hex(32), secrets.token_hex(32)
RING = Keyring([OLD, NEW])
KID, NEW_KID = RING.kids
KEYS = TaskKeys.of_keyring(RING, "shop")
MESSAGE = b"\x96\xa4work\xc4\x02[]\x00\xc0\xc0\xc0"
Seal = Callable[[str, bytes], bytes]


@dataclass
class Agent:
    """An agent with a key and a certificate of its own."""

    key: Ed25519PrivateKey
    certificate: bytes
    kid: str = KID

    def sealer(
        self, queue: str = "work", *, namespace: str = "shop", not_after_ms: int = NOW + HOUR
    ) -> AgentSealer:
        return AgentSealer(
            self.key.sign,
            self.certificate,
            kid=self.kid,
            namespace=namespace,
            queue=queue,
            not_after_ms=not_after_ms,
            nonce=b"once",
        )


def agent(
    ring: Keyring = RING, *, issued_ms: int = NOW, namespaces: tuple[str, ...] = ("shop",), ttl_s: int = 3600
) -> Agent:
    key = Ed25519PrivateKey.generate()
    text = tokens.issue(
        "task",
        ring,
        ring.kids[0],
        subject="worker-1",
        agent_type="worker",
        namespaces=namespaces,
        ttl_s=ttl_s,
        now_s=issued_ms / 1000,
        jti=secrets.token_hex(16),
        submit=["*"],
        public_key=key.public_key().public_bytes_raw(),
    )
    return Agent(key, text.encode(), ring.kids[0])


def root(
    queue: str = "work", *, keys: TaskKeys = KEYS, kid: str = KID, not_after_ms: int = NOW + HOUR
) -> Sealer:
    return Sealer(keys, kid, queue, not_after_ms=not_after_ms, nonce=b"once")


AGENT = agent()
KINDS = {"root": root(), "agent": AGENT.sealer()}


def refused(
    sealed: bytes, *, task_id: str = "id-1", queue: str = "work", keys: TaskKeys = KEYS, now_ms: int = NOW
) -> Reason:
    with pytest.raises(Rejected) as raised:
        open_sealed(keys, queue, task_id, sealed, now_ms)
    assert raised.value.reason in REFUSALS and raised.value.detail
    return raised.value.reason


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_sealed_comes_out(kind: str) -> None:
    sealed = KINDS[kind]("id-1", MESSAGE)
    opened = open_sealed(KEYS, "work", "id-1", sealed, NOW)
    assert opened.message == MESSAGE == peel(sealed) and len(opened.proof) == 16
    assert (opened.claims is None) == (kind == "root")
    assert kid_of(sealed) == kid_of(sealed[:16]) == KID
    if kind == "root":
        assert len(sealed) == len(MESSAGE) + OVERHEAD


@given(st.text(max_size=300).filter(lambda text: text.isprintable()), st.binary(max_size=3000))
def test_any_id_and_message_come_out(task_id: str, message: bytes) -> None:
    for seal in KINDS.values():
        assert open_sealed(KEYS, "work", task_id, seal(task_id, message), NOW).message == message


@pytest.mark.parametrize("kind", KINDS)
def test_no_byte_of_it_can_be_altered(kind: str) -> None:
    sealed = KINDS[kind]("id-1", MESSAGE)
    for at in range(len(sealed)):
        for flip in (0x01, 0x80, 0xFF):
            refused(sealed[:at] + bytes([sealed[at] ^ flip]) + sealed[at + 1 :])


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_can_be_cut_off_or_added(kind: str) -> None:
    sealed = KINDS[kind]("id-1", MESSAGE)
    for size in range(len(sealed)):
        refused(sealed[:size])
    for more in (b"\0", b"x", sealed):
        refused(sealed + more)
        refused(more + sealed)


@given(st.binary(max_size=400), st.sampled_from([b"", b"\xa7", b"\xa7\x01", b"\xa7\x02", b"\xa7\x03"]))
def test_no_made_up_bytes_are_believed_or_do_harm(data: bytes, head: bytes) -> None:
    refused(head + data)
    peel(head + data)
    kid_of(head + data)


@given(st.binary(max_size=400), st.sampled_from([1, 2]))
def test_nor_with_a_kid_that_is_known(data: bytes, kind: int) -> None:
    refused(b"\xa7%c%b" % (kind, bytes.fromhex(KID)) + data)


def test_what_is_not_signed_is_said_to_be() -> None:
    for message in (b"", MESSAGE, b"\xa7", b"{}" * 50):
        assert refused(message) == Reason.UNSIGNED
        assert peel(message) == message and kid_of(message[:3]) is None


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_for_one_id_one_queue_and_one_namespace(kind: str) -> None:
    sealed = KINDS[kind]("id-1", MESSAGE)
    other = TaskKeys.of_keyring(RING, "bank")
    assert refused(sealed, task_id="id-2") == Reason.FORGED
    assert refused(sealed, task_id="id-1\x96") == Reason.FORGED
    assert refused(sealed, queue="works") == Reason.FORGED
    assert refused(sealed, queue="gpu+work") == Reason.FORGED
    assert refused(sealed, keys=other) == (Reason.FORGED if kind == "root" else Reason.CERTIFICATE)


def test_a_certificate_for_all_namespaces_still_signs_for_one() -> None:
    everywhere = agent(namespaces=("*",))
    sealed = everywhere.sealer(namespace="bank")("id-1", MESSAGE)
    assert refused(sealed) == Reason.FORGED
    assert open_sealed(TaskKeys.of_keyring(RING, "bank"), "work", "id-1", sealed, NOW).claims is not None


def test_an_id_and_a_message_cannot_be_shifted_against_each_other() -> None:
    for seal in KINDS.values():
        sealed = seal("id-1", b"23" + MESSAGE)
        head = len(sealed) - len(MESSAGE) - 2
        assert refused(sealed[:head] + MESSAGE, task_id="id-123") == Reason.FORGED


@pytest.mark.parametrize("kind", KINDS)
def test_its_time_ends(kind: str) -> None:
    late = {"root": root(not_after_ms=NOW), "agent": AGENT.sealer(not_after_ms=NOW)}[kind]("id-1", MESSAGE)
    assert open_sealed(KEYS, "work", "id-1", late, NOW).message == MESSAGE
    assert refused(late, now_ms=NOW + 1) == Reason.SIGNATURE_EXPIRED
    assert open_sealed(KEYS, "work", "id-1", late, None).message == MESSAGE  # an operator runs it again


def test_both_secrets_are_believed_and_no_third() -> None:
    assert open_sealed(KEYS, "work", "id-1", root(kid=NEW_KID)("id-1", MESSAGE), NOW).message == MESSAGE
    third = Keyring([secrets.token_hex(32)])
    keys = TaskKeys.of_keyring(third, "shop")
    stranger = Sealer(keys, third.kids[0], "work", not_after_ms=NOW + HOUR, nonce=b"once")
    assert refused(stranger("id-1", MESSAGE)) == Reason.UNKNOWN_KEY
    assert refused(agent(third).sealer()("id-1", MESSAGE)) == Reason.UNKNOWN_KEY


def test_a_certificate_that_somebody_made_himself_is_refused() -> None:
    theirs = Keyring([secrets.token_hex(32)])
    own = agent(theirs)
    own.kid = KID  # as the header says; the certificate's says otherwise
    assert refused(own.sealer()("id-1", MESSAGE)) == Reason.CERTIFICATE
    other = agent()
    stolen = Agent(own.key, other.certificate)  # somebody else's certificate, his own key
    assert refused(stolen.sealer()("id-1", MESSAGE)) == Reason.FORGED


def test_a_certificate_ends_too_and_may_be_revoked() -> None:
    short = agent(ttl_s=60)
    sealed = short.sealer()("id-1", MESSAGE)
    keys = TaskKeys.of_keyring(RING, "shop")
    assert open_sealed(keys, "work", "id-1", sealed, NOW + 59_000).claims is not None
    assert refused(sealed, keys=keys, now_ms=NOW + 60_000) == Reason.CERTIFICATE
    assert open_sealed(KEYS, "work", "id-1", sealed, None).message == MESSAGE
    keys.revoked = lambda claims: claims.subject == "worker-1"
    assert refused(sealed, keys=keys) == Reason.CERTIFICATE


def test_a_certificate_of_the_other_secret_does_not_pass_for_this_ones() -> None:
    mixed = agent(Keyring([NEW]))
    mixed.kid = KID
    assert refused(mixed.sealer()("id-1", MESSAGE)) == Reason.FORGED


# -- what a joined agent is given

LIMITED = TaskKeys.from_json(KEYS.to_json(["work", "gpu"]))


def test_an_agent_opens_what_its_capabilities_allow() -> None:
    assert LIMITED.kids == KEYS.kids and LIMITED.namespace == "shop"
    for queue in ("work", "gpu", "gpu+work"):
        assert LIMITED.covers(queue) and KEYS.covers(queue)
        for kid in KEYS.kids:
            sealed = root(queue, kid=kid)("id-1", MESSAGE)
            assert open_sealed(LIMITED, queue, "id-1", sealed, NOW).message == MESSAGE
    assert open_sealed(LIMITED, "work", "id-1", AGENT.sealer()("id-1", MESSAGE), NOW).claims is not None


def test_and_nothing_else() -> None:
    for queue in ("pay", "gpu+pay", ""):
        assert not LIMITED.covers(queue)
        with pytest.raises(Invalid, match="no key"):
            root(queue, keys=LIMITED)
    assert refused(root("pay")("id-1", MESSAGE), queue="pay", keys=LIMITED) == Reason.MOVED
    assert refused(root("pay")("id-1", MESSAGE), keys=LIMITED) == Reason.FORGED


def test_the_keys_of_a_part_do_not_make_those_of_the_whole() -> None:
    every = {KEYS.queue_key(kid, queue) for kid in KEYS.kids for queue in ("work", "gpu", "gpu+work", "pay")}
    every |= {TaskKeys.of_keyring(RING, "bank").queue_key(KID, "work")}
    assert len(every) == 9


@pytest.mark.parametrize(
    "given_",
    [{}, {"namespace": "a"}, {"namespace": "a", "capabilities": {KID: {"x": "AA=="}}, "trusted": {}}],
)
def test_bad_keys_are_refused_in_one_sentence(given_: dict[str, object]) -> None:
    with pytest.raises(Invalid, match="not the task keys"):
        TaskKeys.from_json(given_)


def test_made_up_queues_do_not_fill_the_memory() -> None:
    keys = TaskKeys.of_keyring(RING, "shop")
    sealed = root()("id-1", MESSAGE)
    for number in range(20_050):
        with pytest.raises(Rejected):
            open_sealed(keys, f"made-up-{number}", "id-1", sealed, NOW)
    assert len(keys._states) <= 20_000


def test_a_huge_message_is_sealed_as_well() -> None:
    huge = secrets.token_bytes(8) * (1 << 20)
    for seal in KINDS.values():
        assert open_sealed(KEYS, "work", "id-1", seal("id-1", huge), NOW).message == huge


def test_how_long_a_message_is_believed() -> None:
    assert lifetime_ms(60, None) == 60_000 + HOUR
    assert lifetime_ms(60, 5_000, None, 1_000) == 6_000 + HOUR
    assert lifetime_ms(60, None, 90_000, None) == 60_000 + HOUR


def test_ids_are_any_text() -> None:
    for task_id in ("", string.printable, "ü" * 200):
        assert open_sealed(KEYS, "work", task_id, root()(task_id, MESSAGE), NOW).message == MESSAGE
