"""`amo-callback connections export` and `amo-callback connections import`."""

from __future__ import annotations

import os
import random
import secrets
import sys
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING

import click

from amo_callback.amo.pair import token_claims
from amo_callback.cli import output
from amo_callback.cli.context import PATH, open_as_owner, run_loop, with_context, yes_option
from amo_callback.errors import CommandFailed
from amo_callback.files import open_regular, read_text
from amo_callback.refresh.leases import Leases
from amo_callback.refresh.rescue import MAX_FILE, RescueFolder
from amo_callback.transfer.export_file import (
    MAX_LINE,
    ExportWriter,
    FileKey,
    cipher_for,
    is_export,
    key_from_passphrase,
    key_of_host,
    new_file,
    read_export,
)
from amo_callback.transfer.exporter import export as write_export
from amo_callback.transfer.exporter import freeze, wait_until_idle
from amo_callback.transfer.importer import ImportPlan, ImportRules, apply, make_plan, wait_for_leases
from amo_callback.transfer.json_format import JsonReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from amo_callback.cli.context import CommandContext, OpenedStore
    from amo_callback.crypto import Cipher
    from amo_callback.transfer.export_file import ParsedRecord, RecordError

_MIN_PASSPHRASE = 12
_MAX_SEALED = 1024**3
"""The maximum size of an export, in bytes: about 400,000 connections."""
_MAX_PLAIN = 256 * 1024**2
"""The maximum size of a JSON file from another system, in bytes: about 100,000 connections."""
_MAX_PROBLEMS = 100
"""The maximum number of printed errors."""
_WHY = "exported to another host, which can now refresh these tokens"
_INCOMPLETE = (
    "the export is incomplete, and the database is still frozen: export again, or run `amo-callback connections "
    "thaw --all`"
)
_passphrase_option = click.option(
    "--passphrase-file",
    metavar="FILE",
    type=PATH,
    help="A file whose first line is the passphrase. Default: prompt for the passphrase.",
)


@click.command("export")
@with_context
@click.argument("file", type=PATH)
@_passphrase_option
@click.option(
    "--to-key-file",
    metavar="FILE",
    type=PATH,
    help="A file with the other host's encryption key, used instead of a passphrase.",
)
def export(context: CommandContext, *, file: Path, passphrase_file: Path | None, to_key_file: Path | None) -> None:
    """Export all connections to an encrypted FILE, for another host or database.

    This database is frozen, because the other host will refresh the tokens. Disconnected connections are not exported.
    """
    if passphrase_file and to_key_file:
        raise click.UsageError("--passphrase-file and --to-key-file cannot be combined")
    output.sigterm_as_interrupt()
    with new_file(file) as opened:
        key = _new_file_key(passphrase_file=passphrase_file, key_file=to_key_file)
        writer = ExportWriter(opened, key, file_id=secrets.token_hex(16))
        unreadable = run_loop(_export(context, writer))
    output.echo(
        f"Exported {writer.count:,} connections to {file}. This database is frozen: its tokens are not refreshed."
    )
    if unreadable:
        output.echo(f"Connections not exported, because no key decrypts their token pairs: {', '.join(unreadable)}")
    output.echo(f"Next, run on the other host: amo-callback connections import {file.name}")
    output.echo("After that import, do not thaw this database: if two hosts refresh the same tokens, both lose them.")


async def _export(context: CommandContext, writer: ExportWriter) -> Sequence[str]:
    async with open_as_owner(context) as opened:
        await opened.store.check_machine(context.location)  # detect a copied database before the export freezes it
        store, clock, rescue = opened.store, opened.clock, RescueFolder(context.rescue)
        frozen = await freeze(store, why=_WHY)
        if frozen.why != _WHY:
            output.echo(f"The database was already frozen: {frozen.why}")
        leases = Leases(length=context.settings.refresh.lease, store=store, clock=clock)
        try:
            await wait_until_idle(store, leases=leases, clock=clock, rescue=rescue, report=output.waiting_reporter())
            with output.progress("exported", await store.count()) as advance:
                return await write_export(
                    store, frozen=frozen, cipher=opened.cipher, rescue=rescue, writer=writer, advance=advance
                )
        except BaseException:
            click.echo(f"amo-callback: {_INCOMPLETE}", err=True)
            raise


def _new_file_key(*, passphrase_file: Path | None, key_file: Path | None) -> FileKey:
    """Return the key for a new export, from a key file or a passphrase; raises `CommandFailed`."""
    if key_file is None:
        return key_from_passphrase(_new_passphrase(passphrase_file), salt=secrets.token_bytes(16))
    try:
        return key_of_host(read_text(key_file, CommandFailed).split()[0])
    except (IndexError, ValueError):
        raise CommandFailed(f"{key_file} must begin with one of the other host's encryption keys") from None


def _known_passphrase(file: Path | None) -> str:
    """Return the passphrase from a file or a prompt; raises `CommandFailed`."""
    if file is not None:
        return read_text(file, CommandFailed).split("\n", 1)[0].rstrip("\r")
    if not sys.stdin.isatty():
        raise CommandFailed("cannot ask for the passphrase without a terminal: use --passphrase-file")
    return _ask("Passphrase")


def _new_passphrase(file: Path | None) -> str:
    passphrase = _known_passphrase(file)
    if len(passphrase) < _MIN_PASSPHRASE:
        raise CommandFailed(f"the passphrase must have at least {_MIN_PASSPHRASE} characters")
    if file is None and _ask("Repeat the passphrase") != passphrase:
        raise CommandFailed("the two passphrases differ")
    return passphrase


def _ask(question: str) -> str:
    return str(click.prompt(question, hide_input=True, default="", show_default=False))


# --- import --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Options:
    file: Path
    cipher: Cipher | None
    """The cipher that decrypts an export; `None` for any other file."""
    raw: bool
    replace: bool
    dry_run: bool
    yes: bool


@click.command("import")
@with_context
@yes_option
@click.argument("file", type=PATH)
@click.option(
    "--raw",
    is_flag=True,
    help="FILE is a raw answer from the rescue folder: an AMO response in which the service found no token pair.",
)
@_passphrase_option
@click.option("--replace", is_flag=True, help="Replace a connection's stored tokens if its tokens in FILE differ.")
@click.option("--dry-run", is_flag=True, help="Print the planned changes, and change nothing.")
def import_(context: CommandContext, /, *, file: Path, passphrase_file: Path | None, **options: bool) -> int:
    """Import connections from FILE: an export from another host or database, or another system's tokens as JSON."""
    raw = options["raw"]
    with _opened(file) as opened:
        _check_size(file, opened, MAX_FILE if raw else _MAX_SEALED)
        first_line = opened.readline(MAX_LINE)
        opened.seek(0)
        cipher = None
        if is_export(first_line) and not raw:
            keys = context.encryption_keys
            cipher = cipher_for(first_line, keys=keys, passphrase=lambda: _known_passphrase(passphrase_file))
        if cipher is None:
            _check_size(file, opened, _MAX_PLAIN)
        return run_loop(_import(context, opened, _Options(file=file, cipher=cipher, **options)))


def _opened(path: Path) -> IO[bytes]:
    try:
        return os.fdopen(open_regular(path), "rb")
    except OSError as error:
        raise CommandFailed(f"cannot read {path}: {error.strerror}") from None


def _check_size(path: Path, file: IO[bytes], limit: int) -> None:
    if os.fstat(file.fileno()).st_size > limit:
        raise CommandFailed(f"cannot import {path}: larger than {limit // 1024**2} MiB")


async def _import(context: CommandContext, file: IO[bytes], options: _Options) -> int:
    async with open_as_owner(context, create=True) as opened:
        amo = context.settings.amo
        rules = ImportRules(
            client_id=amo.client_id,
            allowed_domains=amo.allowed_domains,
            allowed_accounts=amo.allowed_accounts,
            replace=options.replace or options.raw,
        )
        arrivals = await _read(file, opened, options)
        with output.progress("read") as advance:
            plan = await make_plan(_counted(arrivals, advance), store=opened.store, cipher=opened.cipher, rules=rules)
        if plan.problems:
            _refuse(plan.problems)
            return 1
        _show_plan(plan, is_plain=options.cipher is None and not options.raw)
        if options.dry_run or not (plan.new or plan.replaced):
            return 0
        if not output.confirm("Import these connections?", yes=options.yes):
            output.echo("Nothing was changed.")
            return 1
        source = "a raw answer from AMO" if options.raw else "plain JSON" if options.cipher is None else "an export"
        status = await _carry_out(plan, opened, source=source)
        if options.raw and status == 0:
            # Delete the rescue file, because the service does not detect that its pair was imported.
            options.file.unlink(missing_ok=True)
        return status


async def _read(file: IO[bytes], opened: OpenedStore, options: _Options) -> Iterable[ParsedRecord | RecordError]:
    if options.cipher is not None:
        return read_export(file, cipher=options.cipher)
    amo = opened.context.settings.amo
    claims_of = partial(token_claims, allowed=amo.allowed_domains)
    reader = JsonReader(claims_of=claims_of, client_id=amo.client_id, now=opened.clock.now())
    if not options.raw:
        return reader.read_file(file.read(_MAX_PLAIN))
    name, content = options.file.name, file.read(MAX_FILE)
    return [await reader.read_raw(name, content, store=opened.store, cipher=opened.cipher)]


def _counted(
    arrivals: Iterable[ParsedRecord | RecordError], advance: Callable[[int], None]
) -> Iterator[ParsedRecord | RecordError]:
    for number, source in enumerate(arrivals, start=1):
        advance(number)
        yield source


def _refuse(problems: Sequence[RecordError]) -> None:
    for problem in problems[:_MAX_PROBLEMS]:
        click.echo(f"{problem.place}: {problem.why}", err=True)
    if len(problems) > _MAX_PROBLEMS:
        click.echo("…", err=True)
    click.echo(f"amo-callback: nothing was changed; problems found in the file: {len(problems):,}", err=True)


def _show_plan(plan: ImportPlan, *, is_plain: bool) -> None:
    coming = [*plan.new, *(record for record, _ in plan.replaced)]
    lines = {
        "new": len(plan.new),
        "replaced": len(plan.replaced),
        "already stored, skipped": plan.same,
        "skipped, because the stored tokens are newer": plan.newer,
        "with an owner; owners are not imported: a user becomes an owner by connecting in the app": plan.owned,
        "without a refresh token: usable only until the access token expires": sum(
            not one.refresh_token for one in coming
        ),
        "frozen individually: they stay frozen until thawed": sum(one.frozen for one in coming),
    }
    for what, number in lines.items():
        if number or what == "new":
            output.echo(f"{number:>9,}  {what}")
    if is_plain and coming:
        output.echo(
            "The other system must stop refreshing these tokens: if two systems refresh one token, both lose it."
        )


async def _carry_out(plan: ImportPlan, opened: OpenedStore, *, source: str) -> int:
    total = len(plan.new) + len(plan.replaced)
    store, rules = opened.store, opened.context.settings.refresh.rules
    leases = Leases(length=rules.lease, store=store, clock=opened.clock)
    await wait_for_leases(plan, store=store, leases=leases, clock=opened.clock, report=output.waiting_reporter())
    with output.progress("imported", total) as advance:
        left = await apply(
            plan,
            store=store,
            cipher=opened.cipher,
            rules=rules,
            random=random.random,
            source=source,
            advance=advance,
        )
    output.echo(f"Imported {total - len(left):,} connections.")
    if frozen := await store.frozen():
        output.echo(f"This database is frozen ({frozen.why}), so the imported connections are not refreshed yet.")
        output.echo("Once no other host uses these tokens, run `amo-callback connections thaw --all`.")
    for name in left:
        click.echo(f"{name}: not replaced, because it changed during the import or is being refreshed", err=True)
    return 1 if left else 0
