"""The options that all commands share, and the settings that they lead to."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mesh.cli.show import say

if TYPE_CHECKING:
    from mesh.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])
OUTPUTS = ("table", "json", "jsonl", "name")
_chosen = {"color": True, "verbose": False}


def verbose() -> bool:
    """Whether -v was given."""
    return _chosen["verbose"]


def colored() -> bool:
    """Whether colours are wanted (they are only used on a terminal)."""
    return _chosen["color"] and not os.environ.get("NO_COLOR")


def _use_namespace(_: click.Context, __: click.Parameter, value: str | None) -> None:
    if value is not None:
        # Into the environment, for the processes that a command starts; one name only: they must not disagree.
        os.environ.pop("AGENT_NAMESPACE", None)
        os.environ["MESH_NAMESPACE"] = value


def _note(name: str, value: bool) -> Callable[[click.Context, click.Parameter, bool], None]:
    def note(_: click.Context, __: click.Parameter, given: bool) -> None:
        if given:
            _chosen[name] = value

    return note


def common(function: F) -> F:
    """-n, --no-color, -v: the same for the group and for each command."""
    for decorate in (
        click.option("-v", "--verbose", is_flag=True, expose_value=False, callback=_note("verbose", True),
                     help="Say more; show where an error came from."),
        click.option("--no-color", is_flag=True, expose_value=False, callback=_note("color", False),
                     help="No colours."),
        click.option("-n", "--namespace", metavar="NAME", expose_value=False, callback=_use_namespace,
                     help="The part of the mesh to work in [MESH_NAMESPACE]."),
    ):  # fmt: skip
        function = decorate(function)
    return function


def output(function: F) -> F:
    """-o: how data is printed."""
    return click.option(
        "-o", "--output", type=click.Choice(OUTPUTS), default="table", show_default=True, help="How to print."
    )(function)


def load_settings() -> Settings:
    """The settings of this command; what they warn of is told. Raises `Invalid`."""
    from mesh.settings import Settings  # `mesh --help` does without

    settings = Settings.load()
    for sentence in settings.warnings:
        say(f"Warning: {sentence}")
    return settings
