"""`amo-callback version`, `completion` and `docs`."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import click
from click.shell_completion import get_completion_class

import amo_callback

_DOCUMENTS = {
    "manual": "Install, configure and operate the service; its reference.",
    "mobile-app": "Connect a mobile app, with recipes for Expo, Android and iOS.",
    "backends": "Connect a backend, with recipes, and adapters for libraries.",
    "openapi": "The OpenAPI document of both APIs, as JSON.",
    "security": "Assets, attackers, and the limits of the protection.",
    "glossary": "The project's terms, and the modules that define them.",
}
"""The summary of each document."""
EXAMPLE_ENVIRONMENT = {
    "AMO_CALLBACK_AMO__CLIENT_ID": "00000000-0000-0000-0000-000000000000",
    "AMO_CALLBACK_AMO__CLIENT_SECRET": "the client secret",
    "AMO_CALLBACK_AMO__REDIRECT_URI": "https://admin.example.com/api/amo-crm/callback",
    "AMO_CALLBACK_APP__DEEP_LINK": "https://app.example.com/amo-crm",
    "AMO_CALLBACK_APP__IOS_APP_IDS": "ABCDE12345.com.example.app",
    "AMO_CALLBACK_APP__ANDROID_PACKAGE": "com.example.app",
    "AMO_CALLBACK_APP__ANDROID_CERT_FINGERPRINTS": ":".join(["AB"] * 32),
    "AMO_CALLBACK_APP__JWKS_URL": "https://admin.example.com/jwks.json",
    "AMO_CALLBACK_APP__JWT_AUDIENCE": "amo-callback",
    "AMO_CALLBACK_STORAGE__ENCRYPTION_KEYS": "A" * 43 + "=",
}
"""The configuration of the printed OpenAPI document, with which all routes exist."""


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
@click.pass_context
def docs(ctx: click.Context, name: str | None) -> None:
    """Print the document NAME; without NAME, list all documents."""
    if name is None:
        formatter = ctx.make_formatter()
        formatter.write_dl(list(_DOCUMENTS.items()))
        click.echo(formatter.getvalue(), nl=False)
    elif name not in _DOCUMENTS:
        raise click.UsageError(f"unknown document {name}: choose one of {', '.join(_DOCUMENTS)}")
    elif name == "openapi":
        click.echo(_openapi())
    elif name == "manual":
        click.echo_via_pager(packaged_text("README.md"))
    else:
        file = resources.files("amo_callback") / "docs" / f"{name}.md"
        click.echo_via_pager(file.read_text(encoding="utf-8"))


def _openapi() -> str:
    """Return the OpenAPI document; it needs neither a configuration nor a running service."""
    from amo_callback.config.loader import load_settings  # noqa: PLC0415 -- loads pydantic, which other commands do not use
    from amo_callback.web.apis import openapi_text  # noqa: PLC0415 -- loads the service

    return json.dumps(json.loads(openapi_text(load_settings(None, EXAMPLE_ENVIRONMENT))), indent=2, ensure_ascii=False)


def packaged_text(name: str) -> str:
    """Return the text of a file in the repository's root; the installed package contains a copy in `root/`."""
    installed = resources.files("amo_callback") / "root" / name
    if installed.is_file():
        return installed.read_text(encoding="utf-8")
    return (Path(amo_callback.__file__).parents[1] / name).read_text(encoding="utf-8")
