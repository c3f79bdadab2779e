"""The group of commands, and how its failures are told: one sentence on standard error, and an exit code.

The commands are loaded by name when they are called; `mesh --help` needs none of them.
"""

from __future__ import annotations

import importlib
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import TextIO

import click

from mesh import __version__
from mesh.cli.options import common, verbose
from mesh.cli.show import say
from mesh.errors import MeshError

#: Name -> what it does, in one line. The command itself is `command` in the module of that name.
COMMANDS = {
    "demo": "Real work on three agents; one is killed on the way, nothing is lost.",
    "up": "Redis, a coordinator, agents and Flower, until Ctrl-C.",
    "deploy": "Start an agent.",
    "coordinator": "Start a coordinator.",
    "flower": "Start Flower, the dashboard.",
    "execute": "Submit a task.",
    "status": "How a namespace or a task is doing.",
    "discover": "List the agents of a namespace.",
}
DEFECT = 70  # EX_SOFTWARE of sysexits.h: not one of the documented outcomes


class Commands(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"mesh.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Names and lines of the table; nothing is imported for it."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 task failed, 2 usage, 3 not found, 4 refused, 5 unavailable, 6 timed out, "
    "7 conflict.",
)
@click.version_option(__version__, message="%(version)s")
@common
def group() -> None:
    """Agent Mesh: run work on a fleet of Celery agents, without losing any."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line; its exit code."""
    warnings.showwarning = _show_warning
    warnings.simplefilter("always", UserWarning)
    try:
        code = group.main(args=list(arguments), prog_name="mesh", standalone_mode=False)
    except MeshError as error:
        return _failed(str(error), error.exit_code)
    except click.UsageError as error:
        where = f" See `{error.ctx.command_path} --help`." if error.ctx else ""
        return _failed(f"{error.format_message()}{where}", error.exit_code)
    except click.ClickException as error:
        return _failed(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return 130
    except Exception as error:
        if type(error).__module__.startswith("redis."):
            return _failed(f"Redis refuses: {error}", 5)
        return _failed(f"Unexpected {type(error).__name__}: {error} (-v shows where).", DEFECT)
    return code if isinstance(code, int) else 0


def _failed(sentence: str, code: int) -> int:
    if verbose():
        traceback.print_exc()
    say(f"Error: {' '.join(sentence.split())}")
    return code


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
    elif verbose():
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))
