"""Refusals without a hint: counted refusals, the circuit breaker, and mass failures."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from amo_callback.amo.sandbox.app import Fault
from amo_callback.amo.sandbox.fake_amo import SandboxAccount, SandboxIntegration
from amo_callback.errors import AmoCallbackError, InvalidClient, InvalidRefreshToken, MassFailureSuspected, NeedsReauth
from amo_callback.model import Connection, Reason, RefreshRules, RefreshTrigger, Status, fingerprint
from amo_callback.refresh.failure_policy import is_refused_alone, is_refused_long
from amo_callback.stats import Successes
from amo_callback.tokens.lifecycle import TokenLifecycle
from tests.builders import a_claim, a_connection, a_failure, present, save
from tests.fakes import START, Override, answering
from tests.refresh.harness import DAY, RefreshHarness

HOUR = timedelta(hours=1)
RULES = RefreshRules(poll_interval=600.0)


def _breaker_reason(lifecycle: TokenLifecycle) -> str | None:
    return lifecycle.breaker.reason


async def _connect_refused(harness: RefreshHarness) -> tuple[SandboxAccount, Connection]:
    """Have one of five connections refused hourly until it is `needs_reauth`, while others are connected."""
    [(account, one), *_] = await harness.connect_accounts(5, next_refresh_at=START + 400 * 24 * HOUR)
    account.gone = True
    while (await harness.now(one)).status is Status.ACTIVE:
        harness.clock.advance(3600)
        await save(harness.store, a_connection(900, connected_at=harness.clock.now()), code=str(harness.clock.now()))
        await harness.fail(one, AmoCallbackError, trigger=RefreshTrigger.PROBE)
    assert (await harness.now(one)).reason is Reason.REFUSED
    return account, one


async def test_refused_connection_is_presented_daily_until_accepted(harness: RefreshHarness) -> None:
    """A refused connection's token is presented once a day, although its introspection stays rejected."""
    account, one = await _connect_refused(harness)
    sent = len(harness.presented())
    for days in (1, 2):
        harness.clock.advance(DAY)
        await harness.run_due_rechecks()
        assert len(harness.presented()) == sent + days
        await harness.run_due_rechecks()
    assert len(harness.presented()) == sent + 2
    account.gone = False
    harness.amo.sandbox.introspection_faults.add(Fault.HTTP_500, Fault.HTTP_500)
    harness.clock.advance(DAY)
    await harness.run_due_rechecks()
    after = await harness.now(one)
    assert (after.status, after.refused_since, after.refusals) == (Status.ACTIVE, None, 0)
    assert "connection.recovered" in harness.witness.names()


async def test_refused_connection_with_terminal_hint_becomes_revoked(harness: RefreshHarness) -> None:
    """A refused connection that AMO answers with a hint is presented only once introspection accepts its token."""
    account, one = await _connect_refused(harness)
    revoking = harness.make_lifecycle(amo=Override(harness.client, refresh=answering(InvalidRefreshToken())))
    refreshes = harness.traffic.calls["refresh"]
    for _ in range(3):
        harness.clock.advance(DAY)
        await harness.run_due_rechecks(revoking)
        assert (await harness.now(one)).reason is Reason.REVOKED
    assert harness.traffic.calls["refresh"] == refreshes + 1
    account.gone = False
    for seconds in (DAY, 70):  # the first introspection resets the refusals
        harness.clock.advance(seconds)
        await harness.run_due_rechecks()
    assert (await harness.now(one)).status is Status.ACTIVE


async def test_disable_hook_refused_connection_keeps_daily_presentation(harness: RefreshHarness) -> None:
    """AMO's hook causes an introspection of a refused connection, but no presentation within the same day."""
    _, one = await _connect_refused(harness)
    sent, asked = len(harness.presented()), harness.amo.sandbox.introspections
    harness.amo.sandbox.introspection_faults.persistent = Fault.HTTP_500  # introspection stays unanswered
    harness.clock.advance(3 * 3600)
    await harness.lifecycle.integration_disabled(one.account_id)
    await harness.run_due_rechecks()
    assert harness.amo.sandbox.introspections > asked
    assert len(harness.presented()) == sent
    harness.clock.advance(DAY)
    await harness.run_due_rechecks()
    assert len(harness.presented()) == sent + 1


async def _refuse_once(harness: RefreshHarness, **more: Any) -> tuple[SandboxAccount, Connection]:
    """Connect two accounts, and have the first refused and its introspection rejected once."""
    [(account, one), _] = await harness.connect_accounts(2, **more)
    account.gone = True
    await harness.fail(one, AmoCallbackError, trigger=RefreshTrigger.PROBE)
    return account, await harness.now(one)


async def test_refusal_with_rejected_introspection_is_counted(harness: RefreshHarness) -> None:
    """The row stores the time of the first refusal and their number, and the connection is not suspect."""
    _, one = await _refuse_once(harness)
    assert (one.refused_since, one.refusals, one.status) == (harness.clock.now(), 1, Status.ACTIVE)
    harness.clock.advance(60)
    await harness.fail(one, AmoCallbackError, trigger=RefreshTrigger.PROBE)
    after = await harness.now(one)
    assert (after.refused_since, after.refusals) == (one.refused_since, 2)
    assert harness.lifecycle.breaker.reason is None


@pytest.mark.parametrize(
    "fault", [None, Fault.HTTP_500, Fault.UNPAID, Fault.BLOCKED, Fault.TOO_MANY, Fault.CLIENT_ID, Fault.TEAPOT]
)
async def test_refusal_count_other_answer_leaves_it_unchanged(harness: RefreshHarness, fault: Fault | None) -> None:
    """An unknown outcome, 402, 403, 429, another hint or no introspection leaves the refusal count unchanged."""
    _, one = await _refuse_once(harness)
    if fault is None:
        harness.amo.sandbox.introspection_faults.add(Fault.HTTP_500, Fault.HTTP_500)
    else:
        harness.amo.sandbox.faults.add(fault)
    await harness.fail(one, AmoCallbackError, trigger=RefreshTrigger.PROBE)
    after = await harness.now(one)
    assert (after.refused_since, after.refusals) == (one.refused_since, 1)


@pytest.mark.parametrize("fault", [None, Fault.WRONG_CLIENT], ids=["success", "accepted introspection"])
async def test_refusal_count_success_or_accepted_introspection_resets_it(
    harness: RefreshHarness, fault: Fault | None
) -> None:
    """A success or an introspection that accepts the token resets the refusal count."""
    account, one = await _refuse_once(harness)
    account.gone = False
    if fault is None:
        await harness.refresh(one, trigger=RefreshTrigger.PROBE)
    else:
        await harness.fail(one, AmoCallbackError, fault, trigger=RefreshTrigger.PROBE)
    after = await harness.now(one)
    assert (after.refused_since, after.refusals) == (None, 0)


async def test_refusal_without_api_domain_counts_if_access_token_expired(harness: RefreshHarness) -> None:
    """Without `api_domain` the access token is introspected while it is valid, and counts as rejected afterwards."""
    [(account, one), _] = await harness.connect_accounts(2, api_domain=None)
    await harness.fail(one, AmoCallbackError, Fault.WRONG_CLIENT, trigger=RefreshTrigger.PROBE)
    assert (await harness.now(one)).refusals == 0
    harness.clock.advance(DAY)
    account.gone = True
    await harness.fail(one, AmoCallbackError, trigger=RefreshTrigger.PROBE)
    assert (await harness.now(one)).refusals == 1


@pytest.mark.parametrize(
    ("hours", "refusals", "long"), [(24, 7, True), (23.9, 50, False), (24, 6, False), (240, 6, False), (240, 500, True)]
)
def test_is_refused_long_requires_a_day_and_eight_attempts(hours: float, refusals: int, *, long: bool) -> None:
    """A connection is refused for long after a day and eight attempts, including the current one."""
    claimed = a_connection(refused_since=START, refusals=refusals)
    assert is_refused_long(claimed, now=START + hours * HOUR) is long
    assert not is_refused_long(a_connection(), now=START + hours * HOUR)


@pytest.mark.parametrize(
    ("latest", "attempted", "succeeded", "alone"),
    [
        (23.9, 40, 0, True),  # a success within `retry_cap`
        (23, 40, 20, True),  # half of those attempted
        (23, 40, 19, False),
        (0, 40, 40, False),  # no success since the first refusal
        (-1, 40, 40, False),
        (None, 40, 0, False),
    ],
)
def test_is_refused_alone_requires_success_of_other_connections(
    latest: float | None, attempted: int, succeeded: int, *, alone: bool
) -> None:
    """Others must have succeeded since the first refusal, recently or in half of a day's attempts."""
    claimed, now = a_connection(refused_since=START, refusals=9), START + 24 * HOUR
    successes = Successes(
        refreshable=40,
        latest=None if latest is None else START + latest * HOUR,
        attempted=attempted,
        succeeded=succeeded,
    )
    assert is_refused_alone(claimed, successes, now=now, rules=RefreshRules()) is alone


@pytest.mark.parametrize(("hours", "alone"), [(24, False), (71.9, False), (72, True)])
def test_is_refused_alone_single_connection_requires_three_days(hours: float, *, alone: bool) -> None:
    """A single connection is refused after 72 hours, because no other connection can show the cause."""
    claimed = a_connection(refused_since=START, refusals=90)
    successes = Successes(refreshable=1, latest=START - HOUR, attempted=1, succeeded=0)
    assert is_refused_alone(claimed, successes, now=START + hours * HOUR, rules=RefreshRules()) is alone


async def test_store_successes_counts_last_day_without_future_times(harness: RefreshHarness) -> None:
    """The store counts the connections attempted and accepted within the last day and ignores future times."""
    everyone = await harness.connect_accounts(4)
    connected_at = harness.clock.now()
    harness.clock.advance(DAY + 10)
    await harness.refresh(everyone[0][1], trigger=RefreshTrigger.PROBE)
    everyone[1][0].gone = True
    await harness.fail(everyone[1][1], AmoCallbackError, trigger=RefreshTrigger.PROBE)
    await save(harness.store, a_connection(99, connected_at=harness.clock.now() + HOUR, next_refresh_at=None))
    now = harness.clock.now()
    successes = await harness.store.successes(now=now)
    assert successes == Successes(refreshable=4, latest=now, attempted=2, succeeded=1)
    assert connected_at < now


async def test_refusal_count_new_grant_resets_it(harness: RefreshHarness) -> None:
    """A new grant resets the refusal count, which belongs to the previous pair."""
    account, one = await _refuse_once(harness)
    account.gone = False
    harness.clock.advance(1)
    await harness.keep(await harness.exchange_of(account), domain=account.host, connected_at=harness.clock.now())
    after = await harness.now(one)
    assert (after.pair_version, after.refused_since, after.refusals) == (2, None, 0)


@pytest.mark.timeout(600)
async def test_circuit_breaker_wrong_secret_stays_open_across_restart(
    harness: RefreshHarness,
) -> None:
    """A wrong secret opens the circuit breaker after two refusals; one probe a minute is sent, also after a restart."""
    await harness.connect_accounts(40)
    right, client = harness.amo.fake.integration, harness.amo.fake
    client.integration = SandboxIntegration(client_secret="another", redirect_uri=right.redirect_uri)
    lifecycle = harness.make_lifecycle(rules=RULES)
    async with harness.running(lifecycle):
        while _breaker_reason(lifecycle) is None:
            await harness.pass_days(1 / 1440)
        refused = harness.witness.named("refresh.failed")
        assert len({event.connection_id for event in refused}) == 2
        asked = harness.amo.sandbox.requests
        assert "Некорректный клиент" in (lifecycle.breaker.refused or "")
        await harness.pass_days(1 / 24)
    probes = harness.amo.sandbox.requests - asked
    assert 50 <= probes <= 61
    assert harness.witness.names().count("amo_credentials.refused") == 1
    restarted = harness.make_lifecycle(rules=RULES, process="process-2")
    await restarted.breaker.watch()
    assert (_breaker_reason(restarted), restarted.breaker.refused) == (InvalidClient.code, lifecycle.breaker.refused)
    assert restarted.breaker.probe_in == 60
    client.integration = right
    async with harness.running(restarted):
        await harness.pass_days(1 / 24)
    assert _breaker_reason(restarted) is None
    await lifecycle.breaker.watch()
    assert _breaker_reason(lifecycle) is None
    assert (await harness.store.shared_state()).refused_credentials is None


async def test_store_probe_order_is_latest_success_then_oldest_failure(harness: RefreshHarness) -> None:
    """Connections without a failure since their last success come first, then the oldest failure."""
    everyone = [connection for _, connection in await harness.connect_accounts(4)]
    turn = timedelta(seconds=60)
    for connection in everyone[2:]:
        harness.clock.advance(1)
        await harness.fail(connection, AmoCallbackError, Fault.WRONG_CLIENT, trigger=RefreshTrigger.PROBE)
    harness.clock.advance(1)
    await harness.refresh(everyone[0], trigger=RefreshTrigger.PROBE)
    order: list[str] = []
    while probe := await harness.store.probe(exclude=order, turn=turn):
        order.append(probe.id)
    assert order == [everyone[number].id for number in (0, 1, 2, 3)]


async def test_circuit_breaker_unsaved_opening_is_stored_later(harness: RefreshHarness) -> None:
    """A circuit breaker that cannot be stored stops this process at once and is stored for other processes later."""
    await harness.connect_accounts(2)
    harness.clock.advance(901)
    harness.failing.away = {"refuse_credentials"}
    breaker = harness.lifecycle.breaker
    for name in ("one", "another"):
        await breaker.suspect(name, "AMO's words")
    assert breaker.reason == InvalidClient.code
    assert (await harness.store.shared_state()).refused_credentials is None
    harness.failing.away = set()
    await breaker.watch()
    assert (breaker.refused, (await harness.store.shared_state()).refused_credentials) == ("AMO's words", "AMO's words")
    breaker.accepted()  # reported by an exchange
    await breaker.watch()
    assert (breaker.refused, (await harness.store.shared_state()).refused_credentials) == (None, None)


async def _suspend_failures(harness: RefreshHarness, lost: int) -> list[tuple[SandboxAccount, Connection]]:
    """Lose the answers of `lost` connections; on retry, five become terminal and the rest are suspended."""
    everyone = await harness.connect_accounts(lost + 3)
    for _, connection in everyone[:lost]:
        await harness.fail(connection, AmoCallbackError, Fault.NOTHING_AFTER, trigger=RefreshTrigger.PROBE)
    harness.clock.advance(61)
    harness.amo.sandbox.faults.persistent = Fault.SLOW  # all are presented before the first answer
    refreshes = [harness.begin(connection) for _, connection in everyone[:lost]]
    await harness.amo.sandbox.until_asked(len(everyone) + 2 * lost)
    harness.amo.sandbox.faults.persistent = None
    harness.amo.sandbox.go_on.set()
    await asyncio.gather(*refreshes, return_exceptions=True)
    return everyone


async def _end_pause(harness: RefreshHarness, connection: Connection) -> TokenLifecycle:
    """End the mass-failure pause by a success."""
    lifecycle = harness.make_lifecycle(process="process-3")
    await lifecycle.breaker.watch()
    assert _breaker_reason(lifecycle) == MassFailureSuspected.code
    harness.clock.advance(901)
    await harness.refresh(connection, by=lifecycle.coordinator, trigger=RefreshTrigger.PROBE)
    assert _breaker_reason(lifecycle) is None
    return lifecycle


@pytest.mark.parametrize("lost", [7, 9])
async def test_mass_failure_token_in_doubt_is_presented_once_more_at_most(harness: RefreshHarness, lost: int) -> None:
    """Suspended answers are applied after the pause, and a token is presented only if introspection accepts it."""
    everyone = await _suspend_failures(harness, lost)
    ledger = harness.amo.fake.ledger
    rows = [await harness.now(connection) for _, connection in everyone[:lost]]
    assert [row.status for row in rows].count(Status.NEEDS_REAUTH) == 5
    kept = [row for row in rows if row.status is Status.ACTIVE]
    assert {(row.suspended_reason, row.suspended_token == row.possibly_spent_token) for row in kept} == {
        (Reason.IN_DOUBT, True)
    }
    assert ledger.doubles() == lost
    lifecycle = await _end_pause(harness, everyone[-1][1])
    for row in kept:
        assert (await harness.fail(row, NeedsReauth, by=lifecycle.coordinator)).reason == Reason.IN_DOUBT
    for _, connection in everyone[:lost]:
        after = await harness.now(connection)
        assert (after.status, after.reason) == (Status.NEEDS_REAUTH, Reason.IN_DOUBT)
        assert (after.suspended_reason, after.suspended_token) == (None, None)
    assert ledger.doubles() == lost
    reported = [event.connection_id for event in harness.witness.named("connection.needs_reauth")]
    assert sorted(reported, key=str) == sorted((connection.id for _, connection in everyone[:lost]), key=str)


async def test_mass_failure_pause_suspended_token_is_not_presented(harness: RefreshHarness) -> None:
    """A suspended token is not presented during the pause, not even as a probe."""
    everyone = await _suspend_failures(harness, 7)
    held = [row for _, one in everyone[:7] if (row := await harness.now(one)).status is Status.ACTIVE]
    assert len(held) == 2
    sent = len(harness.presented())
    for account, _ in everyone:
        account.disabled = True
    lifecycle = harness.make_lifecycle(process="process-3")
    await lifecycle.breaker.watch()
    for row in held:
        harness.clock.advance(901)
        await harness.fail(row, AmoCallbackError, by=lifecycle.coordinator, trigger=RefreshTrigger.PROBE)
        after = await harness.now(row)
        assert (after.status, after.last_error, after.suspended_token) == (
            Status.ACTIVE, "mass_failure", row.suspended_token,
        )  # fmt: skip
    assert len(harness.presented()) == sent


async def test_suspended_answer_accepted_introspection_allows_refresh(harness: RefreshHarness) -> None:
    """A suspended answer is discarded and the token refreshed if introspection accepts it after the pause."""
    everyone = await harness.connect_accounts(8)
    for account, connection in everyone[:6]:
        account.disabled = True
        await harness.fail(connection, AmoCallbackError)
    account, connection = everyone[5]
    assert (await harness.now(connection)).suspended_reason is Reason.REVOKED
    account.disabled = False
    lifecycle = await _end_pause(harness, everyone[-1][1])
    after = await harness.refresh(connection, by=lifecycle.coordinator)
    assert (after.pair_version, after.suspended_reason, after.suspended_token) == (2, None, None)


@pytest.mark.parametrize("number", [6, 5], ids=["first answer", "repeated answer"])
async def test_slot_wait_answer_suspended_meanwhile_stops_request(harness: RefreshHarness, number: int) -> None:
    """A token is not presented if another process suspends its terminal answer during the slot wait."""
    everyone = await harness.connect_accounts(8)
    for account, connection in everyone[:6]:
        account.disabled = True
        await harness.fail(connection, AmoCallbackError)
    account, connection = everyone[number]
    account.disabled = False
    sent, suspended = len(harness.presented()), asyncio.Event()

    async def suspend() -> None:
        presented = fingerprint(harness.pair(connection).refresh_token)
        claimed = present(await harness.store.claim(a_claim(await harness.now(connection), fingerprint=presented)))
        answer = a_failure(claimed, status=Status.ACTIVE, suspended_reason=Reason.REVOKED, next_refresh_at=START)
        assert await harness.store.save_failure(answer) is not None
        account.disabled = True
        suspended.set()

    amo = harness.before_slot(2, suspend)  # the first slot is the introspection's
    lifecycle = harness.make_lifecycle(process="process-3", amo=amo)
    await lifecycle.breaker.watch()
    harness.clock.advance(901)
    await harness.fail(connection, AmoCallbackError, by=lifecycle.coordinator, trigger=RefreshTrigger.PROBE)
    assert suspended.is_set()
    assert len(harness.presented()) == sent


async def test_suspended_answer_unanswered_introspection_is_kept(harness: RefreshHarness) -> None:
    """A suspended answer is neither applied nor discarded until introspection is answered."""
    everyone = await _suspend_failures(harness, 6)
    [row] = [row for _, one in everyone[:6] if (row := await harness.now(one)).status is Status.ACTIVE]
    lifecycle = await _end_pause(harness, everyone[-1][1])
    sent = len(harness.presented())
    harness.amo.sandbox.introspection_faults.add(Fault.HTTP_500)
    await harness.fail(row, AmoCallbackError, by=lifecycle.coordinator)
    after = await harness.now(row)
    assert (after.status, after.suspended_token) == (Status.ACTIVE, row.suspended_token)
    assert len(harness.presented()) == sent
