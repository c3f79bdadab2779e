"""Keys of secrets: derived by RFC 5869, one per purpose; secrets that can be guessed are refused."""

import hmac
import secrets

import pytest

from mesh.core.keyring import Keyring, check_secret, derive, key_id
from mesh.errors import Invalid


def test_derivation_is_that_of_the_rfc() -> None:
    def hkdf(salt: bytes, key: bytes, info: bytes) -> bytes:  # RFC 5869, written out
        return hmac.digest(hmac.digest(salt, key, "sha256"), info + b"\x01", "sha256")

    # Its test case 1, the first 32 bytes
    salt, info = bytes.fromhex("000102030405060708090a0b0c"), bytes.fromhex("f0f1f2f3f4f5f6f7f8f9")
    assert hkdf(salt, b"\x0b" * 22, info).hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
    )
    assert derive(b"k" * 32, "api") == hkdf(b"agent-mesh/1", b"k" * 32, b"api")


def test_each_secret_and_each_purpose_has_a_key_of_its_own() -> None:
    old, new = secrets.token_hex(32), secrets.token_hex(32)
    ring = Keyring([old, new])
    assert ring.kids == (key_id(old.encode()), key_id(new.encode()))
    assert len({ring.key(kid, purpose) for kid in ring.kids for purpose in ("api", "join", "task")}) == 6
    with pytest.raises(KeyError):
        ring.key("00000000", "api")


def test_the_same_secret_twice_is_one() -> None:
    assert len(Keyring(["a" * 32, "a" * 32]).kids) == 1


def test_a_keyring_shows_names_only() -> None:
    secret = secrets.token_hex(32)
    assert secret not in repr(Keyring([secret])) and key_id(secret.encode()) in repr(Keyring([secret]))


@pytest.mark.parametrize(
    "secret",
    [
        "short",
        "x" * 31,
        "x" * 64,
        "ab" * 32,
        "your-256-bit-secret-for-agent-mesh",
        "please-change-me-please-change-me-now",
        "my-super-secret-key-that-is-long-enough",
        "0123456789abcdef0123456789abcdef",
    ],
)
def test_secrets_that_can_be_guessed_are_refused(secret: str) -> None:
    with pytest.raises(Invalid, match="mesh secret generate") as raised:
        check_secret(secret, where="MESH_JWT_SECRET", lenient=False)
    assert secret not in str(raised.value)


@pytest.mark.parametrize("made", [secrets.token_hex, secrets.token_urlsafe])
def test_random_secrets_pass(made: object) -> None:
    for _ in range(2000):
        check_secret(made(32), where="MESH_JWT_SECRET", lenient=False)  # type: ignore[operator]


def test_development_takes_a_sample_but_not_a_short_one() -> None:
    check_secret("x" * 32, where="MESH_JWT_SECRET", lenient=True)
    with pytest.raises(Invalid, match="at least 32"):
        check_secret("x" * 31, where="MESH_JWT_SECRET", lenient=True)
