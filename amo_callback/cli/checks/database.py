"""The database file: there, whole, of our version, opened by our keys, and free to work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.cli.checks.contents import Pairs, freezing, newer, other_keys, usable
from amo_callback.cli.checks.finding import Finding, fail, ok, warn
from amo_callback.custody.rescue import Rescue
from amo_callback.store.files import check_files
from amo_callback.store.inspection import open_inspection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from amo_callback.cli.local import Place
    from amo_callback.store.inspection import Inspection

    ProgressOf = Callable[[int], AbstractContextManager[Callable[[int], None]]]
    """Shows how many are done of so many."""


def check_database(file: Path, *, keys: Sequence[str], machine: str, progress: ProgressOf) -> Iterator[Finding]:
    """Look into the database without making, upgrading or writing one.

    `machine` is the name of this place; `progress` shows how many pairs are opened.
    """
    if not file.exists():
        yield _missing(file)
        return
    try:
        check_files(file)
    except OSError as error:
        yield fail("store", f"{file}: {error.strerror}", fix="mend storage.url, or remove what lies there")
        return
    with open_inspection(file) as inspected:
        yield _state(inspected, file)
        if not 0 < inspected.schema() <= inspected.known_schema:
            return
        yield other_keys(keys, inspected.canary()) or _pairs(inspected, keys, progress)
        yield freezing(inspected.frozen(), served=inspected.machine(), here=machine)


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


def _missing(file: Path) -> Finding:
    folder = file.parent
    if not folder.is_dir():
        return fail("store", f"there is no folder {folder}", fix="make it, or mend storage.url")
    return warn(
        "store",
        f"there is no database {file}",
        fix="`amo-callback serve` makes it; if there was one: is storage.url, or $STATE_DIRECTORY, the service's?",
    )


def _state(inspected: Inspection, file: Path) -> Finding:
    schema, known = inspected.schema(), inspected.known_schema
    if schema == 0:
        return fail("store", f"{file} is no database of amo-callback", fix="mend storage.url")
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
    return pairs.told()
