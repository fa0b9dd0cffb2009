"""`amo-callback notices …`."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from amo_callback.cli.local import add_config, find_place
from amo_callback.cli.operations import open_operations
from amo_callback.cli.table import table
from amo_callback.errors import CommandFailed
from amo_callback.identity import Scope

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable, Mapping

    from amo_callback.cli.operations import Operations

_COLUMNS = ("id", "type", "at", "connection_id", "status", "tries", "last_error", "next_try_at")


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to the parser."""
    group = commands.add_parser("notices", help="notices that wait, or were given up; try them again")
    _add(group, _list, Scope.READ)
    retry = group.add_subparsers(metavar="COMMAND").add_parser("retry", help="try one now, or all that were given up")
    which = retry.add_mutually_exclusive_group(required=True)
    which.add_argument("notice", metavar="ID", nargs="?", help="one, by its id")
    which.add_argument("--all", action="store_true", help="all that were given up")
    _add(retry, _retry, Scope.ADMIN)


def _add(
    parser: argparse.ArgumentParser, work: Callable[[Operations, argparse.Namespace], Awaitable[str]], scope: Scope
) -> None:
    add_config(parser)
    parser.add_argument("--json", action="store_true", help="for programs")

    def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
        print(asyncio.run(_run(options, environ)))
        return 0

    async def _run(options: argparse.Namespace, environ: Mapping[str, str]) -> str:
        place = find_place(options, environ)
        if scope is Scope.ADMIN and place.settings.notify.url is None:
            raise CommandFailed("notify.url is not set: notices are delivered to nobody")
        async with open_operations(place, scope=scope) as operations:
            return await work(operations, options)

    parser.set_defaults(run=run)


async def _list(operations: Operations, options: argparse.Namespace) -> str:
    found = await operations.notices()
    if options.json:
        return json.dumps(found)
    return table(_COLUMNS, [[one[name] for name in _COLUMNS] for one in found])


async def _retry(operations: Operations, options: argparse.Namespace) -> str:
    told = await operations.retry_notices(options.notice)
    return json.dumps(told) if options.json else f"{len(told['retried'])} to be tried again"
