"""Rows of the settings table: what a setting is, and how raw values become typed and checked ones.

The table itself is `mesh.settings`; here is only what can be decided about one value at a time.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from mesh.core.names import check_name
from mesh.core.redaction import safe_url
from mesh.errors import Invalid

__all__ = ["Setting", "check", "parse", "shown", "split_hosts"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One row: how `Settings.<attribute>` is called elsewhere, what it may be, and why it exists."""

    attribute: str
    env: tuple[str, ...]  # the first name is the one to document; the others are read as well
    path: str  # in the JSON file, dotted
    kind: str  # text | int | bool | url | urls | names | labels | paths
    unit: str  # what a value counts or names: ms, s, bytes, port, count, URL ...
    default: str  # as the documentation shows it; "" for none
    why: str
    low: int = 0
    high: int = 1_000_000
    among: tuple[str, ...] = ()
    named: str = ""  # the kind of name it has to be (mesh.core.names), for each part of a list
    schemes: tuple[str, ...] = ()
    secret: bool = False


# -- from raw values (text of a variable, or JSON) to typed ones


def _bad(row: Setting, raw: object, where: str, should: str) -> Invalid:
    shown = "" if row.secret else f" is {raw!r}, but"
    return Invalid(f"{where}{shown} must be {should}.")


def _parse_text(row: Setting, raw: Any, where: str) -> str:
    if not isinstance(raw, str):
        raise _bad(row, raw, where, "text")
    text = raw.strip()
    if row.among:
        text = {"warn": "warning"}.get(text.lower(), text.lower())
    return text


def _parse_int(row: Setting, raw: Any, where: str) -> int:
    if isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    # fullmatch keeps out what int() would take: underscores, signs, digits of other scripts
    if isinstance(raw, str) and re.fullmatch(r"-?[0-9]{1,18}", raw.strip()):
        return int(raw)
    raise _bad(row, raw, where, f"a whole number ({row.unit}), for example {row.default}")


def _parse_bool(row: Setting, raw: Any, where: str) -> bool:
    if isinstance(raw, bool):
        return raw
    text = raw.strip().lower() if isinstance(raw, str) else ""
    if text in ("true", "1", "yes", "on"):
        return True
    if text in ("false", "0", "no", "off"):
        return False
    raise _bad(row, raw, where, "true or false")


def _parse_list(row: Setting, raw: Any, where: str, separator: str) -> tuple[str, ...]:
    parts = raw.split(separator) if isinstance(raw, str) else raw
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise _bad(row, raw, where, "a list of texts")
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def _parse_names(row: Setting, raw: Any, where: str) -> tuple[str, ...]:
    return _parse_list(row, raw, where, ",")


def _parse_paths(row: Setting, raw: Any, where: str) -> tuple[Path, ...]:
    return tuple(Path(part).expanduser().absolute() for part in _parse_list(row, raw, where, os.pathsep))


def _parse_labels(row: Setting, raw: Any, where: str) -> dict[str, str]:
    if isinstance(raw, str):
        pairs = [part.partition("=") for part in raw.split(",") if part.strip()]
        if not all(equals for _, equals, _ in pairs):
            raise _bad(row, raw, where, "pairs like zone=a,disk=ssd")
        return {key.strip(): value.strip() for key, _, value in pairs}
    if isinstance(raw, dict) and all(isinstance(value, str) for value in raw.values()):
        return dict(raw)
    raise _bad(row, raw, where, "an object of texts")


_PARSE: dict[str, Callable[[Setting, Any, str], Any]] = {
    "text": _parse_text,
    "url": _parse_text,
    "urls": _parse_text,
    "int": _parse_int,
    "bool": _parse_bool,
    "names": _parse_names,
    "paths": _parse_paths,
    "labels": _parse_labels,
}


def parse(row: Setting, raw: Any, where: str) -> Any:
    """The typed value of `raw`, which is the text of a variable or a JSON value; raises `Invalid`."""
    return _PARSE[row.kind](row, raw, where)


# -- what a typed value may be


def check(row: Setting, value: Any, where: str) -> None:
    """Raise `Invalid` unless the typed `value` is one that `row` allows; `where` names the place in the sentence."""
    if value is None:
        return
    if row.kind == "int" and not row.low <= value <= row.high:
        raise _bad(row, value, where, f"from {row.low} to {row.high} ({row.unit})")
    if row.among and value not in row.among:
        raise _bad(row, value, where, f"one of {', '.join(row.among)}")
    if row.kind == "url":
        _check_url(row, value, where)
    if row.kind == "urls":
        for part in value.split(","):
            _check_url(row, part.strip(), where)
    if row.named:
        for name in (value,) if isinstance(value, str) else value:
            try:
                check_name(row.named, name)
            except Invalid as error:
                raise Invalid(f"{where}: {error}") from None


def split_hosts(url: str) -> tuple[SplitResult, str, list[str]]:
    """(the URL without what stands between `//` and the path, its user part, its hosts): `sentinel://` names several hosts,
    of which Python's own reader takes only the first to be an IPv6 address. Raises `ValueError`."""
    scheme, slashes, rest = url.partition("://")
    place = re.match(r"[^/?#]*", rest).group() if slashes else ""  # type: ignore[union-attr]
    user, _, hosts = place.rpartition("@")
    return urlsplit(f"{scheme}{slashes}{rest[len(place) :]}"), user, hosts.split(",")


def _check_url(row: Setting, value: str, where: str) -> None:
    try:
        url, _, hosts = split_hosts(value)
        ports = [urlsplit(f"//{one}").port for one in hosts]
        whole = url.scheme in row.schemes and bool(any(hosts) or url.path) and 0 not in ports
    except ValueError:  # a port that is no number, a broken IPv6 address
        whole = False
    if not whole:
        raise _bad(row, value, where, f"a URL that begins with {' or '.join(f'{s}://' for s in row.schemes)}")


def shown(row: Setting, value: Any) -> str:
    """Text of a value for people; passwords and secrets masked."""
    if value is None:
        return ""
    if row.kind == "url":
        return safe_url(value)
    if row.secret:
        return "***"
    if isinstance(value, Mapping):
        return ",".join(f"{key}={part}" for key, part in value.items())
    if isinstance(value, tuple):
        return (os.pathsep if row.kind == "paths" else ",").join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
