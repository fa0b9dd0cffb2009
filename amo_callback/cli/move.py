"""`amo-callback connections move`."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from amo_callback.cli.local import add_config, find_place, open_local
from amo_callback.cli.loop import run_loop
from amo_callback.cli.progress import Progress
from amo_callback.cli.terminal import end_tidily, is_agreed, say, waiting
from amo_callback.custody.leases import Leases
from amo_callback.custody.rescue import Rescue
from amo_callback.database_url import check_url, read_postgres, url_secrets
from amo_callback.disk import MAX_TEXT, read_regular
from amo_callback.errors import CommandFailed, ConfigurationError, StoreUnavailable
from amo_callback.machine import machine_mark
from amo_callback.moving import Table
from amo_callback.store import database_file, open_store
from amo_callback.transfer.move import WHY, Side, prepare, some

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Mapping

    from amo_callback.cli.local import Local, Place
    from amo_callback.database_url import PostgresAddress
    from amo_callback.model import Freeze
    from amo_callback.ports import Clock, Store
    from amo_callback.transfer.move import Move, Moved

_ASK = """\
{connections:,} connections, and all that belongs to them, go to {target}.
From then on nothing of this database is spent; live tokens are handed out until the service has the new one.
"""
_NEXT = """\
Next: set storage.url to the new database, and restart the service at once, wherever it runs on the old one.
Keep that until you are sure of the new one, and never thaw it: tokens that two databases refresh are lost to both."""


def add_to(connections: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = connections.add_parser("move", help="bring all into another database, and freeze them in this one")
    add_config(parser)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--to", metavar="URL", help="as in storage.url, and without a password")
    target.add_argument("--to-file", metavar="FILE", type=Path, help="its first line is the URL")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    place = find_place(options, environ)
    url = _url(options)
    end_tidily()
    return run_loop(_move(place, url, yes=options.yes))


async def _move(place: Place, url: str, *, yes: bool) -> int:
    async with open_local(place) as local, _opened(url, place=place, clock=local.clock) as new:
        await local.store.check_machine(place.machine)  # a copy says so, before it is frozen by us
        file = database_file(url, folder=place.folder)
        move = await prepare(
            old=Side(store=local.store, machine=place.machine),
            new=Side(store=new, machine=machine_mark(file)),
            cipher=local.cipher,
        )
        if not (yes or _agreed(await local.store.count(), file or read_postgres(url))):
            say("Nothing was moved.")
            return 1
        _tell(await _carry_out(move, local))
    return 0


async def _carry_out(move: Move, local: Local) -> Moved:
    leases = Leases(length=local.place.settings.refresh.lease, store=local.store, clock=local.clock)
    terminal = _Terminal(local.clock)
    try:
        return await move.run(leases=leases, clock=local.clock, rescue=Rescue(local.place.rescue), listener=terminal)
    except BaseException:
        how = "the old database stays frozen" if terminal.is_frozen else "the old database is as it was"
        print(f"amo-callback: {how}; run it again to go on where it was", file=sys.stderr)
        raise


class _Terminal:
    """Tell a person how far it is."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._told = False
        self.is_frozen = False

    def progress(self, label: str, total: int) -> Progress:
        return Progress(label, total=total, stream=sys.stderr, monotonic=self._clock.monotonic)

    def waiting(self, left: float) -> None:
        if not self._told:
            say(waiting(left))
        self._told = True

    def frozen(self, frozen: Freeze) -> None:
        self.is_frozen = True
        if frozen.why != WHY:
            say(f"Was frozen already: {frozen.why}")


def _tell(moved: Moved) -> None:
    for table, number in moved.counts.items():
        if table not in {Table.MARKS, Table.COUNTERS}:
            say(f"{number:>11,}  {table}")
    say("All of it is in the new database. From now on nothing of the old one is spent.")
    if moved.unreadable:
        say(f"No key opens these pairs, there as here: {some(moved.unreadable)}")
    if moved.frozen:
        say(f"The new one is frozen, too, as the old one was, until it is thawed: {moved.frozen.why}")
    say(_NEXT)


def _agreed(connections: int, target: Path | PostgresAddress) -> bool:
    if not sys.stdin.isatty():
        raise CommandFailed("there is no terminal to ask on: say --yes; nothing was moved")
    return is_agreed(f"{_ASK.format(connections=connections, target=target)}Move them?")


# --- where it goes -------------------------------------------------------------------------------


def _url(options: argparse.Namespace) -> str:
    url = options.to
    if url is None:
        try:
            url = read_regular(options.to_file, limit=MAX_TEXT).decode().split("\n", 1)[0].strip()
        except OSError as error:
            raise CommandFailed(f"{options.to_file}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise CommandFailed(f"{options.to_file}: is not UTF-8 text") from None
    try:
        check_url(url)
    except ValueError as error:  # which quotes nothing
        raise CommandFailed(f"the new database's URL {error}") from None
    if options.to and url_secrets(url):
        raise CommandFailed(
            "--to: a command line is no place for a password, all users of the machine can read it: put the URL into a "
            "file and name that with --to-file, or have the password in PGPASSFILE or PGPASSWORD"
        )
    return str(url)


@asynccontextmanager
async def _opened(url: str, *, place: Place, clock: Clock) -> AsyncIterator[Store]:
    """Open the new database; what is wrong with it is told as that."""
    process = f"{socket.gethostname()}:{os.getpid()} (command)"
    async with AsyncExitStack() as stack:
        try:
            opening = open_store(url, folder=place.folder, clock=clock, process=process)
            store = await stack.enter_async_context(opening)
        except ConfigurationError as error:
            problems = [problem.removeprefix("storage.url: ") for problem in error.problems]
            raise CommandFailed(f"the new database: {'; '.join(problems)}") from None
        except StoreUnavailable as error:
            raise CommandFailed(f"the new database cannot be reached: {error.detail}") from None
        yield store
