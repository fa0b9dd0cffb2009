"""Long-lived access tokens without a refresh token: kept as they are, warned of, and over when they expire."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from amo_callback.errors import NeedsReauth
from amo_callback.model import Connection, Reason, Status
from amo_callback.refresh.maintenance import Maintenance
from amo_callback.transfer.importer import ImportRules, make_plan
from tests.builders import a_connection, save
from tests.refresh.house import DAY
from tests.transfer.samples import a_record, arrivals, written

if TYPE_CHECKING:
    from typing import Any

    from tests.refresh.house import House

YEARS = timedelta(days=5 * 365)
MINUTE = 60.0


async def _import(house: House, *, life: timedelta = YEARS, number: int = 1, **more: Any) -> Connection:
    """Import a long-lived token as another system hands it over."""
    now = house.clock.now()
    times = {"issued_at": now, "expires_at": now + life, "refresh_expires_at": None, "refreshed_at": None}
    record = a_record(
        number, refresh_token="", client_id=house.client.client_id, **{**times, "connected_at": now, **more}
    )
    rules = ImportRules(client_id=house.client.client_id, allowed_domains=(), allowed_accounts=(), replace=False)
    plan = await make_plan(arrivals(record), store=house.store, cipher=house.cipher, rules=rules)
    await written(plan, house.store, house.cipher)
    stored = await house.store.connection(record.id)
    assert stored is not None
    return stored


def _presented(house: House) -> int:
    return len(house.amo.fake.ledger.entries)


async def test_a_long_lived_token_is_handed_out_for_years_without_a_doubt(house: House) -> None:
    """The connection is active, AMO is asked nothing, and nothing is ever presented."""
    connection = await _import(house)
    assert (connection.status, connection.reason, connection.next_refresh_at) == (Status.ACTIVE, None, None)
    presented = _presented(house)
    async with house.running(house.lifecycle):
        for _ in range(5):
            await house.pass_time(10 * MINUTE, step=MINUTE)
            handed_out = await house.lifecycle.access_tokens.token(connection.id, min_ttl=300)
            assert (handed_out.stale, handed_out.token.value) == (False, "access-token-of-1")
            house.clock.advance(300 * DAY)
    assert (_presented(house), house.amo.sandbox.look_ups) == (presented, 0)
    assert (await house.now(connection)).status is Status.ACTIVE


async def test_a_forced_refresh_of_a_long_lived_token_needs_the_user(house: House) -> None:
    """Nothing is claimed or sent, also where it has just been imported."""
    connection = await _import(house)
    for _ in range(2):
        with pytest.raises(NeedsReauth) as raised:
            await house.lifecycle.access_tokens.refresh(connection.id)
        assert raised.value.reason is Reason.MISSING
        with pytest.raises(NeedsReauth):
            await house.lifecycle.access_tokens.refresh(connection.id, rejected="access-token-of-1")
        house.clock.advance(60)
    assert (await house.now(connection)).row_version == connection.row_version
    assert house.amo.fake.ledger.entries == []


async def test_a_long_lived_token_with_little_life_left_is_handed_out_as_stale(house: House) -> None:
    """A caller that asks for more life than is left learns why it gets less."""
    connection = await _import(house, life=timedelta(days=30))
    house.clock.advance(30 * DAY - 100)
    handed_out = await house.lifecycle.access_tokens.token(connection.id, min_ttl=300)
    assert (handed_out.stale, handed_out.reason) == (True, "needs_reauth: missing")


async def test_the_end_of_a_long_lived_token_is_warned_of_and_then_needs_the_user(house: House) -> None:
    """Once each 30, 7 and 1 days before; at the end the connection is `missing`, and others are notified."""
    connection = await _import(house, life=timedelta(days=60))
    async with house.running(house.lifecycle):
        for _ in range(61 * 24):
            await house.pass_time(3600, step=3600)
    warned = house.witness.named("connection.expiring")
    assert [event.fields["days"] for event in warned] == [30, 7, 1]
    assert {event.fields["access_expires_at"] for event in warned} == {connection.access_expires_at}
    ended = await house.now(connection)
    assert (ended.status, ended.reason, ended.look_up_at) == (Status.NEEDS_REAUTH, Reason.MISSING, None)
    assert [event.fields["reason"] for event in house.witness.named("connection.needs_reauth")] == [Reason.MISSING]
    webhooks = [(webhook.type, webhook.data.get("reason")) for webhook in await house.store.webhooks(limit=9)]
    assert webhooks[-2:] == [("connection.expiring", None), ("connection.needs_reauth", "missing")]
    with pytest.raises(NeedsReauth):
        await house.lifecycle.access_tokens.token(connection.id, min_ttl=0)


async def test_long_lived_tokens_that_end_together_are_no_mass_failure(house: House) -> None:
    """AMO has refused nothing: connections with a refresh token alone are counted."""
    for number in range(1, 21):
        await _import(house, number=number, life=timedelta(days=2))
    others = [await save(house.store, a_connection(number)) for number in range(101, 104)]
    house.clock.advance(2 * DAY)
    now = house.clock.now()
    counted = await house.store.fleet(now=now, since=now - timedelta(minutes=10))
    assert (counted.living, counted.died) == (len(others), 0)
    await Maintenance(house.lifecycle.core).watch()  # without the rest of the round, which would refresh, too
    counted = await house.store.fleet(now=now, since=now - timedelta(minutes=10))
    assert (counted.living, counted.died) == (len(others), 0)
    assert (await house.store.successes(now=now)).refreshable == len(others)
    assert len(house.witness.named("connection.needs_reauth")) == 20


async def test_a_long_lived_token_is_never_due(house: House) -> None:
    """Neither after a thaw, nor with times that cannot be right, nor as a probe."""
    await _import(house, issued_at=house.clock.now() + timedelta(days=1))
    await house.store.freeze_all(why="a test", elsewhere=True)
    await house.store.thaw_all(machine="here")
    assert (await house.store.due(now=house.clock.now(), limit=9, apart_from=())).refreshes == []
    assert await house.store.probe(apart_from=(), turn=timedelta(seconds=1)) is None
    assert (await house.store.due(now=house.clock.now(), apart_from=(), limit=0)).next_at is None


async def test_a_clock_put_forward_by_mistake_ends_a_long_lived_token_for_as_long_as_it_lasts(house: House) -> None:
    """Once the clock is right again the connection is active, and others hear of that, too."""
    connection = await _import(house, life=timedelta(days=60))
    async with house.running(house.lifecycle):
        house.clock.step(timedelta(days=90))
        await house.pass_time(3 * MINUTE, step=MINUTE)
        assert (await house.now(connection)).status is Status.NEEDS_REAUTH
        house.clock.step(-timedelta(days=90))
        await house.pass_time(3 * MINUTE, step=MINUTE)
    assert (await house.now(connection)).status is Status.ACTIVE
    assert len(house.witness.named("connection.recovered")) == 1


async def test_a_hook_asks_about_the_long_lived_access_token(house: House) -> None:
    """There is no refresh token to ask about; where AMO rejects the access token it is erased."""
    connection = await _import(house)
    await house.lifecycle.rechecker.begin(connection.account_id)
    await house.look_up_due()
    assert (await house.now(connection)).status is Status.DISCONNECTED
    assert house.amo.sandbox.look_ups == 1


async def test_the_soonest_deadline_is_also_a_long_lived_tokens(house: House) -> None:
    """Monitoring sees its end as it sees that of a refresh token."""
    await save(house.store, a_connection(7))
    connection = await _import(house, life=timedelta(days=20))
    now = house.clock.now()
    assert (await house.store.survey(now=now, late=now)).next_deadline == connection.access_expires_at
