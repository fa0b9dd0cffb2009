"""Failures of many connections: the circuit breaker, mass failures and refused connections."""

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


async def test_circuit_breaker_client_errors_of_two_connections_stop_refreshes(harness: RefreshHarness) -> None:
    """Client errors of two connections stop all refreshes; connections stay active and callers get the cause."""
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


async def test_client_mismatch_affects_only_its_connection(harness: RefreshHarness) -> None:
    """A token of another client delays its connection for `retry_cap` and does not open the circuit breaker."""
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


async def test_circuit_breaker_single_suspect_does_not_open_it(harness: RefreshHarness) -> None:
    """A single suspect does not open the circuit breaker, and another connection's success clears it."""
    one, two, _ = await harness.connect_users(3)
    await harness.fail(one, UnauthorizedWithoutHint, Fault.WRONG_CLIENT)
    assert harness.lifecycle.breaker.reason is None
    assert (await harness.now(one)).status is Status.ACTIVE
    assert (await harness.refresh(two)).pair_version == 2
    await harness.fail(two, UnauthorizedWithoutHint, Fault.WRONG_CLIENT)
    assert harness.lifecycle.breaker.reason is None


@pytest.mark.parametrize(("size", "suspects"), [(3, 2), (1, 1)])
async def test_circuit_breaker_two_or_all_connections_suspect_open_it(
    harness: RefreshHarness, size: int, suspects: int
) -> None:
    """The circuit breaker opens with the second suspect, or with the only connection."""
    connections = await harness.connect_users(size)
    harness.clock.advance(901)
    for connection in connections[:suspects]:
        assert harness.lifecycle.breaker.reason is None
        await harness.fail(connection, UnauthorizedWithoutHint, Fault.WRONG_CLIENT)
    assert harness.lifecycle.breaker.reason == "amo_credentials"
    assert harness.witness.names().count("amo_credentials.refused") == 1


async def test_circuit_breaker_unanswered_introspection_makes_no_suspect(harness: RefreshHarness) -> None:
    """A refusal without an introspection answer does not make a connection suspect."""
    connections = await harness.connect_users(3)
    for connection in connections:
        harness.amo.sandbox.faults.add(Fault.WRONG_CLIENT)
        harness.amo.sandbox.introspection_faults.add(Fault.HTTP_500, Fault.HTTP_500)
        await harness.fail(connection, UnauthorizedWithoutHint)
    assert harness.lifecycle.breaker.reason is None


async def test_circuit_breaker_open_probes_each_connection_until_success(harness: RefreshHarness) -> None:
    """One probe a minute is sent, each of another connection, and the first success closes the circuit breaker."""
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


async def test_circuit_breaker_successful_exchange_closes_it(harness: RefreshHarness) -> None:
    """A successful exchange closes the circuit breaker, because it uses the same credentials."""
    [connection] = await harness.connect_users(1)
    harness.lifecycle.breaker.refuse("Check the `client_id` parameter")
    harness.lifecycle.breaker.accepted()
    assert (await harness.refresh(connection)).pair_version == 2


async def test_circuit_breaker_forced_refresh_may_be_probe_once_per_round(harness: RefreshHarness) -> None:
    """A forced refresh may be the probe, but not twice before the other connections."""
    one, two = await harness.connect_users(2)
    harness.lifecycle.breaker.refuse("Check the `client_id` parameter")
    harness.clock.advance(60)
    await harness.fail(one, InvalidClient, Fault.CLIENT_ID, trigger=RefreshTrigger.FORCED)
    harness.clock.advance(900)
    await harness.fail(one, NotYet, trigger=RefreshTrigger.FORCED)
    assert (await harness.refresh(two, trigger=RefreshTrigger.FORCED)).pair_version == 2
    assert harness.lifecycle.breaker.reason is None


async def _fail_terminally(
    harness: RefreshHarness, lifecycle: TokenLifecycle, connections: list[Connection]
) -> list[AmoCallbackError]:
    """Refresh connections whose tokens AMO has revoked."""
    harness.amo.account.disabled = True
    return [await harness.fail(each, AmoCallbackError, by=lifecycle.coordinator) for each in connections]


async def test_mass_failure_sixth_terminal_failure_is_suspended(harness: RefreshHarness) -> None:
    """Five terminal failures are applied; the sixth is suspended and stops refreshes, also after a restart."""
    connections = await harness.connect_users(8)
    lifecycle = harness.make_lifecycle()
    errors = await _fail_terminally(harness, lifecycle, connections[:6])
    assert [type(error) for error in errors] == [NeedsReauth] * 5 + [MassFailureSuspected]
    held = await harness.now(connections[5])
    assert (held.status, held.last_error) == (Status.ACTIVE, "mass_failure")
    restarted = harness.make_lifecycle(process="process-2")
    await restarted.breaker.watch()
    for each in (lifecycle, restarted):
        assert (await harness.fail(connections[6], NotYet, by=each.coordinator)).cause_code == "mass_failure"
    assert len(harness.presented()) == 6
    [suspended] = harness.witness.named("terminal_failures.suspended")
    assert suspended.fields == {"failed": 5, "active": 3}


async def test_mass_failure_concurrent_failures_are_counted_in_sequence(harness: RefreshHarness) -> None:
    """Of sixteen concurrent terminal failures only five are applied."""
    connections = await harness.connect_users(16)
    harness.amo.account.disabled = True
    await asyncio.gather(*(harness.refresh(each) for each in connections), return_exceptions=True)
    assert [(await harness.now(each)).status for each in connections].count(Status.NEEDS_REAUTH) == 5


async def test_mass_failure_refused_recheck_is_not_counted(harness: RefreshHarness) -> None:
    """The refusal of a `needs_reauth` connection's recheck does not count as a terminal failure."""
    connections = await harness.connect_users(5)
    await _fail_terminally(harness, harness.lifecycle, connections)
    await harness.fail(connections[0], NeedsReauth, trigger=RefreshTrigger.TRIAL)
    assert not harness.lifecycle.breaker.terminal_suspended


async def test_mass_failure_failures_spread_over_time_are_applied(harness: RefreshHarness) -> None:
    """Terminal failures that are ten minutes apart are not suspended."""
    connections = await harness.connect_users(8)
    assert {type(error) for error in await _fail_terminally(harness, harness.lifecycle, connections[:4])} == {
        NeedsReauth
    }
    harness.clock.advance(600)
    assert {type(error) for error in await _fail_terminally(harness, harness.lifecycle, connections[4:8])} == {
        NeedsReauth
    }


async def test_mass_failure_probe_rejected_by_introspection_is_not_presented(harness: RefreshHarness) -> None:
    """A token that introspection rejects during a mass failure is not presented and is retried after `retry_cap`."""
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


async def test_mass_failure_success_resumes_terminal_failures(harness: RefreshHarness) -> None:
    """A successful probe ends the mass failure, and later terminal failures are applied."""
    connections = await harness.connect_users(8)
    await _fail_terminally(harness, harness.lifecycle, connections[:6])
    harness.amo.account.disabled = False
    harness.clock.advance(60)
    assert (await harness.refresh(connections[6], trigger=RefreshTrigger.FORCED)).pair_version == 2
    assert "terminal_failures.resumed" in harness.witness.names()
    harness.amo.account.disabled = True
    assert {type(error) for error in await _fail_terminally(harness, harness.lifecycle, [connections[7]])} == {
        NeedsReauth
    }


def _count_presentations(harness: RefreshHarness, accounts: list[SandboxAccount]) -> int:
    """Count the presentations of tokens at the hosts of these accounts."""
    hosts = {account.host for account in accounts}
    return sum(entry.host in hosts for entry in harness.presented())


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("size", "gone"), [(12, 2), (25, 5)])
async def test_deleted_accounts_become_refused_after_a_day_without_breaker(
    harness: RefreshHarness, size: int, gone: int, record_property: Any
) -> None:
    """Deleted accounts become `refused` after a day without opening the circuit breaker; the others stay fresh."""
    everyone = await harness.connect_accounts(size)
    deleted, active = everyone[:gone], everyone[gone:]
    for account, _ in deleted:
        account.gone = True
    lifecycle = harness.make_lifecycle(rules=RefreshRules(poll_interval=600.0))
    async with harness.running(lifecycle):
        await harness.pass_days(1.25)
        first = _count_presentations(harness, [account for account, _ in deleted])
        await harness.pass_days(0.75)
    assert "amo_credentials.refused" not in harness.witness.names()
    assert lifecycle.breaker.reason is None
    for _, connection in deleted:
        after = await harness.now(connection)
        assert (after.status, after.reason) == (Status.NEEDS_REAUTH, Reason.REFUSED)
        assert after.sealed_pair == connection.sealed_pair
        assert after.refused_since is not None
    given_up = harness.witness.named("connection.needs_reauth")
    reported = {(event.connection_id, event.fields["reason"]) for event in given_up}
    assert reported == {(connection.id, Reason.REFUSED) for _, connection in deleted}
    webhooks = [one for one in await harness.store.webhooks(limit=100) if one.type == "connection.needs_reauth"]
    assert [one.data["reason"] for one in webhooks] == ["refused"] * gone
    for _, connection in active:
        after = await harness.now(connection)
        assert (after.status, after.failures, after.pair_version >= 4) == (Status.ACTIVE, 0, True)
    later = _count_presentations(harness, [account for account, _ in deleted]) - first
    assert later <= gone, "a refused connection's token is presented once a day"
    assert first <= 130 * gone
    record_property("presentations of a dead account in its first 30 hours", first / gone)
    record_property("and in the next 18 hours", later / gone)


async def test_refused_connections_without_any_success_stay_active(harness: RefreshHarness) -> None:
    """Connections that are all refused and rejected stay active for days, because the cause may be AMO."""
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


async def test_scheduler_backlog_respects_rate_limit_and_expiry_order(harness: RefreshHarness, rounds: int) -> None:
    """A backlog after a day's outage is refreshed within the rate limit, in the order of expiry, each once."""
    rate_limiter = harness.rate_limiter(5)
    slots: list[float] = []
    sent: list[str] = []

    def acquire_slot(priority: Priority) -> Awaitable[None]:  # no coroutine function, so waiting is not traffic
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
