"""Refreshes by the coordinator: claim, request, stored result, shared callers, shutdown and failures."""

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


async def test_refresh_success_stores_pair_and_due_time(harness: RefreshHarness) -> None:
    """A successful refresh stores a valid pair with its due time and the expiry of both tokens."""
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
        "request_id": event.fields["request_id"],  # set by AMO
        "expires_at": stored.access_expires_at,
        "next_refresh_at": stored.next_refresh_at,
    }


async def test_refresh_success_event_contains_duration_and_request_id(harness: RefreshHarness) -> None:
    """The event contains AMO's request id and the seconds, to the millisecond, from before the claim to the answer."""
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


async def test_refresh_api_domain_missing_from_token_keeps_stored_value(harness: RefreshHarness) -> None:
    """A refresh stores the token's `api_domain`, and keeps the stored one if the token contains none."""
    connection = await harness.connect(api_domain="api-a.amocrm.ru")

    async def refresh(**request: Any) -> TokenResponse:
        issued = await harness.client.refresh(**request)
        return dataclasses.replace(issued, account=dataclasses.replace(issued.account, api_domain=None))

    without_domain = harness.make_coordinator(amo=Override(harness.client, refresh=refresh))
    assert (await harness.refresh(connection, by=without_domain)).api_domain == "api-a.amocrm.ru"
    assert (await harness.refresh(connection)).api_domain == API_DOMAIN


async def test_refresh_pair_is_saved_with_grant_iat_and_version(harness: RefreshHarness) -> None:
    """The saved pair names its grant, because the version alone is ambiguous after a database restore."""
    connection = await save(harness.store, harness.connection_of(await harness.exchange()), iat=7)
    stored: list[RefreshedPair] = []
    harness.failing.before["save_refreshed"] = lambda refreshed, **_: stored.append(refreshed)
    await harness.refresh(connection)
    assert [(one.grant_iat, one.pair_version) for one in stored] == [(7, 1)]


async def test_refresh_concurrent_callers_share_one_request(harness: RefreshHarness) -> None:
    """Sixty concurrent callers cause one request and receive its pair."""
    connection = await harness.connect()
    stored = await asyncio.gather(*(harness.refresh(connection, trigger=RefreshTrigger.HAND_OUT) for _ in range(60)))
    assert {one.pair_version for one in stored} == {2}
    assert len(harness.presented()) == 1


async def test_refresh_caller_at_end_of_another_starts_separate_refresh(harness: RefreshHarness) -> None:
    """A caller does not join a refresh that has ended, and its end does not remove the next refresh."""
    connection = await harness.connect()
    ended = asyncio.Event()

    def is_fresh_enough(_connection: Connection) -> bool:
        ended.set()
        return True

    async def refresh_after_end() -> Connection:
        await ended.wait()
        return await harness.refresh(connection)

    harness.amo.sandbox.asked.clear()
    harness.amo.sandbox.faults.add(Fault.SLOW)
    second = asyncio.create_task(refresh_after_end())
    assert (await harness.refresh(connection, is_fresh_enough=is_fresh_enough)).pair_version == 1
    await harness.amo.sandbox.asked.wait()
    assert harness.coordinator.in_flight == 1
    harness.amo.sandbox.go_on.set()
    assert (await second).pair_version == 2
    assert harness.coordinator.in_flight == 0


async def test_refresh_unsatisfied_condition_is_not_repeated(harness: RefreshHarness) -> None:
    """A caller whose condition the refreshed pair does not meet receives that pair after one request."""
    connection = await harness.connect()
    assert (await harness.refresh(connection, is_fresh_enough=lambda now: now.pair_version > 2)).pair_version == 2
    assert len(harness.presented()) == 1


async def test_claim_is_stored_before_request_is_answered(harness: RefreshHarness) -> None:
    """The store contains the attempt, the lease and the fingerprint while the request is in progress."""
    connection = await harness.connect()
    refreshing = await harness.begin_slow(connection)
    claimed = await harness.now(connection)
    assert claimed.attempt is not None
    assert claimed.lease_until == harness.clock.now() + timedelta(seconds=60)
    assert claimed.presented_token == fingerprint(harness.pair(connection).refresh_token)
    harness.amo.sandbox.go_on.set()
    await refreshing


@pytest.mark.parametrize(("took", "error", "again_in"), [(0, ShuttingDown, 5), (55.1, NotYet, 1)])
async def test_claim_too_slow_or_at_shutdown_is_released_without_request(
    harness: RefreshHarness, took: float, error: type[ShuttingDown | NotYet], again_in: float
) -> None:
    """A claim is released unsent if less than 5 s of its lease is left or the process is shutting down."""
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


async def test_claim_slow_with_enough_lease_left_is_presented(harness: RefreshHarness) -> None:
    """A slow claim is presented after a second slot, because the first slot is too old by then."""
    connection = await harness.connect()
    harness.failing.after["claim"] = lambda *_, **__: harness.clock.advance(54)
    assert (await harness.refresh(connection)).pair_version == 2


async def test_refresh_pair_of_another_client_id_is_not_presented(harness: RefreshHarness) -> None:
    """A pair granted to another `client_id` is not presented, and the error is `client_mismatch`."""
    connection = await harness.connect(client_id="the one before")
    await harness.fail(connection, ClientMismatch)
    after = await harness.now(connection)
    assert (after.status, after.last_error) == (Status.ACTIVE, "client_mismatch")
    assert harness.presented() == []


async def test_refresh_undecryptable_pair_becomes_needs_reauth_unreadable(harness: RefreshHarness) -> None:
    """A pair of a swapped row or a lost key is not sent, and its claim has no fingerprint."""
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


async def test_refresh_unknown_or_disconnected_connection_raises_not_found(harness: RefreshHarness) -> None:
    """Refreshing an unknown id or a disconnected connection raises `NotFound`."""
    connection = await harness.connect()
    assert await harness.store.disconnect(connection, on_request=True)
    for name in ("unknown", connection.id):
        with pytest.raises(NotFound):
            await harness.coordinator.refresh(name, trigger=RefreshTrigger.HAND_OUT)
    assert harness.presented() == []


async def test_refresh_cancelled_caller_does_not_cancel_request(harness: RefreshHarness) -> None:
    """The request continues in its own task after its caller is cancelled, and its pair is stored."""
    connection = await harness.connect()
    caller = await harness.begin_slow(connection)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    harness.amo.sandbox.go_on.set()
    await harness.coordinator.drain()
    assert (await harness.now(connection)).pair_version == 2


async def test_shutdown_finishes_claimed_refresh_and_starts_no_other(harness: RefreshHarness) -> None:
    """After the stop signal a claimed refresh stores its pair, and callers waiting for a slot are rejected."""
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
async def test_shutdown_rejects_caller_waiting_for_lease_or_slot(harness: RefreshHarness, waits_for: str) -> None:
    """A caller that waits for another process's lease or for a slot is rejected at shutdown without a claim."""
    connection = await harness.connect()
    if waits_for == "a lease":
        await harness.store.claim(a_claim(connection, owner="process-2"))
        refreshing = harness.begin(connection)
        await harness.clock.until_sleeping(0.25)
    else:
        refreshing, _ = await harness.begin_queued(connection)
        assert (await harness.now(connection)).attempt is None  # a claim must not age while the refresh waits
    harness.lifecycle.core.stop.set()
    with pytest.raises(ShuttingDown):
        await refreshing


async def test_refresh_unsaved_failure_leaves_token_in_doubt_after_lease(harness: RefreshHarness) -> None:
    """If the failure cannot be stored, the open claim puts the token in doubt once its lease has ended."""
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


async def test_refresh_superseded_by_grant_keeps_pair_of_grant(harness: RefreshHarness) -> None:
    """A grant that is stored during a refresh keeps its pair, and the refreshed pair is dropped."""
    connection = await harness.connect()
    refreshing = await harness.begin_slow(connection)
    granted = await harness.connect()
    harness.amo.sandbox.go_on.set()
    assert await refreshing == granted
    [event] = harness.witness.events
    assert (event.name, event.level, event.fields["trigger"]) == ("refresh.superseded", Level.WARNING, "schedule")
    assert event.fields["token"] == abbreviated(fingerprint(harness.pair(connection).refresh_token))
    assert await harness.now(connection) == granted


async def test_refresh_superseded_then_erased_raises_not_found(harness: RefreshHarness) -> None:
    """A refresh raises `NotFound` if a newer pair replaced its own and the connection was then erased."""
    connection = await harness.connect()

    async def replace_and_erase(*_: object, **__: object) -> None:
        await harness.connect()
        harness.failing.answers["connection"] = None

    harness.failing.before["save_refreshed"] = replace_and_erase
    await harness.fail(connection, NotFound)


@pytest.mark.parametrize(("hint_after", "reason"), [("revoked", Reason.REVOKED), ("expired", Reason.EXPIRED)])
async def test_refresh_terminal_failure_keeps_pair_and_is_reported_once(
    harness: RefreshHarness, hint_after: str, reason: Reason
) -> None:
    """A terminal hint gives `needs_reauth`, keeps the sealed pair and prevents further requests."""
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
async def test_refresh_lost_answer_then_rejection_gives_in_doubt(harness: RefreshHarness, fault: Fault) -> None:
    """A connection stays active after an unknown outcome, and a later rejection gives the reason `in_doubt`."""
    connection = await harness.connect()
    await harness.fail(connection, UnknownOutcome, fault)
    after = await harness.now(connection)
    assert (after.status, after.sealed_pair) == (Status.ACTIVE, connection.sealed_pair)
    assert after.presented_token == fingerprint(harness.pair(connection).refresh_token)
    assert after.in_doubt
    assert after.next_refresh_at is not None
    assert after.next_refresh_at >= harness.clock.now() + timedelta(seconds=60)
    harness.clock.advance(DAY)  # with a stored raw answer, the token is presented only after its access token expires
    assert (await harness.fail(connection, NeedsReauth)).reason is Reason.IN_DOUBT


@pytest.mark.parametrize("fault", [Fault.HTTP_500, Fault.HTML, Fault.HTML_200, Fault.REDIRECT])
async def test_refresh_unknown_outcome_with_unspent_token_recovers(harness: RefreshHarness, fault: Fault) -> None:
    """The next refresh succeeds and clears the doubt if an unknown outcome did not spend the token."""
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
async def test_refresh_temporary_refusal_keeps_active_and_delays_retry(
    harness: RefreshHarness, fault: Fault, error: type[Exception], wait: float
) -> None:
    """402 and 403 delay for `retry_cap`, 429 as long as AMO requests, unknown hints back off."""
    connection = await harness.connect()
    assert (await harness.fail(connection, error, fault)).__cause__ is None
    after = await harness.now(connection)
    assert (after.status, after.failures, after.in_doubt) == (Status.ACTIVE, 1, False)
    assert after.next_refresh_at == harness.clock.now() + timedelta(seconds=wait)


async def test_hand_out_during_back_off_raises_not_yet(harness: RefreshHarness) -> None:
    """A hand-out sends no refresh during the back-off and returns the remaining delay."""
    connection = await harness.connect()
    await harness.fail(connection, AccountBlocked, Fault.UNPAID, trigger=RefreshTrigger.HAND_OUT)
    refused = await harness.fail(connection, NotYet, trigger=RefreshTrigger.HAND_OUT)
    assert (refused.retry_after, refused.cause_code) == (900, "account_refused")
    assert harness.amo.sandbox.requests == 2
    harness.clock.advance(900)
    assert (await harness.refresh(connection, trigger=RefreshTrigger.HAND_OUT)).pair_version == 2


@pytest.mark.parametrize("error", [VendorRateLimited(7), ZeroDivisionError()], ids=["amo", "bug"])
async def test_refresh_failure_event_contains_duration(harness: RefreshHarness, error: Exception) -> None:
    """The failure event contains the seconds that the request took, for AMO's errors and for bugs."""
    connection = await harness.connect()

    async def refresh(**_: object) -> TokenResponse:
        harness.clock.advance(1.5)
        raise error

    harness.coordinator = harness.make_coordinator(amo=Override(harness.client, refresh=refresh))
    await harness.fail(connection, type(error), trigger=RefreshTrigger.FORCED)
    [event] = harness.witness.named("refresh.failed")
    assert (event.fields["seconds"], event.fields["trigger"]) == (1.5, "forced")


async def test_refresh_unexpected_exception_is_logged_and_leaves_doubt(harness: RefreshHarness) -> None:
    """An unexpected exception ends the claim with an unknown outcome and is reported with its traceback."""
    connection = await harness.connect()
    broken = Override(harness.client, refresh=answering(ZeroDivisionError()))
    await harness.fail(connection, ZeroDivisionError, by=harness.make_coordinator(amo=broken))
    after = await harness.now(connection)
    assert (after.status, after.last_error, after.in_doubt) == (Status.ACTIVE, "outcome_open", True)
    event = await harness.witness.until("refresh.bug")
    assert isinstance(event.error, ZeroDivisionError)
    assert (event.level, event.connection_id) == (Level.ERROR, connection.id)


async def test_refresh_task_cancelled_is_not_reported_as_bug(harness: RefreshHarness) -> None:
    """A refresh task that the event loop cancels at exit is not reported."""
    connection = await harness.connect()
    broken: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: broken.append(context))
    caller = await harness.begin_slow(connection)
    [refresh_task] = [task for task in asyncio.all_tasks() if task.get_name().startswith("refresh:")]
    refresh_task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    harness.amo.sandbox.go_on.set()
    assert (harness.coordinator.in_flight, broken) == (0, [])
    assert harness.witness.named("refresh.bug") == []


async def test_refresh_late_rejection_does_not_change_new_grant(harness: RefreshHarness) -> None:
    """A rejection of the old token neither ends nor delays the connection of a newer grant."""
    connection = await harness.connect()
    harness.amo.account.disabled = True
    refreshing = await harness.begin_slow(connection, is_fresh_enough=newer_than(connection))
    harness.amo.account.disabled = False
    granted = await harness.connect()
    harness.amo.sandbox.go_on.set()
    assert await refreshing == granted
    assert harness.witness.names() == ["refresh.superseded"]
    assert await harness.now(connection) == granted


async def test_slot_wait_grant_stored_meanwhile_is_presented(harness: RefreshHarness) -> None:
    """A refresh presents the pair of a grant that was stored while it waited for a slot."""
    connection = await harness.connect()
    refreshing, served = await harness.begin_queued(connection)
    granted = await harness.connect()
    served.set()
    assert (await refreshing).pair_version == granted.pair_version + 1
    assert harness.presented()[0].presented == harness.pair(granted).refresh_token


async def test_refresh_terminal_failure_unsaved_raises_needs_reauth(harness: RefreshHarness) -> None:
    """The caller receives `NeedsReauth` even if the terminal failure cannot be stored."""
    connection = await harness.connect()
    harness.amo.account.disabled = True
    harness.failing.away = {"save_failure"}
    await harness.fail(connection, NeedsReauth)


@pytest.mark.parametrize("extended", [False, True], ids=["another attempt", "extended lease"])
async def test_slot_wait_new_doubt_is_introspected_again(harness: RefreshHarness, *, extended: bool) -> None:
    """An introspection does not cover an attempt that was opened or extended after it."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.store.claim(a_claim(connection, owner="process-2"))

    async def leave_new_doubt() -> None:
        if extended:
            await harness.store.extend(an_extension(connection, domain=connection.domain))
        else:
            now = await harness.now(connection)
            await harness.store.claim(a_claim(now, owner="process-3", attempt="abandoned"))

    amo = harness.before_slot(2, leave_new_doubt)  # slot of the refresh
    refreshing = harness.begin(connection, by=harness.make_coordinator(amo=amo))
    for looked_up in (0, 1):
        await harness.clock.until_sleeping(0.25)
        assert harness.amo.sandbox.introspections == looked_up
        harness.clock.advance(60)
    assert (await refreshing).pair_version == 2
    assert harness.amo.sandbox.introspections == 2


async def test_refresh_old_host_taken_by_other_account_follows_move(harness: RefreshHarness) -> None:
    """A rejection by another account at the old host is not applied, because introspection names the new host."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.amo.account.host = "renamed.amocrm.ru"
    harness.amo.fake.open_account(connection.domain)
    refreshed = await harness.refresh(connection)
    assert (refreshed.status, refreshed.domain) == (Status.ACTIVE, "renamed.amocrm.ru")
    [moved] = harness.witness.named("connection.moved")
    assert moved.fields == {"domain": connection.domain, "moved_to": "renamed.amocrm.ru"}


async def test_refresh_moved_account_without_introspection_stays_active(harness: RefreshHarness) -> None:
    """A moved account whose introspection is unanswered stays active and is refreshed later."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    old = harness.amo.account.host
    harness.amo.account.host = "renamed.amocrm.ru"
    harness.amo.fake.open_account(old)
    harness.amo.sandbox.introspection_faults.add(Fault.HTTP_500, Fault.HTTP_500)
    await harness.fail(connection, IntrospectionUnavailable)
    assert (await harness.now(connection)).status is Status.ACTIVE
    harness.clock.advance(901)
    assert (await harness.refresh(connection)).domain == "renamed.amocrm.ru"


async def test_slot_wait_pair_of_another_process_satisfies_caller(harness: RefreshHarness) -> None:
    """A pair that another process stored during the slot wait is returned and not spent."""
    connection = await harness.connect()
    refreshing, served = await harness.begin_queued(connection, is_fresh_enough=newer_than(connection))
    refreshed = await harness.refresh(connection, by=harness.make_coordinator(process="process-2"))
    served.set()
    assert await refreshing == refreshed
    assert harness.spent() == 1


async def test_slot_wait_circuit_breaker_opened_meanwhile_stops_request(harness: RefreshHarness) -> None:
    """A refresh that waits for a slot sends nothing if the circuit breaker opens meanwhile."""
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


async def test_slot_wait_store_outage_extends_lease_of_other_attempt(harness: RefreshHarness) -> None:
    """After a store outage another process's attempt gets one more lease, in which it can store its pair."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.store.claim(a_claim(connection, owner="process-2"))
    amo = harness.before_slot(2, harness.fail_store_once)  # slot of the refresh
    refreshing = harness.begin(connection, by=harness.make_coordinator(amo=amo))
    await harness.clock.until_sleeping(0.25)
    harness.clock.advance(60)
    await harness.clock.until_sleeping(0.25)
    assert (harness.amo.sandbox.introspections, harness.presented()) == (1, [])
    harness.clock.advance(60)
    assert (await refreshing).pair_version == 2
    assert harness.amo.sandbox.introspections == 1  # the doubt is unchanged


async def test_refresh_satisfied_condition_takes_no_slot(harness: RefreshHarness) -> None:
    """A caller whose condition the stored pair meets receives it without a slot, also during shutdown."""
    connection = await harness.connect()
    queue = QueueingClient(harness.client)
    lifecycle = harness.make_lifecycle(amo=queue)
    lifecycle.core.stop.set()
    found = await harness.refresh(connection, by=lifecycle.coordinator, is_fresh_enough=lambda _now: True)
    assert found == connection
    assert not queue.asked.is_set()


async def test_refresh_above_concurrency_limit_waits_without_claim(harness: RefreshHarness) -> None:
    """A refresh above the concurrency limit waits and takes neither a rate-limit slot nor a claim."""
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


async def test_refresh_joined_caller_with_own_condition_gets_new_pair(harness: RefreshHarness) -> None:
    """A caller that needs a newer pair gets one, even if it joins a refresh that accepts the stored pair."""
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


async def test_forced_refresh_joining_delayed_hand_out_is_sent(harness: RefreshHarness) -> None:
    """A forced refresh that joins a hand-out is sent although the hand-out must wait for the back-off."""
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


async def test_lease_after_old_store_outage_keeps_full_length(harness: RefreshHarness) -> None:
    """An attempt that began after a store outage has its whole lease."""
    connection = await harness.connect()
    leases = harness.make_lifecycle().leases
    await harness.fail_store_once()
    harness.clock.advance(3600)
    await harness.store.claim(a_claim(connection, owner="process-2"))
    assert leases.remaining(await harness.now(connection)) == 60
