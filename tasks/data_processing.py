"""The built-in task type ``data-processing``: binds the engine to the mesh."""

import time
from functools import cache
from pathlib import Path
from typing import Any

from mesh import current, task
from mesh.settings import Settings

from .attempt import check
from .engine_files import FUNCTIONS, OPERATIONS, PARTS_LIMIT, TOP_DEFAULT, TOP_LIMIT, process

__all__ = ["data_processing"]

_PROGRESS_S = 0.5  # how often people who wait are told
_PATHS = {"type": "array", "items": {"type": "string"}, "minItems": 1}
_OBJECTS = {"type": "array", "items": {"type": "object"}, "minItems": 1}
_TABLE = {
    "type": "object",
    "properties": {"file": {"type": "string"}, "files": _PATHS, "rows": _OBJECTS, "answers": _OBJECTS},
    "additionalProperties": False,
    "minProperties": 1,
    "maxProperties": 1,
}
_KEYS: dict[str, dict[str, Any]] = {
    "operation": {"enum": [*OPERATIONS], "description": "What is done; without it, 'data' is described."},
    "function": {"enum": [*FUNCTIONS], "description": "map, reduce: what is counted."},
    "files": {**_PATHS, "description": "map: paths below the agent's data directories."},
    "partials": {**_OBJECTS, "description": "reduce: answers of maps or of other reduces."},
    "top": {
        "type": "integer",
        "minimum": 0,
        "maximum": TOP_LIMIT,
        "default": TOP_DEFAULT,
        "description": "How many of the most frequent identifiers are shown.",
    },
    "final": {
        "type": "boolean",
        "default": False,
        "description": "Leave out what only another reduce needs.",
    },
    "query": {"type": "string", "minLength": 1, "description": "sql: one SELECT (of DuckDB's SQL)."},
    "tables": {
        "type": "object",
        "additionalProperties": _TABLE,
        "description": "sql: its tables by name: files (.csv, .json, .parquet), rows, or answers of other queries.",
    },
    "limit": {
        "type": "integer",
        "minimum": 1,
        "maximum": 100_000,
        "default": 10_000,
        "description": "sql: rows.",
    },
    "folder": {"type": "string", "description": "partitions: below the agent's data directories."},
    "pattern": {
        "type": "string",
        "minLength": 1,
        "default": "*",
        "description": "partitions: of file names.",
    },
    "parts": {
        "type": "integer",
        "minimum": 1,
        "maximum": PARTS_LIMIT,
        "description": "partitions: how many.",
    },
    "data": {"description": "Any value: its type and size are told."},
}


def _when(operation: str) -> dict[str, Any]:
    needed, optional = OPERATIONS[operation]
    return {
        "if": {"properties": {"operation": {"const": operation}}, "required": ["operation"]},
        "then": {"required": [*needed], "propertyNames": {"enum": ["operation", *needed, *optional]}},
    }


PAYLOAD_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": _KEYS,
    "additionalProperties": False,
    "if": {"not": {"required": ["operation"]}},
    "then": {"required": ["data"], "maxProperties": 1},
    "allOf": [_when(operation) for operation in OPERATIONS],
}
RESULT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "map, reduce: a partial (function and its counts); sql: columns, rows, row_count, truncated; "
    "partitions: partitions, files; data: type, bytes and its size in its own unit.",
}
EXAMPLES = (
    {
        "operation": "sql",
        "query": "SELECT city, sum(amount) AS total FROM sales GROUP BY city",
        "tables": {"sales": {"files": ["sales-2024.csv", "sales-2025.csv"]}},
    },
    {
        "operation": "sql",
        "query": "SELECT city, sum(total) AS total FROM parts GROUP BY city ORDER BY total DESC",
        "tables": {
            "parts": {"answers": [{"columns": ["city", "total"], "rows": [["Oslo", 3], ["Rome", 4]]}]}
        },
    },
    {"operation": "partitions", "folder": "logs", "pattern": "*.txt", "parts": 8},
    {"operation": "map", "function": "count-words", "files": ["logs/a.txt", "logs/b.txt"]},
    {
        "operation": "reduce",
        "function": "count-lines",
        "partials": [{"function": "count-lines", "files": 1, "bytes": 6, "lines": 2}],
    },
    {"data": "example"},
)


@cache
def _data_dirs() -> tuple[Path, ...]:
    return Settings.load().data_dirs


class _Teller:
    """Tells people how far the task is, now and then; ends the work when its attempt is over."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _PROGRESS_S

    def __call__(self, fraction: float | None, note: str) -> None:
        check()
        now = time.monotonic()
        if fraction is not None and now >= self._next:
            self._next = now + _PROGRESS_S
            current.progress(fraction, note)


@task("data-processing", payload_schema=PAYLOAD_SCHEMA, result_schema=RESULT_SCHEMA, examples=EXAMPLES)
def data_processing(payload: dict[str, Any]) -> dict[str, Any]:
    """SQL, map and reduce over files of the agent's data directories, or statistics of inline data.

    Payloads and answers are those of `mesh.tasks.engine_files.process`.
    """
    return process(payload, data_dirs=_data_dirs(), tell=_Teller())
