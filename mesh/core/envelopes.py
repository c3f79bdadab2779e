"""Envelopes: how a task's message is sealed where it is published and opened where it is fetched.

A sealed message is a header, a proof and the message itself:

    magic (1)  kind (1)  kid (4)  not after, ms (6)  nonce (4)  proof  message

*Root* (kind 1): whoever holds the secret of the mesh. The proof is a keyed BLAKE2b (RFC 7693) of 16 bytes over the header, the
task's id and the message, with the key of the queue; the key is the namespace's and the queue's own, so these are bound as well.
*Agent* (kind 2): what an agent publishes. The proof is the agent's task certificate (see `mesh.core.tokens`) and an Ed25519
signature over namespace, queue, header, certificate, id and message.

The key of a queue comes from the keys of the capabilities that it requires: who has only these opens exactly what he may take.
Nothing here knows what a message says; whether a certificate's holder may submit it is asked in `mesh.core.canvas`.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from hmac import compare_digest
from typing import Any, NamedTuple

from mesh.core import tokens
from mesh.core.keyring import Keyring
from mesh.core.requirements import capabilities_of
from mesh.core.states import Reason
from mesh.core.tokens import Claims
from mesh.errors import Invalid, Unauthenticated

__all__ = [
    "OVERHEAD",
    "AgentSealer",
    "Opened",
    "Rejected",
    "Sealer",
    "TaskKeys",
    "by_agent",
    "kid_of",
    "lifetime_ms",
    "open_sealed",
    "peel",
]

_MAGIC, _ROOT, _AGENT = (
    0xA7,
    1,
    2,
)  # no msgpack value begins like that which is a message: arrays begin with 0x9_ or 0xd_
_HEADER, _PROOF, _SIGNATURE = 16, 16, 64
OVERHEAD = _HEADER + _PROOF
"""Bytes that a root's envelope adds to a message."""
LEEWAY_MS = 3_600_000
_MOST_STATES = 20_000  # queues whose hash states are kept: more than there may be requirements


class Rejected(ValueError):
    """A message that is not to be run: `reason` is one of the table's, `detail` a sentence for people."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class Opened(NamedTuple):
    """A message whose seal was found right."""

    message: bytes
    proof: bytes  # 16 bytes that name this very sealing
    not_after_ms: int
    claims: Claims | None  # the certificate of the agent that sealed it; None: a holder of the secret


# -- keys


class TaskKeys:
    """What opens the messages of one namespace, and for holders of the secret also what seals them.

    `capabilities`: keys by kid and capability, or None where `keyring` derives them all; `trusted`: public keys of task
    certificates by kid (32 bytes each), or None as well. `revoked` may be replaced by who knows which certificates are: it is
    asked for each message that an agent sealed.
    """

    def __init__(
        self,
        namespace: str,
        *,
        capabilities: Mapping[str, Mapping[str, bytes]] | None,
        trusted: Mapping[str, bytes] | None,
        keyring: Keyring | None = None,
    ) -> None:
        self.namespace = namespace
        self._trusted = None if trusted is None else dict(trusted)
        self.revoked: Callable[[Claims], bool] = lambda claims: False
        self._capabilities = (
            None if capabilities is None else {kid: dict(row) for kid, row in capabilities.items()}
        )
        self._keyring = keyring
        self._states: dict[tuple[bytes, str], Any] = {}
        self._certificates: dict[bytes, tuple[Claims, Any]] = {}
        self._kids = frozenset(bytes.fromhex(kid) for kid in self.kids)

    @classmethod
    def of_keyring(cls, keyring: Keyring, namespace: str) -> TaskKeys:
        """All keys of a namespace."""
        return cls(namespace, capabilities=None, trusted=None, keyring=keyring)

    @property
    def trusted(self) -> dict[str, bytes]:
        """The public keys of task certificates; made when they are asked for: most producers never do."""
        if self._trusted is None:
            assert self._keyring is not None
            self._trusted = tokens.certifying_keys(self._keyring)
        return self._trusted

    @property
    def kids(self) -> tuple[str, ...]:
        """The secrets whose messages it opens, by the names of their keys."""
        return self._keyring.kids if self._keyring is not None else tuple(self._capabilities or ())

    def to_json(self, capabilities: Iterable[str]) -> dict[str, Any]:
        """What an agent with these capabilities is given.

        {namespace, capabilities: {kid: {name: base64}}, trusted: {kid: base64}}.
        """
        names = sorted(set(capabilities))
        return {
            "namespace": self.namespace,
            "capabilities": {
                kid: {name: _text(self._capability(kid, name)) for name in names} for kid in self.kids
            },
            "trusted": {kid: _text(key) for kid, key in self.trusted.items()},
        }

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> TaskKeys:
        """The other way. Raises `Invalid`."""
        try:
            return cls(
                str(given["namespace"]),
                capabilities={
                    kid: {name: _key(text) for name, text in row.items()}
                    for kid, row in given["capabilities"].items()
                },
                trusted={kid: _key(text) for kid, text in given["trusted"].items()},
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise Invalid(f"These are not the task keys of an agent: {error!r}.") from None

    def covers(self, queue: str) -> bool:
        """Whether it has the key of this queue, under any kid."""
        needed = capabilities_of(queue)
        if self._capabilities is None:
            return bool(needed)
        return bool(needed) and any(needed <= row.keys() for row in self._capabilities.values())

    def _capability(self, kid: str, name: str) -> bytes:
        """K_capability; `KeyError` for one that it does not have."""
        if self._capabilities is not None:
            return self._capabilities[kid][name]
        assert self._keyring is not None
        key = self._keyring.key(kid, f"tasks:{self.namespace}")
        return blake2b(name.encode(), key=key, digest_size=32, person=b"mesh-capability").digest()

    def queue_key(self, kid: str, queue: str) -> bytes:
        """K_queue: of one capability its own, of several a hash of theirs. Raises `KeyError` for one that it does not have."""
        names = sorted(capabilities_of(queue))
        if not names:
            raise KeyError(queue)
        keys = [self._capability(kid, name) for name in names]
        return (
            keys[0]
            if len(keys) == 1
            else blake2b(b"".join(keys), digest_size=32, person=b"mesh-queue").digest()
        )

    def state(self, kid: bytes, queue: str) -> Any:
        """The keyed hash of a queue, to be copied; None for a key that it does not have."""
        state = self._states.get((kid, queue))
        if state is None:
            if kid not in self._kids:
                return None
            try:
                key = self.queue_key(kid.hex(), queue)
            except KeyError:
                return None
            if len(self._states) >= _MOST_STATES:  # names that somebody made up
                self._states.clear()
            state = self._states[kid, queue] = blake2b(key=key, digest_size=_PROOF, person=b"mesh-task")
        return state

    def certificate(self, text: bytes, now_ms: int | None) -> tuple[Claims, Any]:
        """(what a certificate says, its holder's public key). `now_ms` None: as of its issue. Raises `Unauthenticated`."""
        found = self._certificates.get(text)
        if found is None:
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

            written = text.decode("ascii", "replace")
            now_s = now_ms / 1000 if now_ms is not None else _issued_at(written)
            claims = tokens.verify("task", written, self.trusted, now_s=now_s)
            assert claims.public_key is not None  # the kind has one
            if len(self._certificates) >= 1000:
                self._certificates.clear()
            found = self._certificates[text] = claims, Ed25519PublicKey.from_public_bytes(claims.public_key)
        claims = found[0]
        if (
            now_ms is not None
            and not claims.not_before - tokens.LEEWAY_S <= now_ms / 1000 < claims.expires_at
        ):
            raise Unauthenticated(reason="it has expired")
        if not claims.covers(self.namespace):
            raise Unauthenticated(reason=f"it is not for namespace {self.namespace}")
        if self.revoked(claims):
            raise Unauthenticated(reason="it is revoked")
        return found


def _text(key: bytes) -> str:
    return base64.b64encode(key).decode()


def _key(text: str) -> bytes:
    key = base64.b64decode(text, validate=True)
    if len(key) != 32:
        raise ValueError("a key has not 32 bytes")
    return key


def _issued_at(text: str) -> float:
    """When a certificate says that it was issued, unverified."""
    try:
        body = text.split(".")[1]
        return float(json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))["iat"])
    except (LookupError, TypeError, ValueError, binascii.Error):
        return 0.0


# -- sealing


def lifetime_ms(validity_s: int, delay_ms: int | None, *bounds_ms: int | None) -> int:
    """How long from now a message is to be believed: `bounds_ms` are its expiry and its deadline, where it has them."""
    within = [one for one in bounds_ms if one is not None]
    return (delay_ms or 0) + min([validity_s * 1000, *within]) + LEEWAY_MS


def _header(kind: int, kid: bytes, not_after_ms: int, nonce: bytes) -> bytes:
    if len(kid) != 4 or len(nonce) != 4:
        raise ValueError("a kid and a nonce have 4 bytes")
    return b"%c%c%b%b%b" % (_MAGIC, kind, kid, not_after_ms.to_bytes(6, "big"), nonce)


class Sealer:
    """Seals messages of one queue as a holder of the secret; the header is the same for all that one of these seals.

    `nonce`: 4 bytes that no other sealer of this queue is likely to have.
    """

    __slots__ = ("_header", "_state")

    def __init__(self, keys: TaskKeys, kid: str, queue: str, *, not_after_ms: int, nonce: bytes) -> None:
        state = keys.state(bytes.fromhex(kid), queue)
        if state is None:
            raise Invalid(
                f"There is no key for tasks of queue {queue!r} of namespace {keys.namespace!r} here."
            )
        self._header = _header(_ROOT, bytes.fromhex(kid), not_after_ms, nonce)
        self._state = state.copy()
        self._state.update(self._header)

    def __call__(self, task_id: str, message: bytes) -> bytes:
        """The sealed form of a task's message."""
        name = task_id.encode()
        state = self._state.copy()
        state.update(len(name).to_bytes(4, "big") + name)
        state.update(message)
        return b"".join((self._header, state.digest(), message))


class AgentSealer:
    """Seals messages of one queue as an agent does: `sign` is its Ed25519 key's, `certificate` the text of its certificate."""

    __slots__ = ("_certificate", "_header", "_namespace", "_queue", "_sign")

    def __init__(
        self,
        sign: Callable[[bytes], bytes],
        certificate: bytes,
        *,
        kid: str,
        namespace: str,
        queue: str,
        not_after_ms: int,
        nonce: bytes,
    ) -> None:
        self._sign, self._certificate, self._namespace, self._queue = sign, certificate, namespace, queue
        self._header = _header(_AGENT, bytes.fromhex(kid), not_after_ms, nonce)

    def __call__(self, task_id: str, message: bytes) -> bytes:
        """The sealed form of a task's message."""
        digest = _agents_digest(
            self._namespace, self._queue, self._header, self._certificate, task_id, message
        )
        size = len(self._certificate).to_bytes(2, "big")
        return b"".join((self._header, size, self._certificate, self._sign(digest), message))


def _agents_digest(
    namespace: str, queue: str, header: bytes, certificate: bytes, task_id: str, message: bytes
) -> bytes:
    """What an agent signs."""
    state = blake2b(digest_size=64, person=b"mesh-agent-task")
    for part in (namespace.encode(), queue.encode(), header, certificate, task_id.encode()):
        state.update(len(part).to_bytes(4, "big") + part)
    state.update(message)
    return state.digest()


# -- opening


def open_sealed(keys: TaskKeys, queue: str, task_id: str, sealed: bytes, now_ms: int | None) -> Opened:
    """The message of a task, if it was sealed for this id and queue by somebody who may.

    `now_ms`: Redis's clock; None does not ask whether its time is over. Raises `Rejected`.
    """
    if len(sealed) < OVERHEAD or sealed[0] != _MAGIC:
        raise Rejected(Reason.UNSIGNED, "its message is not signed")
    if sealed[1] == _AGENT:
        return _open_agents(keys, queue, task_id, sealed, now_ms)
    if sealed[1] != _ROOT:
        raise Rejected(Reason.FORGED, "its message is signed in a way that this version does not know")
    state = keys.state(sealed[2:6], queue)
    if state is None:
        raise _unknown(keys, queue, sealed)
    name, proof, message = task_id.encode(), sealed[_HEADER:OVERHEAD], sealed[OVERHEAD:]
    state = state.copy()
    state.update(sealed[:_HEADER])
    state.update(len(name).to_bytes(4, "big") + name)
    state.update(message)
    if not compare_digest(state.digest(), proof):
        raise _forged()
    not_after_ms = int.from_bytes(sealed[6:12], "big")
    if now_ms is not None and not_after_ms < now_ms:
        raise _over()
    return Opened(message, proof, not_after_ms, None)


def _open_agents(keys: TaskKeys, queue: str, task_id: str, sealed: bytes, now_ms: int | None) -> Opened:
    from cryptography.exceptions import InvalidSignature

    ends = _HEADER + 2 + int.from_bytes(sealed[_HEADER : _HEADER + 2], "big")
    certificate, signature = sealed[_HEADER + 2 : ends], sealed[ends : ends + _SIGNATURE]
    message = sealed[ends + _SIGNATURE :]
    if len(signature) != _SIGNATURE:
        raise _forged()
    if sealed[2:6].hex() not in keys.trusted:
        raise _unknown(keys, queue, sealed)
    try:
        claims, public_key = keys.certificate(certificate, now_ms)
    except Unauthenticated as error:
        raise Rejected(
            Reason.CERTIFICATE, f"the certificate of who signed its message is refused: {error.reason}"
        ) from None
    if claims.kid != sealed[2:6].hex():
        raise _forged()
    header = sealed[:_HEADER]
    digest = _agents_digest(keys.namespace, queue, header, certificate, task_id, message)
    try:
        public_key.verify(signature, digest)
    except InvalidSignature:
        raise _forged() from None
    not_after_ms = int.from_bytes(sealed[6:12], "big")
    if now_ms is not None and not_after_ms < now_ms:
        raise _over()
    return Opened(message, digest[:_PROOF], not_after_ms, claims)


def _unknown(keys: TaskKeys, queue: str, sealed: bytes) -> Rejected:
    if sealed[2:6] in keys._kids:
        return Rejected(Reason.MOVED, f"there is no key here for tasks of queue {queue[:200]!r}")
    return Rejected(
        Reason.UNKNOWN_KEY, f"its message is signed with the key {sealed[2:6].hex()}, which is not known here"
    )


def _forged() -> Rejected:
    return Rejected(
        Reason.FORGED,
        "the signature of its message is wrong: forged, altered, or moved from another id, queue or namespace",
    )


def _over() -> Rejected:
    return Rejected(Reason.SIGNATURE_EXPIRED, "the signature of its message has expired")


def kid_of(sealed: bytes) -> str | None:
    """Which secret's keys a message says that it is sealed with; its first 16 bytes are enough. None: with none."""
    return sealed[2:6].hex() if len(sealed) >= _HEADER and sealed[0] == _MAGIC else None


def by_agent(sealed: bytes) -> bool:
    """Whether a message says that an agent sealed it: then it counts no longer than that agent's certificate."""
    return len(sealed) >= _HEADER and sealed[0] == _MAGIC and sealed[1] == _AGENT


def peel(sealed: bytes) -> bytes:
    """The message inside, unverified: only for what grants nothing. What is not sealed is answered as it is."""
    if len(sealed) < OVERHEAD or sealed[0] != _MAGIC:
        return sealed
    if sealed[1] != _AGENT:
        return sealed[OVERHEAD:]
    return sealed[_HEADER + 2 + int.from_bytes(sealed[_HEADER : _HEADER + 2], "big") + _SIGNATURE :]
