"""What all commands of `mesh` have in common: groups that load a command when it is called, and their help texts.

Plain click, with colours of our own on a terminal: importing rich-click and rich costs more than all of `mesh --help`
may (docs/decisions/0002-the-front.md).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

import click

from mesh.cli.options import WATCH_S, colored

__all__ = ["Command", "Group", "Lazy"]
_WIDEST = 110


class Formatter(click.HelpFormatter):
    """Headings, commands and options stand out on a terminal."""

    def write_heading(self, heading: str) -> None:
        """A heading."""
        super().write_heading(_style(heading, bold=True))

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        """The usage line."""
        super().write_usage(prog, args, _style(prefix or "Usage:", bold=True) + " ")

    def write_dl(self, rows: Any, col_max: int = 30, col_spacing: int = 2) -> None:
        """A list of options or commands."""
        super().write_dl([(_style(name, fg="cyan"), text) for name, text in rows], col_max, col_spacing)


def _style(text: str, **how: Any) -> str:
    return click.style(text, **how) if colored() and sys.stdout.isatty() else text


class Context(click.Context):
    """Its help texts are as wide as the terminal, up to a width that people read well."""

    formatter_class = Formatter


class Command(click.Command):
    """A command. `--watch` alone means `--watch=2`: its value is optional, as for long options elsewhere."""

    context_class = Context

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Complete a bare `--watch`."""
        end = args.index("--") if "--" in args else len(args)
        completed = [f"--watch={WATCH_S:g}" if one == "--watch" else one for one in args[:end]]
        return super().parse_args(ctx, [*completed, *args[end:]])


class Group(click.Group):
    """A group of commands that says what is near a wrong name."""

    context_class = Context
    command_class = Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first word names. Raises `NoSuchCommand` with the near misses."""
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:
            raise click.NoSuchCommand(
                error.command_name, possibilities=self.list_commands(ctx), ctx=ctx
            ) from None


Group.group_class = Group


class Lazy(Group):
    """A group that knows its commands' names and lines from a table, and imports one when it is called.

    `sections`: title -> {name: (`module:attribute`, what it does in one line)}.
    """

    def __init__(
        self, *args: Any, sections: Mapping[str, Mapping[str, tuple[str, str]]], **more: Any
    ) -> None:
        super().__init__(*args, **more)
        self.sections = sections
        self.table = {name: row for section in sections.values() for name, row in section.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the table."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name not in self.table:
            return None
        module, _, attribute = self.table[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Names and lines of the table; nothing is imported for it."""
        for title, section in self.sections.items():
            with formatter.section(title):
                formatter.write_dl([(name, line) for name, (_, line) in section.items()])
