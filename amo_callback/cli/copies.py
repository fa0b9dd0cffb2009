"""`amo-callback backup` and `amo-callback restore`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from amo_callback.cipher import Cipher
from amo_callback.cli.local import acting_as_owner, add_config, find_place
from amo_callback.cli.progress import Progress
from amo_callback.cli.terminal import EX_USAGE, end_tidily, is_agreed
from amo_callback.clock import SystemClock, rfc3339
from amo_callback.errors import CommandFailed, ConfigurationError, DecryptionFailed
from amo_callback.store import copies
from amo_callback.store.rebuild import open_given, rebuild

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from amo_callback.cli.local import Place
    from amo_callback.clock import Clock

_THAW = "amo-callback connections thaw --all"
_OF_POSTGRES = """\
this is for SQLite alone. PostgreSQL has its own ways: pg_dump and pg_restore, or an archive of its log.
Put back into a database that was made anew, or on another server, it starts frozen by itself. Put back into the same
database, or with the whole server (an archive, a snapshot), it does not: stop every instance first, then say
`amo-callback connections freeze --all` before any is started, and thaw once nobody else works with these tokens."""
_ASK = """\
{copy} holds {connections} connections, as they were {made_at}.
It takes the place of {database}, which is kept beside it, and starts frozen: nothing is spent
until `{thaw}`. Connections refreshed since then have to be connected again.
"""

_FOREIGN = """\
amo-callback: {copy} has {number} tables, indexes, triggers or views that are none of ours: somebody has changed it.
They are left out."""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to the parser."""
    backup = commands.add_parser("backup", help="copy the database into one file, also while the service runs")
    backup.set_defaults(run=_back_up)
    restore = commands.add_parser("restore", help="put a copy of the database in its place, frozen")
    restore.add_argument("--yes", action="store_true", help="do not ask")
    restore.set_defaults(run=_restore)
    for parser in (backup, restore):
        add_config(parser)
        parser.add_argument("file", type=Path, metavar="FILE")


def _back_up(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    database = _file(find_place(options, environ))
    if not database.exists():
        raise ConfigurationError(f"storage.url: there is no database {database}")
    end_tidily()
    with ExitStack() as stack:
        with acting_as_owner(database):
            snapshot = stack.enter_context(copies.open_snapshot(database))
        copies.back_up(snapshot, options.file, now=SystemClock().now())
        print(f"{options.file} holds {copies.contents(snapshot).connections} connections; put back, it starts frozen")
    return 0


def _restore(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    place = find_place(options, environ)
    database = _file(place)
    if not database.parent.is_dir():
        raise ConfigurationError(f"storage.url: there is no folder {database.parent}")
    if not (options.yes or sys.stdin.isatty()):
        print("amo-callback: restore asks before it replaces the database: say --yes", file=sys.stderr)
        return EX_USAGE
    end_tidily()
    clock = SystemClock()
    with ExitStack() as stack:
        given = stack.enter_context(open_given(options.file))  # before: the file may be one that only root may read
        stack.enter_context(acting_as_owner(database))
        made = stack.enter_context(rebuild(given, database, now=clock.now(), progress=partial(_progress, clock)))
        found = made.contents
        _check_keys(place, found, options.file)
        if made.foreign:
            print(_FOREIGN.format(copy=options.file, number=made.foreign), file=sys.stderr)
        if not (options.yes or _agreed(database, found, options.file)):
            print("nothing was changed")
            return 1
        kept = copies.restore(made.file, database, now=clock.now())
    print(f"{found.connections} connections are restored; nothing is spent until `{_THAW}`")
    if kept:
        print(f"the database that was there is {kept}")
    return 0


def _progress(clock: Clock, label: str, total: int) -> Progress:
    return Progress(label, total=total, stream=sys.stderr, monotonic=clock.monotonic)


def _file(place: Place) -> Path:
    if place.database is None:
        raise CommandFailed(_OF_POSTGRES)
    return place.database


def _check_keys(place: Place, found: copies.Contents, copy: Path) -> None:
    """Refuse what our keys cannot read: every connection in it would look lost."""
    cipher = Cipher(place.settings.storage.encryption_keys.get_secret_value().split())
    try:
        cipher.check_canary(found.canary)
    except DecryptionFailed:
        raise ConfigurationError(f"storage.encryption_keys: none of them opens {copy}") from None


def _agreed(database: Path, found: copies.Contents, copy: Path) -> bool:
    made_at = f"at {rfc3339(found.made_at)}" if found.made_at else "nobody knows when"
    question = _ASK.format(copy=copy, connections=found.connections, made_at=made_at, database=database, thaw=_THAW)
    return is_agreed(f"{question}Restore it?")
