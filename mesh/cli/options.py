"""The options that commands share, and what they lead to: the settings, and the mesh to talk to."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mesh.cli.show import say
from mesh.errors import Invalid

if TYPE_CHECKING:
    from mesh.client import Mesh
    from mesh.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])
OUTPUTS = ("table", "json", "jsonl", "name")
WATCH_S = 2.0
_DEFAULTS: Mapping[str, Any] = {"color": True, "verbose": False, "url": None}
_chosen = dict(_DEFAULTS)


def reset() -> None:
    """Forget what the options of a former command line said."""
    _chosen.update(_DEFAULTS)


def verbose() -> bool:
    """Whether -v was given."""
    return bool(_chosen["verbose"])


def through_coordinator() -> bool:
    """Whether --url was given."""
    return _chosen["url"] is not None


def colored() -> bool:
    """Whether colours are wanted (they are only used on a terminal)."""
    return _chosen["color"] and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _use_namespace(_: click.Context, __: click.Parameter, value: str | None) -> None:
    if value is not None:
        # Into the environment, for the processes that a command starts; one name only: they must not disagree.
        os.environ.pop("AGENT_NAMESPACE", None)
        os.environ["MESH_NAMESPACE"] = value


def _note(name: str, value: Any = None) -> Callable[[click.Context, click.Parameter, Any], None]:
    def note(_: click.Context, __: click.Parameter, given: Any) -> None:
        if given:
            _chosen[name] = given if value is None else value

    return note


def common(function: F) -> F:
    """-n, --no-color, -v: the same for the group and for each command."""
    for decorate in (
        click.option("-v", "--verbose", is_flag=True, expose_value=False, callback=_note("verbose", True),
                     help="Say more; show where an error came from."),
        click.option("--no-color", is_flag=True, expose_value=False, callback=_note("color", False),
                     help="No colours [NO_COLOR]."),
        click.option("-n", "--namespace", metavar="NAME", expose_value=False, callback=_use_namespace,
                     help="The part of the mesh to work in [MESH_NAMESPACE]."),
    ):  # fmt: skip
        function = decorate(function)
    return function


def remote(function: F) -> F:
    """`common` and --url: for commands that work through `Mesh`, on Redis or over HTTP."""
    return click.option("--url", "--coordinator-url", metavar="URL", expose_value=False, callback=_note("url"),
                        help="Ask the coordinator there (or several, comma-separated) instead of Redis.",
                        )(common(function))  # fmt: skip


def output(function: F) -> F:
    """-o: how data is printed."""
    return click.option("-o", "--output", "--format", "output", type=click.Choice(OUTPUTS), default="table",
                        show_default=True, help="How to print.")(function)  # fmt: skip


def watch(function: F) -> F:
    """--watch: again and again; `commands.Command` completes a bare `--watch`."""
    return click.option("--watch", type=click.FloatRange(min=0.1), metavar="[=S]",
                        help=f"Print it anew every S seconds ({WATCH_S:g} if not given), until Ctrl-C.",
                        )(function)  # fmt: skip


def names(text: str | None) -> list[str]:
    """The parts of a list like `a,b`."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def pairs(option: str, text: str | None) -> dict[str, str]:
    """The parts of a list like `a=b,c=d`. Raises `Invalid`."""
    found = {}
    for part in names(text):
        name, equals, value = part.partition("=")
        if not (equals and name.strip()):
            raise Invalid(f"{option} is {text!r}, but must be written as name=value,name=value.")
        found[name.strip()] = value.strip()
    return found


def load_settings(*, local: bool = True) -> Settings:
    """The settings of this command; what they warn of is told. Raises `Invalid`.

    `local`: the command is about this machine or Redis itself, and cannot go through a coordinator.
    """
    from mesh.settings import Settings  # `mesh --help` does without

    if local and through_coordinator():
        raise click.UsageError("--url does not apply: this command needs Redis.", click.get_current_context())
    settings = Settings.load()
    for sentence in settings.warnings:
        say(f"Warning: {sentence}")
    return settings


def open_mesh(**changes: Any) -> Mesh:
    """The mesh that the options and the settings name; `changes` of settings. Raises `Invalid`."""
    from mesh.client import Mesh

    settings = dataclasses.replace(load_settings(local=False), **changes)
    return Mesh(settings=settings, coordinator_url=_chosen["url"]).recorded()
