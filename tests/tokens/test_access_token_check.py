"""The access-token check: tokens in doubt are introspected, and rejected tokens are not handed out."""

import asyncio
from typing import Any

import pytest

from amo_callback.amo.sandbox.app import Fault
from amo_callback.errors import AccountBlocked, NeedsReauth, NotFound, RetryableError, StoreUnavailable, UnknownOutcome
from amo_callback.model import Connection, IntrospectionResult
from amo_callback.rate_limit import LocalLimits, Priority, SlotDecision
from amo_callback.tokens.access_tokens import HandOut
from amo_callback.tokens.lifecycle import TokenLifecycle
from tests.builders import a_claim
from tests.fakes import Override, answering
from tests.refresh.harness import API_DOMAIN, DAY, RefreshHarness


async def _connect_in_doubt(harness: RefreshHarness) -> Connection:
    """Connect, and refresh with an answer that is lost after the token is spent."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.fail(connection, UnknownOutcome, Fault.NOTHING_AFTER)
    return connection


async def _token(harness: RefreshHarness, connection: Connection) -> HandOut:
    return await harness.lifecycle.access_tokens.token(connection.id, min_ttl=0)


async def _expect_timeout(harness: RefreshHarness, lifecycle: TokenLifecycle, connection: Connection) -> None:
    """Request a token that is not handed out, and wait until the caller's time limit."""
    asking = asyncio.create_task(lifecycle.access_tokens.token(connection.id, min_ttl=0))
    await harness.clock.until_sleeping(8)
    harness.clock.advance(8)
    with pytest.raises(RetryableError):
        await asking


async def test_hand_out_token_without_doubt_is_not_introspected(harness: RefreshHarness) -> None:
    """A token without doubt is handed out without an introspection, also during its refresh."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    assert not (await _token(harness, connection)).stale
    await harness.store.claim(a_claim(connection, owner="process-2"))
    assert (await _token(harness, connection)).token.value == harness.pair(connection).access_token
    assert harness.amo.sandbox.introspections == 0


async def test_hand_out_token_valid_after_lost_refresh_is_introspected_once(harness: RefreshHarness) -> None:
    """Concurrent callers cause one introspection and receive the token that AMO still accepts."""
    harness.amo.fake.quirks.refresh_kills_access = False
    connection = await _connect_in_doubt(harness)
    handed_out = await asyncio.gather(*(_token(harness, connection) for _ in range(20)))
    assert {one.token.value for one in handed_out} == {harness.pair(connection).access_token}
    assert harness.amo.sandbox.introspections == 1


async def test_hand_out_token_rejected_after_lost_refresh_raises(harness: RefreshHarness) -> None:
    """A token that AMO rejects is not handed out, after one introspection for all callers."""
    harness.amo.fake.quirks.refresh_kills_access = True
    connection = await _connect_in_doubt(harness)
    for _ in range(2):
        outcomes = await asyncio.gather(*(_token(harness, connection) for _ in range(20)), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} <= set(RetryableError.__subclasses__())
        harness.clock.advance(10)
    assert harness.amo.sandbox.introspections == 1


@pytest.mark.parametrize("forced", [False, True])
async def test_hand_out_pair_of_other_process_rejected_during_wait_raises(
    harness: RefreshHarness, *, forced: bool
) -> None:
    """A pair of another process is not handed out if its next refresh loses the answer while the caller waits."""
    harness.amo.fake.quirks.refresh_kills_access = True
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.clock.advance(DAY / 2)
    another, access_tokens = harness.make_lifecycle(process="process-2"), harness.lifecycle.access_tokens
    harness.amo.sandbox.faults.add(Fault.SLOW)
    first = harness.begin(connection, by=another.coordinator)
    await harness.amo.sandbox.until_asked(2)
    waiting = asyncio.create_task(
        access_tokens.refresh(connection.id) if forced else access_tokens.token(connection.id, min_ttl=0.9 * DAY)
    )
    await harness.clock.until_sleeping(0.25)
    harness.amo.sandbox.go_on.set()
    await first
    await harness.fail(connection, UnknownOutcome, Fault.NOTHING_AFTER, by=another.coordinator)
    harness.clock.advance(0.25)
    with pytest.raises(RetryableError):
        await waiting


async def test_hand_out_grant_pair_rejected_after_superseding_refresh_raises(harness: RefreshHarness) -> None:
    """The pair of a grant stored during the refresh is not handed out if its next refresh loses the answer."""
    harness.amo.fake.quirks.refresh_kills_access = True
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.clock.advance(DAY / 2)
    granted = await harness.grant()
    harness.amo.sandbox.asked.clear()
    harness.amo.sandbox.faults.add(Fault.SLOW, Fault.NOTHING_AFTER)
    waiting = asyncio.create_task(harness.lifecycle.access_tokens.token(connection.id, min_ttl=0.9 * DAY))
    await harness.amo.sandbox.asked.wait()
    assert await harness.store.save_connected(granted) is not None
    await harness.fail(connection, UnknownOutcome, by=harness.make_lifecycle(process="process-2").coordinator)
    harness.amo.sandbox.go_on.set()
    with pytest.raises(RetryableError):
        await waiting


async def test_token_check_of_open_attempt_is_repeated_after_five_seconds(harness: RefreshHarness) -> None:
    """An accepted introspection of an open attempt holds for five seconds, because AMO may finish late."""
    harness.amo.fake.quirks.refresh_kills_access = False
    connection = await _connect_in_doubt(harness)
    await _token(harness, connection)
    harness.clock.advance(4)
    await _token(harness, connection)
    assert harness.amo.sandbox.introspections == 1
    harness.clock.advance(1)
    await _token(harness, connection)
    assert harness.amo.sandbox.introspections == 2


@pytest.mark.parametrize("kills", [True, False])
@pytest.mark.parametrize("fault", [Fault.HTTP_500, Fault.HANG])
async def test_token_check_unanswered_hands_out_stale_token(
    harness: RefreshHarness, fault: Fault, *, kills: bool
) -> None:
    """A token in doubt is handed out as stale if AMO does not answer within a second."""
    harness.amo.fake.quirks.refresh_kills_access = kills
    connection = await _connect_in_doubt(harness)
    harness.amo.sandbox.introspection_faults.add(fault)
    handing_out = asyncio.create_task(_token(harness, connection))
    if fault is Fault.HANG:
        await harness.clock.until_sleeping(1)
        assert not handing_out.done()
        harness.clock.advance(1)
    handed_out = await handing_out
    assert handed_out.token.value == harness.pair(connection).access_token
    assert (handed_out.stale, handed_out.reason) == (True, "in_doubt")
    await harness.lifecycle.access_token_check.drain()


async def test_token_check_without_slot_hands_out_stale_and_is_dropped(harness: RefreshHarness) -> None:
    """A caller waits a second for a check's slot, gets a stale token, and its check is dropped."""
    harness.amo.fake.quirks.refresh_kills_access = False
    connections = [connection for _, connection in await harness.connect_accounts(4)]
    for connection in connections:
        await harness.store.claim(a_claim(connection, owner="process-2"))
    harness.clock.advance(5)
    rate_limiter = harness.rate_limiter(1)
    lifecycle = harness.make_lifecycle(amo=Override(harness.client, acquire_slot=rate_limiter.acquire))
    asking = [asyncio.create_task(lifecycle.access_tokens.token(one.id, min_ttl=0)) for one in connections]
    await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
    while harness.clock.sleeping().count(1) < 3:  # noqa: ASYNC110 -- because the clock does not signal sleepers
        await asyncio.sleep(0)
    harness.clock.advance(1)
    handed_out = await asyncio.gather(*asking)
    assert sorted(one.reason or "" for one in handed_out) == ["", "in_doubt", "in_doubt", "in_doubt"]
    harness.clock.advance(60)
    await asyncio.sleep(0)
    assert len(harness.amo.fake.ledger.introspections) == 1
    await lifecycle.access_token_check.drain()
    await rate_limiter.close()


async def test_token_check_rate_limit_unavailable_waits_one_second_at_most(harness: RefreshHarness) -> None:
    """A hand-out waits at most a second for its token check while the shared rate limit is unavailable."""

    class UnavailableLimits(LocalLimits):
        is_local = False

        async def request_slot(self, **_: object) -> SlotDecision:
            raise StoreUnavailable("away")

    harness.amo.fake.quirks.refresh_kills_access = False
    connection = await _connect_in_doubt(harness)
    rate_limiter = harness.rate_limiter(5, UnavailableLimits(clock=harness.clock))
    lifecycle = harness.make_lifecycle(amo=Override(harness.client, acquire_slot=rate_limiter.acquire))
    others = [asyncio.create_task(rate_limiter.acquire(Priority.BACKGROUND)) for _ in range(9)]
    await harness.clock.until_sleeping(1)  # until the store is asked again
    gone, patient = [asyncio.create_task(lifecycle.access_tokens.token(connection.id, min_ttl=0)) for _ in range(2)]
    while harness.clock.sleeping().count(1) < 4:  # noqa: ASYNC110 -- because the clock does not signal sleepers
        await asyncio.sleep(0)
    gone.cancel()
    harness.clock.advance(1)
    assert (await patient).stale
    assert (await patient).token.value == harness.pair(connection).access_token
    assert (gone.cancelled(), any(each.done() for each in others)) == (True, False)
    for waiting in others:
        waiting.cancel()
    await lifecycle.access_token_check.drain()
    await rate_limiter.close()
    rate_limiter = harness.rate_limiter(5, UnavailableLimits(clock=harness.clock))
    lifecycle = harness.make_lifecycle(amo=Override(harness.client, acquire_slot=rate_limiter.acquire))
    handed_out = await lifecycle.access_tokens.token(connection.id, min_ttl=0)
    assert handed_out.token.value == harness.pair(connection).access_token
    assert harness.amo.sandbox.introspections == 1
    await lifecycle.access_token_check.drain()
    await rate_limiter.close()


@pytest.mark.parametrize("kills", [True, False])
async def test_hand_out_needs_reauth_connection_returns_token_amo_accepts(
    harness: RefreshHarness, *, kills: bool
) -> None:
    """A `needs_reauth` connection's access token is handed out if AMO accepts it, otherwise not."""
    harness.amo.fake.quirks.refresh_kills_access = kills
    connection = await _connect_in_doubt(harness)
    harness.clock.advance(60)
    await harness.fail(connection, NeedsReauth)
    asked = harness.amo.sandbox.introspections
    for _ in range(3):
        if kills:
            with pytest.raises(NeedsReauth):
                await _token(harness, connection)
        else:
            assert (await _token(harness, connection)).token.value == harness.pair(connection).access_token
        harness.clock.advance(100)
    assert harness.amo.sandbox.introspections == asked + 1


@pytest.mark.parametrize("is_valid", [False, True])
async def test_access_token_rejected_by_backend_is_returned_only_if_amo_accepts_it(
    harness: RefreshHarness, *, is_valid: bool
) -> None:
    """A rejected access token is returned as stale only if introspection accepts it and the refresh fails."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    token = harness.pair(connection).access_token
    if not is_valid:
        harness.refresh_elsewhere(connection)
    harness.amo.sandbox.faults.add(Fault.UNPAID)
    with pytest.raises(AccountBlocked):
        await harness.lifecycle.access_tokens.refresh(connection.id, rejected=token)
    if not is_valid:
        with pytest.raises(RetryableError):
            await _token(harness, connection)
        return
    for _ in range(2):
        assert (await _token(harness, connection)).token.value == token
        harness.clock.advance(60)
    assert harness.amo.sandbox.introspections == 1


async def test_forced_refresh_outdated_rejected_token_returns_stored_pair(harness: RefreshHarness) -> None:
    """A caller that rejects an older token receives the stored one without a refresh."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    refreshed = await harness.refresh(connection)
    handed_out = await harness.lifecycle.access_tokens.refresh(
        connection.id, rejected=harness.pair(connection).access_token
    )
    assert handed_out.token.value == harness.pair(refreshed).access_token
    assert len(harness.presented()) == 1


async def test_hand_out_pending_pair_without_account_matches_only_its_id(harness: RefreshHarness) -> None:
    """A pending pair without an account id is found by its connection id only."""
    connection = await harness.connect(account_id="")
    refreshing = await harness.begin_pending_write(connection)
    for selector in ("another-customer", "account:", "account:7", ""):
        with pytest.raises(NotFound):
            await harness.lifecycle.access_tokens.token(selector, min_ttl=0)
    assert (await _token(harness, connection)).connection.id == connection.id
    await harness.restore_store()
    await refreshing


@pytest.mark.parametrize("owner", ["process-1", "process-2"])
async def test_token_check_attempt_older_than_five_seconds_is_in_doubt(harness: RefreshHarness, owner: str) -> None:
    """An attempt of any process that is open for five seconds puts the access token in doubt."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.store.claim(a_claim(connection, owner=owner))
    for seconds, introspections in ((0, 0), (4.9, 0), (0.1, 1), (4.9, 1), (0.1, 2)):
        harness.clock.advance(seconds)
        handed_out = await _token(harness, connection)
        assert (handed_out.token.value, handed_out.stale) == (harness.pair(connection).access_token, False)
        assert harness.amo.sandbox.introspections == introspections


async def test_token_check_attempt_open_at_start_is_in_doubt_at_once(harness: RefreshHarness) -> None:
    """A token with an attempt that was open at start is introspected, and not handed out if rejected."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.store.claim(a_claim(connection, owner="process-2"))
    harness.refresh_elsewhere(connection)
    restarted = harness.make_lifecycle()
    await restarted.leases.begin()
    for _ in range(3):
        await _expect_timeout(harness, restarted, connection)
    assert harness.amo.sandbox.introspections == 1
    await restarted.access_token_check.drain()


@pytest.mark.parametrize("silent", [False, True])
async def test_hand_out_attempt_open_at_start_valid_token_is_returned(harness: RefreshHarness, *, silent: bool) -> None:
    """With an attempt that was open at start a token is fresh if AMO accepts it, stale without an answer."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.store.claim(a_claim(connection, owner="process-2"))
    restarted = harness.make_lifecycle()
    await restarted.leases.begin()
    if silent:
        harness.amo.sandbox.introspection_faults.add(Fault.HTTP_500)
    handed_out = await restarted.access_tokens.token(connection.id, min_ttl=0)
    assert (handed_out.token.value, handed_out.reason) == (
        harness.pair(connection).access_token,
        "in_doubt" if silent else None,
    )


async def test_hand_out_token_expired_during_introspection_raises(harness: RefreshHarness) -> None:
    """A token that expires during its introspection is not handed out."""
    connection = await harness.connect_revoked()

    async def introspect_access_token(**question: Any) -> IntrospectionResult:
        introspection = await harness.client.introspect_access_token(**question)
        harness.clock.advance(DAY)
        return introspection

    lifecycle = harness.make_lifecycle(amo=Override(harness.client, introspect_access_token=introspect_access_token))
    with pytest.raises(NeedsReauth):
        await lifecycle.access_tokens.token(connection.id, min_ttl=0)


@pytest.mark.parametrize("rejected", [False, True])
async def test_hand_out_lost_refresh_not_stored_is_in_doubt(harness: RefreshHarness, *, rejected: bool) -> None:
    """A token whose lost refresh could not be stored is in doubt in this process, and not handed out."""
    harness.amo.fake.quirks.refresh_kills_access = True
    connection = await harness.connect(api_domain=API_DOMAIN)
    access_token = harness.pair(connection).access_token
    harness.clock.advance(10)
    harness.failing.away = {"save_failure"}
    harness.amo.sandbox.faults.add(Fault.NOTHING_AFTER)
    with pytest.raises(UnknownOutcome):
        await harness.lifecycle.access_tokens.refresh(connection.id, rejected=access_token if rejected else None)
    await _expect_timeout(harness, harness.lifecycle, connection)


async def test_token_check_rejection_is_repeated_after_ten_minutes(harness: RefreshHarness) -> None:
    """A rejected token is introspected ten minutes later and handed out if AMO then accepts it."""
    connection = await harness.connect_revoked()
    harness.amo.account.disabled = True
    with pytest.raises(NeedsReauth):
        await _token(harness, connection)
    harness.amo.account.disabled = False
    harness.clock.advance(601)
    assert (await _token(harness, connection)).token.value == harness.pair(connection).access_token


async def test_token_check_doubt_remains_after_temporary_refusal(harness: RefreshHarness) -> None:
    """A token remains in doubt if the attempt after its lost refresh is refused temporarily."""
    harness.amo.fake.quirks.refresh_kills_access = True
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.fail(connection, UnknownOutcome, Fault.NOTHING_AFTER, Fault.UNPAID)
    harness.clock.advance(60)
    await harness.fail(connection, AccountBlocked)
    assert (await harness.now(connection)).attempt is None
    with pytest.raises(RetryableError):
        await harness.lifecycle.access_tokens.token(connection.id, min_ttl=0)


async def test_forced_refresh_other_token_in_doubt_is_never_stale(harness: RefreshHarness) -> None:
    """If AMO cannot confirm the stored token, a forced refresh does not return it as stale, but refreshes it."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    silent = Override(harness.client, introspect_access_token=answering(ZeroDivisionError()))
    lifecycle = harness.make_lifecycle(amo=silent)
    await harness.fail(connection, UnknownOutcome, Fault.RESET, by=lifecycle.coordinator)
    assert (await lifecycle.access_tokens.token(connection.id, min_ttl=0)).stale
    harness.clock.advance(60)  # until the attempt may be repeated
    hand_out = await lifecycle.access_tokens.refresh(connection.id, rejected="an older access token")
    assert (hand_out.stale, hand_out.connection.pair_version) == (False, connection.pair_version + 1)


async def test_token_check_bug_is_reported_and_token_is_stale(harness: RefreshHarness) -> None:
    """An unexpected exception in a token check is reported, and the token is handed out as stale."""
    connection = await _connect_in_doubt(harness)
    broken = Override(harness.client, introspect_access_token=answering(ZeroDivisionError()))
    hand_out = await harness.make_lifecycle(amo=broken).access_tokens.token(connection.id, min_ttl=0)
    assert (hand_out.stale, hand_out.reason) == (True, "in_doubt")
    [bug] = harness.witness.named("token_check.bug")
    assert isinstance(bug.error, ZeroDivisionError)
