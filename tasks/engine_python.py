"""What the task type ``data-processing`` counts in a Python source: its syntax tree, surveyed fast."""

import ast
import gc
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["survey"]

_FUNCTION_NODES = frozenset({ast.FunctionDef, ast.AsyncFunctionDef})
_IMPORT_NODES = frozenset({ast.Import, ast.ImportFrom})
# Fields that hold neither identifiers nor anything that contains some; they are most of a tree.
_BARREN_FIELDS = frozenset(
    {
        "ctx",
        "op",
        "ops",
        "kind",
        "level",
        "conversion",
        "is_async",
        "simple",
        "str",
        "type_comment",
        "type_ignores",
    }
)
_BARREN_NODES = frozenset({ast.Constant, ast.MatchSingleton})
_FIELDS: dict[type, tuple[str, ...]] = {}  # what to look at in each kind of node, filled as kinds are met
_PARSER = threading.Lock()


def survey(source: bytes) -> tuple[dict[str, int], list[str]]:
    """Numbers of functions, classes and import statements, and every identifier that is used, repeated.

    Raises what `ast.parse` raises: SyntaxError, ValueError, RecursionError, MemoryError.
    """
    with _parsing():
        return _survey(ast.parse(source))


@contextmanager
def _parsing() -> Iterator[None]:
    """Parse without two things that are the process's: its warning filters and its garbage collector.

    Under ``-W error`` a warning about the *parsed* source would make it unparsable, so the count would depend
    on how the agent was started. The collector would walk the growing tree again and again (a fifth of the
    time), although a tree has no cycles. The lock keeps threads from restoring each other's state.
    """
    with _PARSER, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collecting = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if collecting:
                gc.enable()


def _survey(tree: ast.AST) -> tuple[dict[str, int], list[str]]:
    """Numbers of functions, classes and import statements of a tree, and every identifier it uses, repeated.

    An own loop and not `ast.walk`: a third of the time, and depth does not matter to it.
    """
    functions = classes = imports = 0
    names: list[str] = []
    stack: list[Any] = [tree]
    while stack:
        node = stack.pop()
        kind = node.__class__
        if kind is ast.Name:
            names.append(node.id)
            continue
        if kind is str:  # of ``global a, b``, ``from a.b import *`` and the like
            names.extend(part for part in node.split(".") if part not in ("", "*"))
            continue
        if kind in _FUNCTION_NODES:
            functions += 1
        elif kind is ast.ClassDef:
            classes += 1
        elif kind in _IMPORT_NODES:
            imports += 1
        fields = _FIELDS.get(kind)
        if fields is None:
            barren = kind in _BARREN_NODES or not issubclass(kind, ast.AST)
            fields = () if barren else tuple(name for name in kind._fields if name not in _BARREN_FIELDS)
            _FIELDS[kind] = fields
        for field in fields:
            value = getattr(node, field, None)
            if value.__class__ is list:
                stack.extend(value)
            elif value is not None:
                stack.append(value)
    return {"functions": functions, "classes": classes, "imports": imports}, names


# -- the client's side
