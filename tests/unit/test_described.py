"""What a task type says of itself, and what that does with payloads and results."""

from __future__ import annotations

import dataclasses
import datetime
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pydantic
import pytest
from celery import Celery

from mesh import task
from mesh.bus.described import Described
from mesh.errors import Invalid
from mesh.services.types import TypeInfo, check, near_misses


class Page(pydantic.BaseModel):
    path: str
    dpi: int = 300


class Text(pydantic.BaseModel):
    words: list[str]
    at: datetime.date


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


def described(function: Callable[..., Any], **more: Any) -> Described:
    options: dict[str, Any] = {
        "requires": (), "timeout_s": None, "retries": {"retries": 2}, "examples": (),
        "payload_schema": None, "result_schema": None,
    }  # fmt: skip
    return Described("ocr", function, **{**options, **more})


def info(one: Described) -> TypeInfo:
    """As the registry would give it back."""
    row = one.row()
    return TypeInfo(
        name=one.name, payload_schema=row["payload_schema"], schema_text=json.dumps(row["payload_schema"])
    )


def test_a_model_in_and_a_model_out() -> None:
    def ocr(payload: Page) -> Text:
        """Read a page.

        More about it.
        """
        assert isinstance(payload, Page)
        return Text(words=[payload.path] * 2, at=datetime.date(2024, 1, payload.dpi))

    one = described(
        ocr, requires=["gpu"], timeout_s=5, examples=[Page(path="a.png"), {"path": "b.png", "dpi": 1}]
    )
    assert one.call({"path": "a", "dpi": "3"}) == {"words": ["a", "a"], "at": "2024-01-03"}
    assert one.call(payload={"path": "b", "dpi": 2})["at"] == "2024-01-02"
    row = one.row()
    assert (row["requires"], row["timeout_s"], row["retries"]) == (["gpu"], 5, 2)
    assert row["description"] == "Read a page."
    assert row["examples"] == [{"path": "a.png", "dpi": 300}, {"path": "b.png", "dpi": 1}]
    assert row["payload_schema"]["required"] == ["path"]
    assert row["result_schema"]["properties"]["at"] == {"format": "date", "title": "At", "type": "string"}


def plain_any(payload: Any) -> Any:
    return payload


def plain(payload):  # type: ignore[no-untyped-def]
    return payload


def two(left: int, right: int) -> None: ...


def nothing() -> None: ...


def bare(payload: dict[str, Any]) -> list[Any]:
    return [payload]


def counts(payload: dict[str, int]) -> dict[str, int]:
    return payload


def choice(payload: Literal["a", "b"]) -> None:
    assert payload in ("a", "b")


def point(payload: Point) -> Point:
    return dataclasses.replace(payload, x=payload.x + 1)


def maybe(payload: Page | None) -> str:
    return "nothing" if payload is None else payload.path


def default(payload: Annotated[int, pydantic.Field(ge=1)] = 7) -> int:
    return payload


@pytest.mark.parametrize("function", [plain_any, plain, two, nothing])
def test_what_says_nothing_is_called_as_it_is(function: Callable[..., Any]) -> None:
    one = described(function)
    assert one.call is function
    assert one.row()["payload_schema"] == ({"type": "null"} if function is nothing else None)
    assert one.row()["result_schema"] is None


@pytest.mark.parametrize(
    ("function", "payload", "result"),
    [
        (bare, {"a": 1}, [{"a": 1}]),
        (counts, {"a": "3"}, {"a": 3}),
        (choice, "a", None),
        (point, {"x": 1}, {"x": 2, "y": 0}),
        (maybe, None, "nothing"),
        (maybe, {"path": "p"}, "p"),
        (default, 3, 3),
    ],
)
def test_plain_types_and_dataclasses(function: Callable[..., Any], payload: Any, result: Any) -> None:
    assert described(function).call(payload) == result


def test_without_a_payload_its_default_is_used() -> None:
    assert described(default).call() == 7
    assert described(maybe).call() == "nothing"
    check(info(described(default)), None)
    with pytest.raises(Invalid, match="at payload: an object is expected, not None"):
        described(bare).call()


@pytest.mark.parametrize(
    ("function", "payload", "words"),
    [
        (bare, [1], "wrong at payload: an object is expected, not [1]."),
        (counts, {"a": 1, "b": "x"}, "wrong at payload.b: Input should be a valid integer"),
        (choice, "c", "wrong at payload: Input should be 'a' or 'b'."),
        (point, {"y": 1}, "wrong at payload.x: Field required."),
        (default, 0, "wrong at payload: Input should be greater than or equal to 1."),
        (point, {"x": "a", "y": "b"}, "payload.x: Input should be a valid integer, unable to parse"),
    ],
)  # fmt: skip
def test_a_wrong_payload_is_refused_by_the_agent(
    function: Callable[..., Any], payload: Any, words: str
) -> None:
    with pytest.raises(Invalid) as caught:
        described(function).call(payload)
    assert str(caught.value).startswith("The payload of task ocr is ")
    assert words in str(caught.value)


SCHEMA = {
    "type": "object",
    "properties": {
        "pages": {"type": "array", "items": {"type": "integer"}, "minItems": 1},
        "mode": {"enum": ["fast", "good"]},
        "either": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "shape": {
            "oneOf": [
                {"properties": {"kind": {"const": "box"}, "width": {"type": "number"}}, "required": ["kind", "width"]},
                {"properties": {"kind": {"const": "disc"}, "radius": {"type": "number"}}, "required": ["kind", "radius"]},
            ]
        },
    },
    "required": ["pages"],
    "additionalProperties": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ([], "wrong at payload: [] is not an object."),
        ({}, "wrong at payload: pages is missing."),
        ({"pages": []}, "wrong at payload.pages: [] has less than 1 item."),
        ({"pages": [1, "x"]}, 'wrong at payload.pages[1]: "x" is not an integer.'),
        ({"pages": [1], "moed": 1}, 'wrong at payload: unknown key "moed".'),
        ({"pages": [1], "mode": "x"}, 'wrong at payload.mode: "x" is not one of "fast", "good".'),
        ({"pages": [1], "either": "x" * 300}, f'wrong at payload.either: "{"x" * 99}... is not an integer or null.'),
        ({"pages": [1], "shape": {"kind": "disc", "radius": "r"}}, 'wrong at payload.shape.radius: "r" is not a number.'),
        ({"pages": [1], "shape": {"kind": "disc"}}, "wrong at payload.shape: radius is missing."),
        ({"pages": ["a", "b"]}, "(and 1 more)."),
        (Point(x=1), 'wrong at payload: unknown key "x" and 1 more (and 1 more).'),
    ],
)  # fmt: skip
def test_a_wrong_payload_is_refused_where_it_is_submitted(payload: Any, words: str) -> None:
    one = described(plain_any, payload_schema=SCHEMA)
    with pytest.raises(Invalid) as caught:
        check(info(one), payload)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("payload", [{"pages": [1]}, {"pages": [1], "either": None, "mode": "good"}])
def test_a_right_payload_passes_and_models_do_too(payload: Any) -> None:
    check(info(described(plain_any, payload_schema=SCHEMA)), payload)
    check(info(described(lambda page: None, payload_schema=Page.model_json_schema())), Page(path="a"))
    check(info(described(plain_any)), object())


@pytest.mark.parametrize(
    "schema", [{"type": "nonsense"}, {"$ref": "http://127.0.0.1:9/schema"}, {"$ref": "#/nowhere"}]
)
def test_a_schema_that_is_none_checks_nothing_and_fetches_nothing(schema: dict[str, Any]) -> None:
    check(TypeInfo(name="ocr", payload_schema=schema, schema_text=json.dumps(schema)), {"a": 1})


def test_annotations_that_are_no_json_are_said_in_one_sentence() -> None:
    def picture(payload: threading_lock) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    def opened(payload: Described) -> None: ...

    for function, words in (
        (picture, "The annotations of task type ocr cannot be read: name 'threading_lock' is not defined."),
        (opened, "The payload of task type ocr is annotated with Described, which JSON cannot say: "),
    ):
        with pytest.raises(Invalid) as caught:
            described(function).row()
        assert words in str(caught.value)


def read_page(payload: Page) -> Text:
    return Text(words=[payload.path], at=datetime.date(2024, 1, 2))


def test_called_as_a_function_it_is_one_and_eagerly_it_is_a_task() -> None:
    task("direct")(read_page)
    direct = Celery("eager", set_as_current=False).tasks["direct"]
    assert direct.queue == "direct"
    assert direct(Page(path="a")).words == ["a"]
    assert direct.apply(args=[{"path": "a"}]).get() == {"words": ["a"], "at": "2024-01-02"}
    with pytest.raises(Invalid, match=r"wrong at payload\.path: Field required"):
        direct.apply(args=[{}]).get()


def test_an_example_must_fit() -> None:
    with pytest.raises(Invalid, match="An example of task type ocr does not fit it"):
        described(counts, examples=[{"a": "many"}]).row()


def test_pydantic_is_imported_only_for_what_needs_it() -> None:
    code = """
import sys
from typing import Any
from mesh import task
from mesh.bus.described import Described

@task("a")
def a(payload: dict[str, Any]) -> str: return "x"

@task("b", payload_schema={"type": "object"})
def b(payload: dict): return {}

for one in (a, b):
    one.described.row()
    one.described.call({})
print([name for name in ("pydantic", "jsonschema_rs") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("data-procesing", ["data-processing"]),
        ("data_processing", ["data-processing"]),
        ("OCR", ["ocr"]),
        ("ocrr", ["ocr"]),
        ("ocr", []),
        ("banana", []),
    ],
)
def test_near_misses(name: str, near: list[str]) -> None:
    assert near_misses(name, ["data-processing", "ocr", "task-execution"]) == near


class Tree(pydantic.BaseModel):
    below: list[Tree]


def test_a_payload_that_contains_itself_is_not_advertised(caplog: pytest.LogCaptureFixture) -> None:
    def grow(payload: Tree) -> None: ...

    with caplog.at_level("WARNING"):
        assert described(grow).row()["payload_schema"] is None
    assert "task type ocr is not advertised, since it refers to itself" in caplog.text
    with pytest.raises(
        Invalid, match="payload_schema of task type ocr is not used, since it refers to itself"
    ):
        described(grow, payload_schema={"$defs": {"a": {"$ref": "#/$defs/a"}}}).row()
    assert described(grow, payload_schema={"type": "object"}).row()["payload_schema"] == {"type": "object"}
