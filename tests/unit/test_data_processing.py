"""The engine of the task type data-processing: map and reduce over files, SQL, inline data."""

import base64
import datetime as dt
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import warnings
import zlib
from decimal import Decimal
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any

import duckdb
import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import Invalid
from mesh.tasks import engine_files, engine_sql
from mesh.tasks.data_processing import EXAMPLES, PAYLOAD_SCHEMA
from mesh.tasks.engine_files import FUNCTIONS, list_partitions, local_totals, process

SOURCE = '''\
"""Words in texts are no identifiers."""
import os, sys
from os.path import join as glue
from json import *

class Thing(object):
    size: int = 1

    async def run(self, *paths, fast=True):
        global counter
        counter = f"{self.size}"
        return [glue(p, sep=os.sep) for p in paths]

def outer():
    def inner(): ...
    return lambda x: inner
'''


class SoftLimit(Exception):
    pass


def mapped(folder: Path, *files: str, function: str = "count-python", **more: Any) -> dict[str, Any]:
    return process(
        {"operation": "map", "function": function, "files": list(files), **more}, data_dirs=[folder]
    )


def reduced(*partials: dict[str, Any], function: str = "count-python", **more: Any) -> dict[str, Any]:
    return process(
        {"operation": "reduce", "function": function, "partials": list(partials), **more}, data_dirs=[]
    )


def selected(query: str, folder: Path | None = None, **payload: Any) -> dict[str, Any]:
    answer = process({"operation": "sql", "query": query, **payload}, data_dirs=[folder] if folder else [])
    json.dumps(answer, allow_nan=False)
    return answer


def identifiers(partial: dict[str, Any]) -> dict[str, int]:
    return json.loads(zlib.decompress(base64.b64decode(partial["identifiers"])))


def refusal(payload: Any, *data_dirs: Path) -> str:
    with pytest.raises(Invalid) as caught:
        process(payload, data_dirs=data_dirs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- inline data


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        ("example", {"type": "string", "bytes": 9, "characters": 7, "words": 1, "lines": 1}),
        ([{"a": 1}, {"b": 2}], {"type": "array", "bytes": 17, "items": 2, "columns": ["a", "b"]}),
        ([1, "x"], {"type": "array", "bytes": 7, "items": 2}),
        ([], {"type": "array", "bytes": 2, "items": 0}),
        ({"k": "é"}, {"type": "object", "bytes": 10, "items": 1}),
        (1.5, {"type": "number", "bytes": 3}),
        (False, {"type": "boolean", "bytes": 5}),
        (None, {"type": "null", "bytes": 4}),
    ],
)
def test_inline_data_is_described(data: Any, answer: dict[str, Any]) -> None:
    assert process({"data": data}, data_dirs=[]) == answer


@pytest.mark.parametrize("data", [float("nan"), {1, 2}, "\ud800", b"x"])
def test_inline_data_must_be_json(data: Any) -> None:
    assert "not a JSON value" in refusal({"data": data})


# -- map


def test_map_counts_what_stands_in_a_source(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(SOURCE)
    answer = mapped(tmp_path, "a.py", top=3)
    packed = identifiers(answer)
    assert {field: answer[field] for field in FUNCTIONS["count-python"]} == {
        "files": 1, "bytes": len(SOURCE), "lines": 16, "words": len(SOURCE.split()),
        "functions": 3, "classes": 1, "imports": 3, "unparsable": 0,
    }  # fmt: skip
    assert packed == {
        "os": 3, "sys": 1, "path": 1, "join": 1, "glue": 2, "json": 1, "Thing": 1, "object": 1, "size": 2, "int": 1,
        "run": 1, "self": 2, "paths": 2, "fast": 1, "counter": 2, "p": 2, "sep": 2, "outer": 1, "inner": 2, "x": 1,
    }  # fmt: skip
    assert answer["top"] == [["os", 3], ["counter", 2], ["glue", 2]], "equal counts go by name"
    assert answer["distinct_identifiers"] == len(packed)


@pytest.mark.parametrize(
    "source",
    [b"def (", b"x = '\0'", b"\xff\xfe", b"# coding: nonesuch\n", b"(" * 5000, b"-" * 200_000 + b"1"],
    ids=["syntax", "nul", "bytes", "coding", "nested", "deep"],
)
def test_a_file_that_does_not_parse_is_counted_and_no_error(tmp_path: Path, source: bytes) -> None:
    (tmp_path / "bad.py").write_bytes(source)
    (tmp_path / "good.py").write_text("x = 1\n")
    answer = mapped(tmp_path, "bad.py", "good.py")
    assert (answer["files"], answer["unparsable"], answer["bytes"]) == (2, 1, len(source) + 6)
    assert identifiers(answer) == {"x": 1}


def test_a_source_that_is_too_large_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_files, "_PARSE_LIMIT_BYTES", 5)
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "b.py").write_text("y = 1")
    assert mapped(tmp_path, "a.py", "b.py")["unparsable"] == 1


def test_warnings_about_a_source_do_not_change_its_count(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(r"x = '\d'; x is 1" + "\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mapped(tmp_path, "a.py")["unparsable"] == 0


@given(text=st.text(st.sampled_from("ab \n\t"), max_size=60), block=st.integers(1, 9))
def test_words_and_lines_do_not_depend_on_the_size_of_blocks(
    tmp_path_factory: pytest.TempPathFactory, text: str, block: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "blocks.txt"
    path.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_files, "_BLOCK_BYTES", block)
        answer = local_totals([path], "count-words")
    lines = text.count("\n") + (text != "" and not text.endswith("\n"))
    expected = {"files": 1, "bytes": len(text), "lines": lines, "words": len(text.split())}
    assert answer == {"function": "count-words", **expected}


def test_count_lines_says_files_bytes_and_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo")
    (tmp_path / "empty.txt").touch()
    answer = mapped(tmp_path, "a.txt", "empty.txt", function="count-lines")
    assert answer == {"function": "count-lines", "files": 2, "bytes": 7, "lines": 2}


# -- reduce

PIECES = ["import os\n", "def f(a):\n    return a\n", "a = b = 1\n", "class (", "", "b.c(d=a)\n", "x: f\n"]


@settings(max_examples=50)
@given(batches=st.lists(st.lists(st.sampled_from(range(len(PIECES))), min_size=1), min_size=1, max_size=5))
@pytest.mark.parametrize("function", FUNCTIONS)
def test_reduce_of_maps_is_map_of_all(
    tmp_path_factory: pytest.TempPathFactory, function: str, batches: list[list[int]]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    for number, piece in enumerate(PIECES):
        (folder / f"{number}.py").write_text(piece)
    named = [[f"{number}.py" for number in batch] for batch in batches]
    partials = [mapped(folder, *batch, function=function) for batch in named]
    everything = mapped(folder, *chain.from_iterable(named), function=function)
    assert reduced(*partials, function=function) == everything
    assert reduced(*reversed(partials), function=function) == everything
    in_steps = partials[0]
    for partial in partials[1:]:
        in_steps = reduced(in_steps, partial, function=function)
    assert in_steps == everything
    alone = local_totals([folder / name for batch in named for name in batch], function)
    assert reduced(*partials, function=function, final=True) == alone


def test_the_cut_of_top_is_exact_across_partials(tmp_path: Path) -> None:
    """``z`` is third in each part and first in the whole: partials that were cut would lose it."""
    (tmp_path / "a.py").write_text("a1\n" * 3 + "a2\n" * 3 + "z\n" * 2)
    (tmp_path / "b.py").write_text("b1\n" * 3 + "b2\n" * 3 + "z\n" * 2)
    partials = [mapped(tmp_path, name, top=2) for name in ("a.py", "b.py")]
    assert all("z" not in dict(partial["top"]) for partial in partials)
    assert reduced(*partials, top=1)["top"] == [["z", 4]]


def test_a_final_answer_is_small_and_cannot_be_reduced(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("\n".join(f"name_{number}" for number in range(5000)))
    final = reduced(mapped(tmp_path, "a.py"), final=True, top=1000)
    assert len(final["top"]) == 1000
    assert final["distinct_identifiers"] == 5000
    assert "identifiers" not in final
    assert "made with 'final'" in refusal(
        {"operation": "reduce", "function": "count-python", "partials": [final]}
    )


def counter(value: Any) -> str:
    return base64.b64encode(zlib.compress(json.dumps(value).encode())).decode()


@pytest.mark.parametrize(
    "wrong",
    [
        "x", "", 7, {"a": 1}, counter([1]), counter({"a": -1}), counter({"a": True}), counter({"a": "1"}),
        base64.b64encode(zlib.compress(b"{}")[:-2]).decode(), base64.b64encode(zlib.compress(b"{nope")).decode(),
    ],
)  # fmt: skip
def test_reduce_refuses_counters_that_are_none(tmp_path: Path, wrong: Any) -> None:
    (tmp_path / "a.py").write_text("x\n")
    partial = mapped(tmp_path, "a.py") | {"identifiers": wrong}
    text = refusal({"operation": "reduce", "function": "count-python", "partials": [partial]})
    assert text == "partial 0 has 'identifiers' that are not a counter packed by map or reduce"


def test_reduce_refuses_a_counter_that_unpacks_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_files, "_UNPACKED_LIMIT_BYTES", 1000)
    (tmp_path / "a.py").write_text("x\n")
    bomb = mapped(tmp_path, "a.py") | {"identifiers": counter({"a" * 100_000: 1})}
    assert "not a counter" in refusal({"operation": "reduce", "function": "count-python", "partials": [bomb]})


# -- what is refused


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ([], "is an object, not list"),
        ({}, "needs 'operation' (map, reduce, sql, partitions) or 'data'"),
        ({"data": 1, "extra": 2}, "unknown key 'extra'"),
        ({"data": 1, "operation": "map"}, "unknown key 'data'"),
        ({"operation": "drop"}, "operation 'drop' is unknown: use map, reduce, sql"),
        ({"operation": ["map"]}, "is unknown"),
        ({"operation": "map", "files": ["a"]}, "function None is unknown"),
        ({"operation": "map", "files": ["a"], "function": "eval"}, "function 'eval' is unknown: use count-lines"),
        ({"operation": "map", "function": "count-lines"}, "'files' must be a list with at least one entry"),
        ({"operation": "map", "function": "count-lines", "files": []}, "'files' must be a list"),
        ({"operation": "map", "function": "count-lines", "files": "a"}, "'files' must be a list"),
        ({"operation": "map", "function": "count-lines", "files": [1]}, "file 1 must be a non-empty text"),
        ({"operation": "map", "function": "count-lines", "files": ["a"], "top": 1001}, "'top' must be"),
        ({"operation": "map", "function": "count-lines", "files": ["a"], "top": True}, "'top' must be"),
        ({"operation": "map", "function": "count-lines", "files": ["a"], "final": 1}, "'final' must be"),
        ({"operation": "map", "function": "count-lines", "files": ["a"], "fils": 1}, "unknown key 'fils'"),
        ({"operation": "reduce", "function": "count-lines", "partials": []}, "'partials' must be a list"),
        ({"operation": "reduce", "function": "count-lines", "partials": [3]}, "partial 0 must be an object"),
        ({"operation": "reduce", "function": "count-lines", "partials": [{}]}, "partial 0 is of function None"),
        (
            {"operation": "reduce", "function": "count-lines",
             "partials": [{"function": "count-lines", "files": 1, "bytes": -1, "lines": 1}]},
            "partial 0 needs 'bytes' as a whole number, not -1",
        ),
        (
            {"operation": "reduce", "function": "count-lines",
             "partials": [{"function": "count-lines", "files": 1, "bytes": 1, "lines": 1, "top": []}]},
            "partial 0 has an unknown key 'top'",
        ),
        ({"operation": "sql"}, "'query' must be a non-empty text"),
        ({"operation": "sql", "query": "select 1", "limit": 0}, "'limit' must be a whole number from 1 to"),
        ({"operation": "sql", "query": "select 1", "limit": True}, "'limit' must be"),
        ({"operation": "sql", "query": "select 1", "tables": []}, "'tables' must be an object"),
        ({"operation": "sql", "query": "select 1", "tabels": {}}, "unknown key 'tabels'"),
    ],
)  # fmt: skip
def test_a_bad_payload_gets_one_sentence(payload: Any, words: str) -> None:
    assert words in refusal(payload)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with a good file in it and a secret beside it."""
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "good.txt").write_text("good\n")
    (tmp_path / "secret.txt").write_text("secret\n")
    (folder / "link-out.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "dir-out").symlink_to(tmp_path)
    (folder / "link-in.txt").symlink_to("sub/good.txt")
    (folder / "dangling.txt").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    return folder


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.txt", "does not exist"),
        ("dangling.txt", "does not exist"),
        ("loop", "does not exist"),
        ("sub", "is not a regular file"),
        ("pipe", "is not a regular file"),
        ("sub/../sub/good.txt", "must not contain '..'"),
        ("../secret.txt", "must not contain '..'"),
        ("link-out.txt", "lies outside"),
        ("dir-out/secret.txt", "lies outside"),
        ("dir-out/nothing.txt", "lies outside"),
        ("/etc/passwd", "lies outside"),
        ("/dev/zero", "lies outside"),
        ("/no/such/file", "lies outside"),
        ("", "must be a non-empty text"),
        ("a\0b", "is not a possible path"),
        ("\ud800", "is not a possible path"),
        ("x" * 300, "does not exist"),
    ],
)
@pytest.mark.parametrize("operation", ["map", "sql"])
def test_only_regular_files_of_the_data_directories_are_read(
    data: Path, name: str, words: str, operation: str
) -> None:
    payload: dict[str, Any] = {"operation": "map", "function": "count-lines", "files": ["sub/good.txt", name]}
    if operation == "sql":
        payload = {"operation": "sql", "query": "select 1", "tables": {"t": {"file": name}}}
    text = refusal(payload, data)
    assert words in text
    assert text.startswith(f"file {name!r:.200}")


def test_paths_are_relative_to_any_data_directory_or_absolute(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "more.txt").write_text("more\n")
    files = ["sub/good.txt", "more.txt", "link-in.txt", str(data / "sub/good.txt"), str(other / "more.txt")]
    answer = process(
        {"operation": "map", "function": "count-lines", "files": files},
        data_dirs=[data, tmp_path / "gone", other],
    )
    assert (answer["files"], answer["lines"]) == (5, 5)
    assert "lies outside" in refusal({"operation": "map", "function": "count-lines", "files": files})


def test_a_data_directory_may_itself_be_a_link(data: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(data)
    assert mapped(tmp_path / "alias", "sub/good.txt", function="count-lines")["lines"] == 1


def test_a_file_swapped_for_a_link_or_a_pipe_after_the_check_is_not_read(data: Path) -> None:
    for name in ("link-out.txt", "pipe"):
        with pytest.raises(OSError, match=r"symbolic links|not a regular file"):
            engine_files._open_regular(data / name)


# -- partitions


def test_partitions_hold_every_file_once_and_weigh_alike(tmp_path: Path) -> None:
    for number in range(40):
        path = tmp_path / f"d{number % 3}" / f"{number}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"#" * (1000 * number))
    (tmp_path / "other.txt").touch()
    (tmp_path / "skipped").mkdir()
    (tmp_path / "skipped" / "a.py").touch()
    (tmp_path / "link.py").symlink_to(tmp_path / "d0" / "0.py")
    partitions = list_partitions(tmp_path, parts=4, skip={"skipped"})
    assert partitions == list_partitions(tmp_path, parts=4, skip={"skipped"})
    assert sorted(chain.from_iterable(partitions)) == sorted(str(path) for path in tmp_path.glob("d?/*.py"))
    assert all(part == sorted(part) for part in partitions)
    weights = [sum(Path(name).stat().st_size for name in part) for part in partitions]
    assert max(weights) - min(weights) < 10_000
    assert mapped(tmp_path, *partitions[0], function="count-lines")["files"] == len(partitions[0])


def test_few_files_make_few_partitions(tmp_path: Path) -> None:
    assert list_partitions(tmp_path, parts=3) == []
    (tmp_path / "a.csv").touch()
    assert list_partitions(tmp_path, pattern="*.csv", parts=3) == [[str(tmp_path / "a.csv")]]
    for folder, parts in ((tmp_path, 0), (tmp_path / "a.csv", 1), (tmp_path / "missing", 1)):
        with pytest.raises(Invalid):
            list_partitions(folder, parts=parts)


# -- sql


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    (tmp_path / "sales.csv").write_text("id,price,day\n1,1.5,2024-01-02\n2,,2024-01-03\n")
    (tmp_path / "names.json").write_text('[{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]')
    duckdb.sql("select 2 as id, 0.25::decimal(6,2) as rate").write_parquet(str(tmp_path / "rates.parquet"))
    return tmp_path


def test_a_query_joins_files_of_three_formats_and_rows(tables: Path) -> None:
    answer = selected(
        "with t as (select * from s join n using (id)) select name, price, day, rate, tag "
        "from t left join r using (id) left join x using (id) order by id",
        tables,
        tables={
            "s": {"file": "sales.csv"},
            "n": {"file": str(tables / "names.json")},
            "r": {"file": "rates.parquet"},
            "x": {"rows": [{"id": 1, "tag": "first"}]},
        },
    )
    assert answer == {
        "columns": ["name", "price", "day", "rate", "tag"],
        "rows": [["one", 1.5, "2024-01-02", None, "first"], ["two", None, "2024-01-03", "0.25", None]],
        "row_count": 2,
        "truncated": False,
    }


def test_a_query_over_partitions_maps_and_one_over_their_answers_reduces(tmp_path: Path) -> None:
    for number in range(6):
        swapped = "amount,city\n{0},Oslo\n1,Rome\n" if number % 2 else "city,amount\nOslo,{0}\nRome,1\n"
        (tmp_path / f"{number}.csv").write_text(swapped.format(number))
    found = process(
        {"operation": "partitions", "folder": ".", "pattern": "*.csv", "parts": 4}, data_dirs=[tmp_path]
    )
    assert (found["files"], len(found["partitions"])) == (6, 4)
    query = "select city, sum(amount)::bigint as total from sales group by city"
    answers = [selected(query, tmp_path, tables={"sales": {"files": part}}) for part in found["partitions"]]
    reduced = "select city, sum(total)::bigint as total from parts group by city order by city"
    answer = selected(reduced, tables={"parts": {"answers": answers}})
    assert answer["rows"] == [["Oslo", 15], ["Rome", 6]]
    nothing = selected('select 1 as a, \'x\' as "b""" where false')
    answer = selected("select * from t", tables={"t": {"answers": [nothing, nothing]}})
    assert (answer["columns"], answer["rows"]) == (["a", 'b"'], [])


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"files": []}, "table 't': 'files' must be a list with at least one path"),
        ({"files": "a.csv"}, "table 't': 'files' must be a list"),
        ({"files": ["a.csv", "b.json"]}, "table 't': its files must be of one kind, not .csv and .json"),
        ({"files": ["a.csv", "../c.csv"]}, "must not contain '..'"),
        ({"answers": []}, "table 't': 'answers' must be a list with at least one answer"),
        ({"answers": [{"rows": []}]}, "table 't': answer 0 must be an object with 'columns' and 'rows'"),
        ({"answers": [{"columns": ["a", "a"], "rows": []}]}, "answer 0 needs different texts as 'columns'"),
        ({"answers": [{"columns": ["a"], "rows": [[1, 2]]}]}, "answer 0 has a row that is no list with a value"),
        ({"answers": [{"columns": ["a"], "rows": [], "truncated": True}]}, "answer 0 is truncated"),
        ({"answers": [{"columns": ["a"], "rows": []}, {"columns": ["b"], "rows": []}]}, "answer 1 has other columns"),
    ],
)  # fmt: skip
def test_bad_partitions_are_refused(table: Any, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a\n1\n")
    (tmp_path / "b.json").write_text("[]")
    assert words in refusal({"operation": "sql", "query": "select 1", "tables": {"t": table}}, tmp_path)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ({"folder": "..", "parts": 1}, "folder '..' must not contain '..'"),
        ({"folder": "/etc", "parts": 1}, "folder '/etc' lies outside"),
        ({"folder": "nowhere", "parts": 1}, "folder 'nowhere' does not exist"),
        ({"folder": "a.csv", "parts": 1}, "is not a folder"),
        ({"folder": ".", "parts": 0}, "'parts' must be a whole number from 1 to"),
        ({"folder": ".", "parts": 1, "pattern": ""}, "'pattern' must be a non-empty text"),
        ({"parts": 1}, "folder None must be a non-empty text"),
    ],
)
def test_bad_folders_are_refused(payload: Any, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    assert words in refusal({"operation": "partitions", **payload}, tmp_path)


def test_people_are_told_how_far_it_is(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / name).write_text("x\n")
    told: list[tuple[float | None, str]] = []
    payload = {"operation": "map", "function": "count-lines", "files": list("abcd")}
    process(payload, data_dirs=[tmp_path], tell=lambda *words: told.append(words))
    assert told == [(0, "a"), (0.25, "b"), (0.5, "c"), (0.75, "d")]


def test_whoever_is_told_may_end_it() -> None:
    def stop(fraction: float | None, note: str) -> None:
        assert note == "query" and (fraction is None or 0 <= fraction <= 1)
        raise SoftLimit

    with pytest.raises(SoftLimit):
        process(
            {
                "operation": "sql",
                "query": "select sum(a.range * b.range) from range(10000000) a, range(10000000) b",
            },
            data_dirs=[],
            tell=stop,
        )
    assert not [thread for thread in threading.enumerate() if thread.name == "data-processing-sql"]


def test_the_schema_and_the_engine_agree(tmp_path: Path) -> None:
    validator = jsonschema_rs.validator_for(PAYLOAD_SCHEMA)
    for example in EXAMPLES:
        validator.validate(example)
    for payload in (
        {}, {"operation": "dance"}, {"operation": "sql"}, {"operation": "map", "function": "count-lines"}, {"data": 1, "top": 1},
        {"operation": "map", "function": "f", "files": ["a"]}, {"operation": "sql", "query": "select 1", "files": ["a"]},
        {"operation": "sql", "query": "select 1", "tables": {"t": {"rows": [{"a": 1}], "file": "a"}}}, [], "x",
        {"operation": "partitions", "folder": "."}, {"operation": "reduce", "function": "count-lines", "partials": []},
    ):  # fmt: skip
        assert not validator.is_valid(payload), payload
        refusal(payload, tmp_path)


def test_rows_get_types_from_their_values() -> None:
    rows = [
        {
            "i": 1,
            "big": 2**70,
            "f": 1,
            "s": "2024-01-01",
            "b": True,
            "mixed": "x",
            "nested": {"z": [1]},
            "n": None,
        },
        {"i": None, "big": 1, "f": 2.5, "mixed": 3, "late": "yes"},
    ]
    answer = selected("select * from t", tables={"t": {"rows": rows}})
    assert answer["columns"] == ["i", "big", "f", "s", "b", "mixed", "nested", "n", "late"]
    assert answer["rows"] == [
        [1, 2**70, 1.0, "2024-01-01", True, '"x"', '{"z":[1]}', None, None],
        [None, 1, 2.5, None, None, "3", None, None, "yes"],
    ]
    types = selected("select typeof(columns(*)) from t limit 1", tables={"t": {"rows": rows}})["rows"][0]
    assert types == [
        "BIGINT",
        "HUGEINT",
        "DOUBLE",
        "VARCHAR",
        "BOOLEAN",
        "JSON",
        "JSON",
        "VARCHAR",
        "VARCHAR",
    ]


def test_values_become_json() -> None:
    answer = selected(
        "select 1.50, 'nan'::double, '-inf'::float, ['inf'::double], date '2024-01-02', "
        "timestamp '2024-01-02 03:04:05', time '03:04:05', 'ab'::blob, {'a': 0.5, 'd': date '2024-01-02'}, "
        "map {'k': 1}, 170141183460469231731687303715884105727, null, interval 90 minute, "
        "'6b1f0f0e-0000-4000-8000-000000000000'::uuid, '2024-01-02 03:04:05+00'::timestamptz"
    )
    assert answer["rows"] == [[
        "1.50", None, None, [None], "2024-01-02", "2024-01-02T03:04:05", "03:04:05", "YWI=",
        {"a": "0.5", "d": "2024-01-02"}, {"k": 1}, 2**127 - 1, None, "1:30:00",
        "6b1f0f0e-0000-4000-8000-000000000000", "2024-01-02T03:04:05+00:00",
    ]]  # fmt: skip
    assert engine_sql._plain(Decimal("NaN")) is None
    assert engine_sql._plain(dt.timedelta(days=1)) == "1 day, 0:00:00"


def test_the_answer_is_cut_at_the_limit() -> None:
    cut = selected("select range from range(20000) order by range")
    assert (cut["row_count"], cut["truncated"], cut["rows"][-1]) == (10_000, True, [9999])
    assert selected("select * from range(5)", limit=5)["truncated"] is False
    assert selected("select * from range(6)", limit=5)["truncated"] is True


@pytest.mark.parametrize(
    "query",
    [
        "", "  ", "-- nothing", "selec", "select 1; select 2", "create table a (i int)", "explain select 1",
        "set threads = 9", "from range(3)", "describe t", "copy (select 1) to 'out.csv'", "attach 'x.db'",
        "install httpfs", "call pragma_version()", "pivot t on a", "insert into t values (2)",
        "with x as (select 1) insert into t select * from x", "select '\ud800'",
    ],
)  # fmt: skip
def test_only_one_select_is_run(query: str) -> None:
    refusal({"operation": "sql", "query": query, "tables": {"t": {"rows": [{"a": 1}]}}})


@pytest.mark.parametrize(
    "query",
    ["-- why\n/* -- */ select 1 -- so\n;", "(select 1) union (select 1)", "WITH a AS (SELECT 1) FROM a"],
)
def test_a_select_may_be_written_in_many_ways(query: str) -> None:
    assert selected(query)["rows"] == [[1]]


def test_a_query_reaches_nothing_but_its_tables(tables: Path) -> None:
    path, out = tables / "sales.csv", tables / "out.csv"
    for query in (
        f"select * from '{path}'",
        f"select * from read_csv('{path}')",
        f"select * from read_text('{path}')",
        f"select * from glob('{tables}/*')",
        f"select * from sniff_csv('{path}')",
        f"select * from query('copy (select 1) to ''{out}''')",
        "select * from read_csv('http://127.0.0.1:9/a.csv')",
        "with x as (insert into t from t returning *) select * from x",
        "select * from rows",
        "select * from _CONFIG",
    ):
        payload = {"operation": "sql", "query": query, "tables": {"t": {"file": "sales.csv"}}}
        assert refusal(payload, tables).startswith(("the query failed: ", "the query cannot be parsed: "))
    assert not out.exists()


def test_files_that_a_pattern_could_multiply_or_nobody_can_read_are_refused(tables: Path) -> None:
    (tables / "s*.csv").write_text("id\n1\n")
    (tables / "bad.parquet").write_text("no parquet")
    (tables / "bad.json").write_text("{no json")
    (tables / "notes.txt").write_text("x")
    for name, words in (
        ("s*.csv", "must not contain *"),
        ("bad.parquet", "cannot be loaded: "),
        ("bad.json", "cannot be loaded: "),
        ("notes.txt", "must end in .csv, .json, .parquet"),
    ):
        payload = {"operation": "sql", "query": "select 1", "tables": {"t": {"file": name}}}
        assert words in refusal(payload, tables)


@pytest.mark.parametrize(
    "tables",
    [
        {"t": {}}, {"t": []}, {"t": {"file": "a.csv", "rows": []}}, {"t": {"rows": []}}, {"t": {"rows": {}}},
        {"t": {"rows": [{}]}}, {"t": {"rows": [1]}}, {"t": {"rows": [{"": 1}]}}, {"t": {"rows": [{"a": 1, "A": 2}]}},
        {"t": {"rows": [{"a": float("nan")}]}}, {"t": {"rows": [{"a": 2**127}]}}, {"t": {"rows": [{"a": "\ud800"}]}},
        {"a b": {"rows": [{"a": 1}]}}, {'a"; drop': {"rows": [{"a": 1}]}}, {"": {"rows": [{"a": 1}]}},
        {"t": {"rows": [{"a": 1}]}, "T": {"rows": [{"a": 1}]}}, {1: {"rows": [{"a": 1}]}},
    ],
)  # fmt: skip
def test_bad_tables_are_refused(tables: Any) -> None:
    assert "table" in refusal({"operation": "sql", "query": "select 1", "tables": tables})


def test_column_and_table_names_are_never_sql() -> None:
    answer = selected('select * from "select"', tables={"select": {"rows": [{"x\"'; --": 1}]}})
    assert answer["columns"] == ["x\"'; --"]


@pytest.mark.ci
def test_memory_is_bounded_also_where_duckdb_does_not_count_it() -> None:
    assert threading.current_thread() is threading.main_thread(), "elsewhere this query would take 10 GB"
    before = resource.getrlimit(resource.RLIMIT_AS)
    for query in (
        "select repeat('x', 10000000) from range(1000)",
        "select list(range) from range(100000000)",
    ):
        text = refusal({"operation": "sql", "query": query})
        assert text == "the query needs more than its 512 MiB of memory"
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    assert "larger than 16 MiB" in refusal(
        {"operation": "sql", "query": "select repeat('x', 20000) from range(1000)"}
    )


def test_a_signal_ends_a_long_query() -> None:
    """As Celery's soft time limit does it: a handler that raises in the main thread."""

    def limit(number: int, frame: FrameType | None) -> None:
        raise SoftLimit

    before = signal.signal(signal.SIGALRM, limit)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(SoftLimit):
            selected("select sum(a.range * b.range) from range(10000000) a, range(10000000) b")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not [thread for thread in threading.enumerate() if thread.name == "data-processing-sql"]


def test_duckdb_is_imported_only_for_sql() -> None:
    code = "import sys, mesh.tasks.engine_files; assert 'duckdb' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
