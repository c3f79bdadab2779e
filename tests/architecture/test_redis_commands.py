"""Each Redis command that is written down in the code is among the rights of every role that runs that code.

So a right that is missing shows here, not when a process happens to send the command under its own user.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.core.redis_rights import RIGHTS
from mesh.store.client import Client

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    path
    for pattern in ("mesh/**/*.py", "workers/*.py", "tasks/*.py", "mesh/store/lua/**/*.lua")
    for path in sorted(ROOT.glob(pattern))
]
#: Words that are commands of Redis and mean something else here.
OTHER_WORDS = {
    ("mesh/cli", "type"), ("mesh/verify/task.py", "type"),
    ("mesh/store/connections.py", "readonly"),
}  # fmt: skip
#: (file or folder, command or '' for all) that others than coordinators and the command line do not get to.
LED = {
    ("mesh/cli", ""), ("mesh/verify", ""),
    ("mesh/services/namespaces.py", ""), ("mesh/services/resealing.py", ""),
    ("mesh/store/redis_users.py", ""), ("mesh/store/restores.py", ""),
    ("mesh/store/chords.py", "scan"),  # for re-sealing
    *(("mesh/store/audit.py", command) for command in ("xdel", "xlen", "xrange", "xrevrange", "xtrim")),
    ("mesh/store/durability.py", "config|get"),  # asked, and done without
}  # fmt: skip
ELSEWHERE = {
    "coordinator": set[tuple[str, str]](),
    "agent": LED,
    "producer": LED | {
        ("mesh/bus/transport.py", "blpop"), ("workers", ""), ("mesh/store/audit.py", ""),  # what agents do
        ("mesh/store/lua/begin_epoch.lua", ""), ("mesh/store/lua/tick.lua", ""),
        ("mesh/store/revocations.py", "zremrangebyscore"),
        ("mesh/store/tasks.py", "ltrim"),  # a bell that agents ring
        ("mesh/services/views.py", "info"), ("mesh/store/durability.py", "info"),
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def known(redis_url: str) -> set[str]:
    """The names of all commands that Redis has; `acl|` for those with subcommands."""
    client = Client(redis_url)
    try:
        names = {name.decode() for name in client.execute("COMMAND", "LIST")}
        docs = client.execute("COMMAND", "INFO", *sorted(names))
    finally:
        client.close()
    return {row[0].decode() + ("|" if row[9] else "") for row in docs}


def sent(text: str, *, lua: bool, known: set[str]) -> Iterator[str]:
    """The commands that a source names, as ACL SETUSER writes them."""
    if lua:
        yield from (word.lower() for word in re.findall(r"redis\.p?call\(['\"](\w+)", text))
        return
    following: dict[int, ast.expr] = {}
    for node in ast.walk(ast.parse(text)):
        words = getattr(node, "args", None) if isinstance(node, ast.Call) else getattr(node, "elts", [])
        following.update((id(one), after) for one, after in zip(words or [], (words or [])[1:], strict=False))
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or not node.value.isupper():
            continue
        name = node.value.lower()
        if name in known:
            yield name
        elif f"{name}|" in known and (after := following.get(id(node))) is not None:
            yield f"{name}|{ast.literal_eval(after).lower()}"


def missing(role: str, path: str, commands: set[str]) -> set[tuple[str, str]]:
    """(file, command) of those that the role may not send."""
    rights = RIGHTS[role]
    granted = {name for group in rights.commands for name in group.split()}
    granted |= {name for _, group in rights.mesh for name in group.split()}
    return {(path, command) for command in commands - granted}


def covers(exception: tuple[str, str], found: tuple[str, str]) -> bool:
    return (found[0] + "/").startswith(exception[0] + "/") and exception[1] in ("", found[1])


def commands_of(path: Path, known: set[str]) -> set[str]:
    return set(sent(path.read_text(encoding="utf-8"), lua=path.suffix == ".lua", known=known))


@pytest.mark.parametrize("role", ELSEWHERE)
def test_a_role_may_send_what_its_code_sends(role: str, known: set[str]) -> None:
    exceptions = ELSEWHERE[role] | OTHER_WORDS
    found = {
        one
        for path in SOURCES
        for one in missing(role, str(path.relative_to(ROOT)), commands_of(path, known))
    }
    assert {one for one in found if not any(covers(but, one) for but in exceptions)} == set()
    assert {but for but in exceptions if not any(covers(but, one) for one in found)} == set(), "needless"


def test_scripts_name_their_commands() -> None:
    """A name that is put together at run time would not be seen here."""
    for path in SOURCES:
        if path.suffix == ".lua":
            assert not re.search(r"redis\.p?call\((?!')", path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("client.pipeline(*[('GETDEL', key) for key in keys])", "getdel"),
        ("verb = 'LMOVE' if left else 'DEL'", "lmove"),
        ("pack(['OBJECT', 'FREQ', key])", "object|freq"),
        ("redis.pcall('SORT', ready)", "sort"),
    ],
)
def test_what_nobody_may_send_is_seen(text: str, command: str, known: set[str]) -> None:
    commands = set(sent(text, lua=text.startswith("redis."), known=known))
    for role in ELSEWHERE:
        assert missing(role, "mesh/planted.py", commands) == {("mesh/planted.py", command)}
