"""The circuit breaker: what opens and closes it, and who is tried while it is open."""

from contextlib import suppress
from datetime import timedelta

import pytest

from amo_callback.amo.sandbox.app import Fault
from amo_callback.errors import (
    AmoCallbackError,
    InvalidClient,
    MassFailureSuspected,
    UnknownOutcome,
)
from amo_callback.model import RefreshTrigger, Status
from amo_callback.refresh.breaker import is_mass_failure
from amo_callback.stats import ConnectionCounts
from tests.builders import a_claim, a_connection, a_failure, present, save
from tests.refresh.harness import DAY, RefreshHarness


@pytest.mark.parametrize(
    ("failed", "active", "epidemic"),
    [
        *((0, 0, False), (4, 0, False), (5, 0, True), (5, 19, True)),
        *((5, 20, False), (20, 80, False), (21, 79, True), (50, 300, False)),
    ],
)
def test_many_deaths_of_a_large_share_are_an_epidemic(failed: int, active: int, *, epidemic: bool) -> None:
    """Five deaths at least, and more than a fifth of all, those who have died counted in."""
    assert is_mass_failure(ConnectionCounts(active=active, fresh=active, failed=failed)) is epidemic


async def _five_die(harness: RefreshHarness) -> None:
    """Have five connections die at the same moment."""
    for number in range(5):
        dead = await save(harness.store, a_connection(number + 1))
        await harness.store.claim(a_claim(dead))
        failure = a_failure(
            dead, status=Status.NEEDS_REAUTH, next_refresh_at=None, needs_reauth_since=harness.clock.now()
        )
        await harness.store.save_failure(failure)


async def _suspect(harness: RefreshHarness, *names: str) -> list[str | None]:
    """Make connections suspect, and return why the breaker is open after each."""
    breaker, reasons = harness.lifecycle.breaker, []
    for name in names:
        harness.clock.advance(1)
        await breaker.suspect(name, "AMO's words")
        reasons.append(breaker.reason)
    return reasons


async def _save(harness: RefreshHarness, connections: int) -> None:
    for number in range(connections):
        await save(harness.store, a_connection(number))


async def test_two_suspects_open_it_once_the_last_success_is_older_than_the_retry_cap(harness: RefreshHarness) -> None:
    """One connection may have a trouble of its own, however often it is refused; a second one is no accident."""
    await _save(harness, 10)
    harness.clock.advance(900)
    assert await _suspect(harness, "one", "one", "another") == [None, None, InvalidClient.code]
    assert harness.witness.names() == ["amo_credentials.refused"]
    assert harness.lifecycle.breaker.refused == "AMO's words"


async def test_ten_suspects_in_a_row_open_it_however_recent_the_last_success_is(harness: RefreshHarness) -> None:
    """The same connection twice counts once, and a success in between begins the count anew."""
    await _save(harness, 20)
    names = [str(number) for number in range(10)]
    assert await _suspect(harness, *names[:9], *names[:9]) == [None] * 18
    await harness.lifecycle.breaker.succeeded()
    assert await _suspect(harness, *names) == [None] * 9 + [InvalidClient.code]


async def test_a_success_of_another_process_clears_the_suspects(harness: RefreshHarness) -> None:
    """The store tells of it: suspects from before count no more, those from after do."""
    await _save(harness, 10)
    harness.clock.advance(901)
    assert await _suspect(harness, "one") == [None]
    harness.clock.advance(1)
    await save(harness.store, a_connection(11, connected_at=harness.clock.now()))
    harness.clock.advance(901)
    assert await _suspect(harness, "another", "a third") == [None, InvalidClient.code]


async def test_the_breaker_opens_with_the_only_connection_that_can_be_refreshed(harness: RefreshHarness) -> None:
    """Connections that are frozen, or have no refresh token, are neither counted nor probed."""
    connection = await save(harness.store, a_connection(1))
    await save(harness.store, a_connection(2, next_refresh_at=None, refresh_expires_at=None))
    frozen = await save(harness.store, a_connection(3))
    await harness.store.freeze(frozen.id, at=harness.clock.now())
    harness.clock.advance(901)
    assert await _suspect(harness, "one") == [InvalidClient.code]
    turn = timedelta(seconds=60)
    assert (await harness.store.probe(exclude=(), turn=turn) or frozen).id == connection.id
    assert await harness.store.probe(exclude=(connection.id,), turn=turn) is None


async def test_accounts_nobody_can_be_asked_about_are_no_fault_of_the_configuration(harness: RefreshHarness) -> None:
    """Moved, without an API host, their access tokens over: they are refused without a reason, and stop nobody else."""
    connections = await harness.connect_users(2, api_domain=None)
    for number in range(10):
        await save(harness.store, a_connection(number + 1))
    harness.amo.account.host = "renamed.amocrm.ru"
    harness.clock.advance(DAY)
    for connection in connections:
        with suppress(AmoCallbackError):
            await harness.refresh(connection)
    assert len(harness.presented()) == 2
    assert harness.lifecycle.breaker.reason is None


@pytest.mark.parametrize("why", ["refused", "held"])
async def test_a_connection_whose_attempt_stays_open_may_be_the_probe(harness: RefreshHarness, why: str) -> None:
    """Where AMO has answered nobody, the probe is one of those without an answer, after its lease; and it closes."""
    connection = await harness.connect()
    await harness.fail(connection, UnknownOutcome, Fault.HTTP_500)
    if why == "held":
        await harness.store.suspend_terminal(now=harness.clock.now())
    else:
        harness.lifecycle.breaker.refuse("Check the `client_id` parameter")
    async with harness.running(harness.lifecycle):
        await harness.pass_time(300, step=20)
    assert (await harness.now(connection)).pair_version == 2
    assert harness.lifecycle.breaker.reason is None


async def test_where_there_is_no_probe_the_loop_waits(harness: RefreshHarness) -> None:
    """With nobody to be tried, the store is asked once a poll interval."""
    await harness.store.suspend_terminal(now=harness.clock.now())
    harness.clock.advance(61)
    async with harness.running(harness.lifecycle):
        await harness.clock.until_sleeping(5)
        await harness.traffic.until_quiet()
        assert harness.traffic.calls["probe"] == 1


async def test_a_trial_may_be_the_probe(harness: RefreshHarness) -> None:
    """Where nobody else lives, the daily look-up of one that was given up closes the breaker, and heals it."""
    connection = await harness.given_up()
    harness.lifecycle.breaker.refuse("AMO refuses without a reason")
    harness.clock.advance(DAY)
    await harness.recheck_due()
    assert (await harness.now(connection)).status is Status.ACTIVE
    assert harness.lifecycle.breaker.reason is None


@pytest.mark.parametrize("trigger", [RefreshTrigger.FORCED, RefreshTrigger.TRIAL])
async def test_who_was_the_probe_lets_another_be_it(harness: RefreshHarness, trigger: RefreshTrigger) -> None:
    """One that callers ask for again and again is the probe once a round, and one probe goes every minute."""
    breaker = harness.lifecycle.breaker
    breaker.refuse("Check the `client_id` parameter")
    assert present(breaker.refusal("one", trigger=trigger)).retry_after == 60
    harness.clock.advance(60)
    assert breaker.refusal("one", trigger=trigger) is None
    breaker.mark_probe("one")
    harness.clock.advance(60)
    assert breaker.refusal("another", trigger=trigger) is None
    assert breaker.refusal("one", trigger=trigger) is not None
    breaker.new_round()
    assert breaker.refusal("one", trigger=trigger) is None


@pytest.mark.parametrize("trigger", [RefreshTrigger.SCHEDULE, RefreshTrigger.HAND_OUT])
async def test_nobody_else_is_refreshed(harness: RefreshHarness, trigger: RefreshTrigger) -> None:
    """Neither the schedule nor a hand-out is the probe."""
    harness.lifecycle.breaker.refuse("Check the `client_id` parameter")
    harness.clock.advance(DAY)
    assert present(harness.lifecycle.breaker.refusal("one", trigger=trigger)).cause_code == InvalidClient.code


async def test_one_success_closes_it_for_every_process(harness: RefreshHarness) -> None:
    """What one process has found ends the hold in the store, where the others read it before they begin anything."""
    await harness.store.suspend_terminal(now=harness.clock.now())
    other = harness.make_lifecycle(process="process-2")
    for lifecycle in (harness.lifecycle, other):
        await lifecycle.breaker.watch()
        assert lifecycle.breaker.reason == MassFailureSuspected.code
    await harness.lifecycle.breaker.succeeded()
    await other.breaker.watch()
    assert (harness.lifecycle.breaker.reason, other.breaker.reason) == (None, None)
    assert harness.witness.names() == ["terminal_failures.resumed"]


async def test_a_success_lets_everyone_be_the_probe_again(harness: RefreshHarness) -> None:
    """Who was tried the last time is not passed over the next time that it opens."""
    breaker = harness.lifecycle.breaker
    breaker.refuse("Check the `client_id` parameter")
    breaker.mark_probe("one")
    await breaker.succeeded()
    breaker.refuse("Check the `client_id` parameter")
    harness.clock.advance(60)
    assert breaker.refusal("one", trigger=RefreshTrigger.FORCED) is None


async def test_a_success_that_cannot_be_written_down_ends_no_hold(harness: RefreshHarness) -> None:
    """Every process must hear of it: until the store takes it, verdicts are held here, too, and the next one tells."""
    await harness.store.suspend_terminal(now=harness.clock.now())
    breaker = harness.lifecycle.breaker
    await breaker.watch()
    harness.failing.away = {"resume_terminal"}
    await breaker.succeeded()
    assert breaker.terminal_suspended
    harness.failing.away = set()
    await breaker.succeeded()
    assert not (await harness.store.shared_state()).terminal_suspended
    assert harness.witness.names() == ["terminal_failures.resumed"]


async def test_verdicts_that_another_process_holds_are_held_before_the_loop_hears(harness: RefreshHarness) -> None:
    """The refresh was under way when the other one held them: its connection is kept."""
    connection = await harness.connect()
    harness.amo.account.disabled = True
    refreshing = await harness.begin_slow(connection)
    await harness.store.suspend_terminal(now=harness.clock.now())
    harness.amo.sandbox.go_on.set()
    with pytest.raises(MassFailureSuspected):
        await refreshing
    after = await harness.now(connection)
    assert (after.status, after.sealed_pair) == (Status.ACTIVE, connection.sealed_pair)


async def test_the_first_probe_comes_a_minute_after_verdicts_are_held(harness: RefreshHarness) -> None:
    """What has just died with all the others is not tried again at once."""
    await _five_die(harness)
    harness.clock.advance(60)
    breaker = harness.lifecycle.breaker
    assert breaker.probe_in == 0
    assert not await breaker.allows_terminal_failure()
    assert breaker.probe_in == 60
