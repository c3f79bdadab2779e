"""What the task type ``task-execution`` may run: a payload becomes a command, or is refused. Without Celery.

The design it keeps:

* A command is a list of words; no shell ever sees it. Its first word is looked up once, on a fixed search path, and must be one
  of the agent's allowed programs: by its name *and* by its real path. (Only the real path would let a multi-call binary such
  as busybox become any of its programs; only the name would let a link be anything.)
* The program gets an environment of ours and what the payload adds, nothing of the agent's: no secrets are inherited.

Running it is in ``engine_process``.
"""

import base64
import binascii
import contextlib
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh.errors import Invalid, Refused

__all__ = ["Command", "parse", "shown"]

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OUTPUT_DEFAULT_BYTES = 256 << 10
OUTPUT_LIMIT_BYTES = 16 << 20
TIMEOUT_LIMIT_S = 7 * 24 * 3600
WORDS_LIMIT = 10_000

_KEYS = ("command", "env", "stdin", "timeout_s", "max_output_bytes", "cwd", "check")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: Variables by which programs load code or look for programs: an allowed program would become any other.
_LOADERS = re.compile(
    r"LD_.*|DYLD_.*|PATH|IFS|ENV|BASH_ENV|BASH_FUNC.*|BASHOPTS|SHELLOPTS|PS4|PROMPT_COMMAND|GLIBC_TUNABLES|GCONV_PATH|LOCPATH"
    r"|NLSPATH|PYTHON.*|PERL.*|RUBY.*|GEM_.*|NODE_OPTIONS|NODE_PATH|LUA_.*|JAVA_TOOL_OPTIONS|_JAVA_OPTIONS|JDK_JAVA_OPTIONS|CLASSPATH|GIT_.*"
    r"|EDITOR|VISUAL|PAGER|.*_PAGER|LESSOPEN|LESSCLOSE|TERMINFO.*|OPENSSL_.*|SSLKEYLOGFILE|TAR_OPTIONS|GREP_OPTIONS|MAKEFLAGS"
)


@dataclass(frozen=True, kw_only=True)
class Command:
    """A payload that was found good."""

    argv: tuple[str, ...]
    program: str  # the real path that is executed
    env: dict[str, str]
    stdin: bytes | None
    timeout_s: float | None
    max_output_bytes: int  # of each output
    folder: str
    check: bool


# -- what is asked


def parse(payload: Any, *, allowed: Sequence[str], data_dirs: Sequence[Path]) -> Command:
    """A payload as a command. Raises `Invalid`, or `Refused` for a program that is not in `allowed`."""
    if not isinstance(payload, Mapping):
        raise Invalid(f"a task-execution payload is an object, not {type(payload).__name__}")
    for key in payload:
        if key not in _KEYS:
            raise Invalid(f"the payload has an unknown key {shown(key)} (known: {', '.join(_KEYS)})")
    argv = _words(payload.get("command"))
    timeout_s, limit = payload.get("timeout_s"), payload.get("max_output_bytes", OUTPUT_DEFAULT_BYTES)
    if timeout_s is not None and not (_is_number(timeout_s) and 0 < timeout_s <= TIMEOUT_LIMIT_S):
        raise Invalid(
            f"'timeout_s' must be a number of seconds above 0, at most {TIMEOUT_LIMIT_S}, not {shown(timeout_s)}"
        )
    if not isinstance(limit, int) or isinstance(limit, bool) or not 0 <= limit <= OUTPUT_LIMIT_BYTES:
        raise Invalid(
            f"'max_output_bytes' must be a whole number from 0 to {OUTPUT_LIMIT_BYTES}, not {shown(limit)}"
        )
    if not isinstance(payload.get("check", False), bool):
        raise Invalid(f"'check' must be true or false, not {shown(payload['check'])}")
    folder = _folder(payload.get("cwd"), data_dirs)
    return Command(
        argv=argv,
        program=_allowed_program(argv[0], allowed),
        env={"PATH": SEARCH_PATH, "LANG": "C.UTF-8", "HOME": folder, **_variables(payload.get("env"))},
        stdin=_input(payload.get("stdin")),
        timeout_s=timeout_s,
        max_output_bytes=limit,
        folder=folder,
        check=payload.get("check", False),
    )


def _words(command: Any) -> tuple[str, ...]:
    if not isinstance(command, list) or not command or len(command) > WORDS_LIMIT:
        raise Invalid(
            f"'command' must be a list of 1 to {WORDS_LIMIT} texts, the program first (no shell reads it), not {shown(command)}"
        )
    for number, word in enumerate(command):
        _check_text(word, f"'command'[{number}]")
    if not command[0]:
        raise Invalid("'command'[0] must name a program")
    return tuple(command)


def _variables(env: Any) -> dict[str, str]:
    if env is None:
        return {}
    if not isinstance(env, Mapping):
        raise Invalid(f"'env' must be an object of texts, not {shown(env)}")
    for name, value in env.items():
        if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
            raise Invalid(f"'env' has {shown(name)}, which is no name of a variable")
        if _LOADERS.fullmatch(name):
            raise Invalid(f"'env' must not set {name}: it decides what code programs load")
        _check_text(value, f"'env' {name}")
    return dict(env)


def _input(stdin: Any) -> bytes | None:
    if stdin is None:
        return None
    if isinstance(stdin, str):
        _check_text(stdin, "'stdin'", nul=True)
        return stdin.encode()
    if isinstance(stdin, Mapping) and stdin.keys() == {"base64"} and isinstance(stdin["base64"], str):
        try:
            return base64.b64decode(stdin["base64"], validate=True)
        except (binascii.Error, ValueError):
            raise Invalid("'stdin' has a 'base64' that is not base64") from None
    raise Invalid(f"'stdin' must be a text or {{'base64': text}}, not {shown(stdin)}")


def _folder(cwd: Any, data_dirs: Sequence[Path]) -> str:
    """The real path of the folder to run in: the first data directory, or one below one of them."""
    if cwd is None:
        if not data_dirs or not data_dirs[0].is_dir():
            raise Invalid("this agent has no data directory to run a command in (MESH_DATA_DIRS)")
        return os.path.realpath(data_dirs[0])
    _check_text(cwd, "'cwd'")
    for folder in data_dirs:
        with contextlib.suppress(OSError):
            real = os.path.realpath(os.path.join(folder, cwd))
            if Path(real).is_relative_to(os.path.realpath(folder)) and os.path.isdir(real):
                return real
    raise Invalid(f"'cwd' {shown(cwd)} is not a folder in the agent's data directories")


def _check_text(value: Any, what: str, *, nul: bool = False) -> None:
    if not isinstance(value, str):
        raise Invalid(f"{what} must be a text, not {shown(value)}")
    if "\0" in value and not nul:
        raise Invalid(f"{what} must not contain a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate
        raise Invalid(f"{what} is not valid Unicode text") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """A value for a sentence: not too long."""
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "..."


# -- what is allowed


def _find(name: str) -> str | None:
    """The path of a program as it is found: an absolute one as it stands, a name on the search path."""
    if name.startswith("/"):
        return name
    if "/" in name:
        return None
    found = (f"{folder}/{name}" for folder in SEARCH_PATH.split(":"))
    return next((path for path in found if _is_program(path)), None)


def _is_program(path: str) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return stat.S_ISREG(os.stat(path).st_mode) and os.access(path, os.X_OK)
    return False


def _allowed_program(name: str, allowed: Sequence[str]) -> str:
    """The real path of the program that `name` means, if it is allowed. Raises `Refused`."""
    if not allowed:
        raise Refused(
            "this agent runs no commands: its operator allows programs by MESH_ALLOWED_COMMANDS, for example "
            "MESH_ALLOWED_COMMANDS=wc,/opt/tools/convert"
        )
    found = _find(name)
    if found is not None:
        wanted = os.path.basename(found), os.path.realpath(found)
        for entry in allowed:
            path = _find(entry)
            if path is not None and (os.path.basename(path), os.path.realpath(path)) == wanted:
                if not _is_program(wanted[1]):
                    raise Invalid(f"program {shown(name)} is allowed, but there is none on this agent")
                return wanted[1]
    if name in allowed:
        raise Invalid(f"program {shown(name)} is allowed, but there is none on this agent")
    raise Refused(
        f"program {shown(name)} is not allowed on this agent: MESH_ALLOWED_COMMANDS has {', '.join(sorted(allowed))}"
    )
