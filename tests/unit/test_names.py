"""Names: what passes, what does not, and that a refusal is one sentence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.names import check_name
from mesh.errors import Invalid


@pytest.mark.parametrize("name", ["a", "worker-1", "OCR_v2.1", "7", "x" * 63])
def test_good_names_come_back_unchanged(name: str) -> None:
    assert check_name("capability", name) == name


@pytest.mark.parametrize(
    "name",
    ["", "-a", ".a", "_a", "a b", "a+b", "a:b", "{a}", "a/b", "a\n", "\u00e4", "\u0663", "x" * 64, "a\x00"],
)
def test_bad_names_are_refused_with_one_sentence(name: str) -> None:
    with pytest.raises(Invalid) as caught:
        check_name("agent id", name)
    assert "agent id" in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.message.endswith(".")


@pytest.mark.parametrize("name", ["production", "a", "team-7", "x" * 63])
def test_good_namespaces(name: str) -> None:
    assert check_name("namespace", name) == name


@pytest.mark.parametrize("name", ["Production", "a.b", "a_b", "-a", "", "x" * 64])
def test_bad_namespaces(name: str) -> None:
    with pytest.raises(Invalid, match="lower-case"):
        check_name("namespace", name)


@given(st.text())
def test_nothing_that_has_a_meaning_elsewhere_gets_through(text: str) -> None:
    try:
        check_name("task type", text)
    except Invalid as error:
        said = error.message
    else:
        assert text.isascii()
        assert not set(text) & set(" {}+:/*?[]\\'\"\r\n\t")
        return
    assert len(said) < 300
