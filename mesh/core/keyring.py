"""The keys of a mesh, all derived from its secrets, each for one purpose.

A secret is never used itself. From each, HKDF (RFC 5869, with SHA-256) derives a key per purpose, so that what signs one kind of
thing says nothing of another, and a name, the key id, which tells nothing of the secret and may be seen by everybody.
During a rotation there are two secrets: what either has signed is believed; `mesh.core.rotation` says which one signs.
"""

from __future__ import annotations

import hmac
import math
import re
from collections import Counter
from collections.abc import Iterable

from mesh.errors import Invalid

__all__ = ["LEAST_BYTES", "Keyring", "check_secret", "derive", "key_id"]

LEAST_BYTES = 32
_SALT = b"agent-mesh/1"
_LEAST_BITS = (
    80  # of Shannon's entropy over all characters: a random secret of 32 hexadecimal digits has about 110
)
# Words that nobody's dice throw: short ones only where they stand alone.
_SAMPLES = re.compile(
    r"(change|replace|insert)[-_ ]?(me|this|it)|example|sample|placeholder|secret|password|default|agent[-_]?mesh|qwerty"
    r"|0123456789|123456789|(?<![a-z0-9])(your|test|demo|dummy|todo)(?![a-z0-9])",
    re.IGNORECASE,
)


def derive(secret: bytes, purpose: str) -> bytes:
    """The key of 32 bytes for `purpose` (RFC 5869 with SHA-256, one block)."""
    return hmac.digest(hmac.digest(_SALT, secret, "sha256"), purpose.encode() + b"\1", "sha256")


def key_id(secret: bytes) -> str:
    """The name of a secret's keys: eight hexadecimal digits."""
    return derive(secret, "key id")[:4].hex()


def check_secret(secret: str, *, where: str, lenient: bool) -> None:
    """Raise `Invalid` for a secret that somebody could guess; `lenient`, for development, only for one that is too short."""
    size = len(secret.encode(errors="surrogatepass"))
    made = "`mesh secret generate` makes one"
    if size < LEAST_BYTES:
        raise Invalid(f"{where} has {size} bytes, but needs at least {LEAST_BYTES}; {made}.")
    if lenient:
        return
    if _SAMPLES.search(secret):
        raise Invalid(
            f"{where} looks like a sample out of a manual, which everybody knows; {made} (MESH_ENV=development lets it pass)."
        )
    counts = Counter(secret)
    bits = -sum(many * math.log2(many / len(secret)) for many in counts.values())
    if bits < _LEAST_BITS:
        raise Invalid(
            f"{where} repeats few characters and is easy to guess; {made} (MESH_ENV=development lets it pass)."
        )


class Keyring:
    """The keys of one secret or, during a rotation, of two: the one in force first, then the coming one."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = {key_id(one): one for one in (text.encode() for text in secrets)}
        self._keys: dict[tuple[str, str], bytes] = {}

    @property
    def kids(self) -> tuple[str, ...]:
        """The names of the keys, in the order of the secrets."""
        return tuple(self._secrets)

    def key(self, kid: str, purpose: str) -> bytes:
        """The key for `purpose` of the secret that `kid` names. Raises `KeyError` for a name that is not known."""
        key = self._keys.get((kid, purpose))
        if key is None:
            key = self._keys[kid, purpose] = derive(self._secrets[kid], purpose)
        return key

    def __repr__(self) -> str:
        return f"Keyring({', '.join(self._secrets)})"
