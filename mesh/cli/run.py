"""The group of commands, and how its failures are told: one sentence on standard error, and an exit code."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

import click

from mesh import __version__
from mesh.cli import options
from mesh.cli.commands import Lazy
from mesh.cli.show import say
from mesh.errors import Invalid, MeshError, NotFound, ResultTimeout, StoreUnavailable

__all__ = ["COMMANDS", "COMPLETING", "EXIT_CODES", "SECTIONS", "group", "run"]

#: Title -> name -> (where the command is, what it does in one line).
SECTIONS = {
    "Run a mesh": {
        "demo": ("mesh.cli.demo:command", "Real work on three agents; one is killed on the way, nothing is lost."),
        "up": ("mesh.cli.up:command", "Redis, a coordinator, agents and Flower, until Ctrl-C."),
        "deploy": ("mesh.cli.deploy:command", "Start an agent."),
        "coordinator": ("mesh.cli.coordinator:command", "Start a coordinator."),
        "flower": ("mesh.cli.flower:command", "Start Flower, the dashboard."),
    },
    "Work": {
        "execute": ("mesh.cli.execute:command", "Submit a task."),
        "task": ("mesh.cli.task:group", "List, show, watch, cancel and retry tasks; say why one waits."),
        "dead-letter": ("mesh.cli.dead_letter:group", "Tasks that were put aside: list, show, replay, discard."),
        "type": ("mesh.cli.type:group", "Task types that agents advertise: list, show."),
    },
    "Look": {
        "status": ("mesh.cli.status:command", "How a namespace or a task is doing."),
        "top": ("mesh.cli.top:command", "Watch a namespace: agents, queues, throughput, times, failures."),
        "discover": ("mesh.cli.discover:command", "List the agents of a namespace."),
        "queue": ("mesh.cli.queue:group", "Queues: what waits, and for how long."),
        "capacity": ("mesh.cli.capacity:command", "What to add: agents for what waits, coordinators."),
        "doctor": ("mesh.cli.doctor:command", "Say what is wrong with the set-up, and what to do."),
        "verify": ("mesh.cli.verify:command", "Break a mesh on purpose, and check that no task was lost."),
    },
    "Steer": {
        "agent": ("mesh.cli.agent:group", "List, describe, cordon, uncordon and drain agents."),
        "cordon": ("mesh.cli.agent:cordon", "No new work for an agent."),
        "uncordon": ("mesh.cli.agent:uncordon", "New work for an agent again."),
        "drain": ("mesh.cli.agent:drain", "Let an agent finish its work, and leave."),
        "restore": ("mesh.cli.restore:command", "Restore the registry; deal with the tasks of a restored Redis."),
        "auth": ("mesh.cli.auth:group", "Make tokens for callers and for agents that join."),
        "token": ("mesh.cli.token:group", "Look into tokens, revoke them."),
        "secret": ("mesh.cli.secret:group", "Make the secret of a mesh."),
        "audit": ("mesh.cli.audit:command", "Who did or was refused what."),
        "config": ("mesh.cli.config:group", "Show the settings, check a configuration file."),
        "completion": ("mesh.cli.completion:command", "Print a script that completes words in your shell."),
    },
}  # fmt: skip
#: Name -> what it does.
COMMANDS = {name: line for section in SECTIONS.values() for name, (_, line) in section.items()}
EXIT_CODES = {
    0: "done", 1: "task failed", 2: "usage", 3: "not found", 4: "refused", 5: "unavailable", 6: "timed out",
    7: "conflict", 130: "interrupted",
}  # fmt: skip
DEFECT = 70  # EX_SOFTWARE of sysexits.h: not one of the documented outcomes
COMPLETING = "_MESH_COMPLETE"  # the scripts of `mesh completion` set it
_BROKEN_PIPE = 141  # 128 + SIGPIPE, as for every other program whose reader has gone
#: What to type when something is not found, by the first word of the command.
_LISTS = {
    "task": "mesh task list", "status": "mesh task list", "agent": "mesh discover", "cordon": "mesh discover",
    "uncordon": "mesh discover", "drain": "mesh discover", "dead-letter": "mesh dead-letter list",
    "type": "mesh type list",
}  # fmt: skip


@click.group(
    cls=Lazy,
    sections=SECTIONS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=f"Exit codes: {', '.join(f'{code} {meaning}' for code, meaning in EXIT_CODES.items())}.",
)
@click.version_option(__version__, message="%(version)s")
@options.remote
def group() -> None:
    """Agent Mesh: run work on a fleet of Celery agents, without losing any."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line; its exit code."""
    options.reset()
    warnings.showwarning = _show_warning
    warnings.simplefilter("always", UserWarning)
    try:
        code = _call(arguments)
        sys.stdout.flush()  # here, where a reader that has gone is no news
    except BrokenPipeError:
        _silence()
        return _BROKEN_PIPE
    except Invalid as error:
        return _failed(*(error.message.splitlines() or [""]), code=error.exit_code)
    except MeshError as error:
        return _failed(f"{error}{_next_step(error, arguments)}", code=error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.format_message())
        return error.exit_code
    except click.UsageError as error:
        where = f" See `{error.ctx.command_path} --help`." if error.ctx else ""
        sentence = error.format_message()
        stop = "" if sentence.endswith((".", "?")) else "."
        return _failed(f"{sentence}{stop}{where}", code=error.exit_code)
    except click.ClickException as error:
        return _failed(error.format_message(), code=error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return 130
    except Exception as error:
        if type(error).__module__.startswith("redis."):
            return _failed(f"Redis refuses: {error}", code=5)
        return _failed(f"Unexpected {type(error).__name__}: {error} (-v shows where).", code=DEFECT)
    return code if isinstance(code, int) else 0


def _call(arguments: Sequence[str]) -> object:
    """What `group.main` does, but that a broken pipe and errors are ours to tell."""
    if COMPLETING in os.environ:
        group.main(prog_name="mesh", complete_var=COMPLETING)
    try:
        with group.make_context("mesh", list(arguments)) as ctx:
            return group.invoke(ctx)
    except click.exceptions.Exit as end:
        return end.exit_code


def _next_step(error: MeshError, arguments: Sequence[str]) -> str:
    if isinstance(error, NotFound):
        listing = next((_LISTS[word] for word in arguments if word in _LISTS), None)
        return f" `{listing}` shows what is there." if listing else ""
    if isinstance(error, StoreUnavailable) and not options.through_coordinator():
        if not any(name in os.environ for name in ("REDIS_URL", "REDIS_URL_FILE", "MESH_CONFIG")):
            return " Set REDIS_URL (`mesh up` prints the line for other shells); `mesh doctor` looks for the cause."
        return " `mesh doctor` looks for the cause."
    if isinstance(error, ResultTimeout):
        return " `mesh task why` with its id says what it waits for."
    return ""


def _silence() -> None:
    """Nobody reads on: what is still buffered must not fail again when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _failed(*sentences: str, code: int) -> int:
    if options.verbose():
        import traceback  # costs 6 ms that no other run pays

        sys.stderr.write(_without_secrets(traceback.format_exc()))
    for sentence in sentences:
        say(f"Error: {_without_secrets(' '.join(sentence.split()))}")
    return code


#: Names of variables whose values are secrets, and not files that hold one.
_SECRET = re.compile(r"(SECRET|TOKEN|PASSWORD|AUTH)(?!.*_FILE$)")


def _without_secrets(text: str) -> str:
    """Those of this process's settings are known, even where they are no good; others by their looks."""
    from mesh.core.redaction import Redactor, secrets_of_url  # not before there is something to tell

    values = [value for name, value in os.environ.items() if _SECRET.search(name)]
    urls = [value for value in os.environ.values() if "://" in value]
    return Redactor([*values, *(one for url in urls for one in secrets_of_url(url))])(text)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if category is UserWarning:
        say(f"Warning: {message}")
    elif options.verbose():
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))
