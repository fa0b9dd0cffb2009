"""Long-lived access tokens without a refresh token: kept as they are, warned of, and over when they expire."""

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


async def _import(harness: RefreshHarness, *, lifetime: timedelta = YEARS, number: int = 1, **more: Any) -> Connection:
    """Import a long-lived token as another system hands it over."""
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


async def test_a_long_lived_token_is_handed_out_for_years_without_a_doubt(harness: RefreshHarness) -> None:
    """The connection is active, AMO is asked nothing, and nothing is ever presented."""
    connection = await _import(harness)
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


async def test_a_forced_refresh_of_a_long_lived_token_needs_the_user(harness: RefreshHarness) -> None:
    """Nothing is claimed or sent, also where it has just been imported."""
    connection = await _import(harness)
    for _ in range(2):
        with pytest.raises(NeedsReauth) as raised:
            await harness.lifecycle.access_tokens.refresh(connection.id)
        assert raised.value.reason is Reason.MISSING
        with pytest.raises(NeedsReauth):
            await harness.lifecycle.access_tokens.refresh(connection.id, rejected="access-token-of-1")
        harness.clock.advance(60)
    assert (await harness.now(connection)).row_version == connection.row_version
    assert harness.amo.fake.ledger.entries == []


async def test_a_long_lived_token_with_little_life_left_is_handed_out_as_stale(harness: RefreshHarness) -> None:
    """A caller that asks for more life than is left learns why it gets less."""
    connection = await _import(harness, lifetime=timedelta(days=30))
    harness.clock.advance(30 * DAY - 100)
    handed_out = await harness.lifecycle.access_tokens.token(connection.id, min_ttl=300)
    assert (handed_out.stale, handed_out.reason) == (True, "needs_reauth: missing")


async def test_the_end_of_a_long_lived_token_is_warned_of_and_then_needs_the_user(harness: RefreshHarness) -> None:
    """Once each 30, 7 and 1 days before; at the end the connection is `missing`, and others are notified."""
    connection = await _import(harness, lifetime=timedelta(days=60))
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


async def test_long_lived_tokens_that_end_together_are_no_mass_failure(harness: RefreshHarness) -> None:
    """AMO has refused nothing: connections with a refresh token alone are counted."""
    for number in range(1, 21):
        await _import(harness, number=number, lifetime=timedelta(days=2))
    others = [await save(harness.store, a_connection(number)) for number in range(101, 104)]
    harness.clock.advance(2 * DAY)
    now = harness.clock.now()
    counted = await harness.store.connection_counts(now=now, since=now - timedelta(minutes=10))
    assert (counted.active, counted.failed) == (len(others), 0)
    await Maintenance(harness.lifecycle.core).watch()  # without the rest of the round, which would refresh, too
    counted = await harness.store.connection_counts(now=now, since=now - timedelta(minutes=10))
    assert (counted.active, counted.failed) == (len(others), 0)
    assert (await harness.store.successes(now=now)).refreshable == len(others)
    assert len(harness.witness.named("connection.needs_reauth")) == 20


async def test_a_long_lived_token_is_never_due(harness: RefreshHarness) -> None:
    """Neither after a thaw, nor with times that cannot be right, nor as a probe."""
    await _import(harness, issued_at=harness.clock.now() + timedelta(days=1))
    await harness.store.freeze_all(why="a test", may_be_copy=True)
    await harness.store.thaw_all(machine="here")
    assert (await harness.store.due(now=harness.clock.now(), limit=9, exclude=())).refreshes == []
    assert await harness.store.probe(exclude=(), turn=timedelta(seconds=1)) is None
    assert (await harness.store.due(now=harness.clock.now(), exclude=(), limit=0)).next_at is None


async def test_a_clock_put_forward_by_mistake_ends_a_long_lived_token_while_it_lasts(harness: RefreshHarness) -> None:
    """Once the clock is right again the connection is active, and others hear of that, too."""
    connection = await _import(harness, lifetime=timedelta(days=60))
    async with harness.running(harness.lifecycle):
        harness.clock.step(timedelta(days=90))
        await harness.pass_time(3 * MINUTE, step=MINUTE)
        assert (await harness.now(connection)).status is Status.NEEDS_REAUTH
        harness.clock.step(-timedelta(days=90))
        await harness.pass_time(3 * MINUTE, step=MINUTE)
    assert (await harness.now(connection)).status is Status.ACTIVE
    assert len(harness.witness.named("connection.recovered")) == 1


async def test_a_hook_asks_about_the_long_lived_access_token(harness: RefreshHarness) -> None:
    """There is no refresh token to ask about; where AMO rejects the access token it is erased."""
    connection = await _import(harness)
    await harness.lifecycle.rechecker.begin(connection.account_id)
    await harness.recheck_due()
    assert (await harness.now(connection)).status is Status.DISCONNECTED
    assert harness.amo.sandbox.introspections == 1


async def test_the_soonest_deadline_is_also_a_long_lived_tokens(harness: RefreshHarness) -> None:
    """Monitoring sees its end as it sees that of a refresh token."""
    await save(harness.store, a_connection(7))
    connection = await _import(harness, lifetime=timedelta(days=20))
    now = harness.clock.now()
    assert (await harness.store.stats(now=now, late=now)).next_deadline == connection.access_expires_at
