"""Each interleaving that the rules of custody guard against, by its name."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from amo_callback.amo.sandbox.app import Fault
from amo_callback.crypto import Cipher, EncryptedRecord, RecordKind, ReencryptedRecord, new_key
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
from tests.builders import a_claim, a_refreshed, an_extension, present
from tests.fakes import Override
from tests.refresh.harness import (
    API_DOMAIN,
    WAIT_LIMIT,
    GatedClient,
    QueueingClient,
    RefreshHarness,
    UnreachableClient,
    newer_than,
)


async def _until_waiting(harness: RefreshHarness, refreshing: asyncio.Task[Any], seconds: float) -> None:
    """Let a caller wait for a lease, look by look, until so many seconds have passed."""
    for _ in range(int(seconds * 4)):
        await harness.clock.until_sleeping(0.25)
        assert not refreshing.done()
        harness.clock.advance(0.25)


async def test_a_claim_does_not_age_in_a_queue(harness: RefreshHarness) -> None:
    """However long the rate limit or a place is waited for, the claim is written after, with its whole lease."""
    connection = await harness.connect()
    refreshing, served = await harness.begin_queued(connection)
    harness.clock.advance(3600)
    assert (await harness.now(connection)).attempt is None
    harness.amo.sandbox.faults.add(Fault.SLOW)
    served.set()
    await harness.amo.sandbox.until_asked(2)
    assert (await harness.now(connection)).lease_until == harness.clock.now() + timedelta(seconds=60)
    harness.amo.sandbox.go_on.set()
    assert (await refreshing).pair_version == 2


async def test_a_claim_of_another_process_during_the_wait_for_a_slot_is_respected(harness: RefreshHarness) -> None:
    """Free when the queue was joined, claimed when the slot came: nothing is presented, and the lease is waited for."""
    connection = await harness.connect()
    refreshing, served = await harness.begin_queued(connection, is_fresh_enough=newer_than(connection))
    await harness.store.claim(a_claim(connection, owner="process-2"))
    served.set()
    await harness.clock.until_sleeping(0.25)
    assert harness.presented() == []
    await harness.store.save_refreshed(a_refreshed(connection))
    harness.clock.advance(0.25)
    assert (await refreshing).pair_version == 2
    assert harness.presented() == []


async def test_a_doubt_that_arose_during_the_wait_for_a_slot_is_looked_up(harness: RefreshHarness) -> None:
    """Clean when the queue was joined; then another process died at it, and a third gave its claim back."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    refreshing, served = await harness.begin_queued(connection)
    failed = present(await harness.store.claim(a_claim(connection, owner="process-2", lease=timedelta(0))))
    await harness.store.claim(a_claim(failed, owner="process-3", attempt="given back"))
    await harness.store.release(connection_id=connection.id, attempt="given back")
    served.set()
    assert (await refreshing).pair_version == 2
    assert harness.amo.sandbox.introspections == 1


async def test_a_process_stopped_before_its_post_sends_nothing_on_a_lease_that_is_over(harness: RefreshHarness) -> None:
    """Stopped between claim and request, another process refreshes; waked, the first one spends nothing."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    stopped = GatedClient(harness.client, hold_request=True)
    first = harness.make_coordinator(amo=stopped)
    late = harness.begin(connection, by=first, is_fresh_enough=newer_than(connection))
    await stopped.asked.wait()
    second = harness.make_coordinator(process="process-2")
    other = harness.begin(connection, by=second)
    await _until_waiting(harness, other, 60)
    refreshed = await other
    stopped.send.set()
    assert await late == refreshed
    assert (harness.spent(), harness.amo.fake.ledger.doubles()) == (1, 0)
    assert await harness.now(connection) == refreshed


async def test_an_attempt_extended_meanwhile_is_not_taken_over(harness: RefreshHarness) -> None:
    """Whoever saw a lease end, and claims just as its owner extends it for a second request, comes too late."""
    connection = await harness.connect()
    seen = present(await harness.store.claim(a_claim(connection, owner="process-2")))
    assert await harness.store.extend(an_extension(connection))
    assert await harness.store.claim(a_claim(seen, attempt="mine")) is None


async def test_a_token_whose_attempt_never_ended_is_doubted_also_where_remembered(harness: RefreshHarness) -> None:
    """Its process was killed with the answer: the row has not changed since it was read, and AMO is asked after 5 s."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    assert await harness.store.claim(a_claim(connection, owner="process-2")) is not None
    harness.fade(connection)
    access_tokens = harness.lifecycle.access_tokens
    for _ in range(10):
        assert not (await access_tokens.token(connection.id, min_ttl=0)).stale
        await harness.pass_time(0.5, step=0.5)
    asking = asyncio.create_task(access_tokens.token(connection.id, min_ttl=0))
    await harness.clock.until_sleeping(WAIT_LIMIT)
    harness.clock.advance(WAIT_LIMIT)
    with pytest.raises(RetryableError):
        await asking
    harness.clock.advance(60)
    with pytest.raises(NeedsReauth):
        await access_tokens.token(connection.id, min_ttl=0)


async def test_a_pair_that_comes_after_needs_reauth_mends_it(harness: RefreshHarness) -> None:
    """Stopped with the answer in hand, given up by another process: the late pair wins, for it is good."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    gated = GatedClient(harness.client, hold_answer=True)
    first = harness.make_coordinator(amo=gated)
    late = harness.begin(connection, by=first)
    await gated.answered.wait()
    second = harness.make_coordinator(process="process-2")
    other = harness.begin(connection, by=second)
    await _until_waiting(harness, other, 60)
    with pytest.raises(NeedsReauth) as raised:
        await other
    assert raised.value.reason is Reason.IN_DOUBT
    gated.go_on.set()
    stored = await late
    assert (stored.status, stored.reason, stored.pair_version) == (Status.ACTIVE, None, 2)
    assert harness.amo.fake.is_good(harness.pair(stored).refresh_token)
    assert harness.witness.names() == [
        "refresh.taken_over",
        "connection.needs_reauth",
        "refresh.succeeded",
        "connection.recovered",
    ]


async def test_a_pair_that_comes_after_a_disconnect_is_dropped(harness: RefreshHarness) -> None:
    """Forgotten on request while a refresh was on its way: nothing of it comes back."""
    connection = await harness.connect()
    late = await harness.begin_slow(connection)
    assert await harness.store.disconnect(await harness.now(connection), on_request=True)
    harness.amo.sandbox.go_on.set()
    with pytest.raises(NotFound):
        await late
    after = await harness.now(connection)
    assert (after.status, after.sealed_pair) == (Status.DISCONNECTED, None)


async def test_a_key_change_during_a_flight_loses_neither(harness: RefreshHarness, encryption_key: str) -> None:
    """The old pair is sealed anew while its successor is on its way: the successor is stored, and then sealed anew."""
    connection = await harness.connect()
    new = Cipher([new_key(), encryption_key])
    flight = await harness.begin_slow(connection)
    read = await harness.now(connection)
    sealed = EncryptedRecord(kind=RecordKind.CONNECTION, name=read.id, content=read.sealed_pair or b"")
    reencrypted = ReencryptedRecord(read=sealed, content=new.reencrypt(sealed.content, context=sealed.place))
    assert await harness.store.reencrypt([reencrypted]) == []
    harness.amo.sandbox.go_on.set()
    stored = await flight
    assert stored.pair_version == 2
    assert harness.amo.fake.is_good(harness.pair(stored).refresh_token)
    assert await harness.store.reencrypt([reencrypted]) == [
        sealed
    ]  # the very bytes that were read are gone: read again
    assert await harness.now(connection) == stored


async def test_a_connection_with_an_unsaved_pair_is_not_refreshed_by_its_own_process(harness: RefreshHarness) -> None:
    """After a restart with the store away, the pair in the rescue file stands against the one that is due."""
    connection = await harness.connect()
    lifecycle = harness.make_lifecycle()
    flight = await harness.begin_unsaved(connection, by=lifecycle.coordinator)
    lifecycle.core.stop.set()
    with pytest.raises(ShuttingDown):
        await flight
    restarted = harness.make_lifecycle(process="process-2")
    await restarted.pending_writes.restore()
    harness.clock.advance(3600)
    await harness.fail(connection, StoreUnavailable, by=restarted.coordinator, trigger=RefreshTrigger.FORCED)
    await harness.bring_store_back(restarted)
    assert (await harness.now(connection)).pair_version == 2
    assert (
        await harness.refresh(connection, by=restarted.coordinator, trigger=RefreshTrigger.FORCED)
    ).pair_version == 3
    assert (harness.spent(), harness.amo.fake.ledger.doubles(), harness.rescue.files) == (2, 0, {})


async def test_a_pair_in_anothers_file_is_found_before_its_predecessor_is_presented(harness: RefreshHarness) -> None:
    """Its process was killed with the pair in its file: whoever takes over looks there first, and spends nothing."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    dying = harness.make_lifecycle(process="process-2", store=harness.away("save_refreshed"))
    flight = harness.begin(connection, by=dying.coordinator)
    await harness.witness.until("pair.write_pending")
    living = harness.make_lifecycle()
    other = harness.begin(connection, by=living.coordinator, is_fresh_enough=newer_than(connection))
    await _until_waiting(harness, other, 60)
    stored = await other
    assert (stored.pair_version, stored.status, harness.rescue.files) == (2, Status.ACTIVE, {})
    assert (harness.spent(), harness.amo.fake.ledger.doubles()) == (1, 0)
    flight.cancel()


async def test_a_rescue_folder_that_cannot_be_read_keeps_a_doubtful_token_at_home(harness: RefreshHarness) -> None:
    """Its successor may lie there: nothing is presented before somebody has looked; a token beyond doubt is."""
    connection = await harness.connect()

    def read() -> Any:
        raise PermissionError(13, "Permission denied")

    coordinator = harness.make_coordinator(rescue=Override(harness.rescue, read=read))
    refreshed = await harness.refresh(connection, by=coordinator)
    await harness.store.claim(a_claim(refreshed, owner="process-2"))
    refreshing = harness.begin(connection, by=coordinator)
    await _until_waiting(harness, refreshing, 60)
    with pytest.raises(StoreUnavailable) as raised:
        await refreshing
    assert connection.id in raised.value.detail
    assert len(harness.presented()) == 1


async def test_a_store_that_was_away_during_the_wait_for_a_slot_renews_anothers_lease(harness: RefreshHarness) -> None:
    """Over when the queue was joined; then its owner could not store for a while: it is waited for once more."""
    connection = await harness.connect()
    await harness.store.claim(a_claim(connection, owner="process-2"))
    queue = QueueingClient(harness.client)
    lifecycle = harness.make_lifecycle(amo=queue)
    lifecycle.leases.remaining(await harness.now(connection))
    harness.clock.advance(60)
    refreshing = harness.begin(connection, by=lifecycle.coordinator, is_fresh_enough=newer_than(connection))
    await queue.asked.wait()
    await harness.lose_store_once()
    queue.served.set()
    await harness.clock.until_sleeping(0.25)
    assert harness.presented() == []
    await harness.store.save_refreshed(a_refreshed(connection))
    harness.clock.advance(0.25)
    assert (await refreshing).pair_version == 2
    assert harness.presented() == []


@pytest.mark.parametrize("during", ["extend", "refresh"])
async def test_a_process_stopped_before_its_second_post_sends_nothing_once_its_lease_is_too_short(
    harness: RefreshHarness, during: str
) -> None:
    """Stopped while more time is written, or after it: what is left of the lease is not enough for an answer."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.amo.account.host = "renamed.amocrm.ru"
    harness.failing.after["extend"] = lambda *_, **__: harness.clock.advance(55.1 if during == "extend" else 0)

    async def refresh(*, domain: str, **request: Any) -> TokenResponse:
        harness.clock.advance(55.1 if during == "refresh" and domain != connection.domain else 0)
        return await harness.client.refresh(domain=domain, **request)

    coordinator = harness.make_coordinator(amo=Override(harness.client, refresh=refresh))
    await harness.fail(connection, RequestNotSent, by=coordinator)
    assert [entry.host for entry in harness.presented()] == [connection.domain]
    after = await harness.now(connection)
    assert (after.domain, after.in_doubt) == ("renamed.amocrm.ru", False)


async def test_after_the_store_was_away_anothers_attempt_has_a_whole_lease_more(harness: RefreshHarness) -> None:
    """Its owner may hold a good pair and could not store it: nobody judges before it had the time."""
    connection = await harness.connect()
    await harness.store.claim(a_claim(connection, owner="process-2"))
    lifecycle = harness.make_lifecycle()
    assert lifecycle.leases.remaining(await harness.now(connection)) == 60
    harness.clock.advance(59)
    await harness.lose_store_once()
    assert lifecycle.leases.remaining(await harness.now(connection)) == 60
    harness.clock.advance(60)
    assert lifecycle.leases.remaining(await harness.now(connection)) == 0


async def test_an_attempt_that_got_more_time_is_left_alone_for_as_long(harness: RefreshHarness) -> None:
    """A lease extended for a second request counts from when that was seen."""
    connection = await harness.connect()
    await harness.store.claim(a_claim(connection, owner="process-2"))
    leases = harness.make_lifecycle().leases
    assert leases.remaining(await harness.now(connection)) == 60
    harness.clock.advance(50)
    assert leases.remaining(await harness.now(connection)) == 10
    await harness.store.extend(an_extension(connection))
    assert leases.remaining(await harness.now(connection)) == 60


async def test_a_stepped_clock_ends_no_lease(harness: RefreshHarness) -> None:
    """Hours forward or back on the wall clock: the lease runs by what this process itself has seen."""
    connection = await harness.connect()
    await harness.store.claim(a_claim(connection, owner="process-2", lease=timedelta(seconds=60)))
    leases = harness.make_lifecycle().leases
    for hours in (5, -10):
        harness.clock.step(timedelta(hours=hours))
        assert leases.remaining(await harness.now(connection)) == 60
    harness.clock.advance(60)
    assert leases.remaining(await harness.now(connection)) == 0


async def _in_doubt(harness: RefreshHarness, fault: Fault) -> Connection:
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.fail(connection, UnknownOutcome, fault)
    return connection


async def test_a_token_in_doubt_is_not_presented_before_a_whole_lease_has_passed(harness: RefreshHarness) -> None:
    """Not even by force: AMO may be at work on it still."""
    connection = await _in_doubt(harness, Fault.HTTP_500)
    harness.clock.advance(59)
    await harness.fail(connection, NotYet, trigger=RefreshTrigger.FORCED)
    assert len(harness.presented()) == 1
    harness.clock.advance(1)
    assert (await harness.refresh(connection)).pair_version == 2


async def test_a_token_in_doubt_is_looked_up_before_it_is_presented_again(harness: RefreshHarness) -> None:
    """One request that spends nothing, then the refresh; once the pair is stored the doubt is over."""
    connection = await _in_doubt(harness, Fault.HTTP_500)
    harness.clock.advance(60)
    stored = await harness.refresh(connection)
    assert harness.amo.sandbox.introspections == 1
    assert not stored.in_doubt
    await harness.refresh(stored)
    assert harness.amo.sandbox.introspections == 1


async def test_a_token_in_doubt_stays_at_home_while_look_ups_have_no_answer(harness: RefreshHarness) -> None:
    """An AMO that does not answer what costs nothing is not trusted with what works once."""
    connection = await _in_doubt(harness, Fault.HTTP_500)
    harness.clock.advance(60)
    harness.amo.sandbox.introspection_faults.add(Fault.HTTP_500)
    await harness.fail(connection, IntrospectionUnavailable)
    after = await harness.now(connection)
    assert (after.last_error, after.failures, after.status) == ("no_answer", 2, Status.ACTIVE)
    assert len(harness.presented()) == 1
    harness.clock.advance(900)
    assert (await harness.refresh(connection)).pair_version == 2


async def test_a_look_up_that_never_answers_ends_no_connection(harness: RefreshHarness) -> None:
    """A day after its last access token has expired waiting serves nobody: the token is presented all the same."""
    connection = await _in_doubt(harness, Fault.HTTP_500)
    for seconds, refreshed in ((2 * 86_400 - 1, False), (901, True)):
        harness.clock.advance(seconds)
        harness.amo.sandbox.introspection_faults.add(Fault.HTTP_500)
        if refreshed:
            assert (await harness.refresh(connection)).pair_version == 2
        else:
            await harness.fail(connection, IntrospectionUnavailable)


@pytest.mark.parametrize("knows", [False, True])
async def test_a_spent_token_is_presented_once_more_whatever_the_look_up_says(
    harness: RefreshHarness, *, knows: bool
) -> None:
    """Only the token endpoint's word is final, and then it is our loss: in doubt, not revoked."""
    harness.amo.fake.quirks.introspection_accepts_spent = knows
    connection = await _in_doubt(harness, Fault.NOTHING_AFTER)
    harness.clock.advance(60)
    assert (await harness.fail(connection, NeedsReauth)).reason is Reason.IN_DOUBT
    assert len(harness.presented()) == 2


async def test_a_pair_without_a_shard_to_ask_is_presented_once(harness: RefreshHarness) -> None:
    """Tokens from before 2024-08-21 name no `api_domain`."""
    connection = await harness.connect()
    await harness.fail(connection, UnknownOutcome, Fault.HTTP_500)
    harness.clock.advance(60)
    assert (await harness.refresh(connection)).pair_version == 2
    assert harness.amo.sandbox.introspections == 0


async def test_a_crash_after_the_claim_is_doubt_to_whoever_comes_after(harness: RefreshHarness) -> None:
    """Killed with its request under way: after the lease the token is looked up, and a loss is told as in doubt."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    gated = GatedClient(harness.client, hold_answer=True)
    killed = harness.begin(connection, by=harness.make_coordinator(amo=gated))
    await gated.answered.wait()  # and never goes on
    survivor = harness.make_coordinator(process="process-2")
    other = harness.begin(connection, by=survivor)
    await _until_waiting(harness, other, 60)
    with pytest.raises(NeedsReauth) as raised:
        await other
    assert raised.value.reason is Reason.IN_DOUBT
    assert harness.amo.sandbox.introspections == 1
    killed.cancel()


@pytest.mark.parametrize("status", [401, 404])
@pytest.mark.parametrize("api_domain", [API_DOMAIN, None])
async def test_a_moved_account_is_followed(harness: RefreshHarness, status: int, api_domain: str | None) -> None:
    """Looked up by its refresh token, or where nobody answers that, by its access token; its new host is stored."""
    harness.amo.fake.quirks.moved_status = status
    connection = await harness.connect(api_domain=api_domain)
    harness.amo.account.host = "renamed.amocrm.ru"
    stored = await harness.refresh(connection)
    assert (stored.domain, stored.pair_version, stored.status) == ("renamed.amocrm.ru", 2, Status.ACTIVE)
    assert harness.witness.names() == ["connection.moved", "refresh.succeeded"]
    assert [entry.host for entry in harness.presented()] == ["reforyou.amocrm.ru", "renamed.amocrm.ru"]


async def test_the_second_request_of_a_moved_account_goes_on_an_extended_lease(harness: RefreshHarness) -> None:
    """The look-up has taken its time: others see a whole lease before the token goes out again."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.amo.account.host = "renamed.amocrm.ru"

    async def introspect_refresh_token(**question: Any) -> Any:
        harness.clock.advance(50)
        return await harness.client.introspect_refresh_token(**question)

    harness.amo.sandbox.faults.add(Fault.WRONG_CLIENT, Fault.SLOW)
    coordinator = harness.make_coordinator(
        amo=Override(harness.client, introspect_refresh_token=introspect_refresh_token)
    )
    refreshing = harness.begin(connection, by=coordinator)
    await harness.amo.sandbox.until_asked(3)
    claimed = await harness.now(connection)
    assert (claimed.domain, claimed.lease_until) == ("renamed.amocrm.ru", harness.clock.now() + timedelta(seconds=60))
    harness.amo.sandbox.go_on.set()
    assert (await refreshing).pair_version == 2


@pytest.mark.parametrize("during", ["introspect_refresh_token", "extend"])
async def test_after_a_stop_there_is_no_second_request(harness: RefreshHarness, during: str) -> None:
    """The signal comes during the look-up, or while more time is written: the claim is given back, free of doubt."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.amo.account.host = "renamed.amocrm.ru"
    stop = harness.lifecycle.core.stop

    async def introspect_refresh_token(**question: Any) -> Any:
        if during == "introspect_refresh_token":
            stop.set()
        return await harness.client.introspect_refresh_token(**question)

    harness.failing.after["extend"] = lambda *_, **__: stop.set()
    coordinator = harness.make_coordinator(
        amo=Override(harness.client, introspect_refresh_token=introspect_refresh_token)
    )
    await harness.fail(connection, ShuttingDown, by=coordinator)
    after = await harness.now(connection)
    assert (after.attempt, after.in_doubt, after.failures) == (None, False, 0)
    assert len(harness.presented()) == 1


async def test_whoever_lost_the_attempt_during_the_look_up_sends_no_second_request(harness: RefreshHarness) -> None:
    """The person connects again while the account is looked up: the new pair is left alone."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.amo.account.host = "renamed.amocrm.ru"
    granted: list[Connection] = []

    async def introspect_refresh_token(**question: Any) -> Any:
        introspection = await harness.client.introspect_refresh_token(**question)
        harness.amo.account.host = "reforyou.amocrm.ru"
        granted.append(await harness.connect(api_domain=API_DOMAIN))
        harness.amo.account.host = "renamed.amocrm.ru"
        return introspection

    coordinator = harness.make_coordinator(
        amo=Override(harness.client, introspect_refresh_token=introspect_refresh_token)
    )
    assert await harness.refresh(connection, by=coordinator, is_fresh_enough=newer_than(connection)) == granted[0]
    assert len(harness.presented()) == 1


async def test_a_new_host_that_must_not_see_our_secret_is_not_followed(harness: RefreshHarness) -> None:
    """Whatever a look-up names: the same check guards it as the browser's `referer`."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.amo.account.host = "evil.example"
    await harness.fail(connection, AmoCallbackError)
    assert {entry.host for entry in harness.presented()} == {"reforyou.amocrm.ru"}
    assert (await harness.now(connection)).status is Status.ACTIVE


async def test_a_forced_refresh_may_go_at_once_where_nothing_had_reached_amo(harness: RefreshHarness) -> None:
    """After a refused connection nothing is hammered: whoever asks by force need not wait for the back-off."""
    connection = await harness.connect()

    coordinator = harness.make_coordinator(amo=UnreachableClient(harness.client))
    await harness.fail(connection, RequestNotSent, by=coordinator)
    await harness.fail(connection, NotYet, by=coordinator, trigger=RefreshTrigger.HAND_OUT)
    assert (await harness.refresh(connection, by=coordinator, trigger=RefreshTrigger.FORCED)).pair_version == 2


@pytest.mark.parametrize("call", ["claim", "save_failure", "release", "extend", "postpone"])
async def test_a_store_that_fails_at_any_write_costs_no_connection(harness: RefreshHarness, call: str) -> None:
    """Whichever write the store refuses: later the connection is refreshed, and nothing was presented twice."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    away = harness.away(call)
    coordinator = harness.make_coordinator(store=away)
    harness.amo.sandbox.faults.add(Fault.WRONG_CLIENT, Fault.HTTP_500)
    harness.amo.account.host = "renamed.amocrm.ru"
    harness.amo.sandbox.introspection_faults.add(Fault.HTTP_500)
    for _ in range(8):
        try:
            await asyncio.wait_for(
                _passing(harness, harness.refresh(connection, by=coordinator, trigger=RefreshTrigger.FORCED)), 20
            )
        except AmoCallbackError:
            harness.clock.advance(901)
        if call in away.away and away.failed_at is not None:
            away.away = set()
    assert harness.amo.fake.is_good(harness.pair(await harness.now(connection)).refresh_token)
    assert (await harness.now(connection)).pair_version > 1
    assert harness.amo.fake.ledger.doubles() == 0


async def _passing(harness: RefreshHarness, work: Any) -> Any:
    """Let time pass while somebody waits for a lease."""
    task = asyncio.ensure_future(work)
    while not task.done():
        await asyncio.sleep(0)
        for left in harness.clock.sleeping()[:1]:
            harness.clock.advance(left)
    return await task
