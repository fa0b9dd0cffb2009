"""The database: there, whole, of our version, opened by our keys, and free to work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.cipher import Cipher
from amo_callback.cli.checks.finding import Finding, fail, ok, warn
from amo_callback.clock import rfc3339
from amo_callback.custody.rescue import Rescue
from amo_callback.errors import Unreadable
from amo_callback.store.inspection import open_inspection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from amo_callback.cli.local import Place
    from amo_callback.store.inspection import Inspection, SealedPair

    ProgressOf = Callable[[int], AbstractContextManager[Callable[[int], None]]]
    """Shows how many are done of so many."""

_NAMED = 5
_THAW = "amo-callback connections thaw --all"


def check_database(place: Place, *, machine: str, progress: ProgressOf) -> Iterator[Finding]:
    """Look into the database without making, upgrading or writing one.

    `machine` is the name of this place; `progress` shows how many pairs are opened.
    """
    if not place.database.exists():
        yield _missing(place)
        return
    with open_inspection(place.database) as inspected:
        found = _state(inspected, place)
        yield found
        if not 0 < inspected.schema() <= inspected.known_schema:
            return
        yield from _keys(inspected, place, progress)
        yield _frozen(inspected, machine)


def check_rescue(place: Place) -> Iterator[Finding]:
    """Look whether pairs wait that the store did not take."""
    waiting = Rescue(place.rescue).read()
    if waiting:
        yield warn(
            "rescue",
            f"{len(waiting)} files wait in {place.rescue}: pairs that the store did not take",
            fix="leave them there: the service stores them once the disk has room; if they stay, see its log",
        )
    else:
        yield ok("rescue", f"nothing waits in {place.rescue}")


def _missing(place: Place) -> Finding:
    folder = place.database.parent
    if not folder.is_dir():
        return fail("store", f"there is no folder {folder}", fix="make it, or mend storage.url")
    return warn(
        "store",
        f"there is no database {place.database}",
        fix="`amo-callback serve` makes it; if there was one: is storage.url, or $STATE_DIRECTORY, the service's?",
    )


def _state(inspected: Inspection, place: Place) -> Finding:
    schema, known = inspected.schema(), inspected.known_schema
    if schema == 0:
        return fail("store", f"{place.database} is no database of amo-callback", fix="mend storage.url")
    if schema > known:
        return fail(
            "store",
            f"{place.database} is of a newer amo-callback (schema {schema}, known here: {known})",
            fix="install that version, or restore an older backup",
        )
    if not inspected.is_whole():
        return fail(
            "store",
            f"{place.database} is damaged",
            fix="stop the service, and restore a backup: amo-callback restore FILE",
        )
    told = f"{place.database}, {inspected.count():,} connections"
    if schema < known:
        return warn(
            "store",
            f"{told}: schema {schema}, this version's is {known}",
            fix="start this version of the service: it keeps a copy, and upgrades",
        )
    return ok("store", f"{told}, schema {schema}")


def _keys(inspected: Inspection, place: Place, progress: ProgressOf) -> Iterator[Finding]:
    keys = place.settings.storage.encryption_keys.get_secret_value().split()
    canary = inspected.canary()
    if canary is not None:
        try:
            Cipher(keys).check_canary(canary)
        except Unreadable:
            yield fail(
                "keys",
                "none of storage.encryption_keys opens this database: the service does not start",
                fix="give the keys that it was written with; or is it another installation's database?",
            )
            return
    yield _pairs(inspected, keys, progress)


def _pairs(inspected: Inspection, keys: list[str], progress: ProgressOf) -> Finding:
    """Open every pair; of each only whether it opens is kept."""
    newest, every = Cipher(keys[:1]), Cipher(keys)
    older, unreadable, some, done = 0, 0, list[str](), 0
    with progress(inspected.count()) as advance:
        for pair in inspected.pairs():
            if not _opens(newest, pair):
                if len(keys) > 1 and _opens(every, pair):
                    older += 1
                else:
                    unreadable += 1
                    some += [pair.connection_id] if len(some) < _NAMED else []
            done += 1
            advance(done)
    if unreadable:
        named = ", ".join(some) + (", …" if unreadable > len(some) else "")
        return fail(
            "keys",
            f"no key opens {unreadable:,} of {done:,} pairs: {named}",
            fix="give back the key that they were sealed with; where it is lost, their people have to connect again",
        )
    told = f"open all {done:,} pairs" if done else "fit; there are no pairs yet"
    return ok("keys", f"{told}; {older:,} still need an older key: keep it" if older else told)


def _opens(cipher: Cipher, pair: SealedPair) -> bool:
    try:
        cipher.open_pair(pair.sealed or b"", connection_id=pair.connection_id)
    except (Unreadable, ValueError, KeyError):
        return False
    return True


def _frozen(inspected: Inspection, here: str) -> Finding:
    frozen, machine = inspected.frozen(), inspected.machine()
    if frozen is not None:
        return warn(
            "frozen",
            f"nothing is spent since {rfc3339(frozen.at)}: {frozen.why}",
            fix=f"once nobody else works with these tokens: {_THAW}",
        )
    if machine is not None and machine != here:
        return warn(
            "frozen",
            "it was last served on another machine or in another folder: it will be frozen when it is served here",
            fix=f"serve it where it was; or, once nobody else works with these tokens: {_THAW}",
        )
    return ok("frozen", "nothing is")
