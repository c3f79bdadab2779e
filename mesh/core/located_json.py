"""JSON with the line of each of its parts, for files that people write: what is wrong can be said with its place.

Stricter than RFC 8259 leaves open: a key stands once in its object, nothing follows the value, numbers are finite.
"""

from __future__ import annotations

import json
import re
from bisect import bisect
from dataclasses import dataclass
from typing import Any

__all__ = ["Node", "Problem", "read"]

_SPACE = re.compile(r"[ \t\r\n]*")
_PLAIN = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null")
_DEEPEST = 20

Problem = tuple[int, str]
"""(line, from 1 on; what is wrong there, as the end of a sentence)."""


@dataclass(frozen=True, slots=True)
class Node:
    """A value and the line on which it begins; in objects, `key -> (line of the key, Node)`; in arrays, Nodes."""

    line: int
    value: Any


class _Broken(Exception):
    def __init__(self, at: int, what: str) -> None:
        super().__init__(what)
        self.at, self.what = at, what


def read(text: str) -> tuple[Node | None, list[Problem]]:
    """(the value, what is wrong): of a text that breaks off, what came before is there all the same."""
    reader = _Reader(text)
    try:
        reader.top(_skipped(text, 0))
    except _Broken as broken:
        reader.problems.append((reader.line(broken.at), broken.what))
    return reader.root, reader.problems


def _skipped(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


class _Reader:
    """A container is handed to its parent before it is filled: what stands before a mistake is kept."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.root: Node | None = None
        self.problems: list[Problem] = []
        self._starts = [0, *(found.end() for found in re.finditer("\n", text))]

    def line(self, at: int) -> int:
        return bisect(self._starts, min(at, len(self.text)))

    def top(self, at: int) -> None:
        def keep(node: Node) -> None:
            self.root = node

        end = _skipped(self.text, self._value(at, keep, 0))
        if end < len(self.text):
            raise _Broken(end, "something follows the end of the JSON value; remove it")

    def _value(self, at: int, keep: Any, depth: int) -> int:
        first = self.text[at : at + 1]
        if depth > _DEEPEST:
            raise _Broken(at, f"it is nested more than {_DEEPEST} deep")
        if first in ("{", "["):
            inside: Any = {} if first == "{" else []
            keep(Node(self.line(at), inside))
            return (self._object if first == "{" else self._array)(at + 1, inside, depth)
        if first == '"':
            text, end = self._string(at)
            keep(Node(self.line(at), text))
            return end
        plain = _PLAIN.match(self.text, at)
        if plain is None:
            what = repr(first) if first else "the end of the file"
            raise _Broken(at, f"{what} stands where a JSON value should be")
        keep(Node(self.line(at), json.loads(plain[0])))
        return plain.end()

    def _string(self, at: int) -> tuple[str, int]:
        try:
            text, end = json.JSONDecoder().raw_decode(self.text, at)
        except ValueError:
            raise _Broken(at, "a text is not closed on its line, or holds a wrong escape") from None
        return text, end

    def _object(self, at: int, inside: dict[str, tuple[int, Node]], depth: int) -> int:
        at = _skipped(self.text, at)
        if self.text[at : at + 1] == "}":
            return at + 1
        while True:
            if self.text[at : at + 1] != '"':
                raise _Broken(at, 'a key in double quotes, or the closing "}", is missing')
            (key, end), line = self._string(at), self.line(at)
            if key in inside:
                self.problems.append((line, f"key {key!r} stands here a second time; keep one"))
            at = self._expect(end, ":", f"a colon is missing behind {key!r}")

            def keep(node: Node, key: str = key, line: int = line) -> None:
                inside.setdefault(key, (line, node))

            at = _skipped(self.text, self._value(at, keep, depth + 1))
            if self.text[at : at + 1] == "}":
                return at + 1
            at = self._expect(at, ",", 'a comma, or the closing "}", is missing')

    def _array(self, at: int, inside: list[Node], depth: int) -> int:
        at = _skipped(self.text, at)
        if self.text[at : at + 1] == "]":
            return at + 1
        while True:
            at = _skipped(self.text, self._value(at, inside.append, depth + 1))
            if self.text[at : at + 1] == "]":
                return at + 1
            at = self._expect(at, ",", 'a comma, or the closing "]", is missing')

    def _expect(self, at: int, mark: str, what: str) -> int:
        at = _skipped(self.text, at)
        if self.text[at : at + 1] != mark:
            raise _Broken(at, what)
        return _skipped(self.text, at + 1)
