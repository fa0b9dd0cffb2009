"""`amo-callback connections export` and `import`."""

from __future__ import annotations

import os
import random
import secrets
import sys
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from amo_callback.amo.claims import told_by
from amo_callback.cli.local import acting_as_owner, add_config, find_place, open_local
from amo_callback.cli.loop import run_loop
from amo_callback.cli.passphrase import known_passphrase, new_lock
from amo_callback.cli.progress import Progress
from amo_callback.cli.terminal import end_tidily, is_agreed, say, waiting
from amo_callback.custody.leases import Leases
from amo_callback.custody.rescue import MAX_FILE, Rescue
from amo_callback.disk import open_regular
from amo_callback.errors import CommandFailed
from amo_callback.transfer.bring import Plan, Rules, carry_out, make_plan, until_settled
from amo_callback.transfer.export import export, freeze, until_quiet
from amo_callback.transfer.files import new_file
from amo_callback.transfer.plain import read_plain
from amo_callback.transfer.raw import read_raw
from amo_callback.transfer.sealed import (
    MAX_LINE,
    SealedWriter,
    is_sealed,
    open_lock,
    read_sealed,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from amo_callback.cipher import Cipher
    from amo_callback.cli.local import Local, Place
    from amo_callback.clock import Clock
    from amo_callback.model import Freeze
    from amo_callback.transfer.export import Exported
    from amo_callback.transfer.record import Arrival, Problem
    from amo_callback.transfer.sealed import Lock

_MAX_SEALED = 1024**3
_MAX_PLAIN = 256 * 1024**2
"""Bytes of a file: some four hundred thousand connections, some hundred thousand of another system's."""
_TOLD = 100
"""Problems that are printed at most."""
_WHY = "exported to another host: what lives there must not be spent here"


def add_to(connections: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to the parser."""
    exporting = connections.add_parser(
        "export", help="write all to a sealed FILE for another host, and freeze them here"
    )
    add_config(exporting)
    exporting.add_argument("file", metavar="FILE", type=Path)
    sealed_with = exporting.add_mutually_exclusive_group()
    sealed_with.add_argument("--passphrase-file", metavar="FILE", type=Path, help="its first line; default: asked for")
    sealed_with.add_argument("--to-key-file", metavar="FILE", type=Path, help="the other host's encryption key")
    exporting.set_defaults(run=_run_export)
    importing = connections.add_parser("import", help="take in an export, or another system's tokens in plain JSON")
    add_config(importing)
    importing.add_argument("file", metavar="FILE", type=Path)
    importing.add_argument(
        "--raw", action="store_true", help="FILE is an answer of AMO's from the rescue folder that could not be read"
    )
    importing.add_argument("--passphrase-file", metavar="FILE", type=Path, help="its first line; default: asked for")
    importing.add_argument("--replace", action="store_true", help="also over other tokens of the same connection")
    importing.add_argument("--dry-run", action="store_true", help="say what it would do, and change nothing")
    importing.add_argument("--yes", action="store_true", help="do not ask")
    importing.set_defaults(run=_run_import)


# --- export --------------------------------------------------------------------------------------


def _run_export(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    place = find_place(options, environ)
    end_tidily()
    with new_file(options.file) as file:
        lock = new_lock(passphrase_file=options.passphrase_file, key_file=options.to_key_file)
        with acting_as_owner(place.owned):
            exported = run_loop(_export(place, file, lock))
    say(f"{options.file}: {exported.count:,} connections, sealed. From now on nothing of this database is spent.")
    if exported.unreadable:
        say(f"Not in it, for no key opens their pairs: {', '.join(exported.unreadable)}")
    say(f"Next, on the other host: amo-callback connections import {options.file.name}")
    say("Do not thaw here once they are there: tokens that two hosts refresh are lost to both.")
    return 0


async def _export(place: Place, file: IO[bytes], lock: Lock) -> Exported:
    async with open_local(place) as local:
        await local.store.check_machine(place.machine)  # a copy says so, before it is frozen by us
        frozen = await freeze(local.store, why=_WHY)
        if frozen.why != _WHY:
            say(f"Was frozen already: {frozen.why}")
        try:
            return await _write(local, frozen, SealedWriter(file, lock, file_id=secrets.token_hex(16)))
        except BaseException:
            print(
                "amo-callback: it stays frozen; export again, or: amo-callback connections thaw --all", file=sys.stderr
            )
            raise


async def _write(local: Local, frozen: Freeze, writer: SealedWriter) -> Exported:
    store, clock, rescue = local.store, local.clock, Rescue(local.place.rescue)
    leases = Leases(length=local.place.settings.refresh.lease, store=store, clock=clock)
    await until_quiet(store, leases=leases, clock=clock, rescue=rescue, tell=_waiting())
    with _progress("exported", clock, total=await store.count()) as advance:
        return await export(store, frozen=frozen, cipher=local.cipher, rescue=rescue, writer=writer, advance=advance)


def _waiting() -> Callable[[float], None]:
    """Return who tells of the wait, once."""
    told = False

    def tell(left: float) -> None:
        nonlocal told
        if not told:
            say(waiting(left))
        told = True

    return tell


# --- import --------------------------------------------------------------------------------------


def _run_import(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    place = find_place(options, environ)
    with _opened(options.file) as file:
        _check_size(options.file, file, MAX_FILE if options.raw else _MAX_SEALED)
        first_line = file.readline(MAX_LINE)
        file.seek(0)
        cipher = None
        if is_sealed(first_line) and not options.raw:
            keys = place.settings.storage.encryption_keys.get_secret_value().split()
            cipher = open_lock(first_line, keys=keys, passphrase=lambda: known_passphrase(options.passphrase_file))
        if cipher is None:
            _check_size(options.file, file, _MAX_PLAIN)
        with acting_as_owner(place.owned):
            return run_loop(_import(place, file, cipher, options))


def _opened(path: Path) -> IO[bytes]:
    try:
        return os.fdopen(open_regular(path), "rb")
    except OSError as error:
        raise CommandFailed(f"{path}: cannot be read: {error.strerror}") from None


def _check_size(path: Path, file: IO[bytes], limit: int) -> None:
    if os.fstat(file.fileno()).st_size > limit:
        raise CommandFailed(f"{path}: is longer than {limit // 1024**2} MiB")


async def _import(place: Place, file: IO[bytes], cipher: Cipher | None, options: argparse.Namespace) -> int:
    async with open_local(place, make=True) as local:
        amo = place.settings.amo
        if options.raw:
            arrivals: Iterable[Arrival | Problem] = [await _read_raw(options.file.name, file, local)]
        elif cipher is None:
            arrivals = _read_plain(file, place, local.clock)
        else:
            arrivals = read_sealed(file, cipher=cipher)
        rules = Rules(
            client_id=amo.client_id,
            allowed_domains=amo.allowed_domains,
            allowed_accounts=amo.allowed_accounts,
            replace=options.replace or options.raw,
        )
        with _progress("read", local.clock) as advance:
            plan = await make_plan(_counted(arrivals, advance), store=local.store, cipher=local.cipher, rules=rules)
        if plan.problems:
            _refuse(plan.problems)
            return 1
        _tell_plan(plan, plain=cipher is None and not options.raw)
        if options.dry_run or not (plan.new or plan.replaced):
            return 0
        if not (options.yes or _agreed()):
            say("Nothing was changed.")
            return 1
        source = "a raw answer" if options.raw else "plain JSON" if cipher is None else "an export"
        status = await _carry_out(plan, local, source=source)
        if options.raw and status == 0:
            options.file.unlink(missing_ok=True)  # it is stored, and the service may not know what an exchange brought
        return status


async def _read_raw(name: str, file: IO[bytes], local: Local) -> Arrival | Problem:
    amo = local.place.settings.amo
    return await read_raw(
        name,
        file.read(MAX_FILE),
        store=local.store,
        cipher=local.cipher,
        tell=partial(told_by, allowed=amo.allowed_domains),
        client_id=amo.client_id,
        now=local.clock.now(),
    )


def _read_plain(file: IO[bytes], place: Place, clock: Clock) -> Iterator[Arrival | Problem]:
    amo = place.settings.amo
    tell = partial(told_by, allowed=amo.allowed_domains)
    return read_plain(file.read(_MAX_PLAIN), tell=tell, client_id=amo.client_id, now=clock.now())


def _counted(arrivals: Iterable[Arrival | Problem], advance: Callable[[int], None]) -> Iterator[Arrival | Problem]:
    for number, arrival in enumerate(arrivals, start=1):
        advance(number)
        yield arrival


def _refuse(problems: Sequence[Problem]) -> None:
    for problem in problems[:_TOLD]:
        print(f"{problem.place}: {problem.why}", file=sys.stderr)
    if len(problems) > _TOLD:
        print("…", file=sys.stderr)
    print(f"amo-callback: {len(problems):,} problems; nothing was changed", file=sys.stderr)


def _tell_plan(plan: Plan, *, plain: bool) -> None:
    coming = [*plan.new, *(record for record, _ in plan.replaced)]
    lines = {
        "new": len(plan.new),
        "replaced": len(plan.replaced),
        "here already, skipped": plan.same,
        "here already with later tokens, kept": plan.newer,
        "with an owner: owners are bound when the user connects in the app": plan.owned,
        "without a refresh token: they end with their access token": sum(not one.refresh_token for one in coming),
        "frozen by themselves: they stay so until thawed": sum(one.frozen for one in coming),
    }
    for what, number in lines.items():
        if number or what == "new":
            say(f"{number:>9,}  {what}")
    if plain and coming:
        say("The system that they come from must not refresh them any more: what two systems refresh is lost to both.")


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise CommandFailed("there is no terminal to ask on: say --yes; nothing was changed")
    return is_agreed("Import them?")


async def _carry_out(plan: Plan, local: Local, *, source: str) -> int:
    total = len(plan.new) + len(plan.replaced)
    leases = Leases(length=local.place.settings.refresh.lease, store=local.store, clock=local.clock)
    await until_settled(plan, store=local.store, leases=leases, clock=local.clock, tell=_waiting())
    with _progress("imported", local.clock, total=total) as advance:
        left = await carry_out(
            plan,
            store=local.store,
            cipher=local.cipher,
            rules=local.place.settings.refresh.rules,
            random=random.random,
            source=source,
            advance=advance,
        )
    say(f"Imported {total - len(left):,} connections.")
    if frozen := await local.store.frozen():
        say(f"This database is frozen, so they are not refreshed yet: {frozen.why}")
    for name in left:
        print(f"{name}: changed meanwhile, or is being refreshed: left as it is", file=sys.stderr)
    return 1 if left else 0


# --- the terminal --------------------------------------------------------------------------------


def _progress(label: str, clock: Clock, *, total: int | None = None) -> Progress:
    return Progress(label, total=total, stream=sys.stderr, monotonic=clock.monotonic)
