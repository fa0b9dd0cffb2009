"""Each interleaving that the rules of custody guard against, by its name."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest

from amo_callback.amo.sandbox.faults import Fault
from amo_callback.crypto import Cipher, new_key
from amo_callback.encrypted_records import EncryptedRecord, RecordKind, ReencryptedRecord
from amo_callback.errors import (
    AmoCallbackError,
    IntrospectionUnavailable,
    NeedsReauth,
    NotFound,
    NotYet,
    RequestNotSent,
    RetryableError,
    ShuttingDown,
    StoreUnavailable,
    UnknownOutcome,
)
from amo_callback.model import Connection, Reason, RefreshTrigger, Status, TokenResponse
from tests.builders import a_claim, a_refreshed, an_extension
from tests.fakes import FaultyStore
from tests.refresh.house import API_DOMAIN

if TYPE_CHECKING:
    from amo_callback.amo.client import AmoClient
    from amo_callback.store import Store
    from tests.refresh.house import House

PATIENCE = 8.0
"""Seconds that a forced refresh is waited for here: a second more than AMO has, and eight at least."""


class Gated:
    """The client, with gates before and behind its refresh."""

    def __init__(self, house: House) -> None:
        self._client = house.client
        self.asked, self.send = asyncio.Event(), asyncio.Event()
        self.answered, self.go_on = asyncio.Event(), asyncio.Event()
        self.send.set()
        self.go_on.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def refresh(self, **request: Any) -> TokenResponse:
        self.asked.set()
        await self.send.wait()
        issued = await self._client.refresh(**request)
        self.answered.set()
        await self.go_on.wait()
        return issued


class Queue(Gated):
    """The client, behind a rate limit that lets nobody go before it is told."""

    def __init__(self, house: House) -> None:
        super().__init__(house)
        self.served = asyncio.Event()

    async def slot(self, _priority: object) -> None:
        self.asked.set()
        await self.served.wait()


class Away(Gated):
    """The client, whose first request does not reach AMO."""

    async def refresh(self, **request: Any) -> TokenResponse:
        if not self.asked.is_set():
            self.asked.set()
            raise RequestNotSent
        return await self._client.refresh(**request)


def _again(connection: Connection) -> Any:
    """Be satisfied by any pair after this one."""
    return lambda now: now.pair_version != connection.pair_version


def _spent(house: House) -> int:
    return sum(entry.spent for entry in house.amo.fake.ledger.refreshes())


async def _until_waiting(house: House, refreshing: asyncio.Task[Any], seconds: float) -> None:
    """Let a caller wait for a lease, look by look, until so many seconds have passed."""
    for _ in range(int(seconds * 4)):
        await house.clock.until_sleeping(0.25)
        assert not refreshing.done()
        house.clock.advance(0.25)


# --- before the token is spent --------------------------------------------------------------------


async def test_a_claim_does_not_age_in_a_queue(house: House) -> None:
    """However long the rate limit or a place is waited for, the claim is written after, with its whole lease."""
    connection = await house.connect()
    queue = Queue(house)
    refreshing = asyncio.create_task(
        house.make_coordinator(amo=cast("AmoClient", queue)).refresh(connection.id, demand=RefreshTrigger.SCHEDULE)
    )
    await queue.asked.wait()
    house.clock.advance(3600)
    assert (await house.now(connection)).attempt is None
    house.amo.sandbox.faults.add(Fault.SLOW)
    queue.served.set()
    await house.amo.sandbox.until_asked(2)
    assert (await house.now(connection)).lease_until == house.clock.now() + timedelta(seconds=60)
    house.amo.sandbox.go_on.set()
    assert (await refreshing).pair_version == 2


async def test_a_claim_of_another_process_during_the_wait_for_a_slot_is_respected(house: House) -> None:
    """Free when the queue was joined, claimed when the slot came: nothing is presented, and the lease is waited for."""
    connection = await house.connect()
    queue = Queue(house)
    coordinator = house.make_coordinator(amo=cast("AmoClient", queue))
    refreshing = asyncio.create_task(
        coordinator.refresh(connection.id, demand=RefreshTrigger.SCHEDULE, satisfied=_again(connection))
    )
    await queue.asked.wait()
    await house.store.claim(a_claim(connection, owner="process-2"))
    queue.served.set()
    await house.clock.until_sleeping(0.25)
    assert house.amo.fake.ledger.refreshes() == []
    await house.store.save_refreshed(a_refreshed(connection))
    house.clock.advance(0.25)
    assert (await refreshing).pair_version == 2
    assert house.amo.fake.ledger.refreshes() == []


async def test_a_doubt_that_arose_during_the_wait_for_a_slot_is_looked_up(house: House) -> None:
    """Clean when the queue was joined; then another process died at it, and a third gave its claim back."""
    connection = await house.connect(api_domain=API_DOMAIN)
    queue = Queue(house)
    coordinator = house.make_coordinator(amo=cast("AmoClient", queue))
    refreshing = asyncio.create_task(coordinator.refresh(connection.id, demand=RefreshTrigger.SCHEDULE))
    await queue.asked.wait()
    died = await house.store.claim(a_claim(connection, owner="process-2", lease=timedelta(0)))
    assert died is not None
    await house.store.claim(a_claim(died, owner="process-3", attempt="given back"))
    await house.store.release(connection_id=connection.id, attempt="given back")
    queue.served.set()
    assert (await refreshing).pair_version == 2
    assert house.amo.sandbox.look_ups == 1


async def test_a_process_stopped_before_its_post_sends_nothing_on_a_lease_that_is_over(house: House) -> None:
    """Stopped between claim and request, another process refreshes; waked, the first one spends nothing."""
    connection = await house.connect(api_domain=API_DOMAIN)
    stopped = Gated(house)
    stopped.send.clear()
    first = house.make_coordinator(amo=cast("AmoClient", stopped))
    late = asyncio.create_task(
        first.refresh(connection.id, demand=RefreshTrigger.SCHEDULE, satisfied=_again(connection))
    )
    await stopped.asked.wait()
    second = house.make_coordinator(process="process-2")
    other = asyncio.create_task(second.refresh(connection.id, demand=RefreshTrigger.SCHEDULE))
    await _until_waiting(house, other, 60)
    refreshed = await other
    stopped.send.set()
    assert await late == refreshed
    assert (_spent(house), house.amo.fake.ledger.doubles()) == (1, 0)
    assert await house.now(connection) == refreshed


async def test_an_attempt_extended_meanwhile_is_not_taken_over(house: House) -> None:
    """Whoever saw a lease end, and claims just as its owner extends it for a second request, comes too late."""
    connection = await house.connect()
    seen = await house.store.claim(a_claim(connection, owner="process-2"))
    assert seen is not None
    assert await house.store.extend(an_extension(connection))
    assert await house.store.claim(a_claim(seen, attempt="mine")) is None


async def test_a_token_whose_attempt_never_ended_is_doubted_also_where_it_is_remembered(house: House) -> None:
    """Its process was killed with the answer: the row has not changed since it was read, and AMO is asked after 5 s."""
    connection = await house.connect(api_domain=API_DOMAIN)
    assert await house.store.claim(a_claim(connection, owner="process-2")) is not None
    house.fade(connection)
    access_tokens = house.lifecycle.access_tokens
    for _ in range(10):
        assert not (await access_tokens.token(connection.id, min_ttl=0)).stale
        await house.pass_time(0.5, step=0.5)
    asking = asyncio.create_task(access_tokens.token(connection.id, min_ttl=0))
    await house.clock.until_sleeping(PATIENCE)
    house.clock.advance(PATIENCE)
    with pytest.raises(RetryableError):
        await asking
    house.clock.advance(60)
    with pytest.raises(NeedsReauth):
        await access_tokens.token(connection.id, min_ttl=0)


# --- while the answer is on its way ---------------------------------------------------------------


async def test_a_pair_that_comes_after_needs_reauth_mends_it(house: House) -> None:
    """Stopped with the answer in hand, given up by another process: the late pair wins, for it is good."""
    connection = await house.connect(api_domain=API_DOMAIN)
    gated = Gated(house)
    gated.go_on.clear()
    first = house.make_coordinator(amo=cast("AmoClient", gated))
    late = asyncio.create_task(first.refresh(connection.id, demand=RefreshTrigger.SCHEDULE))
    await gated.answered.wait()
    second = house.make_coordinator(process="process-2")
    other = asyncio.create_task(second.refresh(connection.id, demand=RefreshTrigger.SCHEDULE))
    await _until_waiting(house, other, 60)
    with pytest.raises(NeedsReauth) as raised:
        await other
    assert raised.value.reason is Reason.IN_DOUBT
    gated.go_on.set()
    stored = await late
    assert (stored.status, stored.reason, stored.pair_version) == (Status.ACTIVE, None, 2)
    assert house.amo.fake.is_good(house.pair(stored).refresh_token)
    assert house.witness.names() == [
        "refresh.taken_over",
        "connection.needs_reauth",
        "refresh.succeeded",
        "connection.recovered",
    ]


async def test_a_pair_that_comes_after_a_disconnect_is_dropped(house: House) -> None:
    """Forgotten on request while a refresh was on its way: nothing of it comes back."""
    connection = await house.connect()
    gated = Gated(house)
    gated.go_on.clear()
    coordinator = house.make_coordinator(amo=cast("AmoClient", gated))
    late = asyncio.create_task(coordinator.refresh(connection.id, demand=RefreshTrigger.SCHEDULE))
    await gated.answered.wait()
    assert await house.store.disconnect(await house.now(connection), on_request=True)
    gated.go_on.set()
    with pytest.raises(NotFound):
        await late
    after = await house.now(connection)
    assert (after.status, after.sealed_pair) == (Status.DISCONNECTED, None)


async def test_a_key_change_during_a_flight_loses_neither(house: House, encryption_key: str) -> None:
    """The old pair is sealed anew while its successor is on its way: the successor is stored, and then sealed anew."""
    connection = await house.connect()
    new = Cipher([new_key(), encryption_key])
    gated = Gated(house)
    gated.go_on.clear()
    flight = asyncio.create_task(
        house.make_coordinator(amo=cast("AmoClient", gated)).refresh(connection.id, demand=RefreshTrigger.SCHEDULE)
    )
    await gated.answered.wait()
    read = await house.now(connection)
    sealed = EncryptedRecord(kind=RecordKind.CONNECTION, name=read.id, content=read.sealed_pair or b"")
    resealed = ReencryptedRecord(read=sealed, content=new.reseal(sealed.content, bound_to=sealed.place))
    assert await house.store.reseal([resealed]) == []
    gated.go_on.set()
    stored = await flight
    assert stored.pair_version == 2
    assert house.amo.fake.is_good(house.pair(stored).refresh_token)
    assert await house.store.reseal([resealed]) == [sealed]  # the very bytes that were read are gone: read again
    assert await house.now(connection) == stored


async def test_a_connection_with_an_unsaved_pair_is_not_refreshed_by_its_own_process(house: House) -> None:
    """After a restart with the store away, the pair in the rescue file stands against the one that is due."""
    connection = await house.connect()
    lifecycle = house.make_lifecycle()
    house.failing.away = {"save_refreshed"}
    flight = asyncio.create_task(lifecycle.coordinator.refresh(connection.id, demand=RefreshTrigger.SCHEDULE))
    await house.witness.until("pair.write_pending")
    lifecycle.core.stop.set()
    with pytest.raises(ShuttingDown):
        await flight
    restarted = house.make_lifecycle(process="process-2")
    await restarted.pending_writes.restore()
    house.clock.advance(3600)
    with pytest.raises(StoreUnavailable):
        await restarted.coordinator.refresh(connection.id, demand=RefreshTrigger.FORCED)
    house.failing.away = set()
    await restarted.pending_writes.settle()
    assert (await house.now(connection)).pair_version == 2
    assert (await restarted.coordinator.refresh(connection.id, demand=RefreshTrigger.FORCED)).pair_version == 3
    assert (_spent(house), house.amo.fake.ledger.doubles(), house.rescue.files) == (2, 0, {})


async def test_a_pair_in_anothers_rescue_file_is_found_before_its_predecessor_is_presented(house: House) -> None:
    """Its process was killed with the pair in its file: whoever takes over looks there first, and spends nothing."""
    connection = await house.connect(api_domain=API_DOMAIN)
    dying = house.make_lifecycle(process="process-2", store=house.away("save_refreshed"))
    flight = asyncio.create_task(dying.coordinator.refresh(connection.id, demand=RefreshTrigger.SCHEDULE))
    await house.witness.until("pair.write_pending")
    living = house.make_lifecycle()
    other = asyncio.create_task(
        living.coordinator.refresh(connection.id, demand=RefreshTrigger.SCHEDULE, satisfied=_again(connection))
    )
    await _until_waiting(house, other, 60)
    stored = await other
    assert (stored.pair_version, stored.status, house.rescue.files) == (2, Status.ACTIVE, {})
    assert (_spent(house), house.amo.fake.ledger.doubles()) == (1, 0)
    flight.cancel()


async def test_a_rescue_folder_that_cannot_be_read_keeps_a_doubtful_token_at_home(house: House) -> None:
    """Its successor may lie there: nothing is presented before somebody has looked."""
    connection = await house.connect()
    await house.store.claim(a_claim(connection, owner="process-2"))

    class DecryptionFailed:
        def read(self) -> object:
            raise PermissionError(13, "Permission denied")

        def __getattr__(self, name: str) -> Any:
            return getattr(house.rescue, name)

    lifecycle = house.make_lifecycle(rescue=DecryptionFailed())
    refreshing = asyncio.create_task(lifecycle.coordinator.refresh(connection.id, demand=RefreshTrigger.SCHEDULE))
    await _until_waiting(house, refreshing, 60)
    with pytest.raises(StoreUnavailable):
        await refreshing
    assert house.amo.fake.ledger.refreshes() == []


async def test_a_store_that_was_away_during_the_wait_for_a_slot_renews_anothers_lease(house: House) -> None:
    """Over when the queue was joined; then its owner could not store for a while: it is waited for once more."""
    connection = await house.connect()
    await house.store.claim(a_claim(connection, owner="process-2"))
    queue = Queue(house)
    lifecycle = house.make_lifecycle(amo=queue)
    lifecycle.leases.left(await house.now(connection))
    house.clock.advance(60)
    refreshing = asyncio.create_task(
        lifecycle.coordinator.refresh(connection.id, demand=RefreshTrigger.SCHEDULE, satisfied=_again(connection))
    )
    await queue.asked.wait()
    house.failing.away = {"count"}
    with pytest.raises(StoreUnavailable):
        await house.failing.count()
    queue.served.set()
    await house.clock.until_sleeping(0.25)
    assert house.amo.fake.ledger.refreshes() == []
    await house.store.save_refreshed(a_refreshed(connection))
    house.clock.advance(0.25)
    assert (await refreshing).pair_version == 2
    assert house.amo.fake.ledger.refreshes() == []


async def test_a_process_stopped_before_its_second_post_sends_nothing_on_a_lease_that_is_over(house: House) -> None:
    """An account moved; stopped between the longer lease and the request that follows it, nothing is sent after."""
    connection = await house.connect(api_domain=API_DOMAIN)
    house.amo.account.host = "renamed.amocrm.ru"

    class Stopped(Gated):
        async def refresh(self, **request: Any) -> TokenResponse:
            if request["domain"] == "renamed.amocrm.ru":
                house.clock.advance(61)
            return await self._client.refresh(**request)

    coordinator = house.make_coordinator(amo=cast("AmoClient", Stopped(house)))
    with pytest.raises(RequestNotSent):
        await coordinator.refresh(connection.id, demand=RefreshTrigger.SCHEDULE)
    assert _spent(house) == 0
    assert (await house.now(connection)).domain == "renamed.amocrm.ru"


async def test_after_the_store_was_away_anothers_attempt_has_a_whole_lease_more(house: House) -> None:
    """Its owner may hold a good pair and could not store it: nobody judges before it had the time."""
    connection = await house.connect()
    await house.store.claim(a_claim(connection, owner="process-2"))
    lifecycle = house.make_lifecycle()
    assert lifecycle.leases.left(await house.now(connection)) == 60
    house.clock.advance(59)
    house.failing.away = {"count"}
    with pytest.raises(StoreUnavailable):
        await house.failing.count()
    assert lifecycle.leases.left(await house.now(connection)) == 60
    house.clock.advance(60)
    assert lifecycle.leases.left(await house.now(connection)) == 0


async def test_an_attempt_that_got_more_time_is_left_alone_for_as_long(house: House) -> None:
    """A lease extended for a second request counts from when that was seen."""
    connection = await house.connect()
    await house.store.claim(a_claim(connection, owner="process-2"))
    leases = house.make_lifecycle().leases
    assert leases.left(await house.now(connection)) == 60
    house.clock.advance(50)
    assert leases.left(await house.now(connection)) == 10
    await house.store.extend(an_extension(connection))
    assert leases.left(await house.now(connection)) == 60


async def test_a_stepped_clock_ends_no_lease(house: House) -> None:
    """Hours forward or back on the wall clock: the lease runs by what this process itself has seen."""
    connection = await house.connect()
    await house.store.claim(a_claim(connection, owner="process-2", lease=timedelta(seconds=60)))
    leases = house.make_lifecycle().leases
    for hours in (5, -10):
        house.clock.step(timedelta(hours=hours))
        assert leases.left(await house.now(connection)) == 60
    house.clock.advance(60)
    assert leases.left(await house.now(connection)) == 0


# --- callers --------------------------------------------------------------------------------------


async def test_a_forced_refresh_is_satisfied_by_any_pair_stored_after_it_came(house: House) -> None:
    """A hundred backends that met 401 at once make one refresh, also those who come as it ends."""
    connection = await house.connect()
    house.clock.advance(10)
    access_tokens = house.make_lifecycle().access_tokens
    house.amo.sandbox.faults.add(Fault.SLOW)
    first = [asyncio.create_task(access_tokens.refresh(connection.id)) for _ in range(100)]
    await house.amo.sandbox.until_asked(2)
    while house.clock.sleeping().count(PATIENCE) < 100:  # noqa: ASYNC110 -- because a clock does not tell of all
        await asyncio.sleep(0)
    house.amo.sandbox.go_on.set()
    given = await asyncio.gather(*first)
    assert {one.connection.pair_version for one in given} == {2}
    rejected = house.pair(connection).access_token
    assert (await access_tokens.refresh(connection.id, rejected=rejected)).connection.pair_version == 2
    assert _spent(house) == 1


async def test_forced_refreshes_in_a_row_make_one_refresh(house: House) -> None:
    """A pair younger than ten seconds is returned as it is: a caller in a loop does not rotate tokens."""
    connection = await house.connect(api_domain=API_DOMAIN)
    access_tokens = house.lifecycle.access_tokens
    house.clock.advance(10)
    given = [await access_tokens.refresh(connection.id) for _ in range(5)]
    assert {one.connection.pair_version for one in given} == {2}
    assert {one.stale for one in given} == {False}
    house.clock.advance(9.9)
    assert (await access_tokens.refresh(connection.id)).connection.pair_version == 2
    house.clock.advance(0.1)
    assert (await access_tokens.refresh(connection.id)).connection.pair_version == 3
    assert _spent(house) == 2


async def test_a_forced_refresh_of_a_young_pair_that_is_rejected_or_in_doubt_is_made(house: House) -> None:
    """A backend that names the stored token as rejected gets a new one, and so does one whose token is in doubt."""
    connection = await house.connect(api_domain=API_DOMAIN)
    access_tokens = house.lifecycle.access_tokens
    given = await access_tokens.refresh(connection.id, rejected=house.pair(connection).access_token)
    assert given.connection.pair_version == 2
    house.lifecycle.access_token_check.mark_rejected(given.connection)
    assert (await access_tokens.refresh(connection.id)).connection.pair_version == 3


async def test_a_caller_waits_for_the_lease_of_another_process_and_takes_its_pair(house: House) -> None:
    """Two processes at once make one refresh."""
    connection = await house.connect()
    house.clock.advance(10)
    one, two = house.make_lifecycle(), house.make_lifecycle(process="process-2")
    house.amo.sandbox.faults.add(Fault.SLOW)
    first = asyncio.create_task(one.access_tokens.refresh(connection.id))
    await house.amo.sandbox.until_asked(2)
    second = asyncio.create_task(two.access_tokens.refresh(connection.id))
    await house.clock.until_sleeping(0.25)
    house.amo.sandbox.go_on.set()
    await first
    house.clock.advance(0.25)
    assert (await second).connection.pair_version == 2
    assert _spent(house) == 1


# --- in doubt -------------------------------------------------------------------------------------


async def _in_doubt(house: House, fault: Fault) -> Connection:
    connection = await house.connect(api_domain=API_DOMAIN)
    house.amo.sandbox.faults.add(fault)
    with pytest.raises(UnknownOutcome):
        await house.refresh(connection)
    return connection


async def test_a_token_in_doubt_is_not_presented_before_a_whole_lease_has_passed_since_the_timeout(
    house: House,
) -> None:
    """Not even by force: AMO may be at work on it still."""
    connection = await _in_doubt(house, Fault.HTTP_500)
    house.clock.advance(59)
    with pytest.raises(NotYet):
        await house.refresh(connection, demand=RefreshTrigger.FORCED)
    assert len(house.amo.fake.ledger.refreshes()) == 1
    house.clock.advance(1)
    assert (await house.refresh(connection)).pair_version == 2


async def test_a_token_in_doubt_is_looked_up_before_it_is_presented_again(house: House) -> None:
    """One request that spends nothing, then the refresh; once the pair is stored the doubt is over."""
    connection = await _in_doubt(house, Fault.HTTP_500)
    house.clock.advance(60)
    stored = await house.refresh(connection)
    assert house.amo.sandbox.look_ups == 1
    assert not stored.in_doubt
    await house.refresh(stored)
    assert house.amo.sandbox.look_ups == 1


async def test_a_token_in_doubt_stays_at_home_while_look_ups_have_no_answer(house: House) -> None:
    """An AMO that does not answer what costs nothing is not trusted with what works once."""
    connection = await _in_doubt(house, Fault.HTTP_500)
    house.clock.advance(60)
    house.amo.sandbox.look_up_faults.add(Fault.HTTP_500)
    with pytest.raises(IntrospectionUnavailable):
        await house.refresh(connection)
    after = await house.now(connection)
    assert (after.last_error, after.failures, after.status) == ("no_answer", 2, Status.ACTIVE)
    assert len(house.amo.fake.ledger.refreshes()) == 1
    house.clock.advance(900)
    assert (await house.refresh(connection)).pair_version == 2


async def test_a_look_up_that_never_answers_ends_no_connection(house: House) -> None:
    """A day after its last access token has expired waiting serves nobody: the token is presented all the same."""
    connection = await _in_doubt(house, Fault.HTTP_500)
    for seconds, refreshed in ((2 * 86_400 - 1, False), (901, True)):
        house.clock.advance(seconds)
        house.amo.sandbox.look_up_faults.add(Fault.HTTP_500)
        if refreshed:
            assert (await house.refresh(connection)).pair_version == 2
        else:
            with pytest.raises(IntrospectionUnavailable):
                await house.refresh(connection)


@pytest.mark.parametrize("knows", [False, True])
async def test_a_spent_token_is_presented_once_more_whatever_the_look_up_says_of_it(house: House, knows: bool) -> None:  # noqa: FBT001 -- because it is the table's column
    """Only the token endpoint's word is final, and then it is our loss: in doubt, not revoked."""
    house.amo.fake.quirks.look_up_knows_spent = knows
    connection = await _in_doubt(house, Fault.NOTHING_AFTER)
    house.clock.advance(60)
    with pytest.raises(NeedsReauth) as raised:
        await house.refresh(connection)
    assert raised.value.reason is Reason.IN_DOUBT
    assert len(house.amo.fake.ledger.refreshes()) == 2


async def test_a_pair_without_a_shard_to_ask_is_presented_once(house: House) -> None:
    """Tokens from before 2024-08-21 name no `api_domain`."""
    connection = await house.connect()
    house.amo.sandbox.faults.add(Fault.HTTP_500)
    with pytest.raises(UnknownOutcome):
        await house.refresh(connection)
    house.clock.advance(60)
    assert (await house.refresh(connection)).pair_version == 2
    assert house.amo.sandbox.look_ups == 0


async def test_a_crash_after_the_claim_is_doubt_to_whoever_comes_after(house: House) -> None:
    """Killed with its request under way: after the lease the token is looked up, and a loss is told as in doubt."""
    connection = await house.connect(api_domain=API_DOMAIN)
    gated = Gated(house)
    gated.go_on.clear()
    killed = asyncio.create_task(
        house.make_coordinator(amo=cast("AmoClient", gated)).refresh(connection.id, demand=RefreshTrigger.SCHEDULE)
    )
    await gated.answered.wait()  # and never goes on
    survivor = house.make_coordinator(process="process-2")
    other = asyncio.create_task(survivor.refresh(connection.id, demand=RefreshTrigger.SCHEDULE))
    await _until_waiting(house, other, 60)
    with pytest.raises(NeedsReauth) as raised:
        await other
    assert raised.value.reason is Reason.IN_DOUBT
    assert house.amo.sandbox.look_ups == 1
    killed.cancel()


# --- moved ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 404])
@pytest.mark.parametrize("api_domain", [API_DOMAIN, None])
async def test_an_account_that_moved_is_followed_and_kept(house: House, status: int, api_domain: str | None) -> None:
    """Looked up by its refresh token, or where nobody answers that, by its access token; its new host is stored."""
    house.amo.fake.quirks.moved_status = status
    connection = await house.connect(api_domain=api_domain)
    house.amo.account.host = "renamed.amocrm.ru"
    stored = await house.refresh(connection)
    assert (stored.domain, stored.pair_version, stored.status) == ("renamed.amocrm.ru", 2, Status.ACTIVE)
    assert house.witness.names() == ["connection.moved", "refresh.succeeded"]
    assert [entry.host for entry in house.amo.fake.ledger.refreshes()] == ["reforyou.amocrm.ru", "renamed.amocrm.ru"]


async def test_the_second_request_of_a_moved_account_goes_on_a_lease_extended_in_writing(house: House) -> None:
    """The look-up has taken its time: others see a whole lease before the token goes out again."""
    connection = await house.connect(api_domain=API_DOMAIN)
    house.amo.account.host = "renamed.amocrm.ru"

    class Slow(Gated):
        async def look_up(self, **question: Any) -> Any:
            house.clock.advance(50)
            return await self._client.look_up(**question)

    house.amo.sandbox.faults.add(Fault.WRONG_CLIENT, Fault.SLOW)
    coordinator = house.make_coordinator(amo=cast("AmoClient", Slow(house)))
    refreshing = asyncio.create_task(coordinator.refresh(connection.id, demand=RefreshTrigger.SCHEDULE))
    await house.amo.sandbox.until_asked(3)
    claimed = await house.now(connection)
    assert (claimed.domain, claimed.lease_until) == (
        "renamed.amocrm.ru",
        house.clock.now() + timedelta(seconds=60),
    )
    house.amo.sandbox.go_on.set()
    assert (await refreshing).pair_version == 2


async def test_after_a_stop_there_is_no_second_request(house: House) -> None:
    """The signal comes during the look-up: the claim is given back, the token unspent and not in doubt."""
    connection = await house.connect(api_domain=API_DOMAIN)
    house.amo.account.host = "renamed.amocrm.ru"

    class Stopping(Gated):
        async def look_up(self, **question: Any) -> Any:
            lifecycle.core.stop.set()
            return await self._client.look_up(**question)

    lifecycle = house.make_lifecycle(amo=cast("AmoClient", Stopping(house)))
    coordinator = lifecycle.coordinator
    with pytest.raises(ShuttingDown):
        await coordinator.refresh(connection.id, demand=RefreshTrigger.SCHEDULE)
    after = await house.now(connection)
    assert (after.attempt, after.in_doubt, after.failures) == (None, False, 0)
    assert len(house.amo.fake.ledger.refreshes()) == 1


async def test_whoever_lost_the_attempt_during_the_look_up_sends_no_second_request(house: House) -> None:
    """The person connects again while the account is looked up: the new pair is left alone."""
    connection = await house.connect(api_domain=API_DOMAIN)
    house.amo.account.host = "renamed.amocrm.ru"
    granted: list[Connection] = []

    class Losing(Gated):
        async def look_up(self, **question: Any) -> Any:
            sighting = await self._client.look_up(**question)
            house.amo.account.host = "reforyou.amocrm.ru"
            granted.append(await house.connect(api_domain=API_DOMAIN))
            house.amo.account.host = "renamed.amocrm.ru"
            return sighting

    coordinator = house.make_coordinator(amo=cast("AmoClient", Losing(house)))
    assert (
        await coordinator.refresh(connection.id, demand=RefreshTrigger.SCHEDULE, satisfied=_again(connection))
        == granted[0]
    )
    assert len(house.amo.fake.ledger.refreshes()) == 1


async def test_a_new_host_that_must_not_see_our_secret_is_not_followed(house: House) -> None:
    """Whatever a look-up names: the same check guards it as the browser's `referer`."""
    connection = await house.connect(api_domain=API_DOMAIN)
    house.amo.account.host = "evil.example"
    with pytest.raises(AmoCallbackError):
        await house.refresh(connection)
    assert {entry.host for entry in house.amo.fake.ledger.refreshes()} == {"reforyou.amocrm.ru"}
    assert (await house.now(connection)).status is Status.ACTIVE


# --- what no request was made for -----------------------------------------------------------------


async def test_a_forced_refresh_may_go_at_once_where_nothing_had_reached_amo(house: House) -> None:
    """After a refused connection nothing is hammered: whoever asks by force need not wait for the back-off."""
    connection = await house.connect()

    coordinator = house.make_coordinator(amo=cast("AmoClient", Away(house)))
    with pytest.raises(RequestNotSent):
        await coordinator.refresh(connection.id, demand=RefreshTrigger.SCHEDULE)
    with pytest.raises(NotYet):
        await coordinator.refresh(connection.id, demand=RefreshTrigger.HAND_OUT)
    assert (await coordinator.refresh(connection.id, demand=RefreshTrigger.FORCED)).pair_version == 2


@pytest.mark.parametrize("call", ["claim", "save_verdict", "release", "extend", "postpone"])
async def test_a_store_that_fails_at_any_write_costs_no_connection(house: House, call: str) -> None:
    """Whichever write the store refuses: later the connection is refreshed, and nothing was presented twice."""
    connection = await house.connect(api_domain=API_DOMAIN)
    away = FaultyStore(house.store, house.clock)
    away.away = {call}
    coordinator = house.make_coordinator(store=cast("Store", away))
    house.amo.sandbox.faults.add(Fault.WRONG_CLIENT, Fault.HTTP_500)
    house.amo.account.host = "renamed.amocrm.ru"
    house.amo.sandbox.look_up_faults.add(Fault.HTTP_500)
    for _ in range(8):
        try:
            await asyncio.wait_for(
                _passing(house, coordinator.refresh(connection.id, demand=RefreshTrigger.FORCED)), 20
            )
        except AmoCallbackError:
            house.clock.advance(901)
        if call in away.away and away.failed_at is not None:
            away.away = set()
    assert house.amo.fake.is_good(house.pair(await house.now(connection)).refresh_token)
    assert (await house.now(connection)).pair_version > 1
    assert house.amo.fake.ledger.doubles() == 0


async def _passing(house: House, work: Any) -> Any:
    """Let time pass while somebody waits for a lease."""
    task = asyncio.ensure_future(work)
    while not task.done():
        await asyncio.sleep(0)
        for left in house.clock.sleeping()[:1]:
            house.clock.advance(left)
    return await task
