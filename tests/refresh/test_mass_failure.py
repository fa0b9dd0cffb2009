"""Whose fault it is: what is not one connection's own stops all refreshing, and one success ends that."""

import asyncio
from collections.abc import Awaitable
from datetime import timedelta
from typing import Any

import pytest

from amo_callback.amo.sandbox.app import Fault
from amo_callback.amo.sandbox.fake_amo import SandboxAccount
from amo_callback.errors import (
    AmoCallbackError,
    ClientMismatch,
    InvalidClient,
    MassFailureSuspected,
    NeedsReauth,
    NotYet,
    UnauthorizedWithoutHint,
)
from amo_callback.model import Connection, Reason, RefreshRules, RefreshTrigger, Status, TokenResponse
from amo_callback.rate_limit import Priority
from amo_callback.tokens.lifecycle import TokenLifecycle
from tests.builders import present
from tests.fakes import START, Override
from tests.refresh.harness import RefreshHarness


async def test_listed_client_errors_of_two_connections_stop_everything(harness: RefreshHarness) -> None:
    """Nothing is refreshed, everything is kept, and callers hear whose fault it is; nobody is hammered."""
    one, two, three = await harness.connect_users(3)
    harness.clock.advance(901)
    harness.amo.sandbox.faults.add(Fault.CLIENT_ID, Fault.CLIENT_ID)
    for connection in (one, three):
        assert harness.lifecycle.breaker.reason is None
        await harness.fail(connection, InvalidClient)
    assert harness.lifecycle.breaker.refused == "Check the `client_id` parameter"
    for trigger in (RefreshTrigger.SCHEDULE, RefreshTrigger.HAND_OUT, RefreshTrigger.FORCED):
        refused = await harness.fail(two, NotYet, trigger=trigger)
        assert (refused.cause_code, refused.retry_after) == ("amo_credentials", 60)
    assert len(harness.presented()) == 2
    assert {(await harness.now(each)).status for each in (one, two, three)} == {Status.ACTIVE}


async def test_a_token_that_is_not_linked_to_our_client_concerns_its_connection_alone(harness: RefreshHarness) -> None:
    """However many there are, nothing else stops; each is asked again after the retry cap."""
    connections = await harness.connect_users(4)
    harness.clock.advance(901)
    for connection in connections[:3]:
        await harness.fail(connection, ClientMismatch, Fault.NOT_LINKED)
        after = await harness.now(connection)
        again = harness.clock.now() + timedelta(seconds=900)
        assert (after.status, after.last_error, after.next_refresh_at) == (Status.ACTIVE, "client_mismatch", again)
    assert harness.lifecycle.breaker.reason is None
    assert (await harness.refresh(connections[3])).pair_version == 2
    stats = await harness.store.stats(now=harness.clock.now(), late=harness.clock.now())
    assert (stats.active, stats.mismatched) == (4, 3)


async def test_a_lone_connection_refused_without_a_reason_backs_off_alone(harness: RefreshHarness) -> None:
    """Looked up and not moved: a suspect; the others go on, and their success clears it."""
    one, two, _ = await harness.connect_users(3)
    await harness.fail(one, UnauthorizedWithoutHint, Fault.WRONG_CLIENT)
    assert harness.lifecycle.breaker.reason is None
    assert (await harness.now(one)).status is Status.ACTIVE
    assert (await harness.refresh(two)).pair_version == 2
    await harness.fail(two, UnauthorizedWithoutHint, Fault.WRONG_CLIENT)
    assert harness.lifecycle.breaker.reason is None


@pytest.mark.parametrize(("size", "suspects"), [(3, 2), (1, 1)])
async def test_two_suspects_or_all_mean_our_configuration(harness: RefreshHarness, size: int, suspects: int) -> None:
    """A wrong secret is found out by the second connection, or by the only one."""
    connections = await harness.connect_users(size)
    harness.clock.advance(901)
    for connection in connections[:suspects]:
        assert harness.lifecycle.breaker.reason is None
        await harness.fail(connection, UnauthorizedWithoutHint, Fault.WRONG_CLIENT)
    assert harness.lifecycle.breaker.reason == "amo_credentials"
    assert harness.witness.names().count("amo_credentials.refused") == 1


async def test_a_silent_look_up_makes_nobody_a_suspect(harness: RefreshHarness) -> None:
    """An AMO that is ill is not a wrong secret."""
    connections = await harness.connect_users(3)
    for connection in connections:
        harness.amo.sandbox.faults.add(Fault.WRONG_CLIENT)
        harness.amo.sandbox.introspection_faults.add(Fault.HTTP_500, Fault.HTTP_500)
        await harness.fail(connection, UnauthorizedWithoutHint)
    assert harness.lifecycle.breaker.reason is None


async def test_one_after_the_other_is_the_probe_and_a_success_closes_it(harness: RefreshHarness) -> None:
    """A probe a minute, each another connection, due or not; the first that succeeds lets all the others go."""
    connections = await harness.connect_users(3, next_refresh_at=START)
    harness.lifecycle.breaker.refuse("Check the `client_id` parameter")
    harness.amo.sandbox.faults.add(Fault.NOT_LINKED, Fault.NOT_LINKED)
    async with harness.running(harness.lifecycle):
        for probes in (1, 2):
            for _ in range(12):
                await harness.clock.until_sleeping(5)
                assert harness.amo.sandbox.requests == 3 + probes - 1
                harness.clock.advance(5)
            await harness.witness.until("refresh.failed", times=probes)
        await harness.clock.tick(5, times=12)
        await harness.witness.until("refresh.succeeded")
    presented = [entry.presented for entry in harness.presented()]
    assert len(set(presented[:3])) == 3
    assert harness.lifecycle.breaker.reason is None
    assert "amo_credentials.accepted" in harness.witness.names()
    assert set(presented) == {harness.pair(connection).refresh_token for connection in connections}


async def test_an_exchange_that_succeeds_closes_it_too(harness: RefreshHarness) -> None:
    """The person who connects proves the same credentials."""
    [connection] = await harness.connect_users(1)
    harness.lifecycle.breaker.refuse("Check the `client_id` parameter")
    harness.lifecycle.breaker.accepted()
    assert (await harness.refresh(connection)).pair_version == 2


async def test_a_forced_refresh_may_be_the_probe_but_not_the_same_one_each_time(harness: RefreshHarness) -> None:
    """A backend that insists on one bad connection does not keep the others from being tried."""
    one, two = await harness.connect_users(2)
    harness.lifecycle.breaker.refuse("Check the `client_id` parameter")
    harness.clock.advance(60)
    await harness.fail(one, InvalidClient, Fault.CLIENT_ID, trigger=RefreshTrigger.FORCED)
    harness.clock.advance(900)
    await harness.fail(one, NotYet, trigger=RefreshTrigger.FORCED)
    assert (await harness.refresh(two, trigger=RefreshTrigger.FORCED)).pair_version == 2
    assert harness.lifecycle.breaker.reason is None


async def _die(
    harness: RefreshHarness, lifecycle: TokenLifecycle, connections: list[Connection]
) -> list[AmoCallbackError]:
    """Refresh connections whose tokens AMO has revoked."""
    harness.amo.account.disabled = True
    return [await harness.fail(each, AmoCallbackError, by=lifecycle.coordinator) for each in connections]


async def test_a_whole_fleet_dying_at_once_is_not_believed(harness: RefreshHarness) -> None:
    """Five are given up; the sixth verdict is held, and nothing more is presented, also after a restart."""
    connections = await harness.connect_users(8)
    lifecycle = harness.make_lifecycle()
    told = await _die(harness, lifecycle, connections[:6])
    assert [type(error) for error in told] == [NeedsReauth] * 5 + [MassFailureSuspected]
    held = await harness.now(connections[5])
    assert (held.status, held.last_error) == (Status.ACTIVE, "mass_failure")
    restarted = harness.make_lifecycle(process="process-2")
    await restarted.breaker.watch()
    for each in (lifecycle, restarted):
        assert (await harness.fail(connections[6], NotYet, by=each.coordinator)).cause_code == "mass_failure"
    assert len(harness.presented()) == 6
    [suspended] = harness.witness.named("terminal_failures.suspended")
    assert suspended.fields == {"failed": 5, "active": 3}


async def test_sixteen_at_once_do_not_slip_through(harness: RefreshHarness) -> None:
    """Verdicts that come at the same moment are counted one after the other."""
    connections = await harness.connect_users(16)
    harness.amo.account.disabled = True
    await asyncio.gather(*(harness.refresh(each) for each in connections), return_exceptions=True)
    assert [(await harness.now(each)).status for each in connections].count(Status.NEEDS_REAUTH) == 5


async def test_a_trial_that_fails_is_no_death(harness: RefreshHarness) -> None:
    """Who was given up before cannot die again: after five deaths a trial's refusal holds nothing."""
    connections = await harness.connect_users(5)
    await _die(harness, harness.lifecycle, connections)
    await harness.fail(connections[0], NeedsReauth, trigger=RefreshTrigger.TRIAL)
    assert not harness.lifecycle.breaker.terminal_suspended


async def test_deaths_spread_over_time_are_believed(harness: RefreshHarness) -> None:
    """Four now and four in ten minutes are people who left."""
    connections = await harness.connect_users(8)
    assert {type(error) for error in await _die(harness, harness.lifecycle, connections[:4])} == {NeedsReauth}
    harness.clock.advance(600)
    assert {type(error) for error in await _die(harness, harness.lifecycle, connections[4:8])} == {NeedsReauth}


async def test_while_verdicts_are_held_a_token_that_the_look_up_refuses_stays_at_home(harness: RefreshHarness) -> None:
    """An old database put back: no spent token is presented, and each is looked up again after a retry cap."""
    connections = await harness.connect_users(3, next_refresh_at=START)
    harness.amo.fake.quirks.introspection_accepts_spent = False
    await harness.store.suspend_terminal(now=harness.clock.now())
    harness.amo.account.disabled = True
    asked = harness.amo.sandbox.requests
    async with harness.running(harness.lifecycle):
        await harness.pass_time(200, step=5)
    assert harness.amo.sandbox.introspections == 3
    assert harness.amo.sandbox.requests == asked
    for each in connections:
        after = await harness.now(each)
        assert (after.status, after.last_error) == (Status.ACTIVE, "mass_failure")
        assert present(after.next_refresh_at) > harness.clock.now() + timedelta(minutes=12)


async def test_one_success_makes_the_dead_believed(harness: RefreshHarness) -> None:
    """A probe that succeeds shows AMO, the credentials and the database to be well: the others are heard again."""
    connections = await harness.connect_users(8)
    await _die(harness, harness.lifecycle, connections[:6])
    harness.amo.account.disabled = False
    harness.clock.advance(60)
    assert (await harness.refresh(connections[6], trigger=RefreshTrigger.FORCED)).pair_version == 2
    assert "terminal_failures.resumed" in harness.witness.names()
    harness.amo.account.disabled = True
    assert {type(error) for error in await _die(harness, harness.lifecycle, [connections[7]])} == {NeedsReauth}


def _presented(harness: RefreshHarness, accounts: list[SandboxAccount]) -> int:
    """Count how often tokens were presented at these accounts' hosts."""
    hosts = {account.host for account in accounts}
    return sum(entry.host in hosts for entry in harness.presented())


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("size", "gone"), [(12, 2), (25, 5)])
async def test_accounts_that_are_gone_stop_nobody_and_their_users_are_told_after_a_day(
    harness: RefreshHarness, size: int, gone: int, record_property: Any
) -> None:
    """In two days the breaker never opens, the other accounts stay fresh, and the dead are hardly asked any more."""
    everyone = await harness.connect_accounts(size)
    dead, active = everyone[:gone], everyone[gone:]
    for account, _ in dead:
        account.gone = True
    lifecycle = harness.make_lifecycle(rules=RefreshRules(poll_interval=600.0))
    async with harness.running(lifecycle):
        await harness.pass_days(1.25)
        first = _presented(harness, [account for account, _ in dead])
        await harness.pass_days(0.75)
    assert "amo_credentials.refused" not in harness.witness.names()
    assert lifecycle.breaker.reason is None
    for _, connection in dead:
        after = await harness.now(connection)
        assert (after.status, after.reason) == (Status.NEEDS_REAUTH, Reason.REFUSED)
        assert after.sealed_pair == connection.sealed_pair
        assert after.refused_since is not None
    given_up = harness.witness.named("connection.needs_reauth")
    told = {(event.connection_id, event.fields["reason"]) for event in given_up}
    assert told == {(connection.id, Reason.REFUSED) for _, connection in dead}
    webhooks = [one for one in await harness.store.webhooks(limit=100) if one.type == "connection.needs_reauth"]
    assert [one.data["reason"] for one in webhooks] == ["refused"] * gone
    for _, connection in active:
        after = await harness.now(connection)
        assert (after.status, after.failures, after.pair_version >= 4) == (Status.ACTIVE, 0, True)
    later = _presented(harness, [account for account, _ in dead]) - first
    assert later <= gone, "a refused connection's token is presented once a day"
    assert first <= 130 * gone
    record_property("presentations of a dead account in its first 30 hours", first / gone)
    record_property("and in the next 18 hours", later / gone)


async def test_where_nobody_else_succeeds_a_refused_connection_is_kept(harness: RefreshHarness) -> None:
    """Everyone is refused and rejected: AMO is ill, or it is our fault; after days all are still active."""
    everyone = await harness.connect_accounts(3)
    for account, _ in everyone:
        account.gone = True
    lifecycle = harness.make_lifecycle(rules=RefreshRules(poll_interval=1800.0, retry_base=7200.0, retry_cap=7200.0))
    async with harness.running(lifecycle):
        await harness.pass_days(2.5)
    for _, connection in everyone:
        after = await harness.now(connection)
        assert (after.status, after.refusals >= 8) == (Status.ACTIVE, True)
    assert lifecycle.breaker.reason is None


async def test_a_backlog_is_spread_and_whose_token_dies_first_goes_first(harness: RefreshHarness, rounds: int) -> None:
    """Everything due at once after a day's outage: so many a second, the oldest expiry first, and each once."""
    rate_limiter = harness.rate_limiter(5)
    slots: list[float] = []
    sent: list[str] = []

    def acquire_slot(priority: Priority) -> Awaitable[None]:  # no coroutine function: that one waits is no traffic
        async def wait() -> None:
            await rate_limiter.acquire(priority)
            slots.append(harness.clock.monotonic())

        return wait()

    async def refresh(*, refresh_token: str, **more: Any) -> TokenResponse:
        sent.append(refresh_token)
        return await harness.client.refresh(refresh_token=refresh_token, **more)

    connections = await harness.connect_users(20 * rounds)
    tokens = [harness.pair(each).refresh_token for each in connections]
    harness.clock.advance(86_400 - 1)
    amo = Override(harness.client, acquire_slot=acquire_slot, refresh=refresh)
    lifecycle = harness.make_lifecycle(amo=amo, rules=RefreshRules(concurrency=1))
    async with harness.running(lifecycle):
        while len(harness.witness.named("refresh.succeeded")) < len(connections):
            await harness.pass_time(0.1, step=0.1)
    await rate_limiter.close()
    assert sent == tokens
    assert all(sixth - first >= 0.999 for first, sixth in zip(slots, slots[5:], strict=False))
    assert harness.amo.fake.ledger.doubles() == 0
