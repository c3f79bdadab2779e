"""What readers of JSON may take differently is refused; what all take alike is not."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.strict_json import DEEPEST, check
from mesh.errors import Invalid


def reads(raw: bytes) -> Any:
    """As a coordinator reads a body: both looks."""
    check(raw, "This")
    try:
        return msgspec.json.decode(raw)
    except msgspec.MsgspecError as error:
        raise Invalid(str(error)) from None


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"a": 1, "a": 2}', 'has a key twice: "a" at line 1 column 14'),
        (b'{"a": 1, "\\u0061": 2}', 'has a key twice: "a"'),
        (b'[{"b": [{"c": {"a": 1, "b": 2, "a": 1}}]}]', 'has a key twice: "a"'),
        (b"[" * (DEEPEST + 2) + b"]" * (DEEPEST + 2), "nested deeper than 200 levels"),
        (b'{"a":' * 100_000, "nested deeper than 200 levels"),
        *[(raw, "not JSON") for raw in (
            b"", b" ", b"{", b"[NaN]", b"[Infinity]", b"[-Infinity]", b"[nan]", b"[+1]", b"[01]", b"[1.]", b"[.5]", b"[0x1]",
            b"[1_0]",
            b"['a']", b"[1,]", b'{"a":1,}', b"{a:1}", b"[1] 2", b"[1]\x00", b"\xef\xbb\xbf[]", b"[] // a", b"[/**/]", b"None",
            b"True",
            b'["\\ud800"]', b'["\\udc00\\ud800"]', b'{"\\ud800": 1}', b'["\\x41"]', b'["\\u12"]', b'["\n"]', b'["\x00"]',
            b'["\xff"]', b'["\xc0\xaf"]', b'["\xed\xa0\x80"]', b'{"\xff": 1}', "[]".encode("utf-16"), b"1" * 5_000,
        )],
    ],
)  # fmt: skip
def test_refused_at_the_first_look(raw: bytes, said: str) -> None:
    with pytest.raises(Invalid, match=said) as refused:
        check(raw, "This")
    assert str(refused.value).startswith("This ") and len(str(refused.value)) < 200


@pytest.mark.parametrize("raw", [b"[1e999]", b"[-1e999]", b"[1E+309]", b'{"a": 1e400000}'])
def test_numbers_without_a_value_are_refused_at_the_second(raw: bytes) -> None:
    with pytest.raises(Invalid):
        reads(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b'[{"a": 1}, {"a": 1}]',
        b'{"a": {"a": {"a": 1}}}',
        b'{"a": 1, "A": 2}',
        b"[" * DEEPEST + b"]" * DEEPEST,
        b'["\\u0000", "\\ud83d\\ude00", 1e308, -0, 5e-324]',
        b"123456789012345678901234567890",
        b" null ",
    ],
)
def test_what_all_take_alike(raw: bytes) -> None:
    assert reads(raw) == json.loads(raw)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=20,
)


@given(json_values, st.booleans())
def test_any_value_passes_unchanged(value: Any, ascii_only: bool) -> None:
    assert reads(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.lists(st.tuples(st.sampled_from("abcde"), json_values), max_size=6))
def test_equal_keys_are_found_wherever_they_are(pairs: list[tuple[str, Any]]) -> None:
    raw = "[[{" + ",".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in pairs) + "}]]"
    if len({key for key, _ in pairs}) == len(pairs):
        assert reads(raw.encode()) == [[dict(pairs)]]
    else:
        with pytest.raises(Invalid, match="twice"):
            check(raw.encode(), "This")


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_in_words(raw: bytes) -> None:
    with contextlib.suppress(Invalid):
        reads(raw)
