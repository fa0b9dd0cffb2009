"""`amo-callback connections …`, `token` and `events`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from amo_callback.cli import output
from amo_callback.cli.api_client import MAX_ITEMS, call
from amo_callback.cli.context import config_option, json_option, yes_option
from amo_callback.cli.transfer import export, import_
from amo_callback.errors import CommandFailed
from amo_callback.identity import Scope
from amo_callback.model import Status

if TYPE_CHECKING:
    from collections.abc import Mapping

    from amo_callback.cli.api_client import ApiClient
    from amo_callback.cli.main import Invocation

_COLUMNS = ("id", "account_id", "domain", "status", "reason", "access_expires_at", "refresh_expires_at", "frozen")
_OWN_COLUMNS = {"domain", "token", "next_token", "reason", "error"}
"""Details of an event that have a column of their own, or stand elsewhere."""
_ASKED = ": asked by "
"""How readiness shows a freeze by `connections freeze --all`: no other process works with these tokens."""


@click.group()
def connections() -> None:
    """List, show, refresh, freeze, export and import connections.

    NAME is a connection's id, its account's id or host, account:ID, or owner:ID.
    """


connections.add_command(export)
connections.add_command(import_)


@connections.command("list")
@config_option
@json_option
@click.option("--account-id", metavar="ID", help="Of this AMO account.")
@click.option("--owner", metavar="ID", help="Of this user of the app.")
@click.option("--domain", metavar="HOST", help="Of the account with this host.")
@click.option("--status", type=click.Choice([str(status) for status in Status]), help="With this status.")
@click.pass_obj
def list_(invocation: Invocation, /, *, config: str | None, as_json: bool, **only: str | None) -> None:
    """List connections."""
    query = {name: value for name, value in only.items() if value}

    async def work(api: ApiClient) -> list[dict[str, Any]]:
        return await api.pages("/connections", query, limit=MAX_ITEMS)

    found = call(config, invocation.environ, Scope.READ, work)
    rows = [[one[name] or None for name in _COLUMNS] for one in found]
    output.show(found, as_json=as_json, text=lambda: output.table(_COLUMNS, rows))


@connections.command("show")
@config_option
@json_option
@click.argument("name")
@click.pass_obj
def show(invocation: Invocation, *, config: str | None, as_json: bool, name: str) -> None:
    """Show the connection NAME and its last events."""

    async def work(api: ApiClient) -> dict[str, Any]:
        return await api.get(await api.path_of(name))

    found = call(config, invocation.environ, Scope.READ, work)
    events = [] if as_json else found.pop("events")
    output.show(found, as_json=as_json, text=lambda: f"{output.facts(found)}\n\n{_history(events)}")


@connections.command("refresh")
@config_option
@json_option
@click.argument("name")
@click.pass_obj
def refresh(invocation: Invocation, *, config: str | None, as_json: bool, name: str) -> None:
    """Refresh the token pair of NAME now."""
    found = call(config, invocation.environ, Scope.TOKEN, lambda api: api.refresh(name))
    del found["access_token"]  # `token` prints it
    output.show(found, as_json=as_json, text=lambda: output.facts(found))


@connections.command("disconnect")
@config_option
@json_option
@yes_option
@click.argument("name")
@click.pass_obj
def disconnect(invocation: Invocation, *, config: str | None, as_json: bool, yes: bool, name: str) -> int:
    """Disconnect NAME: erase its tokens, for good."""
    if not output.confirm(f"Erase the tokens of {output.printable(name)}? Its user has to connect again", yes=yes):
        click.echo("nothing was changed")
        return 1

    async def work(api: ApiClient) -> dict[str, Any]:
        return await api.delete(await api.path_of(name))

    found = call(config, invocation.environ, Scope.ADMIN, work)
    output.show(found, as_json=as_json, text=lambda: output.facts(found))
    return 0


@connections.command("freeze")
@config_option
@json_option
@click.argument("name", required=False)
@click.option("--all", "every", is_flag=True, help="All connections.")
@click.pass_obj
def freeze(invocation: Invocation, *, config: str | None, as_json: bool, name: str | None, every: bool) -> None:
    """Stop refreshing NAME, or all, until thawed."""
    _check_target(name, every=every)

    async def work(api: ApiClient) -> dict[str, Any]:
        return await api.post("/freeze" if name is None else f"{await api.path_of(name)}/freeze")

    found = call(config, invocation.environ, Scope.ADMIN, work)
    output.show(found, as_json=as_json, text=lambda: output.facts(found))


@connections.command("thaw")
@config_option
@json_option
@yes_option
@click.argument("name", required=False)
@click.option("--all", "every", is_flag=True, help="All connections.")
@click.pass_obj
def thaw(invocation: Invocation, *, config: str | None, as_json: bool, yes: bool, name: str | None, every: bool) -> int:
    """Refresh NAME, or all, again: on this host from now on."""
    _check_target(name, every=every)

    async def work(api: ApiClient) -> dict[str, Any] | None:
        if name is not None:
            return await api.post(f"{await api.path_of(name)}/thaw")
        if not _may_thaw(await api.get_checks(), yes=yes):
            return None
        return await api.post("/thaw")

    found = call(config, invocation.environ, Scope.ADMIN, work)
    if found is None:
        click.echo("nothing was changed")
        return 1
    output.show(found, as_json=as_json, text=lambda: output.facts(found))
    return 0


@click.command()
@config_option
@json_option
@click.argument("name")
@click.pass_obj
def token(invocation: Invocation, *, config: str | None, as_json: bool, name: str) -> None:
    """Print an access token of NAME, refreshed first where it expires soon."""
    found = call(config, invocation.environ, Scope.TOKEN, lambda api: api.token(name))
    output.show(found, as_json=as_json, text=lambda: str(found["access_token"]))


@click.command()
@config_option
@json_option
@click.argument("name", required=False)
@click.option("--limit", type=click.IntRange(min=1, clamp=True), default=50, help="Events at most.")
@click.pass_obj
def events(invocation: Invocation, *, config: str | None, as_json: bool, name: str | None, limit: int) -> None:
    """Show the history, of NAME or of all: which token was presented, when, and why."""

    async def work(api: ApiClient) -> list[dict[str, Any]]:
        query = {} if name is None else {"connection": await api.selector_of(name)}
        return await api.pages("/events", query, limit=min(limit, MAX_ITEMS))

    found = call(config, invocation.environ, Scope.READ, work)
    output.show(found, as_json=as_json, text=lambda: _history(found))


def _check_target(name: str | None, *, every: bool) -> None:
    if (name is not None) == every:
        raise click.UsageError("name one connection, or --all")


def _may_thaw(checks: Mapping[str, Any], *, yes: bool) -> bool:
    """Ask where the tokens may be in use elsewhere: after an export or a restore, or on a copy."""
    frozen = str(checks["frozen"]["detail"])
    if checks["frozen"]["ok"] or _ASKED in frozen or yes:
        return True
    question = f"{output.printable(frozen)}\nIs nothing else working with these tokens?"
    try:
        return output.confirm(question, yes=False)
    except CommandFailed as error:
        raise CommandFailed(f"{frozen}; {error}") from None


def _history(events: list[dict[str, Any]]) -> str:
    """Return events as a table: the presented token and the next one are shown by their fingerprints."""
    rows = []
    for event in events:
        details = event["details"]
        more = [f"{name}={value}" for name, value in details.items() if name not in _OWN_COLUMNS]
        why = details.get("reason") or details.get("error")
        tokens = " > ".join(details[name] for name in ("token", "next_token") if name in details)
        rows.append((event["at"], event["connection_id"], event["name"], why, tokens, event["process"], " ".join(more)))
    return output.table(("at", "connection", "event", "why", "token", "process", "more"), rows)
