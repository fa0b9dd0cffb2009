"""`amo-callback webhooks`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from amo_callback.cli import output
from amo_callback.cli.api_client import MAX_ITEMS, call, quoted
from amo_callback.cli.context import config_option, json_option, load_context
from amo_callback.errors import CommandFailed
from amo_callback.identity import Scope

if TYPE_CHECKING:
    from amo_callback.cli.api_client import ApiClient
    from amo_callback.cli.main import Invocation

_PATH = "/webhooks"
_COLUMNS = ("id", "type", "at", "connection_id", "status", "tries", "last_error", "next_try_at")


@click.group(invoke_without_command=True)
@config_option
@json_option
@click.pass_context
def webhooks(ctx: click.Context, *, config: str | None, as_json: bool) -> None:
    """List webhooks that wait or were given up; `retry` sends them again."""
    if ctx.invoked_subcommand is not None:
        return

    async def work(api: ApiClient) -> list[dict[str, Any]]:
        return await api.pages(_PATH, limit=MAX_ITEMS)

    found = call(config, ctx.obj.environ, Scope.READ, work)
    rows = [[one[name] for name in _COLUMNS] for one in found]
    output.show(found, as_json=as_json, text=lambda: output.table(_COLUMNS, rows))


@webhooks.command("retry")
@config_option
@json_option
@click.argument("webhook", metavar="ID", required=False)
@click.option("--all", "every", is_flag=True, help="All that were given up.")
@click.pass_obj
def retry(invocation: Invocation, *, config: str | None, as_json: bool, webhook: str | None, every: bool) -> None:
    """Send the webhook ID now, or all that were given up."""
    if (webhook is not None) == every:
        raise click.UsageError("name one webhook by its id, or --all")
    if load_context(config, invocation.environ).settings.webhook.url is None:
        raise CommandFailed("webhook.url is not set: no webhook is sent")
    path = f"{_PATH}/retry" if webhook is None else f"{_PATH}/{quoted(webhook)}/retry"
    found = call(config, invocation.environ, Scope.ADMIN, lambda api: api.post(path))
    output.show(found, as_json=as_json, text=lambda: f"{len(found['retried'])} to be sent again")
