"""Who may do what: one table, by agent type and namespace. What no row grants is refused.

The table is a JSON file, `agent type -> namespace -> rights`; both are patterns, and a caller has what any row that takes him
grants. Rights over many things are lists of patterns (`register`: capabilities, `submit`: task types, `administer`: see
`ADMINISTERED`), rights over what has an owner are `own` or `any` (`read`, `cancel`, `drain`). A pattern is an exact name,
`prefix*`, or `*`. `policies.json` beside this file is the table for those who give none. A token narrows this further: to its
namespaces, and what it may register to its capabilities.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mesh.core.located_json import Node, Problem, read
from mesh.core.names import NAMESPACE
from mesh.errors import Invalid

__all__ = [
    "ACTIONS",
    "ADMINISTERED",
    "DEFAULT_POLICIES",
    "Bearer",
    "Decision",
    "Object",
    "Policies",
    "Row",
    "decide",
    "matches",
    "parse",
]

ACTIONS = {
    "register": "offer a capability as an agent",
    "submit": "submit tasks of a type, and run its own again",
    "read": "see tasks, their results, agents, queues",
    "cancel": "stop a task",
    "drain": "cordon or drain an agent",
    "administer": "tokens, audit log, restore, dead letters of others",
}
ADMINISTERED = ("audit", "dead-letters", "restore", "tokens")
DEFAULT_POLICIES = Path(__file__).with_name("policies.json")
OWN, ANY = "own", "any"
_LISTS = ("register", "submit", "administer")
_SCOPES = ("read", "cancel", "drain")
_NAME = re.compile(r"\*|[A-Za-z0-9][A-Za-z0-9._-]{0,199}\*?")
_LARGEST = 1_000_000  # characters of a file


class Bearer(Protocol):
    """Who asks: what a token says of him (`mesh.core.tokens.Claims`)."""

    @property
    def subject(self) -> str:
        """His id."""

    @property
    def agent_type(self) -> str:
        """The row of the table."""

    @property
    def namespaces(self) -> Collection[str]:
        """Names, or `*` alone."""

    @property
    def capabilities(self) -> Collection[str] | None:
        """What he may register at most; None: what the table says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Object:
    """What is asked about: the capability, task type or matter `name`, or a task or agent of `owner` (None: of nobody)."""

    namespace: str
    name: str = ""
    owner: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Whether, and by which row or for lack of which right."""

    allowed: bool
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The rights that one row grants; `where`: its place, `file:line`."""

    agent_type: str
    namespace: str
    where: str = ""
    register: tuple[str, ...] = ()
    submit: tuple[str, ...] = ()
    administer: tuple[str, ...] = ()
    read: str = ""
    cancel: str = ""
    drain: str = ""

    def shown(self) -> str:
        """For people."""
        return f"row {self.agent_type!r}, {self.namespace!r} ({self.where})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Policies:
    """The table."""

    rows: tuple[Row, ...]
    source: str = ""  # of the file, for people

    def of(self, agent_type: str, namespace: str) -> tuple[Row, ...]:
        """The rows that take an agent type in a namespace."""
        return tuple(
            row
            for row in self.rows
            if matches((row.agent_type,), agent_type) and matches((row.namespace,), namespace)
        )

    def patterns(self, agent_type: str, namespace: str, action: str) -> tuple[str, ...]:
        """All patterns that an agent type has for `register`, `submit` or `administer` in a namespace."""
        found = [one for row in self.of(agent_type, namespace) for one in getattr(row, action)]
        return tuple(dict.fromkeys(found))

    def grants(self, agent_type: str, namespace: str, action: str) -> bool:
        """Whether an agent type has any of this right in a namespace."""
        return any(getattr(row, action) for row in self.of(agent_type, namespace))


def matches(patterns: Sequence[str] | Collection[str], name: str) -> bool:
    """Whether one of the patterns takes a name."""
    return any(name.startswith(one[:-1]) if one.endswith("*") else name == one for one in patterns)


def decide(policies: Policies, bearer: Bearer, action: str, asked: Object) -> Decision:
    """Whether `bearer` may do `action` with `asked`; `why` names the row that grants it, or the right that is missing."""
    if "*" not in bearer.namespaces and asked.namespace not in bearer.namespaces:
        named = ", ".join(sorted(bearer.namespaces)) or "none"
        return Decision(
            allowed=False, why=f"the token is for namespaces {named}, not for {asked.namespace!r}"
        )
    if action == "register" and bearer.capabilities is not None and asked.name not in bearer.capabilities:
        named = ", ".join(sorted(bearer.capabilities)) or "none"
        return Decision(allowed=False, why=f"the token is for capabilities {named}, not for {asked.name!r}")
    grants = _by_pattern if action in _LISTS else _by_owner if action in _SCOPES else None
    for row in policies.of(bearer.agent_type, asked.namespace) if grants else ():
        granted = grants(row, bearer, action, asked) if grants else ""
        if granted:
            return Decision(allowed=True, why=f"{row.shown()} grants {action} {granted}")
    missing = _missing(action, bearer, asked)
    where = f"agent type {bearer.agent_type!r} in namespace {asked.namespace!r}"
    return Decision(allowed=False, why=f"no row for {where} grants {missing}")


def _by_pattern(row: Row, _: Bearer, action: str, asked: Object) -> str:
    return next((one for one in getattr(row, action) if asked.name and matches((one,), asked.name)), "")


def _by_owner(row: Row, bearer: Bearer, action: str, asked: Object) -> str:
    scope: str = getattr(row, action)
    own = asked.owner is not None and asked.owner == bearer.subject
    return scope if scope == ANY or (scope == OWN and own) else ""


def _missing(action: str, bearer: Bearer, asked: Object) -> str:
    if action in _LISTS:
        return f"{action} {asked.name}".rstrip()
    return f"{action} {OWN if asked.owner == bearer.subject else ANY}"


# -- the file


def parse(text: str, source: str) -> Policies:
    """The table in a file's text. Raises `Invalid`: one sentence with the file, the line and what to do; the first of several."""
    if len(text) > _LARGEST:
        raise Invalid(f"{source}: the file has more than {_LARGEST:,} characters; use patterns.")
    tree, problems = read(text)
    rows = list(_rows(tree, source, problems)) if tree is not None else []
    if problems:
        line, what = min(problems)
        raise Invalid(f"{source}, line {line}: {what}.")
    return Policies(rows=tuple(rows), source=source)


def _rows(tree: Node, source: str, problems: list[Problem]) -> Iterator[Row]:
    for agent_type, line, spaces in _members(tree, "the file", "agent types", problems):
        _check_pattern(agent_type, "agent types", line, problems)
        for namespace, at, rights in _members(spaces, f"agent type {agent_type!r}", "namespaces", problems):
            _check_pattern(namespace, "namespaces", at, problems)
            where = f"{agent_type!r}, {namespace!r}"
            found = {
                name: _right(name, here, node, problems)
                for name, here, node in _members(rights, where, "rights", problems)
            }
            found.pop("why", None)
            given = {name: value for name, value in found.items() if value is not None}
            yield Row(agent_type=agent_type, namespace=namespace, where=f"{source}:{at}", **given)


def _members(node: Node, what: str, of: str, problems: list[Problem]) -> Iterator[tuple[str, int, Node]]:
    if not isinstance(node.value, dict):
        problems.append((node.line, f"{what} must be an object of {of}"))
        return
    for key, (line, inner) in node.value.items():
        yield key, line, inner


def _check_pattern(text: str, kind: str, line: int, problems: list[Problem]) -> None:
    stem = text[:-1] if text.endswith("*") else text
    legal = _NAME.fullmatch(text) if kind != "namespaces" else not stem or NAMESPACE.fullmatch(stem)
    if not text or not legal:
        problems.append((line, f"{text[:80]!r} is no pattern of {kind}: write a name, prefix* or *"))


_KINDS = {"register": "capabilities", "submit": "task types"}


def _right(name: str, line: int, node: Node, problems: list[Problem]) -> Any:
    """The value of one right; None if there is none to keep. What is wrong is added to `problems`."""
    value = node.value
    if name in _SCOPES:
        if value in (OWN, ANY):
            return value
        problems.append((node.line, f'{name} must be "{OWN}" or "{ANY}" (leave it out for neither)'))
    elif name in _LISTS:
        return _patterns(name, node, problems)
    elif name != "why":
        known = ", ".join((*ACTIONS, "why"))
        problems.append((line, f"unknown right {name[:80]!r}; there are {known}"))
    elif not isinstance(value, str):
        problems.append((node.line, "why must be a text"))
    return None


def _patterns(name: str, node: Node, problems: list[Problem]) -> tuple[str, ...]:
    if not isinstance(node.value, list):
        problems.append((node.line, f'{name} must be a list of patterns, for example ["*"]'))
        return ()
    for one in node.value:
        if not isinstance(one.value, str):
            problems.append((one.line, f"{name} must be a list of patterns, which are texts"))
        elif name != "administer":
            _check_pattern(one.value, _KINDS[name], one.line, problems)
        elif one.value not in (*ADMINISTERED, "*"):
            problems.append(
                (one.line, f"administer takes {', '.join(ADMINISTERED)} or *, not {one.value[:80]!r}")
            )
    return tuple(one.value for one in node.value if isinstance(one.value, str))
