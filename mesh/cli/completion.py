"""`mesh completion`: a script that makes a shell complete the words of `mesh`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from mesh.cli.commands import Command
from mesh.cli.options import common


@click.command("completion", cls=Command)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@common
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print a script for your shell. It also completes what is in the live registry: agents, types, tasks.

    \b
    bash  eval "$(mesh completion bash)"            in ~/.bashrc
    zsh   eval "$(mesh completion zsh)"             in ~/.zshrc
    fish  mesh completion fish | source             in ~/.config/fish/config.fish
    """
    from mesh.cli.run import COMPLETING  # which imports the commands when they are called

    made = get_completion_class(shell)
    if made is None:
        raise click.UsageError(f"There is no completion for {shell}.", ctx)
    click.echo(made(ctx.find_root().command, {}, "mesh", COMPLETING).source())
