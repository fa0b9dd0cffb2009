"""Access tokens in doubt: AMO is asked, and a dead one is not handed out."""

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


async def _in_doubt(harness: RefreshHarness) -> Connection:
    """Return a connection whose refresh token was spent, and whose next pair was lost."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.fail(connection, UnknownOutcome, Fault.NOTHING_AFTER)
    return connection


async def _token(harness: RefreshHarness, connection: Connection) -> HandOut:
    return await harness.lifecycle.access_tokens.token(connection.id, min_ttl=0)


async def _wait_in_vain(harness: RefreshHarness, lifecycle: TokenLifecycle, connection: Connection) -> None:
    """Ask for a token that is not handed out, and wait as long as a caller does for a new one."""
    asking = asyncio.create_task(lifecycle.access_tokens.token(connection.id, min_ttl=0))
    await harness.clock.until_sleeping(8)
    harness.clock.advance(8)
    with pytest.raises(RetryableError):
        await asking


async def test_a_token_beyond_doubt_is_handed_out_unasked(harness: RefreshHarness) -> None:
    """Nobody asks AMO about a token that nothing speaks against, nor while its refresh is under way."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    assert not (await _token(harness, connection)).stale
    await harness.store.claim(a_claim(connection, owner="process-2"))
    assert (await _token(harness, connection)).token.value == harness.pair(connection).access_token
    assert harness.amo.sandbox.introspections == 0


async def test_a_token_that_outlives_its_refresh_is_handed_out(harness: RefreshHarness) -> None:
    """After a refresh without an answer AMO is asked once for everybody who wants the token now."""
    harness.amo.fake.quirks.refresh_kills_access = False
    connection = await _in_doubt(harness)
    handed_out = await asyncio.gather(*(_token(harness, connection) for _ in range(20)))
    assert {one.token.value for one in handed_out} == {harness.pair(connection).access_token}
    assert harness.amo.sandbox.introspections == 1


async def test_a_token_that_died_with_its_refresh_is_not_handed_out(harness: RefreshHarness) -> None:
    """AMO is asked once, and whoever wants the token, now or later, is told to wait."""
    harness.amo.fake.quirks.refresh_kills_access = True
    connection = await _in_doubt(harness)
    for _ in range(2):
        outcomes = await asyncio.gather(*(_token(harness, connection) for _ in range(20)), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} <= set(RetryableError.__subclasses__())
        harness.clock.advance(10)
    assert harness.amo.sandbox.introspections == 1


@pytest.mark.parametrize("forced", [False, True])
async def test_a_token_that_died_during_the_wait_is_not_handed_out(harness: RefreshHarness, *, forced: bool) -> None:
    """Between two looks another process stores the pair that is waited for, and loses the next one's answer."""
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


async def test_a_token_that_replaced_ours_and_died_is_not_handed_out(harness: RefreshHarness) -> None:
    """While the answer to our refresh was under way the user connected again, and the next refresh lost its answer."""
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


async def test_an_open_attempt_is_asked_about_anew(harness: RefreshHarness) -> None:
    """AMO may finish a refresh late: that the token lives is known for five seconds and no longer."""
    harness.amo.fake.quirks.refresh_kills_access = False
    connection = await _in_doubt(harness)
    await _token(harness, connection)
    harness.clock.advance(4)
    await _token(harness, connection)
    assert harness.amo.sandbox.introspections == 1
    harness.clock.advance(1)
    await _token(harness, connection)
    assert harness.amo.sandbox.introspections == 2


@pytest.mark.parametrize("kills", [True, False])
@pytest.mark.parametrize("fault", [Fault.HTTP_500, Fault.HANG])
async def test_a_silent_amo_keeps_nobody_from_a_token(harness: RefreshHarness, fault: Fault, *, kills: bool) -> None:
    """Where AMO does not answer within a second, the token is handed out as stale: it may be valid."""
    harness.amo.fake.quirks.refresh_kills_access = kills
    connection = await _in_doubt(harness)
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


async def test_checks_take_a_quarter_of_the_rate_and_the_others_are_served_as_stale(harness: RefreshHarness) -> None:
    """A caller waits a second for a check that has no slot; then its check does not queue behind the others."""
    harness.amo.fake.quirks.refresh_kills_access = False
    connections = [connection for _, connection in await harness.connect_accounts(4)]
    for connection in connections:
        await harness.store.claim(a_claim(connection, owner="process-2"))
    harness.clock.advance(5)
    rate_limiter = harness.rate_limiter(1)
    lifecycle = harness.make_lifecycle(amo=Override(harness.client, acquire_slot=rate_limiter.acquire))
    asking = [asyncio.create_task(lifecycle.access_tokens.token(one.id, min_ttl=0)) for one in connections]
    await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
    while harness.clock.sleeping().count(1) < 3:  # noqa: ASYNC110 -- because a clock does not tell of all three
        await asyncio.sleep(0)
    harness.clock.advance(1)
    handed_out = await asyncio.gather(*asking)
    assert sorted(one.reason or "" for one in handed_out) == ["", "in_doubt", "in_doubt", "in_doubt"]
    harness.clock.advance(60)
    await asyncio.sleep(0)
    assert len(harness.amo.fake.ledger.introspections) == 1
    await lifecycle.access_token_check.drain()
    await rate_limiter.close()


async def test_a_rate_limit_that_is_away_keeps_nobody_waiting(harness: RefreshHarness) -> None:
    """While slots cannot be had, refreshes wait; a token check that does not go within a second is not waited for."""

    class Away(LocalLimits):
        is_local = False

        async def request_slot(self, **_: object) -> SlotDecision:
            raise StoreUnavailable("away")

    harness.amo.fake.quirks.refresh_kills_access = False
    connection = await _in_doubt(harness)
    rate_limiter = harness.rate_limiter(5, Away(clock=harness.clock))
    lifecycle = harness.make_lifecycle(amo=Override(harness.client, acquire_slot=rate_limiter.acquire))
    others = [asyncio.create_task(rate_limiter.acquire(Priority.BACKGROUND)) for _ in range(9)]
    await harness.clock.until_sleeping(1)  # before the store is asked again
    gone, patient = [asyncio.create_task(lifecycle.access_tokens.token(connection.id, min_ttl=0)) for _ in range(2)]
    while harness.clock.sleeping().count(1) < 4:  # noqa: ASYNC110 -- because a clock does not tell of all
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
    rate_limiter = harness.rate_limiter(5, Away(clock=harness.clock))
    lifecycle = harness.make_lifecycle(amo=Override(harness.client, acquire_slot=rate_limiter.acquire))
    handed_out = await lifecycle.access_tokens.token(connection.id, min_ttl=0)
    assert handed_out.token.value == harness.pair(connection).access_token
    assert harness.amo.sandbox.introspections == 1
    await lifecycle.access_token_check.drain()
    await rate_limiter.close()


@pytest.mark.parametrize("kills", [True, False])
async def test_a_connection_given_up_hands_out_what_lives(harness: RefreshHarness, *, kills: bool) -> None:
    """Until it expires an access token that AMO knows serves its backend; one that AMO refuses is nobody's."""
    harness.amo.fake.quirks.refresh_kills_access = kills
    connection = await _in_doubt(harness)
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
async def test_a_token_that_was_rejected_is_handed_out_only_where_amo_knows_it(
    harness: RefreshHarness, *, is_valid: bool
) -> None:
    """A backend heard 401, and the refresh cannot be done: its word is a hint, and AMO's decides."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    token = harness.pair(connection).access_token
    if not is_valid:
        harness.fade(connection)
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


async def test_what_has_been_refreshed_since_is_handed_out_for_a_rejected_token(harness: RefreshHarness) -> None:
    """A backend that comes with the token of before gets the present one, and nothing is refreshed."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    refreshed = await harness.refresh(connection)
    handed_out = await harness.lifecycle.access_tokens.refresh(
        connection.id, rejected=harness.pair(connection).access_token
    )
    assert handed_out.token.value == harness.pair(refreshed).access_token
    assert len(harness.presented()) == 1


async def test_nobody_gets_another_connections_token(harness: RefreshHarness) -> None:
    """An unsaved pair whose token names no account is found by its connection, and by no other selector."""
    connection = await harness.connect(account_id="")
    refreshing = await harness.begin_unsaved(connection)
    for selector in ("another-customer", "account:", "account:7", ""):
        with pytest.raises(NotFound):
            await harness.lifecycle.access_tokens.token(selector, min_ttl=0)
    assert (await _token(harness, connection)).connection.id == connection.id
    await harness.bring_store_back()
    await refreshing


@pytest.mark.parametrize("owner", ["process-1", "process-2"])
async def test_an_attempt_that_takes_five_seconds_puts_the_token_in_doubt(harness: RefreshHarness, owner: str) -> None:
    """Until then it is under way, this process's own or another's; then AMO may have ended the access token."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.store.claim(a_claim(connection, owner=owner))
    for seconds, introspections in ((0, 0), (4.9, 0), (0.1, 1), (4.9, 1), (0.1, 2)):
        harness.clock.advance(seconds)
        handed_out = await _token(harness, connection)
        assert (handed_out.token.value, handed_out.stale) == (harness.pair(connection).access_token, False)
        assert harness.amo.sandbox.introspections == introspections


async def test_an_attempt_that_was_open_at_start_puts_the_token_in_doubt_at_once(harness: RefreshHarness) -> None:
    """Its process may have been killed after AMO had ended the access token: that one is not handed out."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.store.claim(a_claim(connection, owner="process-2"))
    harness.fade(connection)
    restarted = harness.make_lifecycle()
    await restarted.leases.begin()
    for _ in range(3):
        await _wait_in_vain(harness, restarted, connection)
    assert harness.amo.sandbox.introspections == 1
    await restarted.access_token_check.drain()


@pytest.mark.parametrize("silent", [False, True])
async def test_an_attempt_open_at_start_costs_no_hand_out_of_a_valid_token(
    harness: RefreshHarness, *, silent: bool
) -> None:
    """AMO accepts it, so it is fresh; where AMO is silent it is stale."""
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


async def test_a_token_that_expires_while_amo_is_asked_about_it_is_not_handed_out(harness: RefreshHarness) -> None:
    """However long the process was stopped meanwhile: the clock is looked at last."""
    connection = await harness.given_up()

    async def introspect_access_token(**question: Any) -> IntrospectionResult:
        introspection = await harness.client.introspect_access_token(**question)
        harness.clock.advance(DAY)
        return introspection

    lifecycle = harness.make_lifecycle(amo=Override(harness.client, introspect_access_token=introspect_access_token))
    with pytest.raises(NeedsReauth):
        await lifecycle.access_tokens.token(connection.id, min_ttl=0)


@pytest.mark.parametrize("rejected", [False, True])
async def test_a_death_that_could_not_be_written_down_is_known(harness: RefreshHarness, *, rejected: bool) -> None:
    """The disk was full after the answer was lost: this process knows all the same, also once a backend has told it."""
    harness.amo.fake.quirks.refresh_kills_access = True
    connection = await harness.connect(api_domain=API_DOMAIN)
    dead = harness.pair(connection).access_token
    harness.clock.advance(10)
    harness.failing.away = {"save_failure"}
    harness.amo.sandbox.faults.add(Fault.NOTHING_AFTER)
    with pytest.raises(UnknownOutcome):
        await harness.lifecycle.access_tokens.refresh(connection.id, rejected=dead if rejected else None)
    await _wait_in_vain(harness, harness.lifecycle, connection)


async def test_a_refusal_is_asked_about_again_after_a_while(harness: RefreshHarness) -> None:
    """Switched off and on again, a token that lives is handed out within minutes."""
    connection = await harness.given_up()
    harness.amo.account.disabled = True
    with pytest.raises(NeedsReauth):
        await _token(harness, connection)
    harness.amo.account.disabled = False
    harness.clock.advance(601)
    assert (await _token(harness, connection)).token.value == harness.pair(connection).access_token


async def test_doubt_about_an_access_token_outlives_a_refusal_that_passes(harness: RefreshHarness) -> None:
    """Its refresh was lost, and the next attempt was turned away: the token may be dead, and AMO is asked."""
    harness.amo.fake.quirks.refresh_kills_access = True
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.fail(connection, UnknownOutcome, Fault.NOTHING_AFTER, Fault.UNPAID)
    harness.clock.advance(60)
    await harness.fail(connection, AccountBlocked)
    assert (await harness.now(connection)).attempt is None
    with pytest.raises(RetryableError):
        await harness.lifecycle.access_tokens.token(connection.id, min_ttl=0)


async def test_a_bug_in_a_token_check_is_reported_and_the_token_is_stale(harness: RefreshHarness) -> None:
    """The caller is served as when AMO does not answer, and the administrator learns of the bug."""
    connection = await _in_doubt(harness)
    broken = Override(harness.client, introspect_access_token=answering(ZeroDivisionError()))
    hand_out = await harness.make_lifecycle(amo=broken).access_tokens.token(connection.id, min_ttl=0)
    assert (hand_out.stale, hand_out.reason) == (True, "in_doubt")
    [bug] = harness.witness.named("token_check.bug")
    assert isinstance(bug.error, ZeroDivisionError)
