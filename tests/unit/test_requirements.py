"""Requirements: one text for one set of capabilities."""

from hypothesis import given
from hypothesis import strategies as st

from mesh.core.requirements import canonical, capabilities_of, is_compound, satisfies

NAMES = st.lists(st.from_regex(r"[a-z][a-z0-9._-]{0,5}", fullmatch=True), min_size=1, max_size=5)


def test_the_text_is_sorted_and_without_repetition() -> None:
    assert canonical(["ocr", "gpu", "ocr"]) == "gpu+ocr"
    assert canonical(["ocr"]) == "ocr"
    assert canonical([]) == ""


def test_a_requirement_may_be_part_of_another() -> None:
    assert canonical(["ocr+gpu", "cuda"]) == "cuda+gpu+ocr"


@given(names=NAMES, data=st.data())
def test_order_and_repetition_do_not_matter(names: list[str], data: st.DataObject) -> None:
    other = data.draw(st.permutations(names)) + data.draw(st.lists(st.sampled_from(names)))
    assert canonical(other) == canonical(names)


@given(names=NAMES)
def test_the_text_tells_the_set_and_is_its_own_canonical_form(names: list[str]) -> None:
    text = canonical(names)
    assert capabilities_of(text) == set(names)
    assert canonical([text]) == text
    assert is_compound(text) == (len(set(names)) > 1)


@given(names=NAMES, offered=NAMES)
def test_an_agent_may_take_what_it_can_do_in_full(names: list[str], offered: list[str]) -> None:
    assert satisfies(frozenset(offered), canonical(names)) == (set(names) <= set(offered))


def test_nobody_satisfies_an_empty_requirement() -> None:
    """A queue without a name is a mistake, not a task that anybody can do."""
    assert not satisfies(frozenset({"ocr"}), "")
