"""What a REDIS_URL means, and what an error reply does."""

from __future__ import annotations

import dataclasses

import pytest
import redis

from mesh.errors import Invalid
from mesh.settings import Settings
from mesh.store.connections import NOT_NOW, code_of, parse, stand_in

THREE = "sentinel://user:p%40ss@one:1,two:2,[::1]/the-service/3?sentinel_password=word"


def test_a_sentinel_url_names_a_service() -> None:
    _, options = parse(THREE, {})
    sentinels = options["sentinels"]
    assert sentinels.service == "the-service"
    assert sentinels._addresses == [("one", 1), ("two", 2), ("::1", 26379)]
    assert sentinels._login == {"password": "word"}
    assert (options["username"], options["password"], options["db"]) == ("user", "p@ss", 3)


def test_settings_take_several_hosts() -> None:
    assert dataclasses.replace(Settings(), redis_url=THREE).redis_url == THREE
    with pytest.raises(Invalid):
        dataclasses.replace(Settings(), redis_url="sentinel://one:1,two:no/service")


@pytest.mark.parametrize(
    "url",
    [
        "sentinel://one:1",
        "sentinel:///service",
        "sentinel://one/service/first",
        "sentinel://one/service?color=red",
    ],
)
def test_what_is_no_sentinel_url(url: str) -> None:
    with pytest.raises(ValueError, match="the form is sentinel://"):
        parse(url, {})


def test_others_see_a_url_that_they_can_read() -> None:
    assert stand_in(THREE) == "redis://the-service/3"
    assert stand_in("rediss://user:word@host:1/2?ssl_ca_certs=/ca") == "redis://host:1/2"
    assert stand_in("redis://:word@[::1]:1") == "redis://[::1]:1/"
    assert stand_in("unix:///run/redis.sock") == "unix:///run/redis.sock"


def test_an_error_is_known_by_its_first_word() -> None:
    assert code_of(redis.ResponseError("MISCONF Errors writing to the AOF file")) == "MISCONF"
    assert code_of(redis.ReadOnlyError("You can't write", status_code="READONLY")) == "READONLY"
    assert code_of(redis.ConnectionError("Connection refused")) not in NOT_NOW
