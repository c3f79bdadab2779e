"""What is taken out of every text that leaves the process."""

from __future__ import annotations

import io
import logging
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from mesh.core.redaction import Redactor, safe_url, secrets_of_url
from mesh.settings import TABLE, Settings
from mesh.telemetry import redacting

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


@pytest.fixture
def quiet_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`install` changes the process: undone afterwards."""
    factory = logging.getLogRecordFactory()
    for module, name in ((sys, "excepthook"), (threading, "excepthook")):
        monkeypatch.setattr(module, name, getattr(module, name))
    for name in ("_secrets", "_redactor"):
        monkeypatch.setattr(redacting, name, type(getattr(redacting, name))())
    yield
    logging.setLogRecordFactory(factory)


def test_log_lines_and_tracebacks_are_without_secrets(
    quiet_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    redacting.install(
        Settings(redis_url="redis://u:p%40ssword@h", jwt_secret="the secret of all secrets 1234567")
    )
    told = io.StringIO()
    logger = logging.Logger("a logger of its own")
    logger.addHandler(logging.StreamHandler(told))
    logger.warning("%s with %s", "the secret of all secrets 1234567", TOKEN)
    try:
        raise ValueError("p@ssword and p%40ssword")
    except ValueError as error:
        logger.exception("it failed: %r", error)
        sys.excepthook(ValueError, error, error.__traceback__)
    said = told.getvalue() + capsys.readouterr().err
    assert said.count("ValueError: *** and ***") == 2 and "*** with ***" in said
    for secret in ("p@ssword", "p%40ssword", "of all secrets", TOKEN):
        assert secret not in said


def test_a_forked_child_keeps_them_too(quiet_process: None) -> None:
    redacting.keep("what the parent was given")
    assert redacting.redact("it was what the parent was given") == "it was ***"


def test_no_setting_shows_a_secret() -> None:
    values = {row.attribute: f"{row.attribute}-of-many-bytes-0123456" for row in TABLE if row.secret}
    values |= {
        row.attribute: f"redis://u:{row.attribute}-pw@h" for row in TABLE if row.secret and row.kind == "url"
    }
    settings = Settings(**values)
    shown = repr(settings) + "".join(text for _, text, _ in settings.described())
    for name, value in values.items():
        assert value not in shown and f"{name}-pw" not in shown, name


def test_it_costs_microseconds() -> None:
    mask = Redactor([f"a secret of the process {number}" for number in range(8)])
    line = "Task data-processing[0f0e0d0c-0b0a-0908-0706-050403020100] succeeded in 0.012s: {'rows': 12}"
    started = time.perf_counter()
    for _ in range(1000):
        mask(line)
    assert time.perf_counter() - started < 0.1  # 100 us a line on the busiest machine; it takes 2
