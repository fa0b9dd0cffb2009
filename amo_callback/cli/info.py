"""`amo-callback version` and `completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from amo_callback import __version__


@click.command()
def version() -> None:
    """Print the version."""
    click.echo(f"amo-callback {__version__}")


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for SHELL.

    For bash: amo-callback completion bash > /etc/bash_completion.d/amo-callback
    """
    root = ctx.find_root().command
    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"{shell}: unknown shell")
    click.echo(found(root, {}, "amo-callback", "_AMO_CALLBACK_COMPLETE").source())
