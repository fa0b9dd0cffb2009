"""`amo-callback connections …`, `amo-callback token` and `amo-callback events`."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from amo_callback.cli import transfer
from amo_callback.cli.local import add_config, find_place
from amo_callback.cli.operations import open_operations
from amo_callback.cli.table import table
from amo_callback.identity import Scope
from amo_callback.model import Status

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable, Mapping

    from amo_callback.cli.operations import Operations

_COLUMNS = ("id", "account_id", "domain", "status", "reason", "access_expires_at", "refresh_expires_at", "frozen")
_LEFT_OUT = {"domain", "token", "next_token", "reason", "error"}


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to the parser."""
    group = commands.add_parser("connections", help="list, show, freeze, import and export connections")
    connections = group.add_subparsers(required=True, metavar="COMMAND")
    listing = _command(connections, "list", "list them", _list, Scope.READ)
    listing.add_argument("--account-id", metavar="ID")
    listing.add_argument("--owner", metavar="ID", help="the app's user")
    listing.add_argument("--domain", metavar="HOST")
    listing.add_argument("--status", choices=list(Status))
    showing = _command(connections, "show", "show one, and what happened to it last", _show, Scope.READ)
    showing.add_argument("selector", metavar="ID", help="its id, account:ID, or owner:ID")
    for name, what in (("freeze", "spend nothing until thawed"), ("thaw", "spend again, on this machine")):
        parser = _command(connections, name, what, _freeze, Scope.ADMIN)
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("selector", metavar="ID", nargs="?", help="one connection: its id, account:ID, or owner:ID")
        which.add_argument("--all", action="store_true", help="all of them")
        parser.set_defaults(frozen=name == "freeze")
    refreshing = _command(connections, "refresh", "refresh its pair now", _refresh, Scope.TOKEN)
    refreshing.add_argument("selector", metavar="ID", help="its id, account:ID, or owner:ID")
    parting = _command(connections, "disconnect", "forget it and erase its tokens", _disconnect, Scope.ADMIN)
    parting.add_argument("selector", metavar="ID", help="its id; or account:ID, owner:ID where that is one connection")
    transfer.add_to(connections)
    token = _command(
        commands, "token", "print an access token, refreshed where it has little life left", _token, Scope.TOKEN
    )
    token.add_argument("selector", metavar="ID", help="its id, account:ID, or owner:ID")
    events = _command(commands, "events", "what happened: who spent a token, when, and why", _events, Scope.READ)
    events.add_argument("selector", metavar="ID", nargs="?", help="of one connection: its id, account:ID, or owner:ID")
    events.add_argument("--limit", type=int, default=50, metavar="N", help="default: 50")


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    what: str,
    work: Callable[[Operations, argparse.Namespace], Awaitable[str]],
    scope: Scope,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=what)
    add_config(parser)
    parser.add_argument("--json", action="store_true", help="for programs")

    def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
        asyncio.run(_run(options, environ))
        return 0

    async def _run(options: argparse.Namespace, environ: Mapping[str, str]) -> None:
        async with open_operations(find_place(options, environ), scope=scope) as operations:
            print(await work(operations, options))

    parser.set_defaults(run=run)
    return parser


async def _list(operations: Operations, options: argparse.Namespace) -> str:
    given = {name: getattr(options, name) for name in ("account_id", "owner", "domain", "status")}
    found = await operations.connections({name: value for name, value in given.items() if value})
    if options.json:
        return json.dumps(found)
    return table(_COLUMNS, [[one[name] or None for name in _COLUMNS] for one in found])


async def _show(operations: Operations, options: argparse.Namespace) -> str:
    found = await operations.connection(options.selector)
    if options.json:
        return json.dumps(found)
    events = found.pop("events")
    return f"{_facts(found)}\n\n{_history(events)}"


async def _events(operations: Operations, options: argparse.Namespace) -> str:
    found = await operations.events(options.selector, limit=min(max(options.limit, 1), 10_000))
    return json.dumps(found) if options.json else _history(found)


async def _token(operations: Operations, options: argparse.Namespace) -> str:
    found = await operations.token(options.selector)
    return json.dumps(found) if options.json else str(found["access_token"])


async def _refresh(operations: Operations, options: argparse.Namespace) -> str:
    found = await operations.refresh(options.selector)
    del found["access_token"]  # whoever wants that asks for it: `token`
    return json.dumps(found) if options.json else _facts(found)


async def _disconnect(operations: Operations, options: argparse.Namespace) -> str:
    found = await operations.disconnect(options.selector)
    return json.dumps(found) if options.json else _facts(found)


async def _freeze(operations: Operations, options: argparse.Namespace) -> str:
    told = await operations.freeze(options.selector, frozen=options.frozen)
    return json.dumps(told) if options.json else _facts(told)


def _facts(found: Mapping[str, Any]) -> str:
    facts = {name: ", ".join(value) if isinstance(value, list) else value for name, value in found.items()}
    return table(("what", "is"), list(facts.items()))


def _history(events: list[dict[str, Any]]) -> str:
    """Return events as lines: the token that was presented, and the one that it brought, by their fingerprints."""
    rows = []
    for event in events:
        details = event["details"]
        more = [f"{name}={value}" for name, value in details.items() if name not in _LEFT_OUT]
        why = details.get("reason") or details.get("error")
        tokens = " > ".join(details[name] for name in ("token", "next_token") if name in details)
        rows.append((event["at"], event["connection_id"], event["name"], why, tokens, event["process"], " ".join(more)))
    return table(("at", "connection", "event", "why", "token", "process", "more"), rows)
