"""`amo-callback config …`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from amo_callback.cli.checks.finding import report
from amo_callback.cli.checks.settings import check_settings
from amo_callback.cli.context import config_option, json_option, load_context
from amo_callback.cli.info import packaged_text
from amo_callback.config.settings import Settings

if TYPE_CHECKING:
    from amo_callback.cli.main import Invocation


@click.group()
def config() -> None:
    """Check the configuration file; print the reference, or a JSON Schema."""


@config.command("check")
@config_option
@json_option
@click.pass_obj
def check(invocation: Invocation, *, config: str | None, as_json: bool) -> int:
    """Check the configuration by itself: nothing else is opened or asked."""
    return report(check_settings(load_context(config, invocation.environ).settings), as_json=as_json)


@config.command("example")
def example() -> None:
    """Print the reference: every setting, its default, and what it does."""
    click.echo(packaged_text("config.example.toml"), nl=False)


@config.command("schema")
def schema() -> None:
    """Print the JSON Schema of the configuration file, for editors."""
    click.echo(json.dumps(Settings.model_json_schema(), indent=2, ensure_ascii=False))
