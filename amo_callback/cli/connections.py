"""`amo-callback connections`, `token`, `events`, `webhooks` and `status`, which call the private API."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn

import click

from amo_callback.cli import output
from amo_callback.cli.api_client import MAX_ITEMS, NotRunning, api_command, quoted, read_readiness
from amo_callback.cli.context import json_option, one_or_all, with_context, yes_option
from amo_callback.cli.transfer import export, import_
from amo_callback.errors import CommandFailed
from amo_callback.identity import Scope
from amo_callback.model import Status

if TYPE_CHECKING:
    from collections.abc import Mapping

    from amo_callback.cli.api_client import ApiClient, ReadinessCheck
    from amo_callback.cli.context import CommandContext

_COLUMNS = ("id", "account_id", "domain", "status", "reason", "access_expires_at", "refresh_expires_at", "frozen")
_WEBHOOK_COLUMNS = ("id", "type", "at", "connection_id", "status", "tries", "last_error", "next_try_at")
_OWN_COLUMNS = {"domain", "token", "next_token", "reason", "error"}
"""Event details that the `more` column omits."""
_WAIT_LIMIT = 10.0
_EVERY = 2.0
"""Seconds between two status updates."""
_ASKED = ": requested by "
"""The text in `/readyz` that marks a freeze requested through the API.

After such a freeze, `thaw` requires no confirmation.
"""


def _history(events: list[dict[str, Any]]) -> str:
    """Format events as a table; the presented and the next token are shown as fingerprints."""
    rows = []
    for event in events:
        details = event["details"]
        more = [f"{name}={value}" for name, value in details.items() if name not in _OWN_COLUMNS]
        why = details.get("reason") or details.get("error")
        tokens = " > ".join(details[name] for name in ("token", "next_token") if name in details)
        rows.append((event["at"], event["connection_id"], event["name"], why, tokens, event["process"], " ".join(more)))
    return output.table(("at", "connection", "event", "why", "token", "process", "more"), rows)


@click.group()
def connections() -> None:
    """List, show, refresh, disconnect, freeze, thaw, export and import connections.

    NAME is a connection id, an account id, an account's host, account:ID, or owner:ID.
    """


connections.add_command(export)
connections.add_command(import_)


@connections.command("list")
@click.option("--account-id", metavar="ID", help="Only connections of this AMO account.")
@click.option("--owner", metavar="ID", help="Only connections of this app user.")
@click.option("--domain", metavar="HOST", help="Only connections of the account with this host.")
@click.option(
    "--status", type=click.Choice([str(status) for status in Status]), help="Only connections with this status."
)
@api_command(Scope.READ, text=lambda found: output.rows(_COLUMNS, found))
async def list_(api: ApiClient, /, **only: str | None) -> list[dict[str, Any]]:
    """List connections."""
    return await api.pages("/connections", {name: value for name, value in only.items() if value}, limit=MAX_ITEMS)


@connections.command("show")
@click.argument("name")
@api_command(Scope.READ, text=lambda found: f"{output.facts(found, but='events')}\n\n{_history(found['events'])}")
async def show(api: ApiClient, *, name: str) -> dict[str, Any]:
    """Show the connection NAME and its latest events."""
    return await api.get(await api.path_of(name))


@connections.command("refresh")
@click.argument("name")
@api_command(Scope.TOKEN)
async def refresh(api: ApiClient, *, name: str) -> dict[str, Any]:
    """Refresh the connection NAME now."""
    found = await api.refresh(name)
    return {key: value for key, value in found.items() if key != "access_token"}  # only `amo-callback token` prints it


@connections.command("disconnect")
@yes_option
@click.argument("name")
@api_command(Scope.ADMIN)
async def disconnect(api: ApiClient, *, yes: bool, name: str) -> dict[str, Any] | None:
    """Disconnect the connection NAME, and erase its tokens permanently."""
    question = f"The user of the connection {output.printable(name)} will have to connect again. Erase the tokens?"
    if not output.confirm(question, yes=yes):
        return None
    return await api.delete(await api.path_of(name))


@connections.command("freeze")
@one_or_all("connection", help_of_all="All connections.")
@api_command(Scope.ADMIN)
async def freeze(api: ApiClient, *, name: str | None) -> dict[str, Any]:
    """Freeze the connection NAME or all connections; a frozen connection is not refreshed until it is thawed."""
    return await api.post("/freeze" if name is None else f"{await api.path_of(name)}/freeze")


@connections.command("thaw")
@yes_option
@one_or_all("connection", help_of_all="All connections.")
@api_command(Scope.ADMIN)
async def thaw(api: ApiClient, *, yes: bool, name: str | None) -> dict[str, Any] | None:
    """Thaw the connection NAME or all connections, so that this host refreshes them again."""
    if name is not None:
        return await api.post(f"{await api.path_of(name)}/thaw")
    return await api.post("/thaw") if _may_thaw(await api.get_checks(), yes=yes) else None


@click.command()
@click.argument("name")
@api_command(Scope.TOKEN, text=lambda found: str(found["access_token"]))
async def token(api: ApiClient, *, name: str) -> dict[str, Any]:
    """Print an access token of the connection NAME; refresh it first if it expires soon."""
    return await api.token(name)


@click.command()
@click.argument("name", required=False)
@click.option("--limit", type=click.IntRange(min=1, clamp=True), default=50, help="Maximum number of events.")
@api_command(Scope.READ, text=_history)
async def events(api: ApiClient, *, name: str | None, limit: int) -> list[dict[str, Any]]:
    """Show the event history of the connection NAME or of all connections.

    Presented tokens are shown as fingerprints.
    """
    query = {} if name is None else {"connection": await api.selector_of(name)}
    return await api.pages("/events", query, limit=min(limit, MAX_ITEMS))


@click.group(invoke_without_command=True)
@api_command(Scope.READ, text=lambda found: output.rows(_WEBHOOK_COLUMNS, found))
async def webhooks(api: ApiClient) -> list[dict[str, Any]]:
    """List undelivered webhooks; the subcommand `retry` sends them again."""
    return await api.pages("/webhooks", limit=MAX_ITEMS)


@webhooks.command("retry")
@one_or_all("webhook", help_of_all="All dead-lettered webhooks.")
@api_command(Scope.ADMIN, text=lambda found: f"webhooks to be sent again: {len(found['retried'])}")
async def retry(api: ApiClient, *, name: str | None) -> dict[str, Any]:
    """Retry the webhook with the id NAME, or all dead-lettered webhooks, now."""
    if api.settings.webhook.url is None:
        raise CommandFailed("no webhooks are sent: set webhook.url, then try again")
    return await api.post("/webhooks/retry" if name is None else f"/webhooks/{quoted(name)}/retry")


def _may_thaw(checks: Mapping[str, Any], *, yes: bool) -> bool:
    """Return whether to thaw all connections.

    Confirmation is required if another host may use the tokens: after an export, a restore or a copy of the database.
    """
    frozen = str(checks["frozen"]["detail"])
    if checks["frozen"]["ok"] or _ASKED in frozen or yes:
        return True
    question = f"{output.printable(frozen)}\nAre you sure that no other host uses these tokens?"
    try:
        return output.confirm(question, yes=False)
    except CommandFailed as error:
        raise CommandFailed(f"{frozen}; {error}") from None


@click.command()
@with_context
@json_option
@click.option("--watch", is_flag=True, help="Update the output every two seconds until Ctrl-C.")
def status(context: CommandContext, *, as_json: bool, watch: bool) -> int:
    """Show the readiness checks of the running service; the exit status is 1 if a check fails."""
    if watch and as_json:
        raise click.UsageError("--watch and --json cannot be combined")
    address = context.settings.server.private
    if watch:
        _watch(address)
    checks = asyncio.run(read_readiness(address, wait_limit=_WAIT_LIMIT))
    ready = all(check.ok for check in checks.values())
    found = {"ready": ready, "checks": {name: asdict(check) for name, check in checks.items()}}
    click.echo(json.dumps(found) if as_json else _checks_text(checks))
    return 0 if ready else 1


def _checks_text(checks: Mapping[str, ReadinessCheck]) -> str:
    rows = [(name, "ok" if check.ok else "not ready", check.detail) for name, check in checks.items()]
    return output.table(("check", "result", "detail"), rows)


def _watch(address: str) -> NoReturn:
    """Show the readiness checks, and update them, until Ctrl-C."""
    from rich.live import Live  # noqa: PLC0415 -- its import takes 50 ms
    from rich.text import Text  # noqa: PLC0415 -- its import takes 50 ms

    with Live(auto_refresh=False) as live:
        while True:
            try:
                text = _checks_text(asyncio.run(read_readiness(address, wait_limit=_WAIT_LIMIT)))
            except NotRunning as error:
                text = output.printable(str(error))
            live.update(Text(text), refresh=True)
            time.sleep(_EVERY)
