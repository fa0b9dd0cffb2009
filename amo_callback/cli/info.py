"""`amo-callback version`, `completion` and `docs`."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import click
from click.shell_completion import get_completion_class

import amo_callback

_MANUAL = "manual"
"""The name under which `docs` lists the README."""


@click.command()
def version() -> None:
    """Print the version."""
    click.echo(f"amo-callback {amo_callback.__version__}")


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for SHELL.

    For bash, run: amo-callback completion bash > /etc/bash_completion.d/amo-callback
    """
    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"unknown shell {shell}: choose bash, zsh or fish")
    click.echo(found(ctx.find_root().command, {}, "amo-callback", "_AMO_CALLBACK_COMPLETE").source())


@click.command()
@click.argument("name", required=False)
def docs(name: str | None) -> None:
    """Print the document NAME; without NAME, list all documents."""
    folder = resources.files("amo_callback") / "docs"
    names = sorted(
        {_MANUAL, *(file.name.removesuffix(".md") for file in folder.iterdir() if file.name.endswith(".md"))}
    )
    if name is None:
        click.echo("\n".join(names))
    elif name not in names:
        raise click.UsageError(f"unknown document {name}: choose one of {', '.join(names)}")
    elif name == _MANUAL:
        click.echo_via_pager(packaged_text("README.md"))
    else:
        click.echo_via_pager((folder / f"{name}.md").read_text(encoding="utf-8"))


def packaged_text(name: str) -> str:
    """Return the text of a file in the repository's root; the installed package contains a copy in `root/`."""
    installed = resources.files("amo_callback") / "root" / name
    if installed.is_file():
        return installed.read_text(encoding="utf-8")
    return (Path(amo_callback.__file__).parents[1] / name).read_text(encoding="utf-8")
