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
        {"chord": {"task": "celery.group", "args": [[NOTE]], "immutable": True}},
        {"callbacks": [{"task": "celery.map", "args": ["note", [1]], "immutable": True}]},
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


OVER = {"it": [["note", [1]]], "n": 1}


@pytest.mark.parametrize("frame", ["celery.map", "celery.starmap", "celery.chunks"])
@pytest.mark.parametrize(
    "inner",
    [
        "celery.map",
        {"task": "celery.starmap"},
        {"task": "same", "subtask_type": "xmap", "kwargs": {"task": "same", "it": []}},
        {"task": {"task": "celery.map"}},
        ["celery.map"],
    ],
)
def test_a_frame_over_data_runs_no_frame(frame: str, inner: Any) -> None:
    for args, kwargs in (([inner, OVER["it"]], {}), ([], {"task": inner, **OVER})):
        with pytest.raises(ValueError, match="over data"):
            named(frame, args, kwargs)
        with pytest.raises(ValueError, match="over data"):
            named(callbacks=[{"task": frame, "args": args, "kwargs": kwargs, "immutable": True}])
        with pytest.raises(ValueError, match="over data"):
            named(callbacks=[{"task": "same", "subtask_type": "xmap", "args": args, "kwargs": kwargs}])


FED = [
    {"task": "celery.map", "args": [[1]]},
    {"task": "celery.starmap", "args": [], "kwargs": {"it": []}},
    {"task": "celery.chunks", "args": [[1], 1], "immutable": False},
    {"task": "celery.group", "args": [[], "x", []]},
    {"task": "celery.chord", "args": [NOTE], "kwargs": {"body": NOTE}},
    {"task": "celery.chord_unlock", "args": []},
    {"task": "celery.chain", "args": []},
    "celery.map",
]


@pytest.mark.parametrize("fed", FED)
def test_no_result_says_what_a_frame_runs(fed: Any) -> None:
    for embed in (
        {"callbacks": [fed]},
        {"errbacks": [fed]},
        {"chain": [NOTE, fed]},
        {"chord": fed},
        {"callbacks": [{"task": "same", "options": {"link": [fed]}}]},
        {"callbacks": [{"task": "celery.group", "kwargs": {"tasks": [fed]}}]},
        {"callbacks": [{"task": "celery.chord", "kwargs": {"header": [NOTE], "body": fed}}]},
    ):
        with pytest.raises(ValueError, match="a result would say"):
            named(**embed)
    with pytest.raises(ValueError, match="a result would say"):
        named("celery.group", [], {"tasks": [fed], "partial_args": ["note", [1]]})


def test_nor_do_keywords_or_headers() -> None:
    frame = {"task": "celery.map", "kwargs": {"task": "same", "it": [1]}}
    for more in ({"task": "note"}, {"kwargs": {"tasks": []}}):
        with pytest.raises(ValueError, match="keywords of a chord"):
            named("celery.chord", [], {"header": [frame], "body": NOTE, "kwargs": more})
    with pytest.raises(ValueError, match="headers"):
        named(
            callbacks=[
                {"task": "same", "args": ["note", [1]], "options": {"headers": {"task": "celery.map"}}}
            ]
        )


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
