"""SQL over named files and inline rows, for the task type ``data-processing``: DuckDB, in memory.

A query comes from whoever may submit tasks, and runs inside the agent. So, for each call:

* one fresh in-memory database, closed at the end; nothing is shared between calls;
* the files that the payload names are read first, by us, with an explicit reader each; then access to files,
  network and extensions is switched off, the configuration is locked, and only then the caller's text runs;
* that text is one SELECT, run in a read-only transaction;
* memory, threads and the size of the answer are bounded; the caller's ``tell`` may end it at any time.
"""

import base64
import datetime as dt
import json
import math
import re
import resource
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb

from mesh.errors import Invalid

__all__ = ["run_query"]

ROWS_DEFAULT = 10_000
ROWS_LIMIT = 100_000
ANSWER_LIMIT_BYTES = 16 << 20
MEMORY_LIMIT_BYTES = 512 << 20
THREADS = 2
TABLES_LIMIT = 100

_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "memory_limit": f"{MEMORY_LIMIT_BYTES}B",
    "threads": str(THREADS),
    "temp_directory": "",  # no spilling into the agent's working directory
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "allow_persistent_secrets": "false",
    "python_enable_replacements": "false",  # else a table name finds Python variables of ours
}
_KINDS = ("file", "files", "rows", "answers")
_READERS = {".csv": "read_csv", ".json": "read_json", ".parquet": "read_parquet"}
_TABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
# After spaces, comments and opening brackets; possessive, so that no text makes it slow.
_SELECT = re.compile(r"(?:[\s(]|--[^\n]*+|/\*(?s:.*?)\*/)*+(select|with)\b", re.IGNORECASE)
_FETCH_ROWS = 1000
_LOOK_S = 0.1  # between two looks at a running query

#: A SELECT that makes a table, and its arguments.
_Source = tuple[str, list[Any]]
_NUMERIC = ("BIGINT", "HUGEINT", "DOUBLE")  # each holds what those before it hold


def _nobody(fraction: float | None, note: str) -> None:
    """Nobody is told."""


def run_query(
    query: Any,
    tables: Any,
    *,
    limit: Any = None,
    open_path: Callable[[Any], Path],
    tell: Callable[[float | None, str], None] = _nobody,
) -> dict[str, Any]:
    """Run one SELECT (``WITH`` is one) over ``tables`` and give back at most ``limit`` rows.

    ``tables`` maps names to one of

    * ``{"file": path}`` or ``{"files": [path, ...]}``: .csv, .json or .parquet, several of one kind with their columns
      matched by name (``open_path`` turns a path into a real and permitted one, or raises);
    * ``{"rows": [{...}, ...]}``;
    * ``{"answers": [answer, ...]}``: the rows of other queries' answers, of the same columns. So a query over each
      partition maps, and one over their answers reduces.

    ``limit`` is 1 to 100,000, by default
    10,000. The answer: ``columns`` (names), ``rows`` (lists of JSON values: decimals, dates, intervals and
    UUIDs are texts, dates in ISO 8601, binary data is base64, NaN and infinities are null), ``row_count`` of
    these rows, ``truncated`` if there were more. ``tell`` hears from time to time how far the query is (0 to 1, or
    None); what it raises ends the query. Raises `Invalid` for a bad argument, table or query, for a
    query that needs more memory than it may, and for an answer of more than 16 MiB.
    """
    limit = ROWS_DEFAULT if limit is None else limit
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= ROWS_LIMIT:
        raise Invalid(f"'limit' must be a whole number from 1 to {ROWS_LIMIT}, not {limit!r:.100}")
    text = _one_select(query)
    sources = _sources(tables, open_path)
    try:
        with _memory_ceiling(), duckdb.connect(":memory:", config=_CONFIG) as connection:
            return _interruptible(connection, lambda: _load_and_run(connection, sources, text, limit), tell)
    except (duckdb.OutOfMemoryException, MemoryError):
        raise Invalid(f"the query needs more than its {MEMORY_LIMIT_BYTES >> 20} MiB of memory") from None


def _load_and_run(
    connection: duckdb.DuckDBPyConnection, sources: Mapping[str, _Source], text: str, limit: int
) -> dict[str, Any]:
    connection.execute("SET enable_progress_bar_print = false")  # measured, to be told; not drawn
    connection.execute("SET enable_progress_bar = true")
    for name, (source, arguments) in sources.items():
        try:
            connection.execute(f'CREATE TABLE "{name}" AS {source}', arguments)
        except (duckdb.OutOfMemoryException, MemoryError):
            raise
        except duckdb.Error as error:
            raise Invalid(f"table {name!r} cannot be loaded: {_first_line(error)}") from None
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    connection.execute("BEGIN TRANSACTION READ ONLY")
    try:
        return _fetch(connection.execute(text), limit)
    except (duckdb.OutOfMemoryException, MemoryError):
        raise
    except (duckdb.Error, ValueError, OverflowError) as error:  # the last two: times that Python has not
        raise Invalid(f"the query failed: {_first_line(error)}") from None


def _fetch(cursor: duckdb.DuckDBPyConnection, limit: int) -> dict[str, Any]:
    columns = [str(column[0]) for column in cursor.description or ()]
    rows: list[list[Any]] = []
    size = 0
    while len(rows) <= limit:
        chunk = cursor.fetchmany(min(_FETCH_ROWS, limit + 1 - len(rows)))
        if not chunk:
            break
        plain = [[_plain(value) for value in row] for row in chunk]
        size += len(json.dumps(plain))
        if size > ANSWER_LIMIT_BYTES:
            raise Invalid(f"the answer is larger than {ANSWER_LIMIT_BYTES >> 20} MiB: select less of it")
        rows += plain
    truncated = len(rows) > limit
    del rows[limit:]
    return {"columns": columns, "rows": rows, "row_count": len(rows), "truncated": truncated}


# -- arguments


def _one_select(query: Any) -> str:
    if not isinstance(query, str) or not query.strip():
        raise Invalid("'query' must be a non-empty text: one SELECT statement")
    _check_unicode(query, "'query'")
    try:
        statements = duckdb.extract_statements(query)
    except duckdb.Error as error:
        raise Invalid(f"the query cannot be parsed: {_first_line(error)}") from None
    if len(statements) != 1:
        raise Invalid(f"'query' must be one SELECT statement, not {len(statements)} statements")
    text = str(statements[0].query)
    if statements[0].type != duckdb.StatementType.SELECT or not _SELECT.match(text):
        raise Invalid("'query' must be one SELECT statement (or WITH ... SELECT), and nothing else")
    return text


def _sources(tables: Any, open_path: Callable[[Any], Path]) -> dict[str, _Source]:
    if not isinstance(tables, Mapping) or len(tables) > TABLES_LIMIT:
        raise Invalid(f"'tables' must be an object of at most {TABLES_LIMIT} tables by name")
    sources: dict[str, _Source] = {}
    seen: set[str] = set()
    for name, table in tables.items():
        if not isinstance(name, str) or not _TABLE_NAME.fullmatch(name):
            raise Invalid(
                f"table name {name!r:.100} must be 1 to 63 letters, digits or _, and not begin with a digit"
            )
        if name.lower() in seen:
            raise Invalid(f"table name {name!r} is given twice (names do not distinguish case)")
        seen.add(name.lower())
        if not isinstance(table, Mapping) or len(table) != 1 or table.keys() - set(_KINDS):
            raise Invalid(
                f"table {name!r} must be an object with one of {', '.join(_KINDS)}, and nothing else"
            )
        ((kind, value),) = table.items()
        if kind in ("file", "files"):
            sources[name] = _files(name, [value] if kind == "file" else value, open_path)
        else:
            sources[name] = _rows(name, value) if kind == "rows" else _answers(name, value)
    return sources


def _files(name: str, given: Any, open_path: Callable[[Any], Path]) -> _Source:
    if not isinstance(given, list) or not given:
        raise Invalid(f"table {name!r}: 'files' must be a list with at least one path")
    paths = [open_path(one) for one in given]
    suffixes = {path.suffix.lower() for path in paths}
    for path in paths:
        if path.suffix.lower() not in _READERS:
            raise Invalid(f"table {name!r}: file {path.name!r} must end in {', '.join(_READERS)}")
        if set(str(path)) & set("*?["):  # DuckDB's readers expand them, to files that nobody has checked
            raise Invalid(f"table {name!r}: the path of file {path.name!r} must not contain *, ? or [")
        _check_unicode(str(path), f"table {name!r}: the path of its file")
    if len(suffixes) > 1:
        raise Invalid(f"table {name!r}: its files must be of one kind, not {' and '.join(sorted(suffixes))}")
    reader = _READERS[suffixes.pop()]
    if len(paths) == 1:
        return f"SELECT * FROM {reader}(?)", [str(paths[0])]
    return f"SELECT * FROM {reader}(?, union_by_name = true)", [[str(path) for path in paths]]


def _answers(name: str, answers: Any) -> _Source:
    if not isinstance(answers, list) or not answers:
        raise Invalid(f"table {name!r}: 'answers' must be a list with at least one answer of a query")
    columns: list[str] | None = None
    rows: list[dict[str, Any]] = []
    for number, answer in enumerate(answers):
        found, lines = _answer(answer, f"table {name!r}: answer {number}")
        if columns is not None and columns != found:
            raise Invalid(f"table {name!r}: answer {number} has other columns than answer 0")
        columns = found
        rows += [dict(zip(found, line, strict=True)) for line in lines]
    if rows or not columns:
        return _rows(name, rows)
    nothing = ", ".join('NULL::VARCHAR AS "{}"'.format(column.replace('"', '""')) for column in columns)
    return f"SELECT {nothing} WHERE false", []


def _answer(answer: Any, what: str) -> tuple[list[str], Sequence[Sequence[Any]]]:
    columns = answer.get("columns") if isinstance(answer, Mapping) else None
    rows = answer.get("rows") if isinstance(answer, Mapping) else None
    if not isinstance(columns, list) or not isinstance(rows, list):
        raise Invalid(f"{what} must be an object with 'columns' and 'rows'")
    if not all(isinstance(column, str) for column in columns) or len(set(columns)) < len(columns):
        raise Invalid(f"{what} needs different texts as 'columns': name them in its query")
    if not all(isinstance(row, list) and len(row) == len(columns) for row in rows):
        raise Invalid(f"{what} has a row that is no list with a value for each column")
    if answer.get("truncated"):
        raise Invalid(f"{what} is truncated: what is made of it would be wrong")
    return columns, rows


def _rows(name: str, rows: Any) -> _Source:
    """Rows as JSON text, with column types from the values; what is mixed or nested becomes type JSON."""
    if not isinstance(rows, list) or not rows or not all(isinstance(row, Mapping) for row in rows):
        raise Invalid(f"table {name!r}: 'rows' must be a non-empty list of objects")
    kinds: dict[str, set[str]] = {}
    for row in rows:
        for key, value in row.items():
            kinds.setdefault(key, set()).add(_kind(value))
    if not kinds or not all(isinstance(key, str) and key for key in kinds):
        raise Invalid(f"table {name!r}: the objects in 'rows' need keys, and each a non-empty text")
    if len({key.lower() for key in kinds}) < len(kinds):
        raise Invalid(f"table {name!r}: two columns differ in case only, which SQL does not distinguish")
    try:
        text = json.dumps([{key: row.get(key) for key in kinds} for row in rows], allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise Invalid(f"table {name!r}: 'rows' are not JSON values: {error}") from None
    types = {key: _column_type(of_key - {"NULL"}) for key, of_key in kinds.items()}
    select = "SELECT unnest(entry) FROM (SELECT unnest(from_json_strict(?::JSON, ?)) AS entry)"
    return select, [text, json.dumps([types])]


def _check_unicode(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate; DuckDB's binding would raise a TypeError
        raise Invalid(f"{what} is not valid Unicode text") from None


def _kind(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "BOOLEAN"
    if isinstance(value, int):
        return "BIGINT" if -(2**63) <= value < 2**63 else "HUGEINT"
    if isinstance(value, float):
        return "DOUBLE"
    return "VARCHAR" if isinstance(value, str) else "JSON"


def _column_type(kinds: set[str]) -> str:
    if not kinds:
        return "VARCHAR"
    if kinds <= set(_NUMERIC):
        return max(kinds, key=_NUMERIC.index)
    return kinds.pop() if len(kinds) == 1 else "JSON"


# -- values and errors


def _plain(value: Any) -> Any:
    """A value of a result row as a JSON value."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dt.date | dt.time):  # datetime is a date
        return value.isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, Decimal) and not value.is_finite():
        return None
    return str(value)


def _first_line(error: Exception) -> str:
    """DuckDB's messages go on with hints and a drawing of the query: one sentence of them is enough."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]


# -- bounds


@contextmanager
def _memory_ceiling() -> Iterator[None]:
    """Make memory beyond twice the limit an error of this query, instead of the death of the agent.

    DuckDB's own limit covers its buffers, not the texts that an expression makes:
    ``select repeat('x', 10000000) from range(1000)`` takes 10 GB under a limit of 512 MB. The address space
    of the process is bounded only where the task has the process's main thread (prefork and solo pools): in a
    thread pool the ceiling would hold for the neighbours, and for processes that they start, too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:  # not Linux: DuckDB's own limit has to do
        yield
        return
    ceiling = pages * resource.getpagesize() + 2 * MEMORY_LIMIT_BYTES
    bounds = [bound for bound in (soft, hard) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([ceiling, *bounds]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _interruptible(
    connection: duckdb.DuckDBPyConnection,
    work: Callable[[], dict[str, Any]],
    tell: Callable[[float | None, str], None],
) -> dict[str, Any]:
    """Run ``work`` in a thread of its own, so that a signal (a soft time limit) or ``tell`` ends it.

    While DuckDB executes, Python gets no turn in that thread, and what a signal handler raises there would
    have to wait for the end of the query.
    """
    answers: list[dict[str, Any]] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(work())
        except BaseException as error:  # carried over to the waiting thread, whatever it is
            errors.append(error)

    ended = _start_thread(run)
    try:
        while not ended(_LOOK_S):
            percent = connection.query_progress()
            tell(percent / 100 if percent >= 0 else None, "query")
    except BaseException:
        connection.interrupt()
        while not ended(_LOOK_S / 2):  # again and again: an interrupt between two statements goes unheard
            connection.interrupt()
        raise
    if errors:
        raise errors[0]
    return answers[0]


def _start_thread(function: Callable[[], None]) -> Callable[[float], bool]:
    """Run a function in a real thread, also under gevent, whose loop must go on; how to wait so many seconds for its end."""
    if "gevent.monkey" in sys.modules:
        import gevent
        from gevent import monkey

        if monkey.is_module_patched("threading"):
            running = gevent.get_hub().threadpool.spawn(function)

            def ended(seconds: float) -> bool:
                running.wait(seconds)
                return bool(running.ready())

            return ended
    # An event, because Python 3.11's Thread.join, when a signal ends it, takes a running thread for ended.
    done = threading.Event()

    def run() -> None:
        try:
            function()
        finally:
            done.set()

    threading.Thread(target=run, name="data-processing-sql", daemon=True).start()
    return done.wait
