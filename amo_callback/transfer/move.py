"""Move: all that is in one database goes into another one, as it is, and lives there from then on.

It compares both, key by key, and writes what differs, over and over until there is nothing left to write. So it may be
broken off at any moment and run again, what is refreshed meanwhile arrives, and the last look is the proof. The new
database is frozen until then, the old one from when most is there: at no moment may both spend the same tokens.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from amo_callback.errors import CommandFailed, DecryptionFailed, StoreUnavailable
from amo_callback.moving import Table, Target, compare
from amo_callback.sealing import Kind
from amo_callback.transfer.export import freeze, none_unsaved, until_quiet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from amo_callback.cipher import Cipher
    from amo_callback.custody.leases import Leases
    from amo_callback.model import Freeze
    from amo_callback.moving import Record
    from amo_callback.ports import Clock, RescueFiles, Store
    from amo_callback.sealing import Sealed

PAGE = 1000
"""Rows that are compared, and written, at once."""
PASSES = 10
"""Looks at everything, once it is frozen, before somebody is taken to write all the time."""
_NAMED = 20
WHY = "moved to another database: what lives there must not be spent here"

_REFUSALS = {
    Target.DONE: "all of it was moved there already: set storage.url to the new database",
    Target.TAKEN: "the new database holds something already: a move goes into one of its own, and replaces nothing",
    Target.THAWED: (
        "a move there was begun, and the new database was thawed before its end: what it holds may have been spent, so "
        "it is not written over. If nothing works with it, empty it, or take another one"
    ),
}


class Listener(Protocol):
    """Who tells a person how far it is."""

    def progress(self, label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Return who hears how many of so many are done."""

    def waiting(self, left: float) -> None:
        """Hear for how many seconds at most it waits for refreshes that are under way."""

    def frozen(self, frozen: Freeze) -> None:
        """Hear how the old database is frozen, from now on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One of the two databases, and the name of the place where this process believes it to be."""

    store: Store
    machine: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """What is in the new database."""

    counts: Mapping[Table, int]
    unreadable: Sequence[str]
    """Connections whose pair no key opens, as it was in the old one."""
    frozen: Freeze | None
    """Why the new one is frozen: because the old one was, before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pass:
    """What one look at everything has found."""

    written: int
    left: Sequence[str]
    """Connections that were changed in the new database while it was written."""


class Move:
    """One move."""

    def __init__(self, *, old: Side, new: Side, cipher: Cipher, source: str) -> None:
        self._old = old.store
        self._new = new.store
        self._machine = new.machine
        self._cipher = cipher
        self._source = source

    async def run(self, *, leases: Leases, clock: Clock, rescue: RescueFiles, listener: Listener) -> Moved:
        """Move everything; raises `CommandFailed`."""
        with _told("new"):
            _refuse(await self._new.begin_coming(self._source))
        await self._pass("copied", listener)  # most of it, before it is frozen: so that it is not for long
        with _told("old"):
            frozen = await self._old.leave(await freeze(self._old, why=WHY))
            listener.frozen(frozen)
            await until_quiet(self._old, leases=leases, clock=clock, rescue=rescue, tell=listener.waiting)
        await self._until_same(listener)
        counts = await self._count()
        unreadable = await self._unreadable(listener, counts[Table.CONNECTIONS])
        none_unsaved(rescue)
        with _told("old"):
            if await self._old.frozen() != frozen:
                raise CommandFailed("the old database was thawed meanwhile: what was read may be spent by now")
        stays = None if frozen.why == WHY else frozen
        with _told("new"):
            await self._new.end_coming(source=self._source, machine=self._machine, frozen=stays)
        return Moved(counts=counts, unreadable=unreadable, frozen=stays)

    async def _until_same(self, listener: Listener) -> None:
        left: Sequence[str] = ()
        for _ in range(PASSES):
            found = await self._pass("compared", listener)
            if not (found.written or found.left):
                return
            if again := sorted({*left} & {*found.left}):
                raise CommandFailed(
                    f"these are later ones in the new database than in the old one, so they are not written over: "
                    f"{some(again)}. If nothing works with them, empty it, or take another one"
                )
            left = found.left
        raise CommandFailed("something goes on writing to one of the databases: stop whatever works with them")

    async def _pass(self, label: str, listener: Listener) -> _Pass:
        """Look at everything once, and write what differs."""
        with _told("old"):
            total = sum((await self._old.count_records()).values())
        done = written = 0
        left: list[str] = []
        with listener.progress(label, total) as advance:
            for table in Table:
                async for compared, wrote, others in self._table(table):
                    done, written = done + compared, written + wrote
                    left += others
                    advance(done)
        return _Pass(written=written, left=left)

    async def _table(self, table: Table) -> AsyncIterator[tuple[int, int, Sequence[str]]]:
        """Go through one table; tell of each stretch how many rows were compared and written, and who was left."""
        after = None
        while True:
            with _told("old", table):
                here = await self._old.records(table, after=after, limit=PAGE)
            with _told("new", table):
                there = await self._new.records(table, after=after, limit=PAGE)
                step, compared, after = compare(table, here, there, limit=PAGE)
                if table is Table.CONNECTIONS and step.gone:
                    raise CommandFailed(
                        f"the new database has connections that the old one has not: {_names(step.gone)}"
                    )
                left = await self._new.take_over(step, source=self._source) if len(step) else ()
            yield len(compared), len(step) - len(left), [str(record.key[0]) for record in left]
            if after is None:
                return

    async def _count(self) -> Mapping[Table, int]:
        """Count both once more, without comparing: nothing is believed that only one way of looking has told."""
        with _told("old"):
            here = await self._old.count_records()
        with _told("new"):
            there = await self._new.count_records()
        if here != there:
            raise CommandFailed("the two databases do not hold the same number of records: something writes to one")
        return there

    async def _unreadable(self, listener: Listener, total: int) -> Sequence[str]:
        """Return the connections in the new database whose pair no key opens."""
        found, done, after = [], 0, ""
        with listener.progress("opened", total) as advance:
            while True:
                with _told("new"):
                    page = await self._new.sealed(Kind.CONNECTION, after=after, limit=PAGE)
                for one in page:
                    try:
                        self._cipher.open(one.content, bound_to=one.place)
                    except DecryptionFailed:
                        found.append(one.name)
                if not page:
                    return found
                after, done = page[-1].name, done + len(page)
                advance(done)


async def prepare(*, old: Side, new: Side, cipher: Cipher) -> Move:
    """Return the move from one database into another one, if that may be; changes nothing. Raises `CommandFailed`."""
    with _told("old"):
        source = await old.store.place(old.machine)
        if await old.store.coming():
            raise CommandFailed(
                "the old database is the unfinished target of a move itself: set storage.url to where that comes from, "
                "and end it first"
            )
    with _told("new"):
        if await new.store.place(new.machine) == source:
            raise CommandFailed("that is the database which storage.url names: there is nothing to move")
        target = await new.store.target(source)
        _refuse(target)
        for canary in await new.store.sealed(Kind.CANARY, after="", limit=1):
            _check_keys(canary, cipher, target)
    return Move(old=old, new=new, cipher=cipher, source=source)


def _check_keys(canary: Sealed, cipher: Cipher, target: Target) -> None:
    """Refuse a new database whose keys are not ours; what a move has begun is written anew with all the rest."""
    try:
        cipher.check_canary(canary.content)
    except DecryptionFailed:
        if target is Target.NEW:
            raise CommandFailed(
                "none of storage.encryption_keys opens the new database: it is another service's"
            ) from None


def _refuse(target: Target) -> None:
    if target in _REFUSALS:
        raise CommandFailed(_REFUSALS[target])


@contextmanager
def _told(which: str, table: Table | None = None) -> Iterator[None]:
    """Say which database it is that cannot be used."""
    try:
        yield
    except StoreUnavailable as error:
        where = f"the {which} database" + (f" ({table})" if table else "")
        raise CommandFailed(f"{where} cannot be read or written at the moment: {error.detail}") from None


def _names(records: Sequence[Record]) -> str:
    return some([str(record.key[0]) for record in records])


def some(names: Sequence[str]) -> str:
    """Return names as a person reads them: the first of them, and how many others there are."""
    others = len(names) - _NAMED
    return ", ".join([*names[:_NAMED], *([f"{others:,} others"] if others > 0 else [])])
