"""One refresh: what is written before, what is spent, and what is left when something goes wrong."""

import asyncio
import dataclasses
from datetime import timedelta
from typing import Any

import pytest

from amo_callback.amo.sandbox.app import Fault
from amo_callback.crypto import Cipher, new_key
from amo_callback.errors import (
    AccountBlocked,
    ClientMismatch,
    IntrospectionUnavailable,
    NeedsReauth,
    NotFound,
    NotYet,
    RequestNotSent,
    ShuttingDown,
    UnknownOutcome,
    VendorRateLimited,
)
from amo_callback.events import Level
from amo_callback.model import (
    Claim,
    Connection,
    Reason,
    RefreshedPair,
    RefreshRules,
    RefreshTrigger,
    Status,
    TokenPair,
    TokenResponse,
    abbreviated,
    fingerprint,
)
from tests.builders import a_claim, an_extension, present, save
from tests.fakes import Override, answering
from tests.refresh.harness import API_DOMAIN, DAY, QueueingClient, RefreshHarness, UnreachableClient, newer_than


async def test_a_refresh_stores_the_new_pair_and_when_it_is_due(harness: RefreshHarness) -> None:
    """The new pair is stored, live, due at half of its life, and good for three months."""
    connection = await harness.connect()
    harness.clock.advance(43_200)
    stored = await harness.refresh(connection)
    pair = harness.pair(stored)
    assert harness.amo.fake.live_account(pair.access_token) is harness.amo.account
    assert stored == await harness.now(connection)
    assert (stored.refreshed_at, stored.access_expires_at) == (
        harness.clock.now(),
        harness.clock.now() + timedelta(days=1),
    )
    assert stored.next_refresh_at == harness.clock.now() + timedelta(hours=12)
    assert stored.refresh_expires_at == harness.clock.now() + timedelta(days=90)
    assert (stored.pair_version, stored.attempt) == (2, None)
    [event] = harness.witness.named("refresh.succeeded")
    assert (event.level, event.connection_id) == (Level.INFO, connection.id)
    assert event.fields == {
        "domain": connection.domain,
        "trigger": "schedule",
        "seconds": 0.0,
        "token": abbreviated(fingerprint(harness.pair(connection).refresh_token)),
        "next_token": abbreviated(fingerprint(pair.refresh_token)),
        "request_id": event.fields["request_id"],  # whatever AMO calls it
        "expires_at": stored.access_expires_at,
        "next_refresh_at": stored.next_refresh_at,
    }


async def test_a_refresh_tells_how_long_it_took_and_what_amo_calls_it(harness: RefreshHarness) -> None:
    """From before the claim to the answer, in milliseconds."""
    connection = await harness.connect()

    async def refresh(**request: Any) -> TokenResponse:
        harness.clock.advance(1.23456)
        return dataclasses.replace(await harness.client.refresh(**request), request_id="b6a3")

    await harness.refresh(
        connection,
        by=harness.make_coordinator(amo=Override(harness.client, refresh=refresh)),
        trigger=RefreshTrigger.FORCED,
    )
    [event] = harness.witness.named("refresh.succeeded")
    assert (event.fields["seconds"], event.fields["request_id"], event.fields["trigger"]) == (1.235, "b6a3", "forced")


async def test_a_refresh_keeps_the_api_host_that_amo_tells_or_else_the_one_before(harness: RefreshHarness) -> None:
    """A token that names none says nothing of it."""
    connection = await harness.connect(api_domain="api-a.amocrm.ru")

    async def refresh(**request: Any) -> TokenResponse:
        issued = await harness.client.refresh(**request)
        return dataclasses.replace(issued, account=dataclasses.replace(issued.account, api_domain=None))

    silent = harness.make_coordinator(amo=Override(harness.client, refresh=refresh))
    assert (await harness.refresh(connection, by=silent)).api_domain == "api-a.amocrm.ru"
    assert (await harness.refresh(connection)).api_domain == API_DOMAIN


async def test_a_pair_is_stored_for_the_grant_that_it_comes_from(harness: RefreshHarness) -> None:
    """The store is told which: after a database was put back, the version alone would not tell a newer grant."""
    connection = await save(harness.store, harness.connection_of(await harness.exchange()), iat=7)
    stored: list[RefreshedPair] = []
    harness.failing.before["save_refreshed"] = lambda refreshed, **_: stored.append(refreshed)
    await harness.refresh(connection)
    assert [(one.grant_iat, one.pair_version) for one in stored] == [(7, 1)]


async def test_callers_at_once_share_one_refresh(harness: RefreshHarness) -> None:
    """Sixty callers make one request, and all get its pair."""
    connection = await harness.connect()
    stored = await asyncio.gather(*(harness.refresh(connection, trigger=RefreshTrigger.HAND_OUT) for _ in range(60)))
    assert {one.pair_version for one in stored} == {2}
    assert len(harness.presented()) == 1


async def test_whoever_comes_as_a_refresh_ends_makes_one_of_his_own(harness: RefreshHarness) -> None:
    """What has ended is not joined, and its end takes nothing from the one that began meanwhile."""
    connection = await harness.connect()
    ended = asyncio.Event()

    def is_fresh_enough(_connection: Connection) -> bool:
        ended.set()
        return True

    async def come() -> Connection:
        await ended.wait()
        return await harness.refresh(connection)

    harness.amo.sandbox.asked.clear()
    harness.amo.sandbox.faults.add(Fault.SLOW)
    coming = asyncio.create_task(come())
    assert (await harness.refresh(connection, is_fresh_enough=is_fresh_enough)).pair_version == 1
    await harness.amo.sandbox.asked.wait()
    assert harness.coordinator.in_flight == 1
    harness.amo.sandbox.go_on.set()
    assert (await coming).pair_version == 2
    assert harness.coordinator.in_flight == 0


async def test_a_refresh_that_satisfies_nobody_is_made_once(harness: RefreshHarness) -> None:
    """Whoever asked for it gets its pair, and may ask again."""
    connection = await harness.connect()
    assert (await harness.refresh(connection, is_fresh_enough=lambda now: now.pair_version > 2)).pair_version == 2
    assert len(harness.presented()) == 1


async def test_the_claim_is_written_before_anything_is_spent(harness: RefreshHarness) -> None:
    """While the request is on its way, the store names attempt, lease and fingerprint."""
    connection = await harness.connect()
    refreshing = await harness.begin_slow(connection)
    claimed = await harness.now(connection)
    assert claimed.attempt is not None
    assert claimed.lease_until == harness.clock.now() + timedelta(seconds=60)
    assert claimed.presented_token == fingerprint(harness.pair(connection).refresh_token)
    harness.amo.sandbox.go_on.set()
    await refreshing


@pytest.mark.parametrize(("took", "error", "again_in"), [(0, ShuttingDown, 5), (55.1, NotYet, 1)])
async def test_a_claim_that_took_too_long_or_met_a_stop_is_given_back_unsent(
    harness: RefreshHarness, took: float, error: type[ShuttingDown | NotYet], again_in: float
) -> None:
    """Nothing is spent on what is left of the lease, for an answer has 5 s, nor once the process is to end."""
    connection = await harness.connect()

    def claimed(*_: object, **__: object) -> None:
        harness.clock.advance(took)
        if error is ShuttingDown:
            harness.lifecycle.core.stop.set()

    harness.failing.after["claim"] = claimed
    assert (await harness.fail(connection, error)).retry_after == again_in
    after = await harness.now(connection)
    assert (after.attempt, after.presented_token, after.possibly_spent_token) == (None, None, None)
    assert harness.presented() == []


async def test_a_claim_that_leaves_time_for_an_answer_is_spent(harness: RefreshHarness) -> None:
    """A second slot is taken, for the first is too old by then: that takes a moment of real time."""
    connection = await harness.connect()
    harness.failing.after["claim"] = lambda *_, **__: harness.clock.advance(54)
    assert (await harness.refresh(connection)).pair_version == 2


async def test_a_pair_granted_to_another_client_is_not_presented(harness: RefreshHarness) -> None:
    """After the integration was changed, old tokens stay at home, and the configuration is told as the fault."""
    connection = await harness.connect(client_id="the one before")
    await harness.fail(connection, ClientMismatch)
    after = await harness.now(connection)
    assert (after.status, after.last_error) == (Status.ACTIVE, "client_mismatch")
    assert harness.presented() == []


async def test_a_pair_that_no_key_opens_needs_its_person(harness: RefreshHarness) -> None:
    """Rows swapped by hand, or sealed with a lost key, are noticed and not sent; their claim names no token."""
    other = Cipher([new_key()])
    pair = TokenPair(access_token="a", refresh_token="r", issued_at=harness.clock.now(), expires_at=harness.clock.now())
    claims: list[Claim] = []
    harness.failing.before["claim"] = lambda claim, **_: claims.append(claim)
    for sealed in (other.seal_pair(pair, connection_id="x"), harness.cipher.seal_pair(pair, connection_id="another")):
        connection = await harness.connect(sealed_pair=sealed)
        assert (await harness.fail(connection, NeedsReauth)).reason is Reason.UNREADABLE
        after = await harness.now(connection)
        assert (after.status, after.reason, after.sealed_pair) == (Status.NEEDS_REAUTH, Reason.UNREADABLE, sealed)
    claimed = {(claim.fingerprint, claim.owner, claim.lease) for claim in claims}
    assert claimed == {("", "process-1", timedelta(seconds=60))}
    assert harness.presented() == []


async def test_what_does_not_exist_cannot_be_refreshed(harness: RefreshHarness) -> None:
    """An unknown id is told as that, and so is one whose person has disconnected."""
    connection = await harness.connect()
    assert await harness.store.disconnect(connection, on_request=True)
    for name in ("unknown", connection.id):
        with pytest.raises(NotFound):
            await harness.coordinator.refresh(name, trigger=RefreshTrigger.HAND_OUT)
    assert harness.presented() == []


async def test_a_caller_who_hangs_up_cancels_nothing(harness: RefreshHarness) -> None:
    """The request goes on in its own task, and its pair is stored."""
    connection = await harness.connect()
    caller = await harness.begin_slow(connection)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    harness.amo.sandbox.go_on.set()
    await harness.coordinator.drain()
    assert (await harness.now(connection)).pair_version == 2


async def test_stopping_finishes_what_is_claimed_and_begins_nothing(harness: RefreshHarness) -> None:
    """After the stop signal a spent token's pair is stored, and who waits for a slot is sent away."""
    connection = await harness.connect()
    harness.amo.account.user_id += 1
    other = await harness.connect()
    harness.coordinator = harness.make_coordinator(rules=RefreshRules(concurrency=1))
    first = await harness.begin_slow(connection)
    second = harness.begin(other)
    await asyncio.sleep(0)
    harness.lifecycle.core.stop.set()
    harness.amo.sandbox.go_on.set()
    await harness.coordinator.drain()
    assert (await first).pair_version == 2
    with pytest.raises(ShuttingDown):
        await second
    await harness.fail(other, ShuttingDown)
    assert len(harness.presented()) == 1


@pytest.mark.parametrize("waits_for", ["a lease", "a slot"])
async def test_stopping_does_not_wait_for_a_lease_nor_for_the_rate_limit(
    harness: RefreshHarness, waits_for: str
) -> None:
    """Whoever looks for another process's pair, or has no slot yet, is sent away at once, and has claimed nothing."""
    connection = await harness.connect()
    if waits_for == "a lease":
        await harness.store.claim(a_claim(connection, owner="process-2"))
        refreshing = harness.begin(connection)
        await harness.clock.until_sleeping(0.25)
    else:
        refreshing, _ = await harness.begin_queued(connection)
        assert (await harness.now(connection)).attempt is None  # a claim must not age in a queue
    harness.lifecycle.core.stop.set()
    with pytest.raises(ShuttingDown):
        await refreshing


async def test_a_verdict_that_cannot_be_stored_leaves_the_claim_as_evidence(harness: RefreshHarness) -> None:
    """Where even the failure cannot be written, the token counts as doubtful once the lease has ended."""
    connection = await harness.connect()
    harness.failing.away = {"save_failure"}
    await harness.fail(connection, UnknownOutcome, Fault.NOTHING_AFTER)
    harness.failing.away = set()
    retry = harness.begin(connection)
    await harness.clock.until_sleeping(0.25)
    harness.clock.advance(60)
    with pytest.raises(NeedsReauth) as raised:
        await retry
    assert raised.value.reason is Reason.IN_DOUBT


async def test_a_new_grant_during_a_flight_wins(harness: RefreshHarness) -> None:
    """The person connects again while a refresh is on its way: the grant's pair stays, the refreshed one is dropped."""
    connection = await harness.connect()
    refreshing = await harness.begin_slow(connection)
    granted = await harness.connect()
    harness.amo.sandbox.go_on.set()
    assert await refreshing == granted
    [told] = harness.witness.events
    assert (told.name, told.level, told.fields["trigger"]) == ("refresh.superseded", Level.WARNING, "schedule")
    assert told.fields["token"] == abbreviated(fingerprint(harness.pair(connection).refresh_token))
    assert await harness.now(connection) == granted


async def test_a_connection_that_has_gone_with_its_pair_is_not_found(harness: RefreshHarness) -> None:
    """Something newer was stored, and then all of it was erased, before the caller could be told."""
    connection = await harness.connect()

    async def replace_and_erase(*_: object, **__: object) -> None:
        await harness.connect()
        harness.failing.answers["connection"] = None

    harness.failing.before["save_refreshed"] = replace_and_erase
    await harness.fail(connection, NotFound)


@pytest.mark.parametrize(("hint_after", "reason"), [("revoked", Reason.REVOKED), ("expired", Reason.EXPIRED)])
async def test_a_dead_token_is_told_once_and_kept(harness: RefreshHarness, hint_after: str, reason: Reason) -> None:
    """Only AMO's listed words are final; the sealed pair is kept, and AMO is not asked again."""
    connection = await harness.connect()
    if hint_after == "revoked":
        harness.amo.account.disabled = True
    else:
        harness.clock.advance(90 * 86400)
    for _ in range(2):
        assert (await harness.fail(connection, NeedsReauth)).reason == reason
    after = await harness.now(connection)
    assert (after.status, after.reason, after.next_refresh_at) == (Status.NEEDS_REAUTH, reason, None)
    assert after.sealed_pair == connection.sealed_pair
    assert len(harness.presented()) == 1
    assert harness.witness.names().count("connection.needs_reauth") == 1


@pytest.mark.parametrize(
    "fault",
    [Fault.HTTP_500_AFTER, Fault.HALF_JSON_AFTER, Fault.NO_REFRESH_TOKEN_AFTER, Fault.HUGE_AFTER, Fault.NOTHING_AFTER],
)
async def test_a_token_lost_with_its_answer_is_in_doubt_and_not_revoked(harness: RefreshHarness, fault: Fault) -> None:
    """After an open outcome the connection stays active; where the token then proves dead, we say we may be why."""
    connection = await harness.connect()
    await harness.fail(connection, UnknownOutcome, fault)
    after = await harness.now(connection)
    assert (after.status, after.sealed_pair) == (Status.ACTIVE, connection.sealed_pair)
    assert after.presented_token == fingerprint(harness.pair(connection).refresh_token)
    assert after.in_doubt
    assert after.next_refresh_at is not None
    assert after.next_refresh_at >= harness.clock.now() + timedelta(seconds=60)
    harness.clock.advance(DAY)  # where the answer is kept its token waits for as long as its access token lives
    assert (await harness.fail(connection, NeedsReauth)).reason is Reason.IN_DOUBT


@pytest.mark.parametrize("fault", [Fault.HTTP_500, Fault.HTML, Fault.HTML_200, Fault.REDIRECT])
async def test_a_token_that_was_not_spent_after_all_lives_on(harness: RefreshHarness, fault: Fault) -> None:
    """An open outcome that spent nothing costs nothing: the next refresh works, and the doubt is gone."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.fail(connection, UnknownOutcome, fault)
    harness.clock.advance(60)
    stored = await harness.refresh(connection)
    assert (stored.status, stored.in_doubt, stored.failures) == (Status.ACTIVE, False, 0)


@pytest.mark.parametrize(
    ("fault", "error", "wait"),
    [
        (Fault.UNPAID, AccountBlocked, 900),
        (Fault.BLOCKED, AccountBlocked, 900),
        (Fault.TOO_MANY, VendorRateLimited, 1),
        (Fault.TEAPOT, Exception, 15),
    ],
)
async def test_a_passing_refusal_is_waited_out(
    harness: RefreshHarness, fault: Fault, error: type[Exception], wait: float
) -> None:
    """402 and 403 wait the longest, 429 as long as AMO asks, unknown words back off; the connection stays active."""
    connection = await harness.connect()
    assert (await harness.fail(connection, error, fault)).__cause__ is None
    after = await harness.now(connection)
    assert (after.status, after.failures, after.in_doubt) == (Status.ACTIVE, 1, False)
    assert after.next_refresh_at == harness.clock.now() + timedelta(seconds=wait)


async def test_a_patient_caller_respects_the_back_off(harness: RefreshHarness) -> None:
    """Hand-outs do not hammer an ill AMO: until the next try is due, they are told to wait."""
    connection = await harness.connect()
    await harness.fail(connection, AccountBlocked, Fault.UNPAID, trigger=RefreshTrigger.HAND_OUT)
    refused = await harness.fail(connection, NotYet, trigger=RefreshTrigger.HAND_OUT)
    assert (refused.retry_after, refused.cause_code) == (900, "account_refused")
    assert harness.amo.sandbox.requests == 2
    harness.clock.advance(900)
    assert (await harness.refresh(connection, trigger=RefreshTrigger.HAND_OUT)).pair_version == 2


@pytest.mark.parametrize("error", [VendorRateLimited(7), ZeroDivisionError()], ids=["AMO's", "ours"])
async def test_a_failure_tells_how_long_it_took(harness: RefreshHarness, error: Exception) -> None:
    """Of AMO's as of ours: whoever reads the history sees whether AMO was slow."""
    connection = await harness.connect()

    async def refresh(**_: object) -> TokenResponse:
        harness.clock.advance(1.5)
        raise error

    harness.coordinator = harness.make_coordinator(amo=Override(harness.client, refresh=refresh))
    await harness.fail(connection, type(error), trigger=RefreshTrigger.FORCED)
    [told] = harness.witness.named("refresh.failed")
    assert (told.fields["seconds"], told.fields["trigger"]) == (1.5, "forced")


async def test_a_bug_is_told_and_leaves_the_outcome_open(harness: RefreshHarness) -> None:
    """An exception of a kind that nobody expected ends the claim with doubt, and reaches the log with its trace."""
    connection = await harness.connect()
    broken = Override(harness.client, refresh=answering(ZeroDivisionError()))
    await harness.fail(connection, ZeroDivisionError, by=harness.make_coordinator(amo=broken))
    after = await harness.now(connection)
    assert (after.status, after.last_error, after.in_doubt) == (Status.ACTIVE, "outcome_open", True)
    told = await harness.witness.until("refresh.bug")
    assert isinstance(told.error, ZeroDivisionError)
    assert (told.level, told.connection_id) == (Level.ERROR, connection.id)


async def test_a_refresh_that_is_cancelled_is_no_bug(harness: RefreshHarness) -> None:
    """The loop ends all its tasks at the very end: nothing is told of that, and nobody waits for it."""
    connection = await harness.connect()
    broken: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: broken.append(context))
    caller = await harness.begin_slow(connection)
    [flight] = [task for task in asyncio.all_tasks() if task.get_name().startswith("refresh:")]
    flight.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    harness.amo.sandbox.go_on.set()
    assert (harness.coordinator.in_flight, broken) == (0, [])
    assert harness.witness.named("refresh.bug") == []


async def test_a_late_verdict_changes_nothing_of_a_new_grant(harness: RefreshHarness) -> None:
    """Whoever lost the claim to a new grant may not declare it dead, nor put it off."""
    connection = await harness.connect()
    harness.amo.account.disabled = True
    refreshing = await harness.begin_slow(connection, is_fresh_enough=newer_than(connection))
    harness.amo.account.disabled = False
    granted = await harness.connect()
    harness.amo.sandbox.go_on.set()
    assert await refreshing == granted
    assert harness.witness.names() == ["refresh.superseded"]
    assert await harness.now(connection) == granted


async def test_what_changed_during_the_wait_for_a_slot_is_what_is_refreshed(harness: RefreshHarness) -> None:
    """The person connects again while a refresh waits for its slot: the new pair is the one presented."""
    connection = await harness.connect()
    refreshing, served = await harness.begin_queued(connection)
    granted = await harness.connect()
    served.set()
    assert (await refreshing).pair_version == granted.pair_version + 1
    assert harness.presented()[0].presented == harness.pair(granted).refresh_token


async def test_a_dead_token_is_told_even_where_the_verdict_cannot_be_written(harness: RefreshHarness) -> None:
    """The caller hears that the person is needed, and not of a bug of ours."""
    connection = await harness.connect()
    harness.amo.account.disabled = True
    harness.failing.away = {"save_failure"}
    await harness.fail(connection, NeedsReauth)


@pytest.mark.parametrize("extended", [False, True], ids=["another attempt", "more time"])
async def test_each_doubt_is_looked_up_before_its_token_is_presented(
    harness: RefreshHarness, *, extended: bool
) -> None:
    """A look-up tells nothing of an attempt that was left open since, nor of one that got more time and died."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.store.claim(a_claim(connection, owner="process-2"))

    async def leave_another_doubt() -> None:
        if extended:
            await harness.store.extend(an_extension(connection, domain=connection.domain))
        else:
            now = await harness.now(connection)
            await harness.store.claim(a_claim(now, owner="process-3", attempt="dead, too"))

    amo = harness.before_slot(2, leave_another_doubt)  # the slot for the refresh
    refreshing = harness.begin(connection, by=harness.make_coordinator(amo=amo))
    for looked_up in (0, 1):
        await harness.clock.until_sleeping(0.25)
        assert harness.amo.sandbox.introspections == looked_up
        harness.clock.advance(60)
    assert (await refreshing).pair_version == 2
    assert harness.amo.sandbox.introspections == 2


async def test_a_token_follows_its_account_whose_old_host_was_taken(harness: RefreshHarness) -> None:
    """Where another account answers at the old host, its refusal is not believed before the look-up has told."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.amo.account.host = "renamed.amocrm.ru"
    harness.amo.fake.open_account(connection.domain)
    refreshed = await harness.refresh(connection)
    assert (refreshed.status, refreshed.domain) == (Status.ACTIVE, "renamed.amocrm.ru")
    [moved] = harness.witness.named("connection.moved")
    assert moved.fields == {"domain": connection.domain, "moved_to": "renamed.amocrm.ru"}


async def test_an_account_whose_whereabouts_nobody_tells_is_not_given_up(harness: RefreshHarness) -> None:
    """Moved, its old host taken by another account, and the look-up silent: its token may live where it is now."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    old = harness.amo.account.host
    harness.amo.account.host = "renamed.amocrm.ru"
    harness.amo.fake.open_account(old)
    harness.amo.sandbox.introspection_faults.add(Fault.HTTP_500, Fault.HTTP_500)
    await harness.fail(connection, IntrospectionUnavailable)
    assert (await harness.now(connection)).status is Status.ACTIVE
    harness.clock.advance(901)
    assert (await harness.refresh(connection)).domain == "renamed.amocrm.ru"


async def test_what_was_refreshed_during_the_wait_for_a_slot_is_not_refreshed_again(harness: RefreshHarness) -> None:
    """Another process was faster: its pair satisfies whoever waited, and is not spent."""
    connection = await harness.connect()
    refreshing, served = await harness.begin_queued(connection, is_fresh_enough=newer_than(connection))
    refreshed = await harness.refresh(connection, by=harness.make_coordinator(process="process-2"))
    served.set()
    assert await refreshing == refreshed
    assert harness.spent() == 1


async def test_what_was_stopped_during_the_wait_for_a_slot_is_not_presented(harness: RefreshHarness) -> None:
    """AMO has refused our credentials to another one meanwhile: all who waited stay at home."""
    connection = await harness.connect()
    queue = QueueingClient(harness.client)
    lifecycle = harness.make_lifecycle(amo=queue)
    refreshing = harness.begin(connection, by=lifecycle.coordinator)
    await queue.asked.wait()
    lifecycle.breaker.refuse("Check the `client_id` parameter")
    queue.served.set()
    with pytest.raises(NotYet) as raised:
        await refreshing
    assert raised.value.cause_code == "amo_credentials"
    assert harness.presented() == []


async def test_a_store_away_during_the_wait_for_a_slot_gives_an_attempt_a_lease_more(harness: RefreshHarness) -> None:
    """Looked up and about to be presented: its owner may hold a good pair, and could not store it just now."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.store.claim(a_claim(connection, owner="process-2"))
    amo = harness.before_slot(2, harness.lose_store_once)  # the slot for the refresh
    refreshing = harness.begin(connection, by=harness.make_coordinator(amo=amo))
    await harness.clock.until_sleeping(0.25)
    harness.clock.advance(60)
    await harness.clock.until_sleeping(0.25)
    assert (harness.amo.sandbox.introspections, harness.presented()) == (1, [])
    harness.clock.advance(60)
    assert (await refreshing).pair_version == 2
    assert harness.amo.sandbox.introspections == 1  # it is the same doubt


async def test_whoever_has_what_he_wants_takes_no_slot(harness: RefreshHarness) -> None:
    """Neither a freeze nor the end of the service keeps from him what is there already."""
    connection = await harness.connect()
    queue = QueueingClient(harness.client)
    lifecycle = harness.make_lifecycle(amo=queue)
    lifecycle.core.stop.set()
    found = await harness.refresh(connection, by=lifecycle.coordinator, is_fresh_enough=lambda _now: True)
    assert found == connection
    assert not queue.asked.is_set()


async def test_no_more_than_so_many_are_refreshed_at_once(harness: RefreshHarness) -> None:
    """However many come: the others wait for a place, and take neither a slot nor a claim that would age meanwhile."""
    connections = await harness.connect_users(3)
    slots = 0
    two, third, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def acquire_slot(_priority: object) -> None:
        nonlocal slots
        slots += 1
        if slots == 2:
            two.set()
        await go_on.wait()

    def is_fresh_enough(_connection: Connection) -> bool:
        third.set()
        return False

    coordinator = harness.make_coordinator(
        amo=Override(harness.client, acquire_slot=acquire_slot), rules=RefreshRules(concurrency=2)
    )
    refreshing = [harness.begin(one, by=coordinator) for one in connections[:2]]
    await two.wait()
    last = harness.refresh(connections[2], by=coordinator, is_fresh_enough=is_fresh_enough)
    refreshing.append(asyncio.create_task(last))
    await third.wait()
    assert [(await harness.now(one)).attempt for one in connections] == [None] * 3
    assert (slots, coordinator.in_flight) == (2, 3)
    go_on.set()
    assert {stored.pair_version for stored in await asyncio.gather(*refreshing)} == {2}


async def test_whoever_joins_a_flight_is_not_content_with_what_contents_another(harness: RefreshHarness) -> None:
    """A backend that met 401 joins one that takes any pair: it gets a new one, and not the one it came with."""
    connection = await harness.connect()
    claimed = present(await harness.store.claim(a_claim(connection, owner="process-2")))
    first = harness.begin(connection, is_fresh_enough=lambda now: now.attempt is None)
    await harness.clock.until_sleeping(0.25)
    second = harness.begin(connection, trigger=RefreshTrigger.FORCED, is_fresh_enough=newer_than(connection))
    await asyncio.sleep(0)
    await harness.store.release(connection_id=connection.id, attempt=claimed.attempt or "")
    harness.clock.advance(0.25)
    assert (await first).pair_version == 1
    assert (await second).pair_version == 2


async def test_whoever_joins_a_flight_that_has_to_wait_need_not(harness: RefreshHarness) -> None:
    """A hand-out respects the back-off after a refused connection; a forced refresh of the same moment goes."""
    connection = await harness.connect()

    coordinator = harness.make_coordinator(amo=UnreachableClient(harness.client))
    await harness.fail(connection, RequestNotSent, by=coordinator)
    handed_out, forced = await asyncio.gather(
        harness.refresh(connection, by=coordinator, trigger=RefreshTrigger.HAND_OUT),
        harness.refresh(connection, by=coordinator, trigger=RefreshTrigger.FORCED),
        return_exceptions=True,
    )
    assert isinstance(handed_out, NotYet)
    assert isinstance(forced, Connection)
    assert forced.pair_version == 2


async def test_a_store_that_was_away_long_ago_shortens_no_lease(harness: RefreshHarness) -> None:
    """An attempt that began since then has its whole lease: its token is under way."""
    connection = await harness.connect()
    leases = harness.make_lifecycle().leases
    await harness.lose_store_once()
    harness.clock.advance(3600)
    await harness.store.claim(a_claim(connection, owner="process-2"))
    assert leases.remaining(await harness.now(connection)) == 60
