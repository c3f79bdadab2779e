"""The engine of the task type ``data-processing``: its entry `process`, and map and reduce over files.

Pure functions, without Celery: values and files in, JSON values out. SQL is in ``engine_sql``.

The design it keeps:

* A *partial* is the JSON object that ``map`` returns and ``reduce`` takes and returns. It holds sums, and for
  ``count-python`` the full counter of identifiers, so merging is associative, commutative and exact:
  ``reduce(map(a), map(b)) == map(a + b)``. Only ``top``, made from the counter at the end, is cut.
* The counter travels packed (JSON, deflated, base64), because a large source tree has some 70,000 different
  identifiers, and results are bounded (1 MiB by default). ``"final": true`` leaves it out.
* A file is read only when its real path, after every symbolic link, lies under one of the agent's data
  directories. All paths of a call are checked before the first is read: a bad batch does no work.
"""

import base64
import binascii
import fnmatch
import heapq
import json
import os
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from mesh.errors import Invalid

from .engine_python import survey

__all__ = ["FUNCTIONS", "OPERATIONS", "Tell", "list_partitions", "local_totals", "process"]

#: Told how far the work is (0 to 1, or None) and at what; called often; what it raises ends the work.
Tell = Callable[[float | None, str], None]

#: What each function counts. ``bytes`` to ``words`` are of the raw file (words are split at ASCII white
#: space, a last line without a newline counts); the others are of the syntax trees of files that parse.
FUNCTIONS: Mapping[str, tuple[str, ...]] = {
    "count-lines": ("files", "bytes", "lines"),
    "count-words": ("files", "bytes", "lines", "words"),
    "count-python": ("files", "bytes", "lines", "words", "functions", "classes", "imports", "unparsable"),
}
_WITH_IDENTIFIERS = "count-python"

TOP_DEFAULT = 20
TOP_LIMIT = 1000
_BLOCK_BYTES = 1 << 20
# A syntax tree takes some 50 times the memory of its source: a file above this is counted as unparsable.
_PARSE_LIMIT_BYTES = 8 << 20
# A partial comes from outside; this bounds what unpacking its counter may allocate.
_UNPACKED_LIMIT_BYTES = 64 << 20
# Opening and reading a file costs about as much as this many bytes of it.
_FILE_OVERHEAD_BYTES = 4096

#: Operation -> (keys that its payload must have, keys that it may have), beside ``operation``.
OPERATIONS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "map": (("function", "files"), ("top", "final")),
    "reduce": (("function", "partials"), ("top", "final")),
    "sql": (("query",), ("tables", "limit")),
    "partitions": (("folder", "parts"), ("pattern",)),
}
PARTS_LIMIT = 10_000


# -- the entry


def _nobody(fraction: float | None, note: str) -> None:
    """Nobody is told."""


def process(payload: Mapping[str, Any], *, data_dirs: Sequence[Path], tell: Tell = _nobody) -> dict[str, Any]:
    """Do what a ``data-processing`` payload says; the answer is made of JSON values only.

    ====================================================================  ===================================
    payload                                                               answer
    ====================================================================  ===================================
    ``operation: map``, ``function``, ``files`` [, ``top``, ``final``]    a partial over these files
    ``operation: reduce``, ``function``, ``partials`` [, ``top``,         their partial
    ``final``]
    ``operation: sql``, ``query`` [, ``tables``, ``limit``]               columns, rows, row_count, truncated
    ``operation: partitions``, ``folder``, ``parts`` [, ``pattern``]      partitions (lists of files), files
    ``data``: any JSON value                                              type, bytes, items or characters
    ====================================================================  ===================================

    ``files`` are paths, absolute or relative to one of ``data_dirs``. ``top`` (0 to 1000, default 20) is how
    many of the most frequent identifiers are shown; ``final`` leaves out the full counter for a later reduce.
    Raises `Invalid`, with one sentence, for anything else, and for files that are missing, no regular files,
    unreadable or outside ``data_dirs``.
    """
    if not isinstance(payload, Mapping):
        raise Invalid(f"a data-processing payload is an object, not {type(payload).__name__}")
    if "operation" not in payload:
        if "data" not in payload:
            raise Invalid(f"a data-processing payload needs 'operation' ({', '.join(OPERATIONS)}) or 'data'")
        _only(payload, {"data"}, "the payload with inline data")
        return _describe(payload["data"])
    operation = payload["operation"]
    if not isinstance(operation, str) or operation not in OPERATIONS:
        raise Invalid(f"operation {_shown(operation)} is unknown: use {', '.join(OPERATIONS)}")
    needed, optional = OPERATIONS[operation]
    _only(payload, {"operation", *needed, *optional}, f"the payload of {operation}")
    if operation == "sql":
        # Here and not above: DuckDB takes longer to import than most batches take to map.
        from .engine_sql import run_query

        return run_query(
            payload.get("query"),
            payload.get("tables", {}),
            limit=payload.get("limit"),
            open_path=lambda path: _safe_path(path, data_dirs),
            tell=tell,
        )
    if operation == "partitions":
        return _partitions(payload, data_dirs)
    return _map_or_reduce(operation, payload, data_dirs, tell)


def _map_or_reduce(
    operation: str, payload: Mapping[str, Any], data_dirs: Sequence[Path], tell: Tell
) -> dict[str, Any]:
    tally = _Tally(_function(payload.get("function")))
    top, final = payload.get("top", TOP_DEFAULT), payload.get("final", False)
    if not _is_count(top) or top > TOP_LIMIT:
        raise Invalid(f"'top' must be a whole number from 0 to {TOP_LIMIT}, not {_shown(top)}")
    if not isinstance(final, bool):
        raise Invalid(f"'final' must be true or false, not {_shown(final)}")
    if operation == "map":
        files = _filled_list(payload.get("files"), "files")
        for number, (path, name) in enumerate([(_safe_path(name, data_dirs), name) for name in files]):
            tell(number / len(files), name)
            tally.add_file(path, name)
    else:
        partials = _filled_list(payload.get("partials"), "partials")
        for number, partial in enumerate(partials):
            tell(number / len(partials), f"partial {number}")
            tally.add_partial(partial, f"partial {number}")
    return tally.result(top=top, final=final)


def _partitions(payload: Mapping[str, Any], data_dirs: Sequence[Path]) -> dict[str, Any]:
    parts: Any = payload.get("parts")
    pattern = payload.get("pattern", "*")
    if not _is_count(parts) or not 1 <= parts <= PARTS_LIMIT:
        raise Invalid(f"'parts' must be a whole number from 1 to {PARTS_LIMIT}, not {_shown(parts)}")
    if not isinstance(pattern, str) or not pattern:
        raise Invalid(f"'pattern' must be a non-empty text such as '*.csv', not {_shown(pattern)}")
    folder = _real_path(payload.get("folder"), data_dirs, "folder")
    partitions = list_partitions(folder, pattern=pattern, parts=parts)
    return {"partitions": partitions, "files": sum(map(len, partitions))}


def _describe(value: Any) -> dict[str, Any]:
    """Statistics of an inline value: ``type``, ``bytes`` as compact JSON, and its size in its own unit."""
    try:
        size = len(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise Invalid(f"'data' is not a JSON value: {error}") from None
    if isinstance(value, str):
        words, lines = len(value.split()), len(value.splitlines())
        return {"type": "string", "bytes": size, "characters": len(value), "words": words, "lines": lines}
    if isinstance(value, Mapping):
        return {"type": "object", "bytes": size, "items": len(value)}
    if isinstance(value, list | tuple):
        answer: dict[str, Any] = {"type": "array", "bytes": size, "items": len(value)}
        if value and all(isinstance(row, Mapping) for row in value):
            answer["columns"] = sorted({str(key) for row in value for key in row})
        return answer
    kind = "null" if value is None else "boolean" if isinstance(value, bool) else "number"
    return {"type": kind, "bytes": size}


# -- checks


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "..."


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _only(given: Mapping[str, Any], known: Collection[str], what: str) -> None:
    for key in given:
        if key not in known:
            raise Invalid(f"{what} has an unknown key {_shown(key)} (known: {', '.join(sorted(known))})")


def _filled_list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise Invalid(f"{key!r} must be a list with at least one entry")
    return value


def _function(value: Any) -> str:
    if not isinstance(value, str) or value not in FUNCTIONS:
        raise Invalid(f"function {_shown(value)} is unknown: use {', '.join(FUNCTIONS)}")
    return value


def _safe_path(given: Any, data_dirs: Sequence[Path]) -> Path:
    """The real path of a regular file under one of ``data_dirs``, or `Invalid` naming the path as given."""
    found = _real_path(given, data_dirs, "file")
    if not stat.S_ISREG(os.stat(found).st_mode):
        raise Invalid(f"file {_shown(given)} is not a regular file")
    return found


def _real_path(given: Any, data_dirs: Sequence[Path], what: str) -> Path:
    """The real path of something under one of ``data_dirs``, or `Invalid` naming the path as given.

    Whether a path outside exists is not told: it is refused before it is looked at.
    """
    name = _shown(given)
    if not isinstance(given, str) or not given:
        raise Invalid(f"{what} {name} must be a non-empty text")
    if ".." in Path(given).parts:
        raise Invalid(f"{what} {name} must not contain '..'")
    inside: list[str] = []
    try:
        for folder in data_dirs:
            real = os.path.realpath(os.path.join(folder, given))
            if Path(real).is_relative_to(os.path.realpath(folder)):
                inside.append(real)
        found = next((real for real in inside if os.path.exists(real)), None)
    except (OSError, ValueError):  # a name that no file system takes: a NUL, a lone surrogate, too long
        raise Invalid(f"{what} {name} is not a possible path") from None
    if not inside:
        raise Invalid(f"{what} {name} lies outside the agent's data directories")
    if found is None:
        raise Invalid(f"{what} {name} does not exist")
    return Path(found)


def _open_regular(path: Path) -> BinaryIO:
    # The checks were made earlier: O_NOFOLLOW and O_NONBLOCK keep a file that was swapped since for a link or
    # a pipe from leading elsewhere or blocking the agent.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is not a regular file")
    return open(descriptor, "rb")


# -- totals


class _Tally:
    """Sums over files and partials."""

    def __init__(self, function: str) -> None:
        self.function = function
        self.counts: Counter[str] = Counter()
        self.identifiers: Counter[str] = Counter()

    def add_file(self, path: Path, name: str) -> None:
        try:
            with _open_regular(path) as file:
                source = self._add_text(file)
        except OSError as error:
            raise Invalid(f"file {_shown(name)} cannot be read: {error.strerror or error}") from None
        self.counts["files"] += 1
        if self.function == _WITH_IDENTIFIERS:
            self._add_source(source)

    def _add_text(self, file: BinaryIO) -> bytes | None:
        """Count block by block; give back the whole text if it is to be parsed and small enough."""
        kept: list[bytes] | None = [] if self.function == _WITH_IDENTIFIERS else None
        counts, size, last = self.counts, 0, b"\n"
        with_words = "words" in FUNCTIONS[self.function]
        while block := file.read(_BLOCK_BYTES):
            size += len(block)
            counts["lines"] += block.count(b"\n")
            if with_words:
                joined = not last.isspace() and not block[:1].isspace()  # one word on both sides of the seam
                counts["words"] += len(block.split()) - joined
            last = block[-1:]
            if kept is not None:
                kept.append(block)
                kept = kept if size <= _PARSE_LIMIT_BYTES else None
        counts["bytes"] += size
        counts["lines"] += last != b"\n"
        return b"".join(kept) if kept is not None else None

    def _add_source(self, source: bytes | None) -> None:
        try:
            if source is None:
                raise ValueError("too large")
            shape, names = survey(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # all of them are ast.parse's answers
            self.counts["unparsable"] += 1
            return
        self.counts.update(shape)
        self.identifiers.update(names)

    def add_partial(self, partial: Any, what: str) -> None:
        """Add what another call's `result` said; raise `Invalid` if it is not such an answer."""
        if not isinstance(partial, Mapping):
            raise Invalid(f"{what} must be an object, not {type(partial).__name__}")
        if partial.get("function") != self.function:
            raise Invalid(f"{what} is of function {_shown(partial.get('function'))}, not {self.function!r}")
        fields = FUNCTIONS[self.function]
        with_identifiers = self.function == _WITH_IDENTIFIERS
        extra = {"identifiers", "distinct_identifiers", "top"} if with_identifiers else set()
        _only(partial, {"function", *fields, *extra}, what)
        for field in fields:
            if not _is_count(partial.get(field)):
                raise Invalid(f"{what} needs {field!r} as a whole number, not {_shown(partial.get(field))}")
            self.counts[field] += partial[field]
        if with_identifiers:
            if "identifiers" not in partial:
                raise Invalid(f"{what} has no 'identifiers': it was made with 'final' and cannot be reduced")
            self.identifiers.update(_unpack(partial["identifiers"], what))

    def result(self, *, top: int, final: bool) -> dict[str, Any]:
        answer: dict[str, Any] = {"function": self.function}
        answer |= {field: self.counts[field] for field in FUNCTIONS[self.function]}
        if self.function == _WITH_IDENTIFIERS:
            # Equal counts are ordered by name, so that the cut does not depend on the order of the files.
            ranked = heapq.nsmallest(top, self.identifiers.items(), key=lambda item: (-item[1], item[0]))
            answer |= {"distinct_identifiers": len(self.identifiers), "top": [list(item) for item in ranked]}
            if not final:
                answer["identifiers"] = _pack(self.identifiers)
        return answer


def local_totals(files: Iterable[str | Path], function: str, *, top: int = TOP_DEFAULT) -> dict[str, Any]:
    """What one process alone says about ``files``: the same as the ``final`` reduce of maps over them.

    It reads any path that it is given (it is for the caller's own machine) and raises `Invalid` if one
    cannot be read.
    """
    tally = _Tally(_function(function))
    for path in files:
        tally.add_file(Path(os.path.realpath(path)), str(path))
    return tally.result(top=top, final=True)


def _pack(counter: Mapping[str, int]) -> str:
    text = json.dumps(counter, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return base64.b64encode(zlib.compress(text.encode(), 6)).decode("ascii")


def _unpack(packed: Any, what: str) -> dict[str, int]:
    wrong = Invalid(f"{what} has 'identifiers' that are not a counter packed by map or reduce")
    if not isinstance(packed, str):
        raise wrong
    try:
        inflater = zlib.decompressobj()
        text = inflater.decompress(base64.b64decode(packed, validate=True), _UNPACKED_LIMIT_BYTES)
        counter = json.loads(text) if inflater.eof else None
    except (binascii.Error, zlib.error, ValueError, RecursionError):
        raise wrong from None
    if not isinstance(counter, dict) or not all(map(_is_count, counter.values())):
        raise wrong
    return counter


def list_partitions(
    folder: Path, *, pattern: str = "*.py", parts: int, skip: Collection[str] = ()
) -> list[list[str]]:
    """The files below ``folder`` with names like ``pattern``, in at most ``parts`` lists of equal weight.

    Paths are absolute and real, sorted within a list; no list is empty, so few files make fewer lists, and no
    files none. Folders named in ``skip`` are left out, and so are symbolic links, which may lead outside.
    The same folder gives the same lists. Raises `Invalid` for a folder that is none, or ``parts`` below 1.
    """
    if parts < 1:
        raise Invalid(f"the number of partitions must be at least 1, not {parts}")
    if not folder.is_dir():
        raise Invalid(f"{str(folder)!r} is not a folder")
    sized: list[tuple[int, str]] = []
    for root, folders, files in os.walk(os.path.realpath(folder)):
        folders[:] = [name for name in folders if name not in skip]
        for name in fnmatch.filter(files, pattern):
            path = os.path.join(root, name)
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode):
                sized.append((status.st_size + _FILE_OVERHEAD_BYTES, path))
    # Largest first to the lightest list (Graham's LPT rule): at most a third above the best possible.
    lists: list[list[str]] = [[] for _ in range(min(parts, len(sized)))]
    weights = [(0, number) for number in range(len(lists))]
    for size, path in sorted(sized, key=lambda item: (-item[0], item[1])):
        weight, number = weights[0]
        lists[number].append(path)
        heapq.heapreplace(weights, (weight + size, number))
    return [sorted(paths) for paths in lists]
