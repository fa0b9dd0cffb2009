"""`amo-callback backup` and `amo-callback restore`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from amo_callback.cli import output
from amo_callback.cli.context import PATH, acting_as_owner, check_database_exists, with_context, yes_option
from amo_callback.clock import SystemClock, rfc3339
from amo_callback.crypto import Cipher
from amo_callback.errors import CommandFailed, ConfigurationError, DecryptionFailed
from amo_callback.store import backup as store_backup
from amo_callback.store.rebuild import open_given, rebuild

if TYPE_CHECKING:
    from pathlib import Path

    from amo_callback.cli.context import CommandContext

_THAW = "amo-callback connections thaw --all"
_OF_POSTGRES = """\
this command supports only SQLite: for PostgreSQL, use pg_dump and pg_restore, or WAL archiving.
If a dump is restored into a new database or on another server, the database starts frozen. If a dump is restored into
the same database, or the server is restored from an archive or a snapshot, the database does not start frozen. In these
two cases, stop all instances before the restore, run `amo-callback connections freeze --all` before you start any
instance, and thaw once no other host uses the restored tokens."""
_ASK = """\
{copy} contains {connections} connections, as they were {made_at}.
This backup replaces {database}; a copy of the replaced database is kept in the same folder.
The restored database is frozen: no token is refreshed until you run
`{thaw}`. If a connection was refreshed after the backup, its user has to
connect again."""

_FOREIGN = """\
amo-callback: {copy} contains {number} tables, indexes, triggers or views that do not belong to amo-callback.
They are not restored."""


@click.command()
@with_context
@click.argument("file", type=PATH)
def backup(context: CommandContext, *, file: Path) -> None:
    """Copy the SQLite database to FILE, without stopping the service."""
    database = _file(context)
    check_database_exists(context)
    output.sigterm_as_interrupt()
    with ExitStack() as stack:
        with acting_as_owner(database):
            snapshot = stack.enter_context(store_backup.open_snapshot(database))
        store_backup.back_up(snapshot, file, now=SystemClock().now())
        number = store_backup.contents(snapshot).connections
        click.echo(f"{file} contains {number} connections; a database restored from it starts frozen")


@click.command()
@with_context
@yes_option
@click.argument("file", type=PATH)
def restore(context: CommandContext, *, yes: bool, file: Path) -> int:
    """Replace the SQLite database with the backup FILE, and freeze the restored database."""
    database = _file(context)
    if not database.parent.is_dir():
        raise ConfigurationError(
            f"storage.url: the folder {database.parent} does not exist; create it, or correct the path"
        )
    if not (yes or sys.stdin.isatty()):
        click.echo("amo-callback: cannot ask for confirmation without a terminal: use --yes", err=True)
        return output.EX_USAGE
    output.sigterm_as_interrupt()
    now = SystemClock().now()
    with ExitStack() as stack:
        # Open the file before root switches to the database's owner, who may be unable to read it.
        given = stack.enter_context(open_given(file))
        stack.enter_context(acting_as_owner(database))
        made = stack.enter_context(rebuild(given, database, now=now, progress=output.progress))
        found = made.contents
        _check_keys(context, found, file)
        if made.foreign:
            click.echo(_FOREIGN.format(copy=file, number=made.foreign), err=True)
        if not yes:
            made_at = f"at {rfc3339(found.made_at)}" if found.made_at else "at an unknown time"
            click.echo(
                _ASK.format(copy=file, connections=found.connections, made_at=made_at, database=database, thaw=_THAW)
            )
        if not output.confirm("Restore this backup?", yes=yes):
            click.echo("nothing was changed")
            return 1
        kept = store_backup.restore(made.file, database, now=SystemClock().now())
    click.echo(f"restored {found.connections} connections; no token is refreshed until you run `{_THAW}`")
    if kept:
        click.echo(f"the previous database is kept as {kept}")
    return 0


def _file(context: CommandContext) -> Path:
    if context.database is None:
        raise CommandFailed(_OF_POSTGRES)
    return context.database


def _check_keys(context: CommandContext, found: store_backup.Contents, copy: Path) -> None:
    """Raise `ConfigurationError` if no encryption key decrypts the copy."""
    try:
        Cipher(context.encryption_keys).check_canary(found.canary)
    except DecryptionFailed:
        raise ConfigurationError(
            f"storage.encryption_keys: no configured key decrypts {copy}; configure the keys that encrypted it"
        ) from None
