"""Look-ups of whoever was given up, and of accounts that AMO's hook named: what heals, and what is erased."""

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
    """Have AMO's hook for an account come, and look up whose turn it is."""
    await harness.lifecycle.switched_off(connection.account_id)
    await harness.recheck_due()


async def test_a_rejected_refresh_token_is_not_presented_for_an_accepted_access_token(harness: RefreshHarness) -> None:
    """AMO said once that it was revoked, and rejects it in introspection: its access token says nothing of it."""
    fake = harness.amo.fake
    fake.lifetimes = Lifetimes(access=10 * DAY)
    fake.quirks.introspection_accepts_spent = fake.quirks.refresh_kills_access = False
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.amo.spend(grant_type="refresh_token", refresh_token=harness.pair(connection).refresh_token)
    await harness.fail(connection, NeedsReauth)
    presented = len(fake.ledger.refreshes())
    for _ in range(3):
        harness.clock.advance(DAY)
        await harness.recheck_due()
    assert len(fake.ledger.refreshes()) == presented
    assert (await harness.now(connection)).status is Status.NEEDS_REAUTH


async def test_an_account_that_lives_keeps_its_tokens_and_is_looked_up_twice_more(harness: RefreshHarness) -> None:
    """AMO may tell before it acts: a live token is asked about again after one and after ten minutes, then no more."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    disabled_hook_at = harness.clock.now()
    await harness.lifecycle.switched_off(connection.account_id)
    for again in (disabled_hook_at + MINUTE, disabled_hook_at + 10 * MINUTE, None):
        await harness.recheck_due()
        after = await harness.now(connection)
        assert (after.recheck_at, after.sealed_pair) == (again, connection.sealed_pair)
        assert (await harness.witness.until("hook.unconfirmed")).fields.get("again_at") == again
        harness.clock.advance((again - harness.clock.now()).total_seconds() if again else DAY)
    await harness.recheck_due()
    assert harness.amo.sandbox.introspections == 3


async def test_what_amo_knows_no_more_is_erased(harness: RefreshHarness) -> None:
    """The hook is true: the tokens are erased, the connection is disconnected, and whoever watches is told."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.amo.account.disabled = True
    await _check_hook(harness, connection)
    after = await harness.now(connection)
    assert (after.status, after.sealed_pair, after.recheck_at) == (Status.DISCONNECTED, None, None)
    assert harness.witness.names() == ["hook.received", "connection.disconnected"]
    assert harness.presented() == []


@pytest.mark.parametrize("api_domain", [API_DOMAIN, None])
async def test_an_account_that_dies_after_its_hook_is_found_by_a_later_look_up(
    harness: RefreshHarness, api_domain: str | None
) -> None:
    """AMO told before it acted; a pair from before AMO told its API host is looked up by its access token."""
    connection = await harness.connect(api_domain=api_domain)
    await _check_hook(harness, connection)
    assert (await harness.now(connection)).sealed_pair == connection.sealed_pair
    harness.amo.account.disabled = True
    harness.clock.advance(60)
    await harness.recheck_due()
    assert (await harness.now(connection)).status is Status.DISCONNECTED


async def test_a_refusal_of_the_refresh_token_alone_erases_nothing(harness: RefreshHarness) -> None:
    """Whatever refuses a refresh token in between, a live access token shows that the account has not left us."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    refused = answering(IntrospectionResult(state=TokenState.REJECTED))
    lifecycle = harness.make_lifecycle(amo=Override(harness.client, introspect_refresh_token=refused))
    await lifecycle.switched_off(connection.account_id)
    await harness.recheck_due(lifecycle)
    assert (await harness.now(connection)).sealed_pair == connection.sealed_pair


async def test_a_token_in_doubt_is_not_erased(harness: RefreshHarness) -> None:
    """AMO may refuse it because we have spent it: its successor may be on the way."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.fail(connection, UnknownOutcome, Fault.NOTHING_AFTER)
    harness.amo.account.disabled = True
    await _check_hook(harness, connection)
    assert (await harness.now(connection)).sealed_pair == connection.sealed_pair


async def test_a_pair_whose_successor_is_unsaved_is_not_erased(harness: RefreshHarness) -> None:
    """The person has connected again, and the new pair waits for the store."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.fade(connection)
    pending_pair = await harness.grant()
    harness.failing.away = {"save_connected"}
    pending_writes = harness.lifecycle.pending_writes
    saving = asyncio.create_task(pending_writes.save(pending_pair, connection=pending_pair.connection))
    await harness.witness.until("pair.write_pending")
    harness.clock.advance(1)
    await _check_hook(harness, connection)
    assert (await harness.now(connection)).sealed_pair == connection.sealed_pair
    await harness.bring_store_back()
    assert present(await saving).sealed_pair == pending_pair.connection.sealed_pair


@pytest.mark.parametrize("status", [Status.ACTIVE, Status.NEEDS_REAUTH])
async def test_while_deaths_are_held_nothing_is_erased(harness: RefreshHarness, status: Status) -> None:
    """After an old database was put back every token is refused; a hook that is sent again must not erase them all."""
    connection = await (harness.given_up() if status is Status.NEEDS_REAUTH else harness.connect(api_domain=API_DOMAIN))
    await harness.store.suspend_terminal(now=harness.clock.now())
    await harness.lifecycle.breaker.watch()
    harness.amo.account.disabled = True
    await _check_hook(harness, connection)
    after = await harness.now(connection)
    assert (after.status, after.sealed_pair) == (status, connection.sealed_pair)


async def test_a_grant_that_came_after_the_hook_holds(harness: RefreshHarness) -> None:
    """Off and on again: what the hook erases is what was there before it, also where the new pair is still unsaved."""
    harness.amo.fake.quirks.introspection_accepts_spent = False
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.fade(connection)
    harness.clock.advance(10)
    await harness.lifecycle.switched_off(connection.account_id)
    harness.clock.advance(10)
    pending_pair = await harness.grant()
    store = harness.away("save_connected")
    other = harness.make_lifecycle(store=store, process="process-2")
    saving = asyncio.create_task(other.pending_writes.save(pending_pair, connection=pending_pair.connection))
    await harness.witness.until("pair.write_pending")
    harness.clock.advance(1)
    await harness.recheck_due()
    assert (await harness.now(connection)).status is Status.DISCONNECTED
    store.away = set()
    await other.pending_writes.flush()
    assert await saving is not None
    after = await harness.now(connection)
    assert (after.status, after.sealed_pair) == (Status.ACTIVE, pending_pair.connection.sealed_pair)


@pytest.mark.parametrize("first", ["hook", "refresh"])
async def test_a_hook_is_checked_though_the_connection_was_given_up(harness: RefreshHarness, first: str) -> None:
    """Whichever hears first of the dead token, the hook explains its death: the tokens are erased at once."""
    connection = await (harness.connect(api_domain=API_DOMAIN) if first == "hook" else harness.given_up())
    harness.amo.account.disabled = True
    await harness.lifecycle.switched_off(connection.account_id)
    if first == "hook":
        await harness.fail(connection, NeedsReauth)
    await harness.recheck_due()
    assert (await harness.now(connection)).status is Status.DISCONNECTED


async def test_a_hook_wakes_the_loop(harness: RefreshHarness) -> None:
    """What AMO tells is looked up now, and not when the loop would look again."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.amo.account.disabled = True
    async with harness.running(harness.lifecycle):
        await harness.clock.until_sleeping(5)
        await harness.lifecycle.switched_off(connection.account_id)
        await harness.witness.until("connection.disconnected")


@pytest.mark.parametrize("knows_spent", [True, False])
async def test_a_connection_that_was_given_up_wrongly_heals(harness: RefreshHarness, *, knows_spent: bool) -> None:
    """AMO was ill: a day later it knows the token, which is tried and brings the connection back."""
    harness.amo.fake.quirks.introspection_accepts_spent = knows_spent
    connection = await harness.given_up()
    harness.clock.advance(DAY - 1)
    await harness.recheck_due()
    assert harness.amo.sandbox.introspections == 0
    harness.clock.advance(1)
    await harness.recheck_due()
    after = await harness.now(connection)
    assert (after.status, after.reason, after.recheck_at, after.pair_version) == (Status.ACTIVE, None, None, 2)
    assert harness.witness.names()[-2:] == ["refresh.succeeded", "connection.recovered"]


async def test_a_dead_token_is_looked_up_daily_and_not_presented(harness: RefreshHarness) -> None:
    """As long as AMO does not know it, it is asked about once a day; nothing is asked any more once it has expired."""
    connection = await harness.given_up()
    harness.amo.account.disabled = True
    for _ in range(95):
        harness.clock.advance(DAY)
        await harness.recheck_due()
        assert (await harness.now(connection)).recheck_at == harness.clock.now() + timedelta(days=1)
    assert harness.amo.sandbox.introspections == 89
    assert len(harness.presented()) == 1


async def test_a_trial_that_is_refused_is_the_last_one(harness: RefreshHarness) -> None:
    """Where the look-up takes spent tokens for good ones, one presentation settles it until the token expires."""
    harness.amo.fake.quirks.introspection_accepts_spent = True
    connection = await harness.given_up()
    harness.amo.spend(grant_type="refresh_token", refresh_token=harness.pair(connection).refresh_token)
    for _ in range(10):
        harness.clock.advance(DAY)
        await harness.recheck_due()
    after = await harness.now(connection)
    assert (after.status, after.reason) == (Status.NEEDS_REAUTH, Reason.REVOKED)
    assert after.recheck_at == after.refresh_expires_at
    presented = [entry.status for entry in harness.presented()]
    assert presented == [401, 200, 401]  # ours, the other system's, the trial
    assert harness.witness.names().count("connection.needs_reauth") == 1


async def test_a_trial_that_has_to_wait_for_another_probe_does_not_wait_a_day(harness: RefreshHarness) -> None:
    """While nothing but probes may go, another connection may be the probe when AMO knows the token again."""
    connection = await harness.given_up()
    harness.clock.advance(DAY)
    harness.lifecycle.breaker.refuse("Check the `client_id` parameter")
    await harness.recheck_due()
    after = await harness.now(connection)
    assert (after.status, after.recheck_at) == (Status.NEEDS_REAUTH, harness.clock.now() + timedelta(minutes=15))
    assert len(harness.presented()) == 1  # the one that AMO refused
    harness.clock.advance(900)
    await harness.recheck_due()
    assert (await harness.now(connection)).status is Status.ACTIVE


@pytest.mark.parametrize("knows_spent", [True, False])
async def test_a_trial_that_loses_its_answer_is_in_doubt(harness: RefreshHarness, *, knows_spent: bool) -> None:
    """AMO knew the token again, and the trial may have spent it: that is told as our loss, then and ever after."""
    harness.amo.fake.quirks.introspection_accepts_spent = knows_spent
    connection = await harness.given_up()
    harness.amo.sandbox.faults.add(Fault.NOTHING_AFTER)
    for _ in range(3):
        harness.clock.advance(DAY)
        await harness.recheck_due()
        after = await harness.now(connection)
        assert (after.status, after.reason) == (Status.NEEDS_REAUTH, Reason.IN_DOUBT)
    assert harness.amo.fake.ledger.doubles() == knows_spent  # the last trial, after which there is none


async def test_replayed_hooks_do_not_starve_healing(harness: RefreshHarness) -> None:
    """Whoever sends the hook again and again keeps nobody from the daily look-up, nor brings more of them about."""
    connection = await harness.given_up()
    harness.amo.sandbox.introspection_faults.add(Fault.HTTP_500)  # at the first hook AMO does not tell
    looked_up = []
    for _ in range(6 * 24 + 1):
        await _check_hook(harness, connection)
        looked_up.append(harness.amo.sandbox.introspections)
        harness.clock.advance(600)
    assert looked_up == [1] * 6 * 24 + [2]
    after = await harness.now(connection)
    assert (after.status, after.pair_version) == (Status.ACTIVE, 2)
    assert len(harness.witness.named("hook.received")) == 1  # only the first one started a check


async def test_an_unreadable_pair_revives_when_its_key_is_back(harness: RefreshHarness) -> None:
    """Whether the key is back is looked at each quarter of an hour; with it the connection is active again, and due."""
    lost, issued = new_key(), await harness.exchange()
    sealed = Cipher([lost]).seal_pair(issued.pair, connection_id=harness.connection_of(issued).id)
    connection = await harness.keep(issued, sealed_pair=sealed)
    await harness.fail(connection, NeedsReauth)
    harness.clock.advance(DAY)
    await harness.recheck_due()
    after = await harness.now(connection)
    assert (after.reason, after.recheck_at) == (Reason.UNREADABLE, harness.clock.now() + timedelta(seconds=900))
    restarted = harness.make_lifecycle(cipher=Cipher([new_key(), lost]))
    harness.clock.advance(DAY)
    await harness.recheck_due(restarted)
    after = await harness.now(connection)
    assert (after.status, after.next_refresh_at) == (Status.ACTIVE, harness.clock.now())
    assert harness.presented() == []
    assert (await harness.refresh(connection, by=restarted.coordinator)).pair_version == 2


async def test_a_hook_from_before_the_account_lived_erases_nothing_later(harness: RefreshHarness) -> None:
    """Named once, and alive since: whoever dies afterwards is given up as anybody else, and keeps the pair."""
    harness.amo.fake.quirks.introspection_accepts_spent = False
    connection = await harness.connect(api_domain=API_DOMAIN)
    await _check_hook(harness, connection)
    harness.clock.advance(3600)
    refreshed = await harness.refresh(connection)
    harness.amo.account.disabled = True
    await harness.fail(refreshed, NeedsReauth)
    harness.clock.advance(DAY)
    await harness.recheck_due()
    after = await harness.now(connection)
    assert (after.status, after.sealed_pair) == (Status.NEEDS_REAUTH, refreshed.sealed_pair)


async def test_look_ups_neither_crowd_out_refreshes_nor_the_probe(harness: RefreshHarness) -> None:
    """However many are due at once, and however long AMO takes to answer: two at a time, and the probe has its turn."""
    for connection in await harness.connect_users(6):
        await harness.store.schedule_recheck(await harness.now(connection), at=harness.clock.now())
    await harness.connect(api_domain=API_DOMAIN)
    is_local, two = 0, asyncio.Event()

    async def introspect_refresh_token(**_: object) -> IntrospectionResult:
        nonlocal is_local
        is_local += 1
        if is_local == 2:
            two.set()
        await harness.clock.sleep(3600)
        return IntrospectionResult(state=TokenState.UNKNOWN)

    async def acquire_slot(_priority: object) -> None:
        """Let everything go at once: the rate limit is not what holds look-ups back here."""

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
            await harness.store.count()  # the loop gets its turns
    assert is_local == 2
    harness.clock.advance(3600)
    lifecycle.core.stop.set()
    await task


async def test_a_process_that_died_at_a_trial_leaves_a_doubt_that_is_ours(harness: RefreshHarness) -> None:
    """Given up as revoked, tried because AMO seemed to know it, and killed with the answer in hand: `in_doubt`."""
    connection = await harness.given_up()
    harness.clock.advance(DAY)
    gated = GatedClient(harness.client, hold_answer=True)
    killed = asyncio.create_task(harness.recheck_due(harness.make_lifecycle(amo=gated, process="server-1")))
    await gated.answered.wait()
    lifecycle = harness.make_lifecycle(process="process-2")
    for seconds in (DAY, 60):
        harness.clock.advance(seconds)
        with pytest.raises(NotYet):  # its lease is respected; then the row is another one
            await harness.recheck_due(lifecycle)
    after = await harness.now(connection)
    assert (after.status, after.reason) == (Status.NEEDS_REAUTH, Reason.IN_DOUBT)
    assert harness.witness.named("connection.in_doubt")[0].fields["from_process"] == "server-1"
    killed.cancel()


async def test_a_trial_does_not_spend_the_pair_of_a_new_grant(harness: RefreshHarness) -> None:
    """The person connects again while the trial waits for its slot: there is nothing left to try."""
    connection = await harness.given_up()
    harness.clock.advance(DAY)
    presented, granted = len(harness.presented()), list[Connection]()

    async def connect_again() -> None:
        granted.append(await harness.connect(api_domain=API_DOMAIN))

    amo = harness.before_slot(2, connect_again)  # the first slot is the look-up's
    await harness.recheck_due(harness.make_lifecycle(amo=amo))
    assert [await harness.now(connection)] == granted
    assert len(harness.presented()) == presented


async def test_a_hook_is_asked_about_until_somebody_confirms_or_denies_it(harness: RefreshHarness) -> None:
    """A look-up without an answer erases nothing: it is asked again after a minute, and then every ten."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.amo.account.disabled = True
    await harness.lifecycle.switched_off(connection.account_id)
    harness.amo.sandbox.introspection_faults.add(*[Fault.HTTP_500] * 4)
    waits = []
    for _ in range(4):
        await harness.recheck_due()
        after = await harness.now(connection)
        assert (after.status, after.sealed_pair) == (Status.ACTIVE, connection.sealed_pair)
        waits.append((present(after.recheck_at) - harness.clock.now()).total_seconds())
        harness.clock.advance(waits[-1])
    assert waits == [60, 540, 600, 600]
    await harness.recheck_due()
    assert (await harness.now(connection)).status is Status.DISCONNECTED


async def test_a_turn_that_another_process_has_taken_is_over(harness: RefreshHarness) -> None:
    """Two processes find the same look-up due: whoever comes second asks nothing, and presents nothing."""
    connection = await harness.given_up()
    harness.clock.advance(DAY)
    harness.amo.account.disabled = True
    for lifecycle in (harness.lifecycle, harness.make_lifecycle(process="process-2")):
        await lifecycle.rechecker.check(connection.id)
    assert harness.amo.sandbox.introspections == 1


async def test_of_two_processes_that_look_up_at_once_one_presents_the_token(harness: RefreshHarness) -> None:
    """Both hear that AMO knows it: whoever finds the turn taken leaves it at that, for the trial is the last one."""
    harness.amo.fake.quirks.introspection_accepts_spent = True
    connection = await harness.given_up()
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
