"""Long-lived access tokens without a refresh token: import, hand-out, warnings and expiry."""

from datetime import timedelta
from typing import Any

import pytest

from amo_callback.errors import NeedsReauth
from amo_callback.model import Connection, Reason, Status
from amo_callback.refresh.maintenance import Maintenance
from amo_callback.transfer.importer import ImportRules, make_plan
from tests.builders import a_connection, save
from tests.refresh.harness import DAY, RefreshHarness
from tests.transfer.samples import a_record, arrivals, written

YEARS = timedelta(days=5 * 365)
MINUTE = 60.0


async def _import_token(
    harness: RefreshHarness, *, lifetime: timedelta = YEARS, number: int = 1, **more: Any
) -> Connection:
    """Import a long-lived token from another system."""
    now = harness.clock.now()
    times = {"issued_at": now, "expires_at": now + lifetime, "refresh_expires_at": None, "refreshed_at": None}
    record = a_record(
        number, refresh_token="", client_id=harness.client.client_id, **{**times, "connected_at": now, **more}
    )
    rules = ImportRules(client_id=harness.client.client_id, allowed_domains=(), allowed_accounts=(), replace=False)
    plan = await make_plan(arrivals(record), store=harness.store, cipher=harness.cipher, rules=rules)
    await written(plan, harness.store, harness.cipher)
    stored = await harness.store.connection(record.id)
    assert stored is not None
    return stored


def _presented(harness: RefreshHarness) -> int:
    return len(harness.amo.fake.ledger.entries)


async def test_long_lived_token_is_handed_out_until_expiry_without_request(harness: RefreshHarness) -> None:
    """A long-lived token is handed out for years as fresh, without a request to AMO."""
    connection = await _import_token(harness)
    assert (connection.status, connection.reason, connection.next_refresh_at) == (Status.ACTIVE, None, None)
    presented = _presented(harness)
    async with harness.running(harness.lifecycle):
        for _ in range(5):
            await harness.pass_time(10 * MINUTE, step=MINUTE)
            handed_out = await harness.lifecycle.access_tokens.token(connection.id, min_ttl=300)
            assert (handed_out.stale, handed_out.token.value) == (False, "access-token-of-1")
            harness.clock.advance(300 * DAY)
    assert (_presented(harness), harness.amo.sandbox.introspections) == (presented, 0)
    assert (await harness.now(connection)).status is Status.ACTIVE


async def test_forced_refresh_long_lived_token_raises_needs_reauth_missing(harness: RefreshHarness) -> None:
    """A forced refresh of a long-lived token is rejected without a claim or a request."""
    connection = await _import_token(harness)
    for _ in range(2):
        with pytest.raises(NeedsReauth) as raised:
            await harness.lifecycle.access_tokens.refresh(connection.id)
        assert raised.value.reason is Reason.MISSING
        with pytest.raises(NeedsReauth):
            await harness.lifecycle.access_tokens.refresh(connection.id, rejected="access-token-of-1")
        harness.clock.advance(60)
    assert (await harness.now(connection)).row_version == connection.row_version
    assert harness.amo.fake.ledger.entries == []


async def test_hand_out_long_lived_token_below_min_ttl_is_stale(harness: RefreshHarness) -> None:
    """A long-lived token that expires before `min_ttl` is handed out as stale with its reason."""
    connection = await _import_token(harness, lifetime=timedelta(days=30))
    harness.clock.advance(30 * DAY - 100)
    handed_out = await harness.lifecycle.access_tokens.token(connection.id, min_ttl=300)
    assert (handed_out.stale, handed_out.reason) == (True, "needs_reauth: missing")


async def test_long_lived_token_expiry_is_warned_and_becomes_needs_reauth(harness: RefreshHarness) -> None:
    """Warnings are sent 30, 7 and 1 days before the expiry, at which the connection becomes `missing`."""
    connection = await _import_token(harness, lifetime=timedelta(days=60))
    async with harness.running(harness.lifecycle):
        await harness.pass_time(61 * DAY, step=6 * 3600)
    warned = harness.witness.named("connection.expiring")
    assert [event.fields["days"] for event in warned] == [30, 7, 1]
    assert {event.fields["access_expires_at"] for event in warned} == {connection.access_expires_at}
    ended = await harness.now(connection)
    assert (ended.status, ended.reason, ended.recheck_at) == (Status.NEEDS_REAUTH, Reason.MISSING, None)
    assert [event.fields["reason"] for event in harness.witness.named("connection.needs_reauth")] == [Reason.MISSING]
    webhooks = [(webhook.type, webhook.data.get("reason")) for webhook in await harness.store.webhooks(limit=9)]
    assert webhooks[-2:] == [("connection.expiring", None), ("connection.needs_reauth", "missing")]
    with pytest.raises(NeedsReauth):
        await harness.lifecycle.access_tokens.token(connection.id, min_ttl=0)


async def test_mass_failure_ignores_expired_long_lived_tokens(harness: RefreshHarness) -> None:
    """Expired long-lived tokens are not counted, because only connections with a refresh token are."""
    for number in range(1, 21):
        await _import_token(harness, number=number, lifetime=timedelta(days=2))
    others = [await save(harness.store, a_connection(number)) for number in range(101, 104)]
    harness.clock.advance(2 * DAY)
    now = harness.clock.now()
    counted = await harness.store.connection_counts(now=now, since=now - timedelta(minutes=10))
    assert (counted.active, counted.failed) == (len(others), 0)
    await Maintenance(harness.lifecycle.core).watch()  # without a whole round, which would also refresh
    counted = await harness.store.connection_counts(now=now, since=now - timedelta(minutes=10))
    assert (counted.active, counted.failed) == (len(others), 0)
    assert (await harness.store.successes(now=now)).refreshable == len(others)
    assert len(harness.witness.named("connection.needs_reauth")) == 20


async def test_long_lived_token_is_never_due_nor_probed(harness: RefreshHarness) -> None:
    """A long-lived token is not due after a thaw or with impossible times, and is never the probe."""
    await _import_token(harness, issued_at=harness.clock.now() + timedelta(days=1))
    await harness.store.freeze_all(why="a test", may_be_copy=True)
    await harness.store.thaw_all(machine="here")
    assert (await harness.store.due(now=harness.clock.now(), limit=9, exclude=())).refreshes == []
    assert await harness.store.probe(exclude=(), turn=timedelta(seconds=1)) is None
    assert (await harness.store.due(now=harness.clock.now(), exclude=(), limit=0)).next_at is None


async def test_long_lived_token_recovers_after_clock_is_corrected(harness: RefreshHarness) -> None:
    """A connection that expired by a clock step becomes active, with an event, when the clock is corrected."""
    connection = await _import_token(harness, lifetime=timedelta(days=60))
    async with harness.running(harness.lifecycle):
        harness.clock.step(timedelta(days=90))
        await harness.pass_time(3 * MINUTE, step=MINUTE)
        assert (await harness.now(connection)).status is Status.NEEDS_REAUTH
        harness.clock.step(-timedelta(days=90))
        await harness.pass_time(3 * MINUTE, step=MINUTE)
    assert (await harness.now(connection)).status is Status.ACTIVE
    assert len(harness.witness.named("connection.recovered")) == 1


async def test_disable_hook_long_lived_token_is_introspected(harness: RefreshHarness) -> None:
    """A hook causes an introspection of the long-lived access token, which is erased if AMO rejects it."""
    connection = await _import_token(harness)
    await harness.lifecycle.rechecker.begin(connection.account_id)
    await harness.run_due_rechecks()
    assert (await harness.now(connection)).status is Status.DISCONNECTED
    assert harness.amo.sandbox.introspections == 1


async def test_stats_next_deadline_includes_long_lived_token(harness: RefreshHarness) -> None:
    """The next deadline in the stats includes the expiry of a long-lived token."""
    await save(harness.store, a_connection(7))
    connection = await _import_token(harness, lifetime=timedelta(days=20))
    now = harness.clock.now()
    assert (await harness.store.stats(now=now, late=now)).next_deadline == connection.access_expires_at
