"""Waiting for a task's end: quietly, with a bar on a terminal, or with a line for each change."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mesh.cli.options import colored, verbose
from mesh.cli.show import clean, say
from mesh.core.states import TERMINAL, State
from mesh.errors import ResultTimeout, TaskFailed

if TYPE_CHECKING:
    from mesh.client import Handle

__all__ = ["changes", "state_line", "wait_for"]
_LOOK_S = 0.5  # the end is pushed; what happens before is looked for so often
_SPIN_S = 0.1
_SHORT_S = 1.0  # what ends sooner needs no bar


def wait_for(handle: Handle, timeout_s: float | None) -> Any:
    """The result of a task. Long work is told of on standard error: as a bar on a terminal, as lines with -v.

    Raises what `Handle.result` does.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    try:
        return handle.result(timeout_s=_SHORT_S if timeout_s is None else min(_SHORT_S, timeout_s))
    except ResultTimeout:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
    if sys.stderr.isatty():
        _draw(handle, left)
    elif not verbose():
        say(f"Waiting for task {handle.id}; it goes on without you after Ctrl-C.")
        return handle.result(timeout_s=left)
    else:
        for change in changes(handle, left):
            say(state_line(change))
    return handle.result(timeout_s=_LOOK_S)


def changes(handle: Handle, timeout_s: float | None) -> Iterator[dict[str, Any]]:
    """What the task's record says, whenever its state, run, attempt, agent or progress has changed, until its end.

    {id, state, run, attempt, agent, fraction, note}; raises `NotFound`, `ResultTimeout`, `StoreUnavailable`.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    last: dict[str, Any] = {}
    while True:
        record = handle.record()
        progress = (handle.progress() if record["state"] == State.RUNNING else None) or {}
        change = {name: record[name] for name in ("id", "state", "run", "attempt", "agent")}
        change |= {"fraction": progress.get("fraction"), "note": progress.get("note")}
        if change != last:
            yield change
            last = change
        if record["state"] in TERMINAL:
            return
        left = _LOOK_S if deadline is None else deadline - time.monotonic()
        if left <= 0:
            raise ResultTimeout(
                f"Task {handle.id} has not ended within {timeout_s:g} s; it is {record['state']}."
            )
        _wait(handle, min(left, _LOOK_S))


def _wait(handle: Handle, wait_s: float) -> None:
    """Until the task has ended, or so long."""
    begun = time.monotonic()
    with contextlib.suppress(ResultTimeout, TaskFailed):
        handle.result(timeout_s=wait_s)
    # The handle remembers the end of a former run: that must not make the caller's loop spin.
    time.sleep(max(0.0, min(wait_s, _SPIN_S) - (time.monotonic() - begun)))


def state_line(change: dict[str, Any]) -> str:
    """One change for people."""
    words = [str(change["state"])]
    if change["agent"]:
        words.append(f"on {change['agent']}")
    if change["attempt"] > 1:
        words.append(f"attempt {change['attempt']}")
    if change["fraction"] is not None:
        words.append(clean(f"{change['fraction']:.0%} {change['note'] or ''}".rstrip()))
    return ", ".join(words)


def _draw(handle: Handle, timeout_s: float | None) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, no_color=not colored(), highlight=False)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=None)
        for change in changes(handle, timeout_s):
            known = change["fraction"] is not None
            progress.update(
                bar,
                description=state_line(change),
                total=1.0 if known else None,
                completed=change["fraction"] or 0.0,
            )
