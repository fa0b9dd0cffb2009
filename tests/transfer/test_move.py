"""Move: all of it arrives, whatever happens meanwhile, and at no moment may two databases spend the same tokens."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from amo_callback.brought import Brought
from amo_callback.cipher import Cipher, new_key
from amo_callback.custody.leases import Leases
from amo_callback.errors import CommandFailed, Frozen, StoreUnavailable
from amo_callback.event import Event, happened
from amo_callback.grant import GrantStatus, IssuedState
from amo_callback.model import Freeze, Reason, Status, TokenPair
from amo_callback.moving import Table
from amo_callback.store import open_store
from amo_callback.transfer import move as moves
from amo_callback.transfer.move import PAGE, WHY, Move, Moved, Side, prepare
from tests.builders import DAY, a_claim, a_connection, a_grant, a_refreshed, a_verdict, now
from tests.fakes import START, FakeClock, Instead, MemoryRescue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
    from pathlib import Path

    from amo_callback.model import Connection
    from amo_callback.moving import Key, Record
    from amo_callback.store import Store

LEASE = 60.0
MINUTE = timedelta(minutes=1)
YEARS = 9000 * DAY
ANY_ENGINE = pytest.mark.parametrize("either", ["sqlite"], indirect=True)
"""For what no engine has a part in: a database of the other one takes its time."""


@dataclass(kw_only=True, slots=True)
class Person:
    """Who hears how far it is; what a test wants done before a look at everything is done then."""

    labels: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    told: list[Freeze] = field(default_factory=list)

    @contextmanager
    def progress(self, label: str, _total: int) -> Iterator[Callable[[int], None]]:
        self.labels.append(label)
        yield lambda _done: None

    def waiting(self, left: float) -> None:
        self.waits.append(left)

    def frozen(self, frozen: Freeze) -> None:
        self.told.append(frozen)


@dataclass(kw_only=True, slots=True)
class House:
    """An old database with something in it, and a new one."""

    old: Store
    new: Store
    clock: FakeClock
    cipher: Cipher = field(repr=False)
    rescue: MemoryRescue = field(default_factory=MemoryRescue)
    person: Person = field(default_factory=Person)

    async def prepare(self, *, old: Any = None, new: Any = None) -> Move:
        """Look whether a move may be, maybe by way of other stores."""
        return await prepare(
            old=Side(store=old or self.old, machine="old"),
            new=Side(store=new or self.new, machine="new"),
            cipher=self.cipher,
        )

    async def move(self, *, old: Any = None, new: Any = None) -> Moved:
        """Move."""
        move = await self.prepare(old=old, new=new)
        leases = Leases(length=LEASE, store=self.old, clock=self.clock)
        return await move.run(leases=leases, clock=self.clock, rescue=self.rescue, listener=self.person)

    async def connect(self, number: int = 1, *, cipher: Cipher | None = None, owner: str = "42") -> Connection:
        """Have a connection in the old database."""
        connection = a_connection(number, sealed_pair=self.sealed(number, cipher=cipher))
        event = Event(name="connection.imported", connection_id=connection.id)
        await self.old.bring([Brought(connection=connection, over=None, event=event, owners=[owner])])
        return await now(self.old, connection)

    def sealed(self, number: int = 1, text: str = "first", *, cipher: Cipher | None = None) -> bytes:
        pair = TokenPair(access_token=text, refresh_token=text, issued_at=START, expires_at=START + DAY)
        return (cipher or self.cipher).seal_pair(pair, connection_id=a_connection(number).id)

    async def token(self, store: Store, number: int = 1) -> str | None:
        """Return a connection's refresh token."""
        pair = self.cipher.pair_of(await now(store, a_connection(number)))
        return None if pair is None else pair.refresh_token

    def then(self, at: int, work: Callable[[], Awaitable[object]]) -> Any:
        """Return the old store, where something happens before everything is counted for this time."""
        times = 0

        async def count_records() -> Any:
            nonlocal times
            times += 1
            if times == at:
                await work()
            return await self.old.count_records()

        return Instead(self.old, count_records=count_records)


@pytest.fixture
async def house(tmp_path: Path, either: str, clock: FakeClock, cipher: Cipher) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        old = await stack.enter_async_context(open_store("sqlite:///old.db", folder=tmp_path, clock=clock))
        # Of a clock of its own: what sleeps in there is not what a test waits for.
        new = await stack.enter_async_context(open_store(either, folder=tmp_path, clock=FakeClock()))
        await old.canary(cipher.seal_canary())
        await old.check_machine("old")
        yield House(old=old, new=new, clock=clock, cipher=cipher)


async def _all(store: Store) -> dict[Table, dict[Key, Record]]:
    """Return everything but what the end of a move itself is told by."""
    found = {table: await store.records(table, after=None, limit=10_000) for table in Table}
    return {
        table: {record.key: record for record in records if record.values.get("name") != "service.moved"}
        for table, records in found.items()
    }


async def _fill(house: House) -> None:
    """Have something of everything, in every state that it can have."""
    old = house.old
    active, dead, gone, alone, tried = [await house.connect(number) for number in range(1, 6)]
    claimed = await old.claim(a_claim(dead, fingerprint="print-1"))
    assert claimed is not None
    lost = happened("connection.needs_reauth", dead, told={"reason": "revoked"})
    verdict = a_verdict(claimed, status=Status.NEEDS_REAUTH, reason=Reason.REVOKED, next_refresh_at=None)
    assert await old.save_verdict(verdict, events=[lost]) is not None
    assert await old.bind(active.id, owner="17", grant_no=1, first_only=False)
    assert [event.name for event in await old.unbind("17")] == ["owner.unbound"]
    assert await old.disconnect(gone, on_request=True, events=[happened("connection.disconnected", gone)])
    assert await old.freeze(alone.id, at=START)
    house.clock.step(-YEARS)  # so that its lease is over by any clock
    assert await old.claim(a_claim(tried, attempt="of a process that died", fingerprint="print-2")) is not None
    house.clock.step(YEARS)
    for code, status in (("one", GrantStatus.FAILED), ("two", GrantStatus.CONNECTED)):
        grant = a_grant(code, ticket_hash=f"ticket of {code}")
        await old.claim_grant(grant, now=START)
        await old.finish_grant(a_grant(code, status=status, doubtful=code == "one", accepted_at=START))
    await old.issue_state(IssuedState(state_hash="state", sealed=b"sealed", expires_at=START + MINUTE))
    await old.hold_deaths(now=START)
    await old.claim_notices(now=START, length=MINUTE, lease="of a process that died", limit=1)
    house.clock.advance(LEASE)


async def _waited_for(move: Coroutine[Any, Any, Moved], clock: FakeClock) -> Moved:
    """Let a move wait for the process that died."""
    moving = asyncio.create_task(move)
    for _ in range(int(LEASE)):
        await clock.until_sleeping(1)
        clock.advance(1)
    return await moving


async def test_everything_arrives_as_it_was(house: House) -> None:
    """Every row of every table, whatever its state; the old database is frozen, the new one is not."""
    await _fill(house)
    before = await _all(house.old)
    moved = await _waited_for(house.move(), house.clock)
    [frozen_by_us] = {*(await _all(house.old))[Table.EVENTS]} - {*before[Table.EVENTS]}
    there = await _all(house.new)
    assert there == await _all(house.old)
    assert there[Table.EVENTS].pop(frozen_by_us).values["name"] == "service.frozen"
    assert there == before
    assert all(before.values())
    assert {table: len(records) for table, records in (await _all(house.old)).items()} == moved.counts
    assert (moved.unreadable, moved.frozen) == ([], None)
    assert await house.new.deaths_held()
    house.cipher.check_canary(await house.new.canary(b"another"))
    frozen = await house.old.frozen()
    assert frozen is not None
    assert (frozen.why, frozen.elsewhere, house.person.told) == (WHY, True, [frozen])
    assert (await house.new.frozen(), await house.new.check_machine("new")) == (None, None)


async def test_it_goes_back_as_well(house: House, tmp_path: Path) -> None:
    """From either engine to the other one, and to a third database."""
    await _fill(house)
    await _waited_for(house.move(), house.clock)
    async with open_store("sqlite:///third.db", folder=tmp_path, clock=FakeClock()) as third:
        back = House(old=house.new, new=third, clock=house.clock, cipher=house.cipher)
        keeps_time = house.new.keeps_time  # then it knows by itself that this lease is over
        moved = await (back.move() if keeps_time else _waited_for(back.move(), house.clock))
        assert await _all(third) == await _all(house.new)
        assert (moved.frozen, await third.frozen()) == (None, None)


async def test_from_then_on_the_new_one_spends_and_the_old_one_does_not(house: House) -> None:
    """A refresh and a grant begin there, and no more where they began before."""
    connection = await house.connect()
    await house.move()
    assert await house.old.claim(a_claim(connection)) is None
    with pytest.raises(Frozen):
        await house.old.claim_grant(a_grant("late"), now=START)
    assert await house.new.claim(a_claim(await now(house.new, connection))) is not None
    assert (await house.new.claim_grant(a_grant("new"), now=START)).attempt == "attempt-1"


async def test_notices_that_wait_are_delivered_by_the_new_one(house: House) -> None:
    """And by that alone: under the ids that they had."""
    connection = await house.connect()
    assert await house.old.disconnect(
        connection, on_request=False, events=[happened("connection.disconnected", connection)]
    )
    [waiting] = await house.old.notices(limit=10)
    await house.move()

    async def claimed(store: Store) -> list[str]:
        found = await store.claim_notices(now=START + DAY, length=MINUTE, lease="mine", limit=10)
        return [notice.id for notice in found]

    assert (await claimed(house.old), await claimed(house.new)) == ([], [waiting.id])
    assert await house.new.notice_delivered(waiting.id)
    assert await house.new.notices(limit=10) == []


@ANY_ENGINE
async def test_a_new_database_spends_nothing_before_all_is_there(house: House) -> None:
    """Neither while most is copied, nor while it is compared."""
    connection = await house.connect()
    seen: list[object] = []

    async def look() -> None:
        stored = await house.new.connection(connection.id)
        seen.append(stored and await house.new.claim(a_claim(stored)))
        seen.append(await house.new.frozen() is not None)

    for at in (1, 2, 3):
        house.person = Person()
        if at > 1:
            await house.old.thaw_all(machine=None)
        with pytest.raises(CommandFailed, match="stop here"):
            await house.move(old=house.then(at, lambda: _then_stop(look())))
    assert seen == [None, True] * 3


async def _then_stop(work: Awaitable[None]) -> None:
    await work
    raise CommandFailed("stop here")


async def test_what_is_refreshed_while_it_is_copied_arrives(house: House) -> None:
    """Also what came, changed its owner, or was disconnected meanwhile."""
    refreshed, gone = await house.connect(1), await house.connect(2)

    async def work() -> None:
        claimed = await house.old.claim(a_claim(refreshed))
        assert claimed is not None
        sealed = house.sealed(1, "second")
        assert await house.old.save_refreshed(a_refreshed(refreshed, sealed_pair=sealed)) is not None
        assert await house.old.disconnect(gone, on_request=True)
        await house.connect(3)

    async def copied(*args: Any, **more: Any) -> bool:
        if await house.new.count() == 2 and house.person.labels == ["copied"]:
            await work()
        return await house.old.freeze_all(*args, **more)

    await house.move(old=Instead(house.old, freeze_all=copied))
    assert [await house.token(house.new, number) for number in (1, 2, 3)] == ["second", None, "first"]
    assert await _all(house.new) == await _all(house.old)
    assert (await house.new.owners_of([gone.id])).get(gone.id, []) == []


@ANY_ENGINE
async def test_it_waits_for_a_refresh_that_is_under_way(house: House) -> None:
    """What that brings is what arrives."""
    connection = await house.connect()
    assert await house.old.claim(a_claim(connection)) is not None
    moving = asyncio.create_task(house.move())
    await house.clock.until_sleeping(1)
    assert house.person.waits == [LEASE]
    assert await house.old.save_refreshed(a_refreshed(connection, sealed_pair=house.sealed(text="second"))) is not None
    house.clock.advance(1)
    await moving
    assert await house.token(house.new) == "second"


@ANY_ENGINE
async def test_a_late_pair_arrives_that_comes_between_two_looks(house: House) -> None:
    """The look at everything is repeated until it finds nothing."""
    connection = await house.connect()
    pair = a_refreshed(connection, sealed_pair=house.sealed(text="second"))
    await house.move(old=house.then(3, lambda: house.old.save_refreshed(pair)))
    assert await house.token(house.new) == "second"
    assert house.person.labels == ["copied", "compared", "compared", "compared", "opened"]


async def test_one_that_was_broken_off_goes_on(house: House) -> None:
    """Whenever the new database was lost: what is there stays there, and it is said which one was lost."""
    for start in range(0, PAGE + 2, 500):
        brought = [
            Brought(
                connection=a_connection(number, sealed_pair=house.sealed(number)),
                over=None,
                event=Event(name="connection.imported", connection_id=a_connection(number).id),
            )
            for number in range(start, min(start + 500, PAGE + 2))
        ]
        await house.old.bring(brought)
    for came in (0, PAGE, PAGE + 2, PAGE + 2):  # what it was to write was the mark, a page, the rest, a page of events
        new = Instead(house.new, take_over=_failing_after(1, house.new))
        with pytest.raises(CommandFailed, match=r"^the new database \(\w+\) cannot be .* ConnectionResetError$"):
            await house.move(new=new)
        assert (await house.new.count_records())[Table.CONNECTIONS] == came
        assert (await house.new.frozen() is not None, await house.new.coming()) == (True, True)
    await house.move()
    assert await _all(house.new) == await _all(house.old)
    assert await house.new.frozen() is None


def _failing_after(steps: int, store: Store) -> Callable[..., Awaitable[object]]:
    left = steps

    async def take_over(*args: Any, **more: Any) -> object:
        nonlocal left
        left -= 1
        if left < 0:
            raise StoreUnavailable("ConnectionResetError")
        return await store.take_over(*args, **more)

    return take_over


@ANY_ENGINE
async def test_what_the_old_one_has_no_more_goes_there_too(house: House) -> None:
    """A move that is gone on with after days brings nothing back: an owner who left, a notice that was delivered."""
    connection = await house.connect()
    await house.old.record(Event(name="connection.disconnected", connection_id=connection.id))
    other = await house.connect(2)
    assert await house.old.disconnect(other, on_request=False, events=[happened("connection.disconnected", other)])
    with pytest.raises(CommandFailed, match="stop here"):
        await house.move(old=house.then(2, lambda: _then_stop(asyncio.sleep(0))))
    await house.old.thaw_all(machine=None)
    [waiting] = await house.old.notices(limit=10)
    assert await house.old.notice_delivered(waiting.id)
    house.clock.advance(100 * DAY.total_seconds())
    await house.old.forget(now=house.clock.now())
    assert await house.old.disconnect(await now(house.old, connection), on_request=False)
    await house.move()
    assert await _all(house.new) == await _all(house.old)
    assert await house.new.notices(limit=10) == []
    assert (await house.new.owners_of([connection.id])).get(connection.id, []) == []


# --- what must not happen ------------------------------------------------------------------------


async def test_later_pairs_in_the_new_one_are_not_written_over(house: House) -> None:
    """Whoever has spent the tokens there, against all advice, keeps what he got for them."""
    connection = await house.connect()

    async def spend() -> None:
        late = a_refreshed(connection, sealed_pair=house.sealed(text="late"))
        assert await house.new.save_refreshed(late) is not None

    with pytest.raises(CommandFailed, match=f"later ones in the new database .*: {connection.id}"):
        await house.move(old=house.then(3, spend))
    assert (await house.token(house.new), await house.token(house.old)) == ("late", "first")
    assert await house.new.frozen() is not None


async def test_a_new_one_that_was_thawed_meanwhile_is_not_written_to(house: House) -> None:
    """What it holds may have been spent; nor is it gone on with later."""
    connection = await house.connect()

    async def thaw() -> None:
        assert await house.new.thaw_all(machine=None)
        await house.old.save_refreshed(a_refreshed(connection, sealed_pair=house.sealed(text="second")))

    with pytest.raises(CommandFailed, match="was thawed, or taken"):
        await house.move(old=house.then(3, thaw))
    assert await house.token(house.new) == "first"
    with pytest.raises(CommandFailed, match="was thawed before its end"):
        await house.move()


@ANY_ENGINE
async def test_an_old_one_that_was_thawed_meanwhile_is_not_left(house: House) -> None:
    """Also where it was frozen again: what was read may be spent by now. The new one stays frozen."""
    await house.connect()

    async def thaw() -> None:
        await house.old.thaw_all(machine=None)
        await house.old.freeze_all(why="again")

    with pytest.raises(CommandFailed, match="the old database was thawed meanwhile"):
        await house.move(old=house.then(3, thaw))
    assert await house.new.frozen() is not None


@ANY_ENGINE
async def test_a_connection_that_only_the_new_one_has_is_not_deleted(house: House) -> None:
    """Somebody has connected there: that is told, and his tokens stay."""
    await house.connect(1)

    async def connect() -> None:
        stranger = a_connection(2, sealed_pair=house.sealed(2))
        await house.new.bring([Brought(connection=stranger, over=None, event=Event(name="connection.imported"))])

    with pytest.raises(CommandFailed, match=f"connections that the old one has not: {a_connection(2).id}"):
        await house.move(old=house.then(2, connect))
    assert await house.token(house.new, 2) == "first"


@ANY_ENGINE
async def test_somebody_who_writes_all_the_time_is_not_waited_for(house: House) -> None:
    """It ends some time, and says what to do."""
    await house.connect()

    async def count_records() -> object:
        await house.old.record(Event(name="something"))
        return await house.old.count_records()

    with pytest.raises(CommandFailed, match="something goes on writing"):
        await house.move(old=Instead(house.old, count_records=count_records))
    assert len(house.person.labels) == 1 + moves.PASSES


@ANY_ENGINE
async def test_pairs_that_wait_to_be_stored_keep_it_from_ending(house: House) -> None:
    """They are newer than what the old database has."""
    await house.connect()
    house.rescue.write("one", b"sealed")
    with pytest.raises(CommandFailed, match=r"wait in the rescue folder \(1\)"):
        await house.move()
    house.rescue.remove("one")

    async def rescue() -> None:
        house.rescue.write("two", b"sealed")

    with pytest.raises(CommandFailed, match=r"wait in the rescue folder \(1\)"):
        await house.move(old=house.then(3, rescue))
    assert await house.new.frozen() is not None


@ANY_ENGINE
async def test_two_that_do_not_hold_the_same_number_are_not_the_same(house: House) -> None:
    """They are counted once more, without being compared."""
    await house.connect()

    async def count_records() -> Any:
        return {**(await house.new.count_records()), Table.EVENTS: 0}

    with pytest.raises(CommandFailed, match="the same number of records"):
        await house.move(new=Instead(house.new, count_records=count_records))


# --- from where, and where to --------------------------------------------------------------------


async def test_a_database_that_holds_anything_is_refused(house: House) -> None:
    """Before anybody is asked; nothing of it is changed, and the old one is not frozen."""
    await house.connect()
    other = a_connection(7)
    await house.new.bring([Brought(connection=other, over=None, event=Event(name="connection.imported"))])
    before = await _all(house.new)
    with pytest.raises(CommandFailed, match="holds something already"):
        await house.prepare()
    assert (await _all(house.new), await house.new.frozen(), await house.old.frozen()) == (before, None, None)


async def test_what_was_moved_is_not_moved_again(house: House) -> None:
    """What has been refreshed there since stays."""
    connection = await house.connect()
    await house.move()
    stored = await now(house.new, connection)
    await house.new.save_refreshed(a_refreshed(stored, sealed_pair=house.sealed(text="second")))
    with pytest.raises(CommandFailed, match="was moved there already: set"):
        await house.prepare()
    assert (await house.token(house.new), await house.new.frozen()) == ("second", None)


@ANY_ENGINE
async def test_a_database_is_not_moved_into_itself(house: House) -> None:
    """It is known by its place."""
    await house.connect()
    sides = [Side(store=house.old, machine="old") for _ in range(2)]
    with pytest.raises(CommandFailed, match="there is nothing to move"):
        await prepare(old=sides[0], new=sides[1], cipher=house.cipher)
    assert await house.old.frozen() is None


@ANY_ENGINE
async def test_an_unfinished_target_is_no_source(house: House) -> None:
    """Only half of it may be there."""
    assert await house.old.begin_coming("somewhere else")
    with pytest.raises(CommandFailed, match="unfinished target of a move itself"):
        await house.move()


@ANY_ENGINE
async def test_another_services_database_is_refused(house: House) -> None:
    """Our keys do not open it."""
    await house.new.canary(Cipher([new_key()]).seal_canary())
    with pytest.raises(CommandFailed, match=r"none of storage\.encryption_keys opens the new database"):
        await house.move()
    assert await house.old.frozen() is None


@ANY_ENGINE
async def test_keys_may_change_between_two_runs(house: House) -> None:
    """The mark that tells whose keys a database needs is written anew with all the rest."""
    await house.connect()
    with pytest.raises(CommandFailed, match="stop here"):
        await house.move(old=house.then(2, lambda: _then_stop(asyncio.sleep(0))))
    house.cipher = Cipher([new_key()])
    [canary] = (await _all(house.old))[Table.MARKS].values()
    fresh = house.cipher.seal_canary()

    async def records(table: Table, **more: Any) -> Any:
        found = await house.old.records(table, **more)
        if table is not Table.MARKS or not found:
            return found
        return [type(canary)(key=canary.key, values={**canary.values, "value": fresh})]

    moved = await house.move(old=Instead(house.old, records=records))
    assert await house.new.canary(b"another") == fresh
    assert moved.unreadable == [a_connection().id]


@ANY_ENGINE
async def test_pairs_that_no_key_opens_move_and_are_named(house: House) -> None:
    """They are as unreadable there as they were."""
    await house.connect(1)
    lost = await house.connect(2, cipher=Cipher([new_key()]))
    moved = await house.move()
    assert moved.unreadable == [lost.id]
    assert (await now(house.new, lost)).sealed_pair == lost.sealed_pair


@ANY_ENGINE
async def test_what_was_frozen_before_is_frozen_there(house: House) -> None:
    """A copy of a database that lives elsewhere does not begin to spend by being moved; a person has to say so."""
    await house.connect()
    await house.old.freeze_all(why="the database was last used in another place")
    moved = await house.move()
    frozen = await house.old.frozen()
    assert frozen is not None
    assert (frozen.why, frozen.elsewhere) == ("the database was last used in another place", True)
    assert moved.frozen == frozen == await house.new.frozen()
