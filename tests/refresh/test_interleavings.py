"""Interleavings of refreshes, grants, disconnects, crashes and store outages."""

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


async def _wait_for_lease(harness: RefreshHarness, refreshing: asyncio.Task[Any], seconds: float) -> None:
    """Advance the clock by `seconds` in steps while a caller waits for a lease."""
    for _ in range(int(seconds * 4)):
        await harness.clock.until_sleeping(0.25)
        assert not refreshing.done()
        harness.clock.advance(0.25)


async def test_claim_after_long_slot_wait_has_whole_lease(harness: RefreshHarness) -> None:
    """The claim is written after the wait for a slot, with its whole lease."""
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


async def test_slot_wait_claim_of_another_process_is_respected(harness: RefreshHarness) -> None:
    """A refresh presents nothing and waits for the lease if another process claims the row meanwhile."""
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


async def test_slot_wait_new_doubt_is_introspected(harness: RefreshHarness) -> None:
    """A token whose doubt began during the slot wait is introspected before it is presented."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    refreshing, served = await harness.begin_queued(connection)
    failed = present(await harness.store.claim(a_claim(connection, owner="process-2", lease=timedelta(0))))
    await harness.store.claim(a_claim(failed, owner="process-3", attempt="given back"))
    await harness.store.release(connection_id=connection.id, attempt="given back")
    served.set()
    assert (await refreshing).pair_version == 2
    assert harness.amo.sandbox.introspections == 1


async def test_suspended_process_with_ended_lease_sends_nothing(harness: RefreshHarness) -> None:
    """A process suspended between claim and request sends nothing after another process has refreshed."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    stopped = GatedClient(harness.client, hold_request=True)
    first = harness.make_coordinator(amo=stopped)
    late = harness.begin(connection, by=first, is_fresh_enough=newer_than(connection))
    await stopped.asked.wait()
    second = harness.make_coordinator(process="process-2")
    other = harness.begin(connection, by=second)
    await _wait_for_lease(harness, other, 60)
    refreshed = await other
    stopped.send.set()
    assert await late == refreshed
    assert (harness.spent(), harness.amo.fake.ledger.doubles()) == (1, 0)
    assert await harness.now(connection) == refreshed


async def test_claim_of_extended_attempt_fails(harness: RefreshHarness) -> None:
    """A claim of an ended lease fails if the attempt's process has extended it meanwhile."""
    connection = await harness.connect()
    seen = present(await harness.store.claim(a_claim(connection, owner="process-2")))
    assert await harness.store.extend(an_extension(connection))
    assert await harness.store.claim(a_claim(seen, attempt="mine")) is None


async def test_hand_out_cached_token_with_open_attempt_is_introspected_after_5_s(harness: RefreshHarness) -> None:
    """A cached token whose attempt has been open for 5 s is introspected before it is handed out."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    assert await harness.store.claim(a_claim(connection, owner="process-2")) is not None
    harness.refresh_elsewhere(connection)
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


async def test_late_pair_after_needs_reauth_reactivates_connection(harness: RefreshHarness) -> None:
    """A pair stored after another process declared `needs_reauth` reactivates the connection."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    gated = GatedClient(harness.client, hold_answer=True)
    first = harness.make_coordinator(amo=gated)
    late = harness.begin(connection, by=first)
    await gated.answered.wait()
    second = harness.make_coordinator(process="process-2")
    other = harness.begin(connection, by=second)
    await _wait_for_lease(harness, other, 60)
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


async def test_late_pair_after_disconnect_is_dropped(harness: RefreshHarness) -> None:
    """A pair that arrives after the user's disconnect request is not stored."""
    connection = await harness.connect()
    late = await harness.begin_slow(connection)
    assert await harness.store.disconnect(await harness.now(connection), on_request=True)
    harness.amo.sandbox.go_on.set()
    with pytest.raises(NotFound):
        await late
    after = await harness.now(connection)
    assert (after.status, after.sealed_pair) == (Status.DISCONNECTED, None)


async def test_key_rotation_during_refresh_keeps_new_pair(harness: RefreshHarness, encryption_key: str) -> None:
    """A refresh stores its pair after the old one was re-encrypted, and the outdated re-encryption is refused."""
    connection = await harness.connect()
    new = Cipher([new_key(), encryption_key])
    refreshing = await harness.begin_slow(connection)
    read = await harness.now(connection)
    sealed = EncryptedRecord(kind=RecordKind.CONNECTION, name=read.id, content=read.sealed_pair or b"")
    reencrypted = ReencryptedRecord(read=sealed, content=new.reencrypt(sealed.content, context=sealed.place))
    assert await harness.store.reencrypt([reencrypted]) == []
    harness.amo.sandbox.go_on.set()
    stored = await refreshing
    assert stored.pair_version == 2
    assert harness.amo.fake.is_good(harness.pair(stored).refresh_token)
    # The row no longer contains the bytes that were read.
    assert await harness.store.reencrypt([reencrypted]) == [sealed]
    assert await harness.now(connection) == stored


async def test_restart_with_rescue_file_does_not_refresh_due_pair(harness: RefreshHarness) -> None:
    """A restarted process does not present the due pair while its successor's rescue file is not stored."""
    connection = await harness.connect()
    lifecycle = harness.make_lifecycle()
    refreshing = await harness.begin_pending_write(connection, by=lifecycle.coordinator)
    lifecycle.core.stop.set()
    with pytest.raises(ShuttingDown):
        await refreshing
    restarted = harness.make_lifecycle(process="process-2")
    await restarted.pending_writes.restore()
    harness.clock.advance(3600)
    await harness.fail(connection, StoreUnavailable, by=restarted.coordinator, trigger=RefreshTrigger.FORCED)
    await harness.restore_store(restarted)
    assert (await harness.now(connection)).pair_version == 2
    assert (
        await harness.refresh(connection, by=restarted.coordinator, trigger=RefreshTrigger.FORCED)
    ).pair_version == 3
    assert (harness.spent(), harness.amo.fake.ledger.doubles(), harness.rescue.files) == (2, 0, {})


async def test_takeover_loads_rescue_file_before_presenting_token(harness: RefreshHarness) -> None:
    """A process that takes over an attempt loads the killed process's rescue file and spends nothing."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    killed = harness.make_lifecycle(process="process-2", store=harness.failing_store("save_refreshed"))
    refreshing = harness.begin(connection, by=killed.coordinator)
    await harness.witness.until("pair.write_pending")
    survivor = harness.make_lifecycle()
    other = harness.begin(connection, by=survivor.coordinator, is_fresh_enough=newer_than(connection))
    await _wait_for_lease(harness, other, 60)
    stored = await other
    assert (stored.pair_version, stored.status, harness.rescue.files) == (2, Status.ACTIVE, {})
    assert (harness.spent(), harness.amo.fake.ledger.doubles()) == (1, 0)
    refreshing.cancel()


async def test_takeover_unreadable_rescue_folder_presents_no_token_in_doubt(harness: RefreshHarness) -> None:
    """A token in doubt is not presented while the rescue folder is unreadable; other tokens are."""
    connection = await harness.connect()

    def read() -> Any:
        raise PermissionError(13, "Permission denied")

    coordinator = harness.make_coordinator(rescue=Override(harness.rescue, read=read))
    refreshed = await harness.refresh(connection, by=coordinator)
    await harness.store.claim(a_claim(refreshed, owner="process-2"))
    refreshing = harness.begin(connection, by=coordinator)
    await _wait_for_lease(harness, refreshing, 60)
    with pytest.raises(StoreUnavailable) as raised:
        await refreshing
    assert connection.id in raised.value.detail
    assert len(harness.presented()) == 1


async def test_slot_wait_store_outage_renews_lease_of_another_process(harness: RefreshHarness) -> None:
    """An ended lease is waited for once more if the store was unreachable during the slot wait."""
    connection = await harness.connect()
    await harness.store.claim(a_claim(connection, owner="process-2"))
    queue = QueueingClient(harness.client)
    lifecycle = harness.make_lifecycle(amo=queue)
    lifecycle.leases.remaining(await harness.now(connection))
    harness.clock.advance(60)
    refreshing = harness.begin(connection, by=lifecycle.coordinator, is_fresh_enough=newer_than(connection))
    await queue.asked.wait()
    await harness.fail_store_once()
    queue.served.set()
    await harness.clock.until_sleeping(0.25)
    assert harness.presented() == []
    await harness.store.save_refreshed(a_refreshed(connection))
    harness.clock.advance(0.25)
    assert (await refreshing).pair_version == 2
    assert harness.presented() == []


@pytest.mark.parametrize("during", ["extend", "refresh"])
async def test_second_request_with_too_little_lease_is_not_sent(harness: RefreshHarness, during: str) -> None:
    """The second request is not sent if too little of the lease is left after its extension."""
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


async def test_lease_of_another_process_after_store_outage_is_renewed(harness: RefreshHarness) -> None:
    """After a store outage another process's attempt has a whole lease to store its pair."""
    connection = await harness.connect()
    await harness.store.claim(a_claim(connection, owner="process-2"))
    lifecycle = harness.make_lifecycle()
    assert lifecycle.leases.remaining(await harness.now(connection)) == 60
    harness.clock.advance(59)
    await harness.fail_store_once()
    assert lifecycle.leases.remaining(await harness.now(connection)) == 60
    harness.clock.advance(60)
    assert lifecycle.leases.remaining(await harness.now(connection)) == 0


async def test_lease_extended_by_another_process_counts_from_observation(harness: RefreshHarness) -> None:
    """An extended lease counts from the moment at which this process first sees the extension."""
    connection = await harness.connect()
    await harness.store.claim(a_claim(connection, owner="process-2"))
    leases = harness.make_lifecycle().leases
    assert leases.remaining(await harness.now(connection)) == 60
    harness.clock.advance(50)
    assert leases.remaining(await harness.now(connection)) == 10
    await harness.store.extend(an_extension(connection))
    assert leases.remaining(await harness.now(connection)) == 60


async def test_lease_wall_clock_step_does_not_change_remaining_time(harness: RefreshHarness) -> None:
    """A step of the wall clock does not change the rest of a lease, which is measured monotonically."""
    connection = await harness.connect()
    await harness.store.claim(a_claim(connection, owner="process-2", lease=timedelta(seconds=60)))
    leases = harness.make_lifecycle().leases
    for hours in (5, -10):
        harness.clock.step(timedelta(hours=hours))
        assert leases.remaining(await harness.now(connection)) == 60
    harness.clock.advance(60)
    assert leases.remaining(await harness.now(connection)) == 0


async def _connect_in_doubt(harness: RefreshHarness, fault: Fault) -> Connection:
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.fail(connection, UnknownOutcome, fault)
    return connection


async def test_token_in_doubt_is_not_presented_before_lease_has_passed(harness: RefreshHarness) -> None:
    """A token in doubt is not presented for a whole lease, not even by a forced refresh."""
    connection = await _connect_in_doubt(harness, Fault.HTTP_500)
    harness.clock.advance(59)
    await harness.fail(connection, NotYet, trigger=RefreshTrigger.FORCED)
    assert len(harness.presented()) == 1
    harness.clock.advance(1)
    assert (await harness.refresh(connection)).pair_version == 2


async def test_token_in_doubt_is_introspected_before_it_is_presented(harness: RefreshHarness) -> None:
    """A token in doubt is introspected before the refresh, whose stored pair ends the doubt."""
    connection = await _connect_in_doubt(harness, Fault.HTTP_500)
    harness.clock.advance(60)
    stored = await harness.refresh(connection)
    assert harness.amo.sandbox.introspections == 1
    assert not stored.in_doubt
    await harness.refresh(stored)
    assert harness.amo.sandbox.introspections == 1


async def test_token_in_doubt_unanswered_introspection_is_not_presented(harness: RefreshHarness) -> None:
    """A token in doubt is not presented while its introspection stays unanswered."""
    connection = await _connect_in_doubt(harness, Fault.HTTP_500)
    harness.clock.advance(60)
    harness.amo.sandbox.introspection_faults.add(Fault.HTTP_500)
    await harness.fail(connection, IntrospectionUnavailable)
    after = await harness.now(connection)
    assert (after.last_error, after.failures, after.status) == ("no_answer", 2, Status.ACTIVE)
    assert len(harness.presented()) == 1
    harness.clock.advance(900)
    assert (await harness.refresh(connection)).pair_version == 2


async def test_token_in_doubt_is_presented_a_day_after_access_expiry(harness: RefreshHarness) -> None:
    """A token in doubt is presented without an introspection a day after its access token expired."""
    connection = await _connect_in_doubt(harness, Fault.HTTP_500)
    for seconds, refreshed in ((2 * 86_400 - 1, False), (901, True)):
        harness.clock.advance(seconds)
        harness.amo.sandbox.introspection_faults.add(Fault.HTTP_500)
        if refreshed:
            assert (await harness.refresh(connection)).pair_version == 2
        else:
            await harness.fail(connection, IntrospectionUnavailable)


@pytest.mark.parametrize("knows", [False, True])
async def test_token_in_doubt_spent_is_presented_once_more(harness: RefreshHarness, *, knows: bool) -> None:
    """A spent token is presented once more, and its rejection gives `in_doubt`, whatever introspection says."""
    harness.amo.fake.quirks.introspection_accepts_spent = knows
    connection = await _connect_in_doubt(harness, Fault.NOTHING_AFTER)
    harness.clock.advance(60)
    assert (await harness.fail(connection, NeedsReauth)).reason is Reason.IN_DOUBT
    assert len(harness.presented()) == 2


async def test_token_in_doubt_without_api_domain_is_presented_once(harness: RefreshHarness) -> None:
    """A token in doubt without `api_domain` is presented without an introspection."""
    connection = await harness.connect()
    await harness.fail(connection, UnknownOutcome, Fault.HTTP_500)
    harness.clock.advance(60)
    assert (await harness.refresh(connection)).pair_version == 2
    assert harness.amo.sandbox.introspections == 0


async def test_crash_after_claim_leaves_token_in_doubt(harness: RefreshHarness) -> None:
    """Another process introspects the token of a crashed attempt after its lease and reports a loss as `in_doubt`."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    gated = GatedClient(harness.client, hold_answer=True)
    killed = harness.begin(connection, by=harness.make_coordinator(amo=gated))
    await gated.answered.wait()  # the answer is never processed
    survivor = harness.make_coordinator(process="process-2")
    other = harness.begin(connection, by=survivor)
    await _wait_for_lease(harness, other, 60)
    with pytest.raises(NeedsReauth) as raised:
        await other
    assert raised.value.reason is Reason.IN_DOUBT
    assert harness.amo.sandbox.introspections == 1
    killed.cancel()


@pytest.mark.parametrize("status", [401, 404])
@pytest.mark.parametrize("api_domain", [API_DOMAIN, None])
async def test_moved_account_is_refreshed_at_new_host(
    harness: RefreshHarness, status: int, api_domain: str | None
) -> None:
    """A moved account is found by its refresh token or, without `api_domain`, by its access token."""
    harness.amo.fake.quirks.moved_status = status
    connection = await harness.connect(api_domain=api_domain)
    harness.amo.account.host = "renamed.amocrm.ru"
    stored = await harness.refresh(connection)
    assert (stored.domain, stored.pair_version, stored.status) == ("renamed.amocrm.ru", 2, Status.ACTIVE)
    assert harness.witness.names() == ["connection.moved", "refresh.succeeded"]
    assert [entry.host for entry in harness.presented()] == ["reforyou.amocrm.ru", "renamed.amocrm.ru"]


async def test_moved_account_second_request_has_extended_lease(harness: RefreshHarness) -> None:
    """The lease is extended to its whole length before the second request."""
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
async def test_moved_account_at_shutdown_sends_no_second_request(harness: RefreshHarness, during: str) -> None:
    """A stop during the introspection or the extension releases the claim without doubt."""
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


async def test_moved_account_grant_during_introspection_stops_second_request(harness: RefreshHarness) -> None:
    """A grant during the introspection prevents the second request and keeps its pair."""
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


async def test_moved_account_host_not_allowed_gets_no_request(harness: RefreshHarness) -> None:
    """A host named by introspection gets no request unless it is on the allow list."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.amo.account.host = "evil.example"
    await harness.fail(connection, AmoCallbackError)
    assert {entry.host for entry in harness.presented()} == {"reforyou.amocrm.ru"}
    assert (await harness.now(connection)).status is Status.ACTIVE


async def test_forced_refresh_after_unsent_request_ignores_back_off(harness: RefreshHarness) -> None:
    """A forced refresh ignores the back-off after a request that did not reach AMO."""
    connection = await harness.connect()

    coordinator = harness.make_coordinator(amo=UnreachableClient(harness.client))
    await harness.fail(connection, RequestNotSent, by=coordinator)
    await harness.fail(connection, NotYet, by=coordinator, trigger=RefreshTrigger.HAND_OUT)
    assert (await harness.refresh(connection, by=coordinator, trigger=RefreshTrigger.FORCED)).pair_version == 2


@pytest.mark.parametrize("call", ["claim", "save_failure", "release", "extend", "postpone"])
async def test_refresh_store_failure_at_any_write_recovers(harness: RefreshHarness, call: str) -> None:
    """A connection is refreshed later, without presenting a token twice, whichever write fails."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    away = harness.failing_store(call)
    coordinator = harness.make_coordinator(store=away)
    harness.amo.sandbox.faults.add(Fault.WRONG_CLIENT, Fault.HTTP_500)
    harness.amo.account.host = "renamed.amocrm.ru"
    harness.amo.sandbox.introspection_faults.add(Fault.HTTP_500)
    for _ in range(8):
        try:
            await asyncio.wait_for(
                _advance_until_done(
                    harness, harness.refresh(connection, by=coordinator, trigger=RefreshTrigger.FORCED)
                ),
                20,
            )
        except AmoCallbackError:
            harness.clock.advance(901)
        if call in away.away and away.failed_at is not None:
            away.away = set()
    assert harness.amo.fake.is_good(harness.pair(await harness.now(connection)).refresh_token)
    assert (await harness.now(connection)).pair_version > 1
    assert harness.amo.fake.ledger.doubles() == 0


async def _advance_until_done(harness: RefreshHarness, work: Any) -> Any:
    """Advance the clock while the work waits for a lease."""
    task = asyncio.ensure_future(work)
    while not task.done():
        await asyncio.sleep(0)
        for left in harness.clock.sleeping()[:1]:
            harness.clock.advance(left)
    return await task
