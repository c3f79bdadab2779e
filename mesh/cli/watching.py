"""`--watch`: the same view again and again, until Ctrl-C."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator

import click

from mesh.cli.options import colored
from mesh.cli.show import say
from mesh.errors import MeshError, StoreUnavailable

__all__ = ["present"]


def present(make: Callable[[], str], output: str, every_s: float | None, *, empty: str = "") -> None:
    """Print what `make` returns; with `every_s` anew every so many seconds.

    `empty`: what people, who get a table, are told if there is nothing to print.

    On a terminal the view is redrawn in place; elsewhere one follows the other. An outage of Redis or of the
    coordinators in between is told once and waited for; at the start it is an error.
    """
    if every_s is None:
        text = make()
        if text:
            click.echo(text)
        elif empty and output == "table":
            say(empty)
    elif sys.stdout.isatty():
        _redraw(make, every_s, empty)
    else:
        for text in _views(make, every_s):
            if text:
                click.echo(text)
            sys.stdout.flush()  # whoever reads the pipe wants it now


def _views(make: Callable[[], str], every_s: float) -> Iterator[str]:
    yield make()
    lost = False
    while True:
        time.sleep(every_s)
        try:
            text = make()
        except MeshError as error:
            if error.exit_code != StoreUnavailable.exit_code:
                raise
            if not lost:
                say(f"Warning: {error} Trying again every {every_s:g} s.")
            lost = True
            continue
        lost = False
        yield text


def _redraw(make: Callable[[], str], every_s: float, empty: str) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(no_color=not colored(), highlight=False)
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        for text in _views(make, every_s):
            frame = Text.from_ansi(text or empty, no_wrap=True, overflow="ellipsis")
            live.update(frame, refresh=True)
