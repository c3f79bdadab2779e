"""Lua scripts with typed signatures: a script's Python signature *is* its KEYS and ARGV list.

```python
@script
def cancel(ready: Key, leases: Key, prefix: Prefix, task_id: Arg[str], reason: Arg[str]) -> None: ...
```

declares `lua/cancel.lua`. The loader puts in front of that file the local names of the signature (`ready`, `prefix`,
`task_id` ...), the families of the key table that it mentions (`TASK`, `QUEUE` ...), the legal source states of the
verbs that it mentions (`LEGAL.cancel`), and the library files that it asks for with `--#include`. Callers give the
arguments only: the keys follow from the namespace.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources
from typing import Annotated, Any, TypeVar

from mesh.core.states import CELERY_STATUS, RULES, Reason
from mesh.core.timings import BOUNDS_MS, RECENT_RUNS
from mesh.store.client import Client, NoScriptError, pack, pack_words
from mesh.store.keys import BY_NAME, TABLE, Keys

T = TypeVar("T")
Key = Annotated[str, "key"]
Prefix = Annotated[str, "prefix"]
Arg = Annotated[T, "arg"]
Args = Annotated[T, "args"]

_INCLUDE = re.compile(r"^--#include (.+)$", re.MULTILINE)


def _read(name: str) -> str:
    return resources.files(__package__).joinpath("lua", name).read_text(encoding="utf-8")


def _legal(source: str) -> str:
    verbs = [verb for verb in RULES if f"LEGAL.{verb}" in source]
    rows = [
        f"{verb}={{{','.join(f'{state}=true' for state in sorted(RULES[verb].sources))}}}" for verb in verbs
    ]
    return f"local LEGAL = {{{','.join(rows)}}}\n" if rows else ""


class Script:
    """One Lua file with its signature; `text` and `sha` are final once it is made."""

    def __init__(self, function: Callable[..., Any], *, fenced: bool = True) -> None:
        self.name = function.__name__
        self.function = function
        self.keys: list[str] = []
        arguments: list[str] = []
        for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
            kind = parameter.annotation.__metadata__[0]
            if kind == "key":
                if name not in BY_NAME:
                    raise TypeError(f"script {self.name}: {name} is not in the key table")
                self.keys.append(name)
            else:
                arguments.append(name)
        self.takes_prefix = bool(arguments) and arguments[0] == "prefix"
        self.arguments = arguments[1:] if self.takes_prefix else arguments
        body = _read(f"{self.name}.lua")
        wanted = [name for line in _INCLUDE.findall(body) for name in line.split()]
        body = "\n".join([_read(f"lib/{name}.lua") for name in wanted] + [body])
        self.text = self._head(arguments, body) + body
        if not fenced:  # the teeth check of the tests: a store that forgets to compare fences
            self.text = self.text.replace("FENCED = true", "FENCED = false")
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        self._load = pack(["SCRIPT", "LOAD", self.text])

    def _head(self, arguments: Sequence[str], body: str) -> str:
        lines = ["#!lua flags=allow-oom\n"] if "--#allow-oom" in body else []
        lines += [f"local {name} = KEYS[{index}]\n" for index, name in enumerate(self.keys, 1)]
        for index, name in enumerate(arguments, 1):
            rest = name == arguments[-1] and self._is_rest()
            lines.append(f"local FIRST = {index}\n" if rest else f"local {name} = ARGV[{index}]\n")
        for row in TABLE:
            if row.family and re.search(rf"\b{row.name.upper()}\b", body):
                lines.append(f"local {row.name.upper()} = prefix .. '{row.text}'\n")
        if "BOUNDS_MS" in body:
            lines.append(
                f"local BOUNDS_MS, RECENT_RUNS = {{{','.join(map(str, BOUNDS_MS))}}}, {RECENT_RUNS}\n"
            )
        if "CELERY[" in body:
            statuses = ",".join(f"{state}='{status}'" for state, status in CELERY_STATUS.items())
            lines.append(f"local CELERY = {{{statuses}}}\n")
        if "REASON." in body:
            reasons = ",".join(f"{reason.name.lower()}='{reason}'" for reason in Reason)
            lines.append(f"local REASON = {{{reasons}}}\n")
        return "".join(lines) + _legal(body) + "local FENCED = true\n"

    def _is_rest(self) -> bool:
        last = list(inspect.signature(self.function, eval_str=True).parameters.values())[-1]
        return bool(last.annotation.__metadata__[0] == "args")

    def bind(self, client: Client, keys: Keys) -> Bound:
        """The script for one namespace on one Redis."""
        return Bound(self, client, keys)


class Bound:
    """A script whose keys are known: `pack(args)` gives the command's bytes, calling it runs it."""

    def __init__(self, script: Script, client: Client, keys: Keys) -> None:
        self.script = script
        self._client = client
        names = [keys[name] for name in script.keys]
        prefix = [keys.prefix] if script.takes_prefix else []
        head: list[str | int] = ["EVALSHA", script.sha, len(names), *names, *prefix]
        self._words = len(head)
        self._head = pack(head).partition(b"\r\n")[2]

    def pack(self, args: Sequence[bytes | str | int | float]) -> bytes:
        """The packed EVALSHA with these arguments."""
        return b"".join([b"*%d\r\n" % (self._words + len(args)), self._head, *pack_words(args)])

    def pack_parts(self, parts: Iterable[bytes], number: int) -> bytes:
        """The packed EVALSHA of `number` arguments that are packed already."""
        return b"".join([b"*%d\r\n" % (self._words + number), self._head, *parts])

    def stream(self, commands: Iterable[bytes]) -> Iterator[Any]:
        """The replies of several packed calls, see `Client.stream`."""
        sent: deque[bytes] = deque()

        def remembered() -> Iterator[bytes]:
            for command in commands:
                sent.append(command)
                yield command

        for reply in self._client.stream(remembered()):
            command = sent.popleft()
            if isinstance(reply, NoScriptError):
                self.load()
                reply = self._client.call(command)
            yield self._client.checked(reply)

    def load(self) -> None:
        """Teach the server this script."""
        self._client.call(self.script._load)

    def __call__(self, *args: bytes | str | int | float) -> Any:
        return self.call(self.pack(args))

    def call(self, command: bytes) -> Any:
        """Run a packed call."""
        try:
            return self._client.call(command)
        except NoScriptError:
            self.load()
            return self._client.call(command)


def script(function: Callable[..., Any]) -> Script:
    """Declare the Lua file of this function's name; see the module's text."""
    return Script(function)


def call_together(
    client: Client, calls: Sequence[tuple[Any, Sequence[bytes | str | int | float]]]
) -> list[Any]:
    """Run several scripts in one round trip; a server that does not know one is taught it and asked again."""
    commands = [bound.pack(args) for bound, args in calls]
    replies = client.calls(commands, len(commands))
    for index, reply in enumerate(replies):
        if isinstance(reply, NoScriptError):
            calls[index][0].load()
            reply = replies[index] = client.calls([commands[index]], 1)[0]
        client.checked(reply)
    return replies
