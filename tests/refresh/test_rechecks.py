"""Rechecks: introspections of `needs_reauth` connections and of accounts named by AMO's disable hook."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from amo_callback.amo.sandbox.app import Fault
from amo_callback.amo.sandbox.fake_amo import Lifetimes
from amo_callback.crypto import Cipher, new_key
from amo_callback.errors import NeedsReauth, NotYet, UnknownOutcome
from amo_callback.model import Connection, IntrospectionResult, Reason, Status, TokenState
from tests.builders import present
from tests.fakes import Override, answering
from tests.refresh.harness import API_DOMAIN, DAY, GatedClient, RefreshHarness

MINUTE = timedelta(minutes=1)


async def _check_hook(harness: RefreshHarness, connection: Connection) -> None:
    """Receive AMO's hook for the connection's account, and run the due introspections."""
    await harness.lifecycle.integration_disabled(connection.account_id)
    await harness.run_due_rechecks()


async def test_recheck_rejected_refresh_token_is_not_presented(harness: RefreshHarness) -> None:
    """A revoked token that introspection rejects is not presented, although AMO accepts its access token."""
    fake = harness.amo.fake
    fake.lifetimes = Lifetimes(access=10 * DAY)
    fake.quirks.introspection_accepts_spent = fake.quirks.refresh_kills_access = False
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.amo.spend(grant_type="refresh_token", refresh_token=harness.pair(connection).refresh_token)
    await harness.fail(connection, NeedsReauth)
    presented = len(fake.ledger.refreshes())
    for _ in range(3):
        harness.clock.advance(DAY)
        await harness.run_due_rechecks()
    assert len(fake.ledger.refreshes()) == presented
    assert (await harness.now(connection)).status is Status.NEEDS_REAUTH


async def test_disable_hook_accepted_token_is_introspected_twice_more(harness: RefreshHarness) -> None:
    """An accepted token is introspected after one and ten minutes, because AMO may send its hook early."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    disabled_hook_at = harness.clock.now()
    await harness.lifecycle.integration_disabled(connection.account_id)
    for again in (disabled_hook_at + MINUTE, disabled_hook_at + 10 * MINUTE, None):
        await harness.run_due_rechecks()
        after = await harness.now(connection)
        assert (after.recheck_at, after.sealed_pair) == (again, connection.sealed_pair)
        assert (await harness.witness.until("hook.unconfirmed")).fields.get("again_at") == again
        harness.clock.advance((again - harness.clock.now()).total_seconds() if again else DAY)
    await harness.run_due_rechecks()
    assert harness.amo.sandbox.introspections == 3


async def test_disable_hook_rejected_tokens_are_erased(harness: RefreshHarness) -> None:
    """Tokens that AMO rejects after its hook are erased, and the connection is disconnected."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.amo.account.disabled = True
    await _check_hook(harness, connection)
    after = await harness.now(connection)
    assert (after.status, after.sealed_pair, after.recheck_at) == (Status.DISCONNECTED, None, None)
    assert harness.witness.names() == ["hook.received", "connection.disconnected"]
    assert harness.presented() == []


@pytest.mark.parametrize("api_domain", [API_DOMAIN, None])
async def test_disable_hook_account_disabled_later_is_disconnected_by_recheck(
    harness: RefreshHarness, api_domain: str | None
) -> None:
    """An account disabled after its hook is found by the next introspection, also without `api_domain`."""
    connection = await harness.connect(api_domain=api_domain)
    await _check_hook(harness, connection)
    assert (await harness.now(connection)).sealed_pair == connection.sealed_pair
    harness.amo.account.disabled = True
    harness.clock.advance(60)
    await harness.run_due_rechecks()
    assert (await harness.now(connection)).status is Status.DISCONNECTED


async def test_disable_hook_rejected_refresh_token_only_erases_nothing(harness: RefreshHarness) -> None:
    """Tokens are not erased if AMO rejects the refresh token but accepts the access token."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    refused = answering(IntrospectionResult(state=TokenState.REJECTED))
    lifecycle = harness.make_lifecycle(amo=Override(harness.client, introspect_refresh_token=refused))
    await lifecycle.integration_disabled(connection.account_id)
    await harness.run_due_rechecks(lifecycle)
    assert (await harness.now(connection)).sealed_pair == connection.sealed_pair


async def test_disable_hook_token_in_doubt_is_not_erased(harness: RefreshHarness) -> None:
    """A rejected token in doubt is not erased, because its successor may still be stored."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.fail(connection, UnknownOutcome, Fault.NOTHING_AFTER)
    harness.amo.account.disabled = True
    await _check_hook(harness, connection)
    assert (await harness.now(connection)).sealed_pair == connection.sealed_pair


async def test_disable_hook_pair_with_pending_write_is_not_erased(harness: RefreshHarness) -> None:
    """A rejected pair is not erased while the pair of a new grant is a pending write."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.refresh_elsewhere(connection)
    pending_pair = await harness.grant()
    harness.failing.away = {"save_connected"}
    pending_writes = harness.lifecycle.pending_writes
    saving = asyncio.create_task(pending_writes.save(pending_pair, connection=pending_pair.connection))
    await harness.witness.until("pair.write_pending")
    harness.clock.advance(1)
    await _check_hook(harness, connection)
    assert (await harness.now(connection)).sealed_pair == connection.sealed_pair
    await harness.restore_store()
    assert present(await saving).sealed_pair == pending_pair.connection.sealed_pair


@pytest.mark.parametrize("status", [Status.ACTIVE, Status.NEEDS_REAUTH])
async def test_disable_hook_during_mass_failure_erases_nothing(harness: RefreshHarness, status: Status) -> None:
    """Nothing is erased during a mass failure, because AMO rejects all tokens of an old database."""
    connection = await (
        harness.connect_revoked() if status is Status.NEEDS_REAUTH else harness.connect(api_domain=API_DOMAIN)
    )
    await harness.store.suspend_terminal(now=harness.clock.now())
    await harness.lifecycle.breaker.watch()
    harness.amo.account.disabled = True
    await _check_hook(harness, connection)
    after = await harness.now(connection)
    assert (after.status, after.sealed_pair) == (status, connection.sealed_pair)


async def test_disable_hook_grant_after_hook_is_kept(harness: RefreshHarness) -> None:
    """A hook erases the pair before it, and not the pair of a later grant, even if that is a pending write."""
    harness.amo.fake.quirks.introspection_accepts_spent = False
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.refresh_elsewhere(connection)
    harness.clock.advance(10)
    await harness.lifecycle.integration_disabled(connection.account_id)
    harness.clock.advance(10)
    pending_pair = await harness.grant()
    store = harness.failing_store("save_connected")
    other = harness.make_lifecycle(store=store, process="process-2")
    saving = asyncio.create_task(other.pending_writes.save(pending_pair, connection=pending_pair.connection))
    await harness.witness.until("pair.write_pending")
    harness.clock.advance(1)
    await harness.run_due_rechecks()
    assert (await harness.now(connection)).status is Status.DISCONNECTED
    store.away = set()
    await other.pending_writes.flush()
    assert await saving is not None
    after = await harness.now(connection)
    assert (after.status, after.sealed_pair) == (Status.ACTIVE, pending_pair.connection.sealed_pair)


@pytest.mark.parametrize("first", ["hook", "refresh"])
async def test_disable_hook_needs_reauth_connection_is_disconnected(harness: RefreshHarness, first: str) -> None:
    """Rejected tokens are erased whether the hook or the failed refresh comes first."""
    connection = await (harness.connect(api_domain=API_DOMAIN) if first == "hook" else harness.connect_revoked())
    harness.amo.account.disabled = True
    await harness.lifecycle.integration_disabled(connection.account_id)
    if first == "hook":
        await harness.fail(connection, NeedsReauth)
    await harness.run_due_rechecks()
    assert (await harness.now(connection)).status is Status.DISCONNECTED


async def test_disable_hook_wakes_scheduler(harness: RefreshHarness) -> None:
    """A hook is checked at once, before the scheduler's next round is due."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.amo.account.disabled = True
    async with harness.running(harness.lifecycle):
        await harness.clock.until_sleeping(5)
        await harness.lifecycle.integration_disabled(connection.account_id)
        await harness.witness.until("connection.disconnected")


@pytest.mark.parametrize("knows_spent", [True, False])
async def test_daily_recheck_accepted_token_is_refreshed_and_recovers(
    harness: RefreshHarness, *, knows_spent: bool
) -> None:
    """A `needs_reauth` connection is refreshed and recovers if introspection accepts its token a day later."""
    harness.amo.fake.quirks.introspection_accepts_spent = knows_spent
    connection = await harness.connect_revoked()
    harness.clock.advance(DAY - 1)
    await harness.run_due_rechecks()
    assert harness.amo.sandbox.introspections == 0
    harness.clock.advance(1)
    await harness.run_due_rechecks()
    after = await harness.now(connection)
    assert (after.status, after.reason, after.recheck_at, after.pair_version) == (Status.ACTIVE, None, None, 2)
    assert harness.witness.names()[-2:] == ["refresh.succeeded", "connection.recovered"]


async def test_daily_recheck_rejected_token_is_introspected_until_expiry(harness: RefreshHarness) -> None:
    """A rejected token is introspected once a day until it expires, and is not presented."""
    connection = await harness.connect_revoked()
    harness.amo.account.disabled = True
    for _ in range(95):
        harness.clock.advance(DAY)
        await harness.run_due_rechecks()
        assert (await harness.now(connection)).recheck_at == harness.clock.now() + timedelta(days=1)
    assert harness.amo.sandbox.introspections == 89
    assert len(harness.presented()) == 1


async def test_daily_recheck_refused_presentation_is_not_repeated(harness: RefreshHarness) -> None:
    """A token that introspection accepts but the refresh rejects is not presented again before it expires."""
    harness.amo.fake.quirks.introspection_accepts_spent = True
    connection = await harness.connect_revoked()
    harness.amo.spend(grant_type="refresh_token", refresh_token=harness.pair(connection).refresh_token)
    for _ in range(10):
        harness.clock.advance(DAY)
        await harness.run_due_rechecks()
    after = await harness.now(connection)
    assert (after.status, after.reason) == (Status.NEEDS_REAUTH, Reason.REVOKED)
    assert after.recheck_at == after.refresh_expires_at
    presented = [entry.status for entry in harness.presented()]
    assert presented == [401, 200, 401]  # this service, the other system, the recheck
    assert harness.witness.names().count("connection.needs_reauth") == 1


async def test_daily_recheck_without_free_probe_is_retried_after_retry_cap(harness: RefreshHarness) -> None:
    """A recheck whose refresh must wait for another probe is retried after 15 minutes."""
    connection = await harness.connect_revoked()
    harness.clock.advance(DAY)
    harness.lifecycle.breaker.refuse("Check the `client_id` parameter")
    await harness.run_due_rechecks()
    after = await harness.now(connection)
    assert (after.status, after.recheck_at) == (Status.NEEDS_REAUTH, harness.clock.now() + timedelta(minutes=15))
    assert len(harness.presented()) == 1  # the rejected refresh
    harness.clock.advance(900)
    await harness.run_due_rechecks()
    assert (await harness.now(connection)).status is Status.ACTIVE


@pytest.mark.parametrize("knows_spent", [True, False])
async def test_daily_recheck_lost_answer_gives_in_doubt(harness: RefreshHarness, *, knows_spent: bool) -> None:
    """A recheck whose refresh loses its answer changes the reason to `in_doubt` permanently."""
    harness.amo.fake.quirks.introspection_accepts_spent = knows_spent
    connection = await harness.connect_revoked()
    harness.amo.sandbox.faults.add(Fault.NOTHING_AFTER)
    for _ in range(3):
        harness.clock.advance(DAY)
        await harness.run_due_rechecks()
        after = await harness.now(connection)
        assert (after.status, after.reason) == (Status.NEEDS_REAUTH, Reason.IN_DOUBT)
    assert harness.amo.fake.ledger.doubles() == knows_spent  # the last recheck that presents the token


async def test_disable_hook_replays_do_not_change_daily_recheck(harness: RefreshHarness) -> None:
    """Replayed hooks neither delay the daily introspection nor cause more of them."""
    connection = await harness.connect_revoked()
    harness.amo.sandbox.introspection_faults.add(Fault.HTTP_500)  # the first introspection stays unanswered
    looked_up = []
    for _ in range(6 * 24 + 1):
        await _check_hook(harness, connection)
        looked_up.append(harness.amo.sandbox.introspections)
        harness.clock.advance(600)
    assert looked_up == [1] * 6 * 24 + [2]
    after = await harness.now(connection)
    assert (after.status, after.pair_version) == (Status.ACTIVE, 2)
    assert len(harness.witness.named("hook.received")) == 1  # only the first hook started an introspection


async def test_recheck_unreadable_pair_is_reactivated_with_its_key(harness: RefreshHarness) -> None:
    """An unreadable pair is checked every 15 minutes, and is active and due once its key is configured."""
    lost, issued = new_key(), await harness.exchange()
    sealed = Cipher([lost]).seal_pair(issued.pair, connection_id=harness.connection_of(issued).id)
    connection = await harness.keep(issued, sealed_pair=sealed)
    await harness.fail(connection, NeedsReauth)
    harness.clock.advance(DAY)
    await harness.run_due_rechecks()
    after = await harness.now(connection)
    assert (after.reason, after.recheck_at) == (Reason.UNREADABLE, harness.clock.now() + timedelta(seconds=900))
    restarted = harness.make_lifecycle(cipher=Cipher([new_key(), lost]))
    harness.clock.advance(DAY)
    await harness.run_due_rechecks(restarted)
    after = await harness.now(connection)
    assert (after.status, after.next_refresh_at) == (Status.ACTIVE, harness.clock.now())
    assert harness.presented() == []
    assert (await harness.refresh(connection, by=restarted.coordinator)).pair_version == 2


async def test_disable_hook_before_successful_refresh_erases_nothing_later(harness: RefreshHarness) -> None:
    """A hook before a successful refresh has no effect on a later terminal failure, which keeps the pair."""
    harness.amo.fake.quirks.introspection_accepts_spent = False
    connection = await harness.connect(api_domain=API_DOMAIN)
    await _check_hook(harness, connection)
    harness.clock.advance(3600)
    refreshed = await harness.refresh(connection)
    harness.amo.account.disabled = True
    await harness.fail(refreshed, NeedsReauth)
    harness.clock.advance(DAY)
    await harness.run_due_rechecks()
    after = await harness.now(connection)
    assert (after.status, after.sealed_pair) == (Status.NEEDS_REAUTH, refreshed.sealed_pair)


async def test_recheck_many_slow_introspections_leave_room_for_probe(harness: RefreshHarness) -> None:
    """At most two rechecks run at a time, and the circuit breaker's probe is sent meanwhile."""
    for connection in await harness.connect_users(6):
        await harness.store.schedule_recheck(await harness.now(connection), at=harness.clock.now())
    await harness.connect(api_domain=API_DOMAIN)
    running_checks, two = 0, asyncio.Event()

    async def introspect_refresh_token(**_: object) -> IntrospectionResult:
        nonlocal running_checks
        running_checks += 1
        if running_checks == 2:
            two.set()
        await harness.clock.sleep(3600)
        return IntrospectionResult(state=TokenState.UNKNOWN)

    async def acquire_slot(_priority: object) -> None:
        """Grant every slot immediately, so that the rate limit does not delay introspections."""

    lifecycle = harness.make_lifecycle(
        amo=Override(harness.client, introspect_refresh_token=introspect_refresh_token, acquire_slot=acquire_slot)
    )
    lifecycle.breaker.refuse("Check the `client_id` parameter")
    harness.clock.advance(60)
    task = asyncio.create_task(lifecycle.scheduler.run())
    await harness.witness.until("refresh.succeeded")
    lifecycle.scheduler.wake()
    await two.wait()
    for _ in range(5):
        lifecycle.scheduler.wake()
        for _ in range(5):
            await harness.store.count()  # lets the scheduler run
    assert running_checks == 2
    harness.clock.advance(3600)
    lifecycle.core.stop.set()
    await task


async def test_daily_recheck_killed_during_refresh_gives_in_doubt(harness: RefreshHarness) -> None:
    """A recheck killed before it stores the answer changes the reason from `revoked` to `in_doubt`."""
    connection = await harness.connect_revoked()
    harness.clock.advance(DAY)
    gated = GatedClient(harness.client, hold_answer=True)
    killed = asyncio.create_task(harness.run_due_rechecks(harness.make_lifecycle(amo=gated, process="server-1")))
    await gated.answered.wait()
    lifecycle = harness.make_lifecycle(process="process-2")
    for seconds in (DAY, 60):
        harness.clock.advance(seconds)
        with pytest.raises(NotYet):  # first the lease has not ended, then the row has changed
            await harness.run_due_rechecks(lifecycle)
    after = await harness.now(connection)
    assert (after.status, after.reason) == (Status.NEEDS_REAUTH, Reason.IN_DOUBT)
    assert harness.witness.named("connection.in_doubt")[0].fields["from_process"] == "server-1"
    killed.cancel()


async def test_daily_recheck_grant_during_slot_wait_is_not_presented(harness: RefreshHarness) -> None:
    """A recheck does not present the pair of a grant that was stored while it waited for its slot."""
    connection = await harness.connect_revoked()
    harness.clock.advance(DAY)
    presented, granted = len(harness.presented()), list[Connection]()

    async def connect_again() -> None:
        granted.append(await harness.connect(api_domain=API_DOMAIN))

    amo = harness.before_slot(2, connect_again)  # the first slot belongs to the introspection
    await harness.run_due_rechecks(harness.make_lifecycle(amo=amo))
    assert [await harness.now(connection)] == granted
    assert len(harness.presented()) == presented


async def test_disable_hook_unanswered_introspection_is_repeated(harness: RefreshHarness) -> None:
    """An unanswered introspection erases nothing and is repeated after one minute, then every ten minutes."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.amo.account.disabled = True
    await harness.lifecycle.integration_disabled(connection.account_id)
    harness.amo.sandbox.introspection_faults.add(*[Fault.HTTP_500] * 4)
    waits = []
    for _ in range(4):
        await harness.run_due_rechecks()
        after = await harness.now(connection)
        assert (after.status, after.sealed_pair) == (Status.ACTIVE, connection.sealed_pair)
        waits.append((present(after.recheck_at) - harness.clock.now()).total_seconds())
        harness.clock.advance(waits[-1])
    assert waits == [60, 540, 600, 600]
    await harness.run_due_rechecks()
    assert (await harness.now(connection)).status is Status.DISCONNECTED


async def test_recheck_already_run_by_another_process_is_skipped(harness: RefreshHarness) -> None:
    """The second of two processes with the same due recheck sends nothing."""
    connection = await harness.connect_revoked()
    harness.clock.advance(DAY)
    harness.amo.account.disabled = True
    for lifecycle in (harness.lifecycle, harness.make_lifecycle(process="process-2")):
        await lifecycle.rechecker.check(connection.id)
    assert harness.amo.sandbox.introspections == 1


async def test_recheck_concurrent_processes_present_token_once(harness: RefreshHarness) -> None:
    """Only one of two processes whose introspections accept the token presents it."""
    harness.amo.fake.quirks.introspection_accepts_spent = True
    connection = await harness.connect_revoked()
    harness.amo.spend(grant_type="refresh_token", refresh_token=harness.pair(connection).refresh_token)
    harness.clock.advance(DAY)

    async def introspect_refresh_token(**question: Any) -> IntrospectionResult:
        introspection = await harness.client.introspect_refresh_token(**question)
        await harness.lifecycle.rechecker.check(connection.id)
        return introspection

    other = harness.make_lifecycle(
        amo=Override(harness.client, introspect_refresh_token=introspect_refresh_token), process="process-2"
    )
    await other.rechecker.check(connection.id)
    assert [entry.status for entry in harness.presented()] == [401, 200, 401]
