"""`--watch`: the same view again and again, until Ctrl-C (or a key)."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from mesh.cli.options import colored
from mesh.cli.show import say
from mesh.errors import MeshError, StoreUnavailable

__all__ = ["Pause", "present", "sleep", "until_key"]


Pause = Callable[[float], bool]
"""Waits so many seconds; False: the view is to end."""


def sleep(seconds: float) -> bool:
    """A pause that nothing ends."""
    time.sleep(seconds)
    return True


@contextmanager
def until_key(key: bytes) -> Iterator[Pause]:
    """A pause that ends the view when somebody presses this key; where there is no terminal, one that nothing ends."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield sleep
        return
    terminal = sys.stdin.fileno()

    def pause(seconds: float) -> bool:
        end = time.monotonic() + seconds
        while select.select([terminal], [], [], max(0.0, end - time.monotonic()))[0]:
            typed = os.read(terminal, 1024)
            if not typed or key in typed:  # nothing: the terminal has gone
                return False
        return True

    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal, termios.TCSADRAIN)  # keys come at once, and are not shown
    try:
        yield pause
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def present(
    make: Callable[[], str], output: str, every_s: float | None, *, empty: str = "", pause: Pause = sleep
) -> None:
    """Print what `make` returns; with `every_s` anew every so many seconds, as `pause` lets them pass.

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
        _redraw(make, every_s, pause, empty)
    else:
        for text in _views(make, every_s, pause):
            if text:
                click.echo(text)
            sys.stdout.flush()  # whoever reads the pipe wants it now


def _views(make: Callable[[], str], every_s: float, pause: Pause) -> Iterator[str]:
    yield make()
    lost = False
    while pause(every_s):
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


def _redraw(make: Callable[[], str], every_s: float, pause: Pause, empty: str) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(no_color=not colored(), highlight=False)
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        for text in _views(make, every_s, pause):
            frame = Text.from_ansi(text or empty, no_wrap=True, overflow="ellipsis")
            live.update(frame, refresh=True)
