"""Who seals and opens task messages in this process.

A process that holds the secret of the mesh seals as its root, and opens everything. An agent seals with a key of its own, whose
certificate limits it, also where it holds the secret: in its main process, in its pool's children, in a `Mesh()` inside a task.
It says so once, with `become`. Children are forked: they find the agent's key where they were forked from, and its certificate,
which is renewed while they live, in memory that they share with it.
"""

from __future__ import annotations

import base64
import json
import mmap
import os
import secrets
from collections.abc import Iterable
from typing import Protocol

from mesh.core import tokens
from mesh.core.envelopes import AgentSealer, Sealer, TaskKeys, lifetime_ms
from mesh.core.keyring import Keyring
from mesh.settings import Settings
from mesh.store.rotation import rotation_of
from mesh.store.store import Store

__all__ = [
    "CHORDS",
    "AgentSigner",
    "RootSigner",
    "Signer",
    "become",
    "body_sealer",
    "certify",
    "keys_of",
    "kid_in_force",
    "sealer",
    "signer_of",
]

CHORDS = "@chord"  # in the place of a queue: no queue is called so
CERTIFICATE_S = 86_400  # the life of a certificate
RENEWED_S = CERTIFICATE_S // 2  # what may be left of it when it is renewed
_SLOT = tokens.MOST_CHARACTERS + 4


class Signer(Protocol):
    """What seals messages of one namespace."""

    def sealer(self, queue: str, not_after_ms: int) -> Sealer | AgentSealer:
        """Seals messages of this queue, to be believed until then. Raises `Invalid` where there is no key for it."""


class RootSigner:
    """Seals as a holder of the secret."""

    def __init__(self, keys: TaskKeys, settings: Settings) -> None:
        self._keys, self._settings = keys, settings
        self._agent: AgentSigner | None = None
        self._renew_at_ms = 0

    def sealer(self, queue: str, not_after_ms: int) -> Sealer:
        """See `Signer`."""
        return Sealer(
            self._keys, kid_in_force(self._settings), queue, not_after_ms=not_after_ms, nonce=os.urandom(4)
        )

    def as_agent(self, now_ms: int) -> AgentSigner:
        """A signer whose seals agents without the secret can open as well; it may submit everything."""
        if self._agent is None:
            self._agent = AgentSigner(self._keys.namespace)
        if now_ms >= self._renew_at_ms:
            self._renew_at_ms = certify(
                self._agent,
                self._settings.keyring,
                kid_in_force(self._settings),
                subject="mesh",
                agent_type="admin",
                submit=("*",),
                now_ms=now_ms,
            )
        return self._agent


class AgentSigner:
    """Seals with a key of its own (Ed25519, made here, kept nowhere), once it was given a certificate for it."""

    def __init__(self, namespace: str) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self.namespace = namespace
        self._key = Ed25519PrivateKey.generate()
        self.public_key = self._key.public_key().public_bytes_raw()
        # Shared with children that are forked from here on: which of two slots counts, and the slots: size, text.
        self._shared = mmap.mmap(-1, 1 + 2 * _SLOT)

    def certified(self, certificate: str) -> None:
        """It has this certificate from now on, here and in the processes that were forked from this one."""
        data = certificate.encode()
        slot = 1 - self._shared[0]
        at = 1 + slot * _SLOT
        self._shared[at : at + 4 + len(data)] = len(data).to_bytes(4, "big") + data
        self._shared[0] = slot

    @property
    def certificate(self) -> bytes:
        """The text of its certificate, b"" before it has one."""
        at = 1 + self._shared[0] * _SLOT
        return self._shared[at + 4 : at + 4 + int.from_bytes(self._shared[at : at + 4], "big")]

    def sealer(self, queue: str, not_after_ms: int) -> AgentSealer:
        """See `Signer`."""
        certificate = self.certificate
        return AgentSealer(
            self._key.sign,
            certificate,
            kid=_kid(certificate),
            namespace=self.namespace,
            queue=queue,
            not_after_ms=not_after_ms,
            nonce=os.urandom(4),
        )


def _kid(certificate: bytes) -> str:
    head = certificate.split(b".")[0]
    return str(json.loads(base64.urlsafe_b64decode(head + b"=" * (-len(head) % 4)))["kid"])


def kid_in_force(settings: Settings) -> str:
    """The name of the secret that signs. Raises `Invalid` where there is none."""
    kids = settings.keyring.kids
    return kids[0] if len(kids) == 1 else rotation_of(settings).signing()


def certify(
    signer: AgentSigner,
    keyring: Keyring,
    kid: str,
    *,
    subject: str,
    agent_type: str,
    submit: Iterable[str],
    now_ms: int,
) -> int:
    """Issue a signer of this process a certificate; when to renew it, ms of the same clock."""
    signer.certified(
        tokens.issue(
            "task",
            keyring,
            kid,
            subject=subject,
            agent_type=agent_type,
            namespaces=(signer.namespace,),
            ttl_s=CERTIFICATE_S,
            now_s=now_ms / 1000,
            jti=secrets.token_hex(16),
            submit=submit,
            public_key=signer.public_key,
        )
    )
    return now_ms + (CERTIFICATE_S - RENEWED_S) * 1000


_agents: dict[str, tuple[Signer, TaskKeys]] = {}
_roots: dict[tuple[str, str | None, str | None], tuple[RootSigner, TaskKeys]] = {}


def become(namespace: str, signer: Signer | None, keys: TaskKeys | None) -> None:
    """This process, and what it forks, is an agent of the namespace from now on; None: no longer."""
    if signer is None or keys is None:
        _agents.pop(namespace, None)
    else:
        _agents[namespace] = signer, keys


def _of(settings: Settings) -> tuple[Signer, TaskKeys]:
    agent = _agents.get(settings.namespace)
    if agent is not None:
        return agent
    name = settings.namespace, settings.jwt_secret, settings.jwt_secret_new
    root = _roots.get(name)
    if root is None:
        keys = TaskKeys.of_keyring(settings.keyring, settings.namespace)
        root = _roots[name] = RootSigner(keys, settings), keys
    return root


def signer_of(settings: Settings) -> Signer:
    """What seals in this process. Raises `Invalid` where there is no secret, and it is no agent."""
    return _of(settings)[0]


def keys_of(settings: Settings) -> TaskKeys:
    """What opens in this process. Raises as `signer_of`."""
    return _of(settings)[1]


def sealer(
    store: Store,
    queue: str,
    *,
    delay_ms: int | None = None,
    expires_ms: int | None = None,
    deadline_ms: int | None = None,
) -> Sealer | AgentSealer:
    """Seals messages of one queue that are published now; by the times of their tasks. Raises `Invalid`, `StoreUnavailable`."""
    life_ms = lifetime_ms(store.settings.task_validity_s, delay_ms, expires_ms, deadline_ms)
    return signer_of(store.settings).sealer(queue, store.now_ms() + life_ms)


def body_sealer(store: Store) -> AgentSealer:
    """Seals the bodies of chords, by the id of the group, as an agent does: whichever agent completes a chord opens its body."""
    signer, now_ms = signer_of(store.settings), store.now_ms()
    if isinstance(signer, RootSigner):
        signer = signer.as_agent(now_ms)
    assert isinstance(signer, AgentSigner)
    return signer.sealer(CHORDS, now_ms + lifetime_ms(store.settings.task_validity_s, None))
