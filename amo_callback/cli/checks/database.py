"""The database: there, whole, of this version, decrypted by our keys, not frozen; and the rescue folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.cli.checks.finding import Finding, fail, ok, warn
from amo_callback.clock import rfc3339
from amo_callback.crypto import Cipher
from amo_callback.errors import DecryptionFailed
from amo_callback.refresh.rescue import RescueFolder
from amo_callback.store.backup import check_files
from amo_callback.store.inspection import open_inspection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from amo_callback.cli.context import CommandContext
    from amo_callback.model import Freeze
    from amo_callback.store.inspection import Inspection, SealedPair

    ProgressOf = Callable[[int], AbstractContextManager[Callable[[int], None]]]
    """Shows how many are done of so many."""

_NAMED = 5
"""Connections that are named."""
_THAW = "amo-callback connections thaw --all"


def check_database(file: Path, *, keys: Sequence[str], machine: str, progress: ProgressOf) -> Iterator[Finding]:
    """Check the database file; nothing is created, upgraded or written.

    `machine` is the name of this place; `progress` shows how many pairs are opened.
    """
    if not file.exists():
        yield _missing(file)
        return
    try:
        check_files(file)
    except OSError as error:
        yield fail("store", f"{file}: {error.strerror}", fix="correct storage.url, or remove what is there")
        return
    with open_inspection(file) as inspected:
        yield _state(inspected, file)
        if not 0 < inspected.schema() <= inspected.known_schema:
            return
        yield other_keys(keys, inspected.canary()) or _pairs(inspected, keys, progress)
        yield freezing(inspected.frozen(), served=inspected.machine(), here=machine)


def check_rescue(context: CommandContext) -> Iterator[Finding]:
    """Check whether unsaved token pairs wait in the rescue folder."""
    waiting = RescueFolder(context.rescue).read()
    if waiting:
        yield warn(
            "rescue",
            f"{len(waiting)} unsaved token pairs in {context.rescue}: the database has not taken them",
            fix="leave them: the service stores them once the disk has room; if they stay, see its log",
        )
    else:
        yield ok("rescue", f"no unsaved token pairs in {context.rescue}")


def _missing(file: Path) -> Finding:
    folder = file.parent
    if not folder.is_dir():
        return fail("store", f"there is no folder {folder}", fix="create it, or correct storage.url")
    return warn(
        "store",
        f"there is no database {file}",
        fix="`amo-callback serve` makes it; if there was one: is storage.url, or $STATE_DIRECTORY, the service's?",
    )


def _state(inspected: Inspection, file: Path) -> Finding:
    schema, known = inspected.schema(), inspected.known_schema
    if schema == 0:
        return fail("store", f"{file} is no database of amo-callback", fix="correct storage.url")
    if schema > known:
        return newer(file, schema, known)
    if not inspected.is_whole():
        return fail(
            "store", f"{file} is damaged", fix="stop the service, and restore a backup: amo-callback restore FILE"
        )
    upgrade = "start this version of the service: it keeps a copy, and upgrades"
    return usable(file, schema, known, count=inspected.count(), upgrade=upgrade)


def _pairs(inspected: Inspection, keys: Sequence[str], progress: ProgressOf) -> Finding:
    pairs = Pairs(keys)
    with progress(inspected.count()) as advance:
        for pair in inspected.pairs():
            advance(pairs.open(pair))
    return pairs.finding()


# --- the contents, of either engine ----------------------------------------------------------------


def newer(name: object, schema: int, known: int) -> Finding:
    """Return a finding for a schema that is newer than ours."""
    return fail(
        "store",
        f"{name} is of a newer amo-callback (schema {schema}, known here: {known})",
        fix="install that version, or restore an older backup",
    )


def usable(name: object, schema: int, known: int, *, count: int, upgrade: str) -> Finding:
    """Return a finding for a usable schema; `upgrade` is the fix for an older one."""
    message = f"{name}, {count:,} connections"
    if schema < known:
        return warn("store", f"{message}: schema {schema}, this version's is {known}", fix=upgrade)
    return ok("store", f"{message}, schema {schema}")


def other_keys(keys: Sequence[str], canary: bytes | None) -> Finding | None:
    """Return a finding where no key decrypts the canary; else `None`."""
    if canary is None:
        return None
    try:
        Cipher(keys).check_canary(canary)
    except DecryptionFailed:
        return fail(
            "keys",
            "none of storage.encryption_keys opens this database: the service does not start",
            fix="give the keys that it was written with; or is it another installation's database?",
        )
    return None


class Pairs:
    """Open every pair; of each only whether it opens is kept."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._newest, self._every = Cipher(keys[:1]), Cipher(keys)
        self._one_key = len(keys) == 1
        self._older, self._unreadable, self._some = 0, 0, list[str]()
        self.done = 0

    def open(self, pair: SealedPair) -> int:
        """Open one; return how many have been so far."""
        if not _opens(self._newest, pair):
            if not self._one_key and _opens(self._every, pair):
                self._older += 1
            else:
                self._unreadable += 1
                self._some += [pair.connection_id] if len(self._some) < _NAMED else []
        self.done += 1
        return self.done

    def finding(self) -> Finding:
        """Return the finding for all pairs."""
        if self._unreadable:
            named = ", ".join(self._some) + (", …" if self._unreadable > len(self._some) else "")
            return fail(
                "keys",
                f"no key opens {self._unreadable:,} of {self.done:,} pairs: {named}",
                fix="give back the key that they were sealed with; "
                "where it is lost, their people have to connect again",
            )
        message = f"open all {self.done:,} pairs" if self.done else "fit; there are no pairs yet"
        return ok("keys", f"{message}; {self._older:,} still need an older key: keep it" if self._older else message)


def _opens(cipher: Cipher, pair: SealedPair) -> bool:
    try:
        cipher.open_tokens(pair.sealed or b"", connection_id=pair.connection_id)
    except (DecryptionFailed, ValueError, KeyError):
        return False
    return True


def freezing(frozen: Freeze | None, *, served: str | None, here: str) -> Finding:
    """Return whether it is frozen, or will be: it was last `served` at a location, and is `here`."""
    if frozen is not None:
        return warn(
            "frozen",
            f"no token is refreshed since {rfc3339(frozen.at)}: {frozen.why}",
            fix=f"once nothing else uses these tokens: {_THAW}",
        )
    if served is not None and served != here:
        return warn(
            "frozen",
            "it was last served at another location (machine, folder or server): it will be frozen when it is "
            "served here",
            fix=f"serve it where it was; or, once nothing else uses these tokens: {_THAW}",
        )
    return ok("frozen", "not frozen")
