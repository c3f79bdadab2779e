"""Tokens: JSON Web Tokens (RFC 7519) that name a subject and its limits. The one place that writes and reads them.

Three kinds, the rows of `KINDS`. Each has its own `typ`, its own audience and a key of its own, so that none passes for
another: an *API token* opens the HTTP service, a *join token* lets an agent register, a *task certificate* binds an agent's
public key to what it may submit (RFC 7800). What PyJWT leaves open is closed here (RFC 8725): the text, the header and every
claim have exactly one legal form, nothing in a token chooses how it is verified, and every failure gets the same answer.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mesh.core.keyring import Keyring
from mesh.core.names import NAME, NAMESPACE, check_name
from mesh.errors import Invalid, Unauthenticated

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = [
    "EVERY",
    "ISSUER",
    "KINDS",
    "LEEWAY_S",
    "MOST_CHARACTERS",
    "Claims",
    "Kind",
    "certifying_keys",
    "check_jti",
    "issue",
    "unverified",
    "verify",
]

ISSUER = "agent-mesh"
EVERY = "*"
"""In the place of namespaces: all of them."""
LEEWAY_S = 30
"""By so much another machine's clock may be ahead when it issues a token."""
MOST_CHARACTERS = 8_192
_YEAR_S = 366 * 86_400


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of token. `also` and `maybe` are claims that it must and may have beside those of all kinds."""

    typ: str
    audience: str
    algorithm: str
    purpose: str  # of the derived key; for EdDSA that key is the seed of the private one (RFC 8032)
    longest_s: int
    also: frozenset[str] = frozenset()
    maybe: frozenset[str] = frozenset()


KINDS: Mapping[str, Kind] = {
    "api": Kind(
        typ="mesh-api+jwt",
        audience="agent-mesh:api",
        algorithm="HS256",
        purpose="api token",
        longest_s=_YEAR_S,
        maybe=frozenset({"capabilities"}),
    ),
    "join": Kind(
        typ="mesh-join+jwt",
        audience="agent-mesh:join",
        algorithm="HS256",
        purpose="join token",
        longest_s=_YEAR_S,
        maybe=frozenset({"capabilities"}),
    ),
    "task": Kind(
        typ="mesh-task+jwt",
        audience="agent-mesh:task",
        algorithm="EdDSA",
        purpose="task certificates",
        longest_s=86_400,
        also=frozenset({"submit", "cnf"}),
    ),
}
_OF_ALL = frozenset({"iss", "aud", "sub", "iat", "nbf", "exp", "jti", "agent_type", "namespaces"})

_TEXT = re.compile(r"[A-Za-z0-9_-]{1,512}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{1,128}")
_JTI = re.compile(r"[A-Za-z0-9_-]{16,64}")
_PATTERN = re.compile(r"[!#-\[\]-~]{1,255}")  # of task types: printable, without blanks, quotes, backslashes
_LATEST_S = 2**40  # beyond any date, within any number format
_MOST_NAMES = 256


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What a verified token says. Times in whole seconds since 1970."""

    kind: str
    kid: str
    jti: str
    subject: str
    agent_type: str
    namespaces: tuple[str, ...]
    capabilities: tuple[str, ...] | None  # None: not limited by the token
    submit: tuple[str, ...] | None  # patterns of task types; only in task certificates
    public_key: bytes | None  # Ed25519, 32 bytes; only in task certificates
    issued_at: int
    not_before: int
    expires_at: int

    def covers(self, namespace: str) -> bool:
        """Whether the token is for this namespace."""
        return namespace in self.namespaces or EVERY in self.namespaces


# -- issuing


def issue(
    kind: str,
    keyring: Keyring,
    kid: str,
    *,
    subject: str,
    agent_type: str,
    namespaces: Iterable[str],
    ttl_s: int,
    now_s: float,
    jti: str,
    capabilities: Iterable[str] | None = None,
    submit: Iterable[str] | None = None,
    public_key: bytes | None = None,
) -> str:
    """A token of `kind`, signed with the key that `kid` names, valid for `ttl_s` seconds from `now_s`.

    `jti` is its own name: 16 to 64 random letters and digits. `submit` and `public_key` belong to task certificates only.
    Raises `Invalid` for a name, a time or a mixture that `verify` would refuse.
    """
    row = KINDS[kind]
    if not 1 <= ttl_s <= row.longest_s:
        raise Invalid(f"A token of kind {kind!r} lives for 1 to {row.longest_s} seconds, not {ttl_s}.")
    check_name("subject", subject)
    check_name("agent type", agent_type)
    spaces = list(namespaces)
    for name in spaces:
        if name != EVERY:
            check_name("namespace", name)
    now = int(now_s)
    claims: dict[str, Any] = {
        "iss": ISSUER,
        "aud": row.audience,
        "sub": subject,
        "iat": now,
        "nbf": now,
        "exp": now + ttl_s,
        "jti": jti,
        "agent_type": agent_type,
        "namespaces": spaces,
    }
    if capabilities is not None:
        claims["capabilities"] = [check_name("capability", name) for name in capabilities]
    if submit is not None:
        claims["submit"] = list(submit)
    if public_key is not None:
        claims["cnf"] = {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": _encoded(public_key)}}
    try:
        _claims(kind, kid, claims, now_s=now)
    except Unauthenticated as error:
        raise Invalid(f"Such a token of kind {kind!r} cannot be issued: {error.reason}.") from None
    payload = json.dumps(claims, separators=(",", ":")).encode()
    key = keyring.key(kid, row.purpose)
    signing: Any = _private(key) if row.algorithm == "EdDSA" else key
    text: str = _jws(row.algorithm).encode(payload, signing, row.algorithm, {"typ": row.typ, "kid": kid})
    if len(text) > MOST_CHARACTERS:
        raise Invalid(
            f"The token would have {len(text)} characters, more than {MOST_CHARACTERS}: name fewer things in it."
        )
    return text


def check_jti(text: str) -> str:
    """`text` if it can be the name of a token. Raises `Invalid`."""
    if not _JTI.fullmatch(text):
        raise Invalid("That is not the jti of a token: 16 to 64 letters, digits, '-' and '_'.")
    return text


def certifying_keys(keyring: Keyring) -> dict[str, bytes]:
    """The public keys (Ed25519, 32 bytes) that task certificates of this mesh are verified with, by kid."""
    purpose = KINDS["task"].purpose
    return {kid: _private(keyring.key(kid, purpose)).public_key().public_bytes_raw() for kid in keyring.kids}


# -- verifying


def verify(kind: str, text: str, keys: Keyring | Mapping[str, bytes], *, now_s: float) -> Claims:
    """What the token `text` says, once all of it was found right.

    `keys`: of the mesh, or for task certificates the public ones by kid (32 bytes each).
    Raises `Unauthenticated`, always with the same sentence; its `reason` is for logs and for who holds the secret.
    """
    row = KINDS[kind]
    if not isinstance(text, str) or len(text) > MOST_CHARACTERS or not _TEXT.fullmatch(text):
        raise Unauthenticated(reason="it is not the text of a token")
    head, body, signature = text.split(".")
    _decoded(signature)  # one spelling only
    header = _object(_decoded(head))
    if header.keys() != {"alg", "typ", "kid"}:
        raise Unauthenticated(reason="its header has other members than alg, typ and kid")
    if header["typ"] != row.typ:
        raise Unauthenticated(reason=f"it is not of type {row.typ}")
    if header["alg"] != row.algorithm:
        raise Unauthenticated(reason=f"it is not signed by {row.algorithm}")
    kid = header["kid"]
    known = keys.kids if isinstance(keys, Keyring) else keys
    if not isinstance(kid, str) or kid not in known:
        raise Unauthenticated(reason="it is signed with a key that is not known")
    _check_signature(text, row, kid, keys)
    return _claims(kind, kid, _object(_decoded(body)), now_s=now_s)


def unverified(text: str) -> tuple[str | None, dict[str, Any], dict[str, Any]]:
    """(kind, header, claims) as the token itself says, for who looks into one: None and empty where it says nothing readable."""
    if len(text) > MOST_CHARACTERS or not _TEXT.fullmatch(text):
        return None, {}, {}
    head, body, _ = text.split(".")
    try:
        header, claims = _object(_decoded(head)), _object(_decoded(body))
    except Unauthenticated:
        return None, {}, {}
    return next((name for name, row in KINDS.items() if row.typ == header.get("typ")), None), header, claims


def _check_signature(text: str, row: Kind, kid: str, keys: Keyring | Mapping[str, bytes]) -> None:
    from jwt.exceptions import PyJWTError

    key: Any
    if row.algorithm == "EdDSA":
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        trusted = certifying_keys(keys) if isinstance(keys, Keyring) else keys
        key = Ed25519PublicKey.from_public_bytes(trusted[kid])
    elif isinstance(keys, Keyring):
        key = keys.key(kid, row.purpose)
    else:
        raise TypeError("Only task certificates are verified with public keys.")
    try:
        _jws(row.algorithm).decode(text, key, [row.algorithm])
    except (PyJWTError, ValueError) as error:
        raise Unauthenticated(reason="its signature is not right") from error


def _claims(kind: str, kid: str, found: dict[str, Any], *, now_s: float) -> Claims:
    row = KINDS[kind]
    if missing := sorted((_OF_ALL | row.also) - found.keys()):
        raise Unauthenticated(reason=f"the claim {missing[0]} is missing")
    if found.keys() - _OF_ALL - row.also - row.maybe:
        raise Unauthenticated(reason="it has claims that its kind does not have")
    if found["iss"] != ISSUER:
        raise Unauthenticated(reason=f"its issuer is not {ISSUER}")
    if found["aud"] != row.audience:
        raise Unauthenticated(reason=f"it is not meant for {row.audience}")
    issued, begins, ends = (_time(found, name) for name in ("iat", "nbf", "exp"))
    if not issued <= begins < ends or ends - issued > row.longest_s:
        raise Unauthenticated(
            reason=f"its times are in disorder, or it would live longer than {row.longest_s} s"
        )
    if begins > now_s + LEEWAY_S:
        raise Unauthenticated(reason="it is not valid yet")
    if ends <= now_s:
        raise Unauthenticated(reason="it has expired")
    spaces = found["namespaces"]
    return Claims(
        kind=kind,
        kid=kid,
        jti=_matching(found, "jti", _JTI),
        subject=_matching(found, "sub", NAME),
        agent_type=_matching(found, "agent_type", NAME),
        namespaces=(EVERY,) if spaces == [EVERY] else _list(found, "namespaces", NAMESPACE),
        capabilities=_list(found, "capabilities", NAME, least=0) if "capabilities" in found else None,
        submit=_list(found, "submit", _PATTERN, least=0) if "submit" in found else None,
        public_key=_public_key(found["cnf"]) if "cnf" in found else None,
        issued_at=issued,
        not_before=begins,
        expires_at=ends,
    )


def _time(found: dict[str, Any], name: str) -> int:
    value = found[name]
    if type(value) is not int or not 0 <= value <= _LATEST_S:  # bool is an int, too
        raise Unauthenticated(reason=f"the claim {name} is not a whole number of seconds")
    return value


def _matching(found: dict[str, Any], name: str, pattern: re.Pattern[str]) -> str:
    value = found[name]
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise Unauthenticated(reason=f"the claim {name} is not a legal name")
    return value


def _list(found: dict[str, Any], name: str, pattern: re.Pattern[str], *, least: int = 1) -> tuple[str, ...]:
    value = found[name]
    if not isinstance(value, list) or not least <= len(value) <= _MOST_NAMES:
        raise Unauthenticated(reason=f"the claim {name} is not a list of {least} to {_MOST_NAMES} names")
    if not all(isinstance(one, str) and pattern.fullmatch(one) for one in value) or len(set(value)) < len(
        value
    ):
        raise Unauthenticated(reason=f"the claim {name} has what is no legal name, or one twice")
    return tuple(value)


def _public_key(value: Any) -> bytes:
    """The key in a confirmation claim (RFC 7800, section 3.2; RFC 8037, section 2)."""
    jwk = value.get("jwk") if isinstance(value, dict) and len(value) == 1 else None
    if not isinstance(jwk, dict) or jwk.keys() != {"kty", "crv", "x"}:
        raise Unauthenticated(reason="the claim cnf is not one JSON Web Key")
    if jwk["kty"] != "OKP" or jwk["crv"] != "Ed25519" or not isinstance(jwk["x"], str):
        raise Unauthenticated(reason="the claim cnf is not an Ed25519 key")
    key = _decoded(jwk["x"])
    if len(key) != 32:
        raise Unauthenticated(reason="the claim cnf is not an Ed25519 key")
    return key


# -- forms


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    """Base64url without padding, in its one spelling: bits left over must be zero."""
    try:
        data = base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    except (ValueError, binascii.Error):
        raise Unauthenticated(reason="a part of it is not base64url") from None
    if _encoded(data) != text:
        raise Unauthenticated(reason="a part of it is not base64url in its one spelling")
    return data


def _object(data: bytes) -> dict[str, Any]:
    """A JSON object without repeated names and without NaN or Infinity, at any depth."""
    try:
        found = _JSON.decode(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise Unauthenticated(reason="a part of it is not a JSON object with each name once") from None
    if not isinstance(found, dict):
        raise Unauthenticated(reason="a part of it is not a JSON object")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_JSON = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant)


# PyJWT and cryptography cost 100 ms to import, which `mesh --help` and pool children need not pay.


@functools.cache
def _jws(algorithm: str) -> Any:
    from jwt import PyJWS

    return PyJWS(
        algorithms=[algorithm], options={"enforce_minimum_key_length": True, "verify_signature": True}
    )


def _private(seed: bytes) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(seed)
