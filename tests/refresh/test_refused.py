"""AMO refuses a connection without a hint: whose fault it is, and when its user must connect again."""

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


def _why_open(lifecycle: TokenLifecycle) -> str | None:
    return lifecycle.breaker.reason


async def _refused(harness: RefreshHarness) -> tuple[SandboxAccount, Connection]:
    """Have one of five connections refused every hour until it is given up, while another is connected each time."""
    [(account, one), *_] = await harness.connect_accounts(5, next_refresh_at=START + 400 * 24 * HOUR)
    account.gone = True
    while (await harness.now(one)).status is Status.ACTIVE:
        harness.clock.advance(3600)
        await save(harness.store, a_connection(900, connected_at=harness.clock.now()), code=str(harness.clock.now()))
        await harness.fail(one, AmoCallbackError, trigger=RefreshTrigger.PROBE)
    assert (await harness.now(one)).reason is Reason.REFUSED
    return account, one


async def test_a_refused_connection_is_presented_once_a_day_and_recovers(harness: RefreshHarness) -> None:
    """Its introspection stays rejected; its token is presented all the same, for AMO may accept it again."""
    account, one = await _refused(harness)
    sent = len(harness.presented())
    for days in (1, 2):
        harness.clock.advance(DAY)
        await harness.recheck_due()
        assert len(harness.presented()) == sent + days
        await harness.recheck_due()
    assert len(harness.presented()) == sent + 2
    account.gone = False
    harness.amo.sandbox.introspection_faults.add(Fault.HTTP_500, Fault.HTTP_500)
    harness.clock.advance(DAY)
    await harness.recheck_due()
    after = await harness.now(one)
    assert (after.status, after.refused_since, after.refusals) == (Status.ACTIVE, None, 0)
    assert "connection.recovered" in harness.witness.names()


async def test_a_refused_connection_answered_with_a_hint_is_introspected_once_a_day(harness: RefreshHarness) -> None:
    """It is revoked from then on: presented only once introspection accepts its token, as any revoked connection."""
    account, one = await _refused(harness)
    revoking = harness.make_lifecycle(amo=Override(harness.client, refresh=answering(InvalidRefreshToken())))
    refreshes = harness.traffic.calls["refresh"]
    for _ in range(3):
        harness.clock.advance(DAY)
        await harness.recheck_due(revoking)
        assert (await harness.now(one)).reason is Reason.REVOKED
    assert harness.traffic.calls["refresh"] == refreshes + 1
    account.gone = False
    for seconds in (DAY, 70):  # the first look-up forgets the refusals
        harness.clock.advance(seconds)
        await harness.recheck_due()
    assert (await harness.now(one)).status is Status.ACTIVE


async def test_a_hook_has_no_refused_connection_presented_before_its_day_is_over(harness: RefreshHarness) -> None:
    """The hook starts a look-up at once, but the token was presented three hours ago."""
    _, one = await _refused(harness)
    sent, asked = len(harness.presented()), harness.amo.sandbox.introspections
    harness.amo.sandbox.introspection_faults.persistent = Fault.HTTP_500  # AMO does not say whether it knows the token
    harness.clock.advance(3 * 3600)
    await harness.lifecycle.switched_off(one.account_id)
    await harness.recheck_due()
    assert harness.amo.sandbox.introspections > asked
    assert len(harness.presented()) == sent
    harness.clock.advance(DAY)
    await harness.recheck_due()
    assert len(harness.presented()) == sent + 1


async def _one_refused(harness: RefreshHarness, **more: Any) -> tuple[SandboxAccount, Connection]:
    """Connect two accounts, and have the first refused and rejected once."""
    [(account, one), _] = await harness.connect_accounts(2, **more)
    account.gone = True
    await harness.fail(one, AmoCallbackError, trigger=RefreshTrigger.PROBE)
    return account, await harness.now(one)


async def test_a_refusal_with_a_rejected_introspection_is_counted_in_the_row(harness: RefreshHarness) -> None:
    """Since when, and how often: both are stored, and the connection is no suspect."""
    _, one = await _one_refused(harness)
    assert (one.refused_since, one.refusals, one.status) == (harness.clock.now(), 1, Status.ACTIVE)
    harness.clock.advance(60)
    await harness.fail(one, AmoCallbackError, trigger=RefreshTrigger.PROBE)
    after = await harness.now(one)
    assert (after.refused_since, after.refusals) == (one.refused_since, 2)
    assert harness.lifecycle.breaker.reason is None


@pytest.mark.parametrize(
    "fault", [None, Fault.HTTP_500, Fault.UNPAID, Fault.BLOCKED, Fault.TOO_MANY, Fault.CLIENT_ID, Fault.TEAPOT]
)
async def test_another_answer_neither_counts_nor_resets_refusals(harness: RefreshHarness, fault: Fault | None) -> None:
    """An unknown outcome, 402, 403, 429, other words, or a silent introspection say nothing of the user."""
    _, one = await _one_refused(harness)
    if fault is None:
        harness.amo.sandbox.introspection_faults.add(Fault.HTTP_500, Fault.HTTP_500)
    else:
        harness.amo.sandbox.faults.add(fault)
    await harness.fail(one, AmoCallbackError, trigger=RefreshTrigger.PROBE)
    after = await harness.now(one)
    assert (after.refused_since, after.refusals) == (one.refused_since, 1)


@pytest.mark.parametrize("fault", [None, Fault.WRONG_CLIENT], ids=["success", "accepted introspection"])
async def test_a_success_or_an_accepted_introspection_resets_refusals(
    harness: RefreshHarness, fault: Fault | None
) -> None:
    """The account is there again; where AMO knows the token, a refusal is no matter of the user's."""
    account, one = await _one_refused(harness)
    account.gone = False
    if fault is None:
        await harness.refresh(one, trigger=RefreshTrigger.PROBE)
    else:
        await harness.fail(one, AmoCallbackError, fault, trigger=RefreshTrigger.PROBE)
    after = await harness.now(one)
    assert (after.refused_since, after.refusals) == (None, 0)


async def test_an_expired_access_token_counts_as_rejected_where_there_is_no_api_domain(harness: RefreshHarness) -> None:
    """Nobody can be asked about such a connection; while its access token is valid, that one is asked about."""
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
def test_refused_for_long_is_after_a_day_and_eight_attempts(hours: float, refusals: int, *, long: bool) -> None:
    """Both are needed; the attempt at hand is counted in."""
    claimed = a_connection(refused_since=START, refusals=refusals)
    assert is_refused_long(claimed, now=START + hours * HOUR) is long
    assert not is_refused_long(a_connection(), now=START + hours * HOUR)


@pytest.mark.parametrize(
    ("latest", "attempted", "succeeded", "alone"),
    [
        (23.9, 40, 0, True),  # a success within the retry cap
        (23, 40, 20, True),  # half of those attempted
        (23, 40, 19, False),
        (0, 40, 40, False),  # none since the refusals began
        (-1, 40, 40, False),
        (None, 40, 0, False),
    ],
)
def test_refused_alone_is_where_others_succeed(
    latest: float | None, attempted: int, succeeded: int, *, alone: bool
) -> None:
    """Another success since the refusals began, and either a recent one or half of a day's attempts."""
    claimed, now = a_connection(refused_since=START, refusals=9), START + 24 * HOUR
    successes = Successes(
        refreshable=40,
        latest=None if latest is None else START + latest * HOUR,
        attempted=attempted,
        succeeded=succeeded,
    )
    assert is_refused_alone(claimed, successes, now=now, rules=RefreshRules()) is alone


@pytest.mark.parametrize(("hours", "alone"), [(24, False), (71.9, False), (72, True)])
def test_a_single_connection_is_refused_after_three_days(hours: float, *, alone: bool) -> None:
    """Nobody else can show whose fault it is."""
    claimed = a_connection(refused_since=START, refusals=90)
    successes = Successes(refreshable=1, latest=START - HOUR, attempted=1, succeeded=0)
    assert is_refused_alone(claimed, successes, now=START + hours * HOUR, rules=RefreshRules()) is alone


async def test_successes_are_told_from_the_rows(harness: RefreshHarness) -> None:
    """Those attempted in the last day, and those of them that AMO accepted in the last day; what is to come is not."""
    everyone = await harness.connect_accounts(4)
    connected_at = harness.clock.now()
    harness.clock.advance(DAY + 10)
    await harness.refresh(everyone[0][1], trigger=RefreshTrigger.PROBE)
    everyone[1][0].gone = True
    await harness.fail(everyone[1][1], AmoCallbackError, trigger=RefreshTrigger.PROBE)
    await save(harness.store, a_connection(99, connected_at=harness.clock.now() + HOUR, next_refresh_at=None))
    now = harness.clock.now()
    told = await harness.store.successes(now=now)
    assert told == Successes(refreshable=4, latest=now, attempted=2, succeeded=1)
    assert connected_at < now


async def test_a_new_grant_resets_refusals(harness: RefreshHarness) -> None:
    """So does a disconnect; what was counted belongs to the pair before."""
    account, one = await _one_refused(harness)
    account.gone = False
    harness.clock.advance(1)
    await harness.keep(await harness.exchange_of(account), domain=account.host, connected_at=harness.clock.now())
    after = await harness.now(one)
    assert (after.pair_version, after.refused_since, after.refusals) == (2, None, 0)


@pytest.mark.timeout(600)
async def test_a_wrong_secret_opens_the_breaker_with_forty_connections_across_a_restart(
    harness: RefreshHarness,
) -> None:
    """Two are refused, then one probe a minute leaves; a restart does not forget it, and the right secret closes it."""
    await harness.connect_accounts(40)
    right, client = harness.amo.fake.integration, harness.amo.fake
    client.integration = SandboxIntegration(client_secret="another", redirect_uri=right.redirect_uri)
    lifecycle = harness.make_lifecycle(rules=RULES)
    async with harness.running(lifecycle):
        while _why_open(lifecycle) is None:
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
    assert (_why_open(restarted), restarted.breaker.refused) == (InvalidClient.code, lifecycle.breaker.refused)
    assert restarted.breaker.probe_in == 60
    client.integration = right
    async with harness.running(restarted):
        await harness.pass_days(1 / 24)
    assert _why_open(restarted) is None
    await lifecycle.breaker.watch()
    assert _why_open(lifecycle) is None
    assert (await harness.store.shared_state()).refused_credentials is None


async def test_probes_begin_with_the_most_recent_success_and_take_no_suspect_twice(harness: RefreshHarness) -> None:
    """Connections that have failed since their last success come after all others, the longest ago first."""
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


async def test_a_breaker_whose_opening_cannot_be_stored_is_open_and_stored_later(harness: RefreshHarness) -> None:
    """The store is away in that moment: this process stops all the same, and the others hear of it afterwards."""
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
    breaker.accepted()  # by an exchange
    await breaker.watch()
    assert (breaker.refused, (await harness.store.shared_state()).refused_credentials) == (None, None)


async def _suspended(harness: RefreshHarness, lost: int) -> list[tuple[SandboxAccount, Connection]]:
    """Lose the answers of connections; presented once more, five turn terminal and the others are suspended."""
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
    """End the pause by a success."""
    lifecycle = harness.make_lifecycle(process="process-3")
    await lifecycle.breaker.watch()
    assert _why_open(lifecycle) == MassFailureSuspected.code
    harness.clock.advance(901)
    await harness.refresh(connection, by=lifecycle.coordinator, trigger=RefreshTrigger.PROBE)
    assert _why_open(lifecycle) is None
    return lifecycle


@pytest.mark.parametrize("lost", [7, 9])
async def test_a_doubtful_token_is_presented_once_more_at_most_in_a_mass_failure(
    harness: RefreshHarness, lost: int
) -> None:
    """The suspended answers are applied as the pause ends, and nothing is presented unless introspection accepts it."""
    everyone = await _suspended(harness, lost)
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
    told = [event.connection_id for event in harness.witness.named("connection.needs_reauth")]
    assert sorted(told, key=str) == sorted((connection.id for _, connection in everyone[:lost]), key=str)


async def test_while_a_mass_failure_is_suspected_a_suspended_token_is_not_presented(harness: RefreshHarness) -> None:
    """Not as a probe either, and also where nobody can be asked about it."""
    everyone = await _suspended(harness, 7)
    held = [row for _, one in everyone[:7] if (row := await harness.now(one)).status is Status.ACTIVE]
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


async def test_a_suspended_answer_is_forgotten_where_introspection_accepts_the_token(harness: RefreshHarness) -> None:
    """AMO was ill when it said that the tokens were revoked: they are refreshed as if nothing had been said."""
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


@pytest.mark.parametrize("number", [6, 5], ids=["first", "again"])
async def test_a_token_whose_answer_was_suspended_meanwhile_is_not_presented(
    harness: RefreshHarness, number: int
) -> None:
    """While it waits for its slot another process hears a terminal answer: its first, or the same one again."""
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


async def test_a_suspended_answer_waits_for_an_introspection_that_is_answered(harness: RefreshHarness) -> None:
    """AMO does not say whether it accepts the token: the answer is neither applied nor is the token presented."""
    everyone = await _suspended(harness, 6)
    [row] = [row for _, one in everyone[:6] if (row := await harness.now(one)).status is Status.ACTIVE]
    lifecycle = await _end_pause(harness, everyone[-1][1])
    sent = len(harness.presented())
    harness.amo.sandbox.introspection_faults.add(Fault.HTTP_500)
    await harness.fail(row, AmoCallbackError, by=lifecycle.coordinator)
    after = await harness.now(row)
    assert (after.status, after.suspended_token) == (Status.ACTIVE, row.suspended_token)
    assert len(harness.presented()) == sent
