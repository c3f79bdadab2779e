"""What is taken out of every text that leaves the process."""

from __future__ import annotations

import pytest

from mesh.core.redaction import Redactor, safe_url, secrets_of_url

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJlLW9mLWl0"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://user:word@host:6379/0", "redis://user:***@host:6379/0"),
        ("redis://:p@ss:w@host/0", "redis://:***@host/0"),
        ("rediss://user:word@[::1]:1?ssl_password=word&ssl_keyfile=k", "rediss://user:***@[::1]:1?ssl_password=***&ssl_keyfile=k"),
        (
            "sentinel://a:b@h:1,i:2/s?sentinel_username=u&sentinel_password=pw",
            "sentinel://a:***@h:1,i:2/s?sentinel_username=u&sentinel_password=***",
        ),
        ("http://host/path?at=12:30@noon", "http://host/path?at=12:30@noon"),
        ("two: redis://a:one@h/0 and redis://b:two@h/0", "two: redis://a:***@h/0 and redis://b:***@h/0"),
    ],
)  # fmt: skip
def test_a_url_is_shown_without_its_passwords(url: str, shown: str) -> None:
    assert safe_url(url) == shown
    assert Redactor()(url) == shown


def test_the_passwords_of_a_url_are_known_in_both_spellings() -> None:
    assert secrets_of_url("sentinel://u:p%40ss@h/s?sentinel_password=other") == {"p%40ss", "p@ss", "other"}


def test_what_is_known_and_what_looks_like_a_secret_is_masked() -> None:
    masked = Redactor(["a secret of ours", "a secret", ""])
    assert masked("said a secret of ours, and a secret.") == "said ***, and ***."
    assert masked(f"Authorization: Bearer {TOKEN}!") == "Authorization: Bearer ***!"
    key = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2Vw\n-----END PRIVATE KEY-----"
    assert masked(f"key: {key}.") == "key: ***."
    assert masked("nothing to see") == "nothing to see"
    assert "secret" not in repr(masked)


def test_short_words_are_not_taken_for_secrets() -> None:
    assert Redactor(["dev"])("the device") == "the device"
