"""Which types a message names: bare names and signatures, at any depth, and no data that only looks like one."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.canvas import MOST_NAMES, named_types

NOTE = {"task": "note", "args": [1], "kwargs": {}, "options": {}}


def named(
    task_type: str = "same", args: Any = (), kwargs: Any = None, headers: Any = None, **embed: Any
) -> set[str]:
    return set(named_types(task_type, list(args), kwargs or {}, embed, headers or {}))


@pytest.mark.parametrize(
    "embed",
    [
        {"callbacks": [NOTE]},
        {"callbacks": ["note"]},
        {"errbacks": [{"task": "same", "options": {"link": [NOTE]}}]},
        {"errbacks": [{"task": "same", "options": {"link_error": ["note"]}}]},
        {"chain": [{"task": "same", "options": {"chord": NOTE}}]},
        {"chord": {"task": "celery.chain", "kwargs": {"tasks": [NOTE]}}},
        {"chord": {"task": "celery.group", "args": [[NOTE]]}},
        {"callbacks": [{"task": "celery.map", "args": ["note", [1]]}]},
        {"callbacks": [{"task": "celery.chord", "kwargs": {"header": [{"task": "same"}], "body": NOTE}}]},
        {"callbacks": [{"task": "celery.accumulate", "subtask_type": "chain", "kwargs": {"tasks": [NOTE]}}]},
        {"callbacks": [{"task": "same", "subtask_type": "xmap", "kwargs": {"task": "note", "it": []}}]},
        {"chord": {"no": "task", "options": {"link": ["note"]}}},
        {"headers": {"chain": ["note"]}},
        {"headers": {"anything": {"deep": [NOTE]}}},
    ],
)
def test_what_it_carries_counts(embed: dict[str, Any]) -> None:
    assert named(**embed) == {"same", "note"}


def test_data_does_not() -> None:
    assert named("same", [NOTE, {"task": "x"}], {"callback": "note"}) == {"same"}
    assert named(callbacks=[{"task": "other", "args": [{"task": "x"}], "kwargs": {"task": "x"}}]) == {
        "same",
        "other",
    }
    assert named("celery.map", ["note", [{"task": "x"}]]) == {"note"}
    assert named("celery.chunks", [], {"task": NOTE, "it": [{"task": "x"}], "n": 2}) == {"note"}
    assert named("celery.accumulate", [{"task": "x"}, "y"], {"index": 1}) == set()
    assert named("celery.backend_cleanup") == {"celery.backend_cleanup"}


def test_one_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="more than"):
        named(callbacks=[[]] * (MOST_NAMES + 1))
    deep: Any = "note"
    for _ in range(50_000):
        deep = [deep]
    assert named(callbacks=deep) == {"same", "note"}


_NAMES = st.sampled_from(["task", "args", "kwargs", "options", "link", "tasks", "subtask_type", "x"])
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["task", "args", "kwargs", "options", "link", "tasks", "subtask_type", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(_json, _json, _json)
def test_nothing_breaks_it_and_what_is_in_a_callback_is_found(args: Any, kwargs: Any, other: Any) -> None:
    found = set(named_types("same", args, kwargs, {"callbacks": [other, NOTE]}, {"x": other}))
    assert {"same", "note"} <= found
