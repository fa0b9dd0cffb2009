"""Look-ups of whoever was given up, and of accounts that AMO's hook named: what heals, and what is erased."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from amo_callback.amo.sandbox.faults import Fault
from amo_callback.amo.sandbox.rules import Lifetimes
from amo_callback.crypto import Cipher, new_key
from amo_callback.errors import NeedsReauth, NotYet, UnknownOutcome
from amo_callback.model import IntrospectionResult, Reason, RefreshTrigger, Status, TokenState
from tests.fakes import Override
from tests.refresh.house import API_DOMAIN, DAY
from tests.refresh.test_interleavings import Gated, Queue

if TYPE_CHECKING:
    from tests.refresh.house import House

MINUTE = timedelta(minutes=1)


# --- the hook --------------------------------------------------------------------------------------


async def test_a_rejected_refresh_token_is_not_presented_again_for_an_accepted_access_token(house: House) -> None:
    """AMO said once that it was revoked, and rejects it in introspection: its access token says nothing of it."""
    fake = house.amo.fake
    fake.lives = Lifetimes(access=10 * DAY)
    fake.quirks.look_up_knows_spent = fake.quirks.refresh_kills_access = False
    connection = await house.connect(api_domain=API_DOMAIN)
    house.amo.spend(grant_type="refresh_token", refresh_token=house.pair(connection).refresh_token)
    with pytest.raises(NeedsReauth):
        await house.refresh(connection)
    presented = len(fake.ledger.refreshes())
    for _ in range(3):
        house.clock.advance(DAY)
        await house.look_up_due()
    assert len(fake.ledger.refreshes()) == presented
    assert (await house.now(connection)).status is Status.NEEDS_REAUTH


async def test_an_account_that_lives_keeps_its_tokens_and_is_looked_up_twice_more(house: House) -> None:
    """AMO may tell before it acts: a live token is asked about again after one and after ten minutes, then no more."""
    connection = await house.connect(api_domain=API_DOMAIN)
    hook_at = house.clock.now()
    await house.lifecycle.switched_off(connection.account_id)
    for again in (hook_at + MINUTE, hook_at + 10 * MINUTE, None):
        await house.look_up_due()
        after = await house.now(connection)
        assert (after.look_up_at, after.sealed_pair) == (again, connection.sealed_pair)
        assert (await house.witness.until("hook.unconfirmed")).fields.get("again_at") == again
        house.clock.advance((again - house.clock.now()).total_seconds() if again else DAY)
    await house.look_up_due()
    assert house.amo.sandbox.look_ups == 3


async def test_what_amo_knows_no_more_is_erased(house: House) -> None:
    """The hook is true: the tokens are erased, the connection is disconnected, and whoever watches is told."""
    connection = await house.connect(api_domain=API_DOMAIN)
    house.amo.account.disabled = True
    await house.lifecycle.switched_off(connection.account_id)
    await house.look_up_due()
    after = await house.now(connection)
    assert (after.status, after.sealed_pair, after.look_up_at) == (Status.DISCONNECTED, None, None)
    assert house.witness.names() == ["hook.received", "connection.disconnected"]
    assert house.amo.fake.ledger.refreshes() == []


async def test_an_account_that_dies_after_its_hook_is_found_by_a_later_look_up(house: House) -> None:
    """AMO told before it acted: the look-up a minute later finds the tokens dead."""
    connection = await house.connect(api_domain=API_DOMAIN)
    await house.lifecycle.switched_off(connection.account_id)
    await house.look_up_due()
    house.amo.account.disabled = True
    house.clock.advance(60)
    await house.look_up_due()
    assert (await house.now(connection)).status is Status.DISCONNECTED


async def test_an_amo_that_does_not_tell_erases_nothing(house: House) -> None:
    """A look-up without an answer is no confirmation."""
    connection = await house.connect(api_domain=API_DOMAIN)
    house.amo.account.disabled = True
    house.amo.sandbox.look_up_faults.add(Fault.HTTP_500)
    await house.lifecycle.switched_off(connection.account_id)
    await house.look_up_due()
    after = await house.now(connection)
    assert (after.status, after.sealed_pair) == (Status.ACTIVE, connection.sealed_pair)
    assert after.look_up_at == house.clock.now() + MINUTE


async def test_where_only_the_access_token_can_be_asked_about_it_decides(house: House) -> None:
    """A pair from before AMO told its API host is looked up by its access token."""
    connection = await house.connect(api_domain=None)
    await house.lifecycle.switched_off(connection.account_id)
    await house.look_up_due()
    assert (await house.now(connection)).sealed_pair == connection.sealed_pair
    house.amo.account.disabled = True
    house.clock.advance(60)
    await house.look_up_due()
    assert (await house.now(connection)).status is Status.DISCONNECTED


async def test_a_refusal_of_the_refresh_token_alone_erases_nothing(house: House) -> None:
    """Whatever refuses a refresh token in between, a live access token shows that the account has not left us."""
    connection = await house.connect(api_domain=API_DOMAIN)

    async def look_up(**_: object) -> IntrospectionResult:
        return IntrospectionResult(standing=TokenState.REFUSED)

    lifecycle = house.make_lifecycle(amo=Override(house.client, look_up=look_up))
    await lifecycle.switched_off(connection.account_id)
    await house.look_up_due(lifecycle)
    assert (await house.now(connection)).sealed_pair == connection.sealed_pair


async def test_a_token_in_doubt_is_not_erased(house: House) -> None:
    """AMO may refuse it because we have spent it: its successor may be on the way."""
    connection = await house.connect(api_domain=API_DOMAIN)
    house.amo.sandbox.faults.add(Fault.NOTHING_AFTER)
    with pytest.raises(UnknownOutcome):
        await house.refresh(connection)
    house.amo.account.disabled = True
    await house.lifecycle.switched_off(connection.account_id)
    await house.look_up_due()
    assert (await house.now(connection)).sealed_pair == connection.sealed_pair


async def test_a_pair_whose_successor_is_unsaved_is_not_erased(house: House) -> None:
    """The person has connected again, and the new pair waits for the store."""
    connection = await house.connect(api_domain=API_DOMAIN)
    house.fade(connection)
    pending_pair = await house.grant()
    house.failing.away = {"save_connected"}
    pending_writes = house.lifecycle.pending_writes
    saving = asyncio.create_task(pending_writes.save(pending_pair, connection=pending_pair.connection))
    await house.witness.until("pair.write_pending")
    house.clock.advance(1)
    await house.lifecycle.switched_off(connection.account_id)
    await house.look_up_due()
    assert (await house.now(connection)).sealed_pair == connection.sealed_pair
    house.failing.away = set()
    await pending_writes.settle()
    saved = await saving
    assert saved is not None
    assert saved.sealed_pair == pending_pair.connection.sealed_pair


async def test_while_deaths_are_held_nothing_is_erased(house: House) -> None:
    """After an old database was put back every token is refused; a hook that is sent again must not erase them all."""
    connection = await house.connect(api_domain=API_DOMAIN)
    await house.store.suspend_terminal(now=house.clock.now())
    await house.lifecycle.breaker.watch()
    house.amo.account.disabled = True
    await house.lifecycle.switched_off(connection.account_id)
    await house.look_up_due()
    assert (await house.now(connection)).sealed_pair == connection.sealed_pair


async def test_a_grant_that_came_after_the_hook_holds(house: House) -> None:
    """Off and on again: what the hook erases is what was there before it, also where the new pair is still unsaved."""
    house.amo.fake.quirks.look_up_knows_spent = False
    connection = await house.connect(api_domain=API_DOMAIN)
    house.fade(connection)
    house.clock.advance(10)
    await house.lifecycle.switched_off(connection.account_id)
    house.clock.advance(10)
    pending_pair = await house.grant()
    store = house.away("save_connected")
    other = house.make_lifecycle(store=store, process="process-2")
    saving = asyncio.create_task(other.pending_writes.save(pending_pair, connection=pending_pair.connection))
    await house.witness.until("pair.write_pending")
    house.clock.advance(1)
    await house.look_up_due()
    assert (await house.now(connection)).status is Status.DISCONNECTED
    store.away = set()
    await other.pending_writes.settle()
    assert await saving is not None
    after = await house.now(connection)
    assert (after.status, after.sealed_pair) == (Status.ACTIVE, pending_pair.connection.sealed_pair)


async def test_a_hook_is_checked_though_the_connection_was_given_up_meanwhile(house: House) -> None:
    """A refresh hears of the dead token before the look-up does: the tokens are erased all the same, and at once."""
    connection = await house.connect(api_domain=API_DOMAIN)
    house.amo.account.disabled = True
    await house.lifecycle.switched_off(connection.account_id)
    with pytest.raises(NeedsReauth):
        await house.refresh(connection)
    await house.look_up_due()
    assert (await house.now(connection)).status is Status.DISCONNECTED


async def test_a_hook_for_one_that_was_given_up_is_checked_at_once(house: House) -> None:
    """The refresh came first and the hook after it: the hook's word explains the death, and the tokens are erased."""
    connection = await house.given_up()
    house.amo.account.disabled = True
    await house.lifecycle.switched_off(connection.account_id)
    await house.look_up_due()
    assert (await house.now(connection)).status is Status.DISCONNECTED


async def test_a_hook_wakes_the_loop(house: House) -> None:
    """What AMO tells is looked up now, and not when the loop would look again."""
    connection = await house.connect(api_domain=API_DOMAIN)
    house.amo.account.disabled = True
    async with house.running(house.lifecycle):
        await house.clock.until_sleeping(5)
        await house.lifecycle.switched_off(connection.account_id)
        await house.witness.until("connection.disconnected")


# --- given up --------------------------------------------------------------------------------------


@pytest.mark.parametrize("knows_spent", [True, False])
async def test_a_connection_that_was_given_up_wrongly_heals(house: House, knows_spent: bool) -> None:  # noqa: FBT001 -- because it is not known of AMO
    """AMO was ill: a day later it knows the token, which is tried and brings the connection back."""
    house.amo.fake.quirks.look_up_knows_spent = knows_spent
    connection = await house.given_up()
    house.clock.advance(DAY - 1)
    await house.look_up_due()
    assert house.amo.sandbox.look_ups == 0
    house.clock.advance(1)
    await house.look_up_due()
    after = await house.now(connection)
    assert (after.status, after.reason, after.look_up_at, after.pair_version) == (Status.ACTIVE, None, None, 2)
    assert house.witness.names()[-2:] == ["refresh.succeeded", "connection.recovered"]


async def test_a_dead_token_is_looked_up_daily_and_not_presented(house: House) -> None:
    """As long as AMO does not know it, it is asked about once a day; nothing is asked any more once it has expired."""
    connection = await house.given_up()
    house.amo.account.disabled = True
    for _ in range(95):
        house.clock.advance(DAY)
        await house.look_up_due()
        assert (await house.now(connection)).look_up_at == house.clock.now() + timedelta(days=1)
    assert house.amo.sandbox.look_ups == 89
    assert len(house.amo.fake.ledger.refreshes()) == 1


async def test_a_trial_that_is_refused_is_the_last_one(house: House) -> None:
    """Where the look-up takes spent tokens for good ones, one presentation settles it until the token expires."""
    house.amo.fake.quirks.look_up_knows_spent = True
    connection = await house.given_up()
    house.amo.spend(grant_type="refresh_token", refresh_token=house.pair(connection).refresh_token)
    for _ in range(10):
        house.clock.advance(DAY)
        await house.look_up_due()
    after = await house.now(connection)
    assert (after.status, after.reason) == (Status.NEEDS_REAUTH, Reason.REVOKED)
    assert after.look_up_at == after.refresh_expires_at
    presented = [entry.status for entry in house.amo.fake.ledger.refreshes()]
    assert presented == [401, 200, 401]  # ours, the other system's, the trial
    assert house.witness.names().count("connection.needs_reauth") == 1


async def test_a_trial_that_has_to_wait_for_another_probe_does_not_wait_a_day(house: House) -> None:
    """While nothing but probes may go, another connection may be the probe when AMO knows the token again."""
    connection = await house.given_up()
    house.clock.advance(DAY)
    house.lifecycle.breaker.refuse("Check the `client_id` parameter")
    await house.look_up_due()
    after = await house.now(connection)
    assert (after.status, after.look_up_at) == (Status.NEEDS_REAUTH, house.clock.now() + timedelta(minutes=15))
    assert len(house.amo.fake.ledger.refreshes()) == 1  # the one that AMO refused
    house.clock.advance(900)
    await house.look_up_due()
    assert (await house.now(connection)).status is Status.ACTIVE


@pytest.mark.parametrize("knows_spent", [True, False])
async def test_a_trial_that_loses_its_answer_is_in_doubt(house: House, knows_spent: bool) -> None:  # noqa: FBT001 -- because it is not known of AMO
    """AMO knew the token again, and the trial may have spent it: that is told as our loss, then and ever after."""
    house.amo.fake.quirks.look_up_knows_spent = knows_spent
    connection = await house.given_up()
    house.amo.sandbox.faults.add(Fault.NOTHING_AFTER)
    for _ in range(3):
        house.clock.advance(DAY)
        await house.look_up_due()
        after = await house.now(connection)
        assert (after.status, after.reason) == (Status.NEEDS_REAUTH, Reason.IN_DOUBT)
    assert house.amo.fake.ledger.doubles() == knows_spent  # the last trial, after which there is none


async def test_replayed_hooks_do_not_starve_healing(house: House) -> None:
    """Whoever sends the hook again and again keeps nobody from the daily look-up, nor brings more of them about."""
    connection = await house.given_up()
    house.amo.sandbox.look_up_faults.add(Fault.HTTP_500)  # at the first hook AMO does not tell
    looked_up = []
    for _ in range(6 * 24 + 1):
        await house.lifecycle.switched_off(connection.account_id)
        await house.look_up_due()
        looked_up.append(house.amo.sandbox.look_ups)
        house.clock.advance(600)
    assert looked_up == [1] * 6 * 24 + [2]
    after = await house.now(connection)
    assert (after.status, after.pair_version) == (Status.ACTIVE, 2)
    assert len(house.witness.named("hook.received")) == 1  # only the first one started a check


async def test_an_unreadable_pair_revives_when_its_key_is_back(house: House) -> None:
    """Whether the key is back is looked at each quarter of an hour; with it the connection is active again, and due."""
    lost = new_key()
    issued = await house.exchange()
    name = house.connection_of(issued).id
    sealed = Cipher([lost]).seal_pair(issued.pair, connection_id=name)
    connection = await house.keep(issued, sealed_pair=sealed)
    with pytest.raises(NeedsReauth):
        await house.refresh(connection)
    house.clock.advance(DAY)
    await house.look_up_due()
    after = await house.now(connection)
    assert (after.reason, after.look_up_at) == (Reason.UNREADABLE, house.clock.now() + timedelta(seconds=900))
    restarted = house.make_lifecycle(cipher=Cipher([new_key(), lost]))
    house.clock.advance(DAY)
    await house.look_up_due(restarted)
    after = await house.now(connection)
    assert (after.status, after.next_refresh_at) == (Status.ACTIVE, house.clock.now())
    assert house.amo.fake.ledger.refreshes() == []
    assert (await restarted.coordinator.refresh(connection.id, demand=RefreshTrigger.SCHEDULE)).pair_version == 2


async def test_a_hook_from_before_the_account_lived_erases_nothing_later(house: House) -> None:
    """Named once, and alive since: whoever dies afterwards is given up as anybody else, and keeps the pair."""
    house.amo.fake.quirks.look_up_knows_spent = False
    connection = await house.connect(api_domain=API_DOMAIN)
    await house.lifecycle.switched_off(connection.account_id)
    await house.look_up_due()
    house.clock.advance(3600)
    refreshed = await house.refresh(connection)
    house.amo.account.disabled = True
    with pytest.raises(NeedsReauth):
        await house.refresh(refreshed)
    house.clock.advance(DAY)
    await house.look_up_due()
    after = await house.now(connection)
    assert (after.status, after.sealed_pair) == (Status.NEEDS_REAUTH, refreshed.sealed_pair)


async def test_look_ups_neither_crowd_out_refreshes_nor_the_probe(house: House) -> None:
    """However many are due at once, and however long AMO takes to answer: two at a time, and the probe has its turn."""
    given_up = []
    for _ in range(6):
        house.amo.account.user_id += 1
        given_up.append(await house.connect(api_domain=API_DOMAIN))
    for connection in given_up:
        await house.store.schedule_recheck(await house.now(connection), at=house.clock.now())
    await house.connect(api_domain=API_DOMAIN)
    at_once = 0

    async def look_up(**_: object) -> IntrospectionResult:
        nonlocal at_once
        at_once += 1
        await house.clock.sleep(3600)
        return IntrospectionResult(standing=TokenState.UNKNOWN)

    async def slot(_priority: object) -> None:
        """Let everything go at once: the rate limit is not what holds look-ups back here."""

    lifecycle = house.make_lifecycle(amo=Override(house.client, look_up=look_up, slot=slot))
    lifecycle.breaker.refuse("Check the `client_id` parameter")
    house.clock.advance(60)
    task = asyncio.create_task(lifecycle.scheduler.run())
    await house.witness.until("refresh.succeeded")
    for _ in range(5):
        lifecycle.scheduler.wake()
        for _ in range(5):
            await house.store.count()  # the loop gets its turns
    assert at_once == 2
    house.clock.advance(3600)
    lifecycle.core.stop.set()
    await task


async def test_a_process_that_died_at_a_trial_leaves_a_doubt_that_is_ours(house: House) -> None:
    """Given up as revoked, tried because AMO seemed to know it, and killed with the answer in hand: `in_doubt`."""
    connection = await house.given_up()
    house.clock.advance(DAY)
    gated = Gated(house)
    gated.go_on.clear()
    killed = asyncio.create_task(house.look_up_due(house.make_lifecycle(amo=gated, process="server-1")))
    await gated.answered.wait()
    lifecycle = house.make_lifecycle(process="process-2")
    for seconds in (DAY, 60):
        house.clock.advance(seconds)
        with pytest.raises(NotYet):  # its lease is respected; then the row is another one
            await house.look_up_due(lifecycle)
    after = await house.now(connection)
    assert (after.status, after.reason) == (Status.NEEDS_REAUTH, Reason.IN_DOUBT)
    assert house.witness.named("connection.in_doubt")[0].fields["from_process"] == "server-1"
    killed.cancel()


async def test_a_trial_does_not_spend_the_pair_of_a_new_grant(house: House) -> None:
    """The person connects again while the trial waits for its slot: there is nothing left to try."""
    connection = await house.given_up()
    house.clock.advance(DAY)

    class SecondInQueue(Queue):
        """Look-ups have their slot at once; the trial after them waits."""

        slots = 0

        async def slot(self, priority: object) -> None:
            self.slots += 1
            if self.slots > 1:
                await super().slot(priority)

    queue = SecondInQueue(house)
    trying = asyncio.create_task(house.look_up_due(house.make_lifecycle(amo=queue)))
    await queue.asked.wait()
    again = await house.connect(api_domain=API_DOMAIN)
    presented = len(house.amo.fake.ledger.refreshes())
    queue.served.set()
    await trying
    assert await house.now(connection) == again
    assert len(house.amo.fake.ledger.refreshes()) == presented


async def test_a_hook_that_nobody_confirms_or_denies_is_asked_about_until_somebody_does(house: House) -> None:
    """All look-ups silent: ten minutes later it is asked again, and not forgotten."""
    connection = await house.connect(api_domain=API_DOMAIN)
    house.amo.account.disabled = True
    await house.lifecycle.switched_off(connection.account_id)
    house.amo.sandbox.look_up_faults.add(*[Fault.HTTP_500] * 4)
    for _ in range(4):
        await house.look_up_due()
        after = await house.now(connection)
        assert after.status is Status.ACTIVE
        assert after.look_up_at is not None
        house.clock.advance((after.look_up_at - house.clock.now()).total_seconds())
    await house.look_up_due()
    assert (await house.now(connection)).status is Status.DISCONNECTED
