"""The circuit breaker: conditions that open and close it, and the order of its probes."""

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
    ("failed", "active", "expected"),
    [
        *((0, 0, False), (4, 0, False), (5, 0, True), (5, 19, True)),
        *((5, 20, False), (20, 80, False), (21, 79, True), (50, 300, False)),
    ],
)
def test_is_mass_failure_requires_five_failures_and_a_fifth(failed: int, active: int, *, expected: bool) -> None:
    """A mass failure is at least five failures and more than a fifth of all, including the failed ones."""
    assert is_mass_failure(ConnectionCounts(active=active, fresh=active, failed=failed)) is expected


async def _fail_five(harness: RefreshHarness) -> None:
    """Have five connections become `needs_reauth` at the same moment."""
    for number in range(5):
        failed = await save(harness.store, a_connection(number + 1))
        await harness.store.claim(a_claim(failed))
        failure = a_failure(
            failed, status=Status.NEEDS_REAUTH, next_refresh_at=None, needs_reauth_since=harness.clock.now()
        )
        await harness.store.save_failure(failure)


async def _make_suspect(harness: RefreshHarness, *names: str) -> list[str | None]:
    """Make connections suspect, and return the circuit breaker's reason after each."""
    breaker, reasons = harness.lifecycle.breaker, []
    for name in names:
        harness.clock.advance(1)
        await breaker.suspect(name, "AMO's words")
        reasons.append(breaker.reason)
    return reasons


async def _save(harness: RefreshHarness, connections: int) -> None:
    for number in range(connections):
        await save(harness.store, a_connection(number))


async def test_circuit_breaker_two_suspects_without_recent_success_open_it(harness: RefreshHarness) -> None:
    """Two different suspects open the circuit breaker if the last success is older than `retry_cap`."""
    await _save(harness, 10)
    harness.clock.advance(900)
    assert await _make_suspect(harness, "one", "one", "another") == [None, None, InvalidClient.code]
    assert harness.witness.names() == ["amo_credentials.refused"]
    assert harness.lifecycle.breaker.refused == "AMO's words"


async def test_circuit_breaker_ten_suspects_in_a_row_open_it(harness: RefreshHarness) -> None:
    """Ten different suspects without a success between them open the circuit breaker."""
    await _save(harness, 20)
    names = [str(number) for number in range(10)]
    assert await _make_suspect(harness, *names[:9], *names[:9]) == [None] * 18
    await harness.lifecycle.breaker.succeeded()
    assert await _make_suspect(harness, *names) == [None] * 9 + [InvalidClient.code]


async def test_circuit_breaker_success_of_another_process_clears_suspects(harness: RefreshHarness) -> None:
    """A success that another process stored clears the suspects before it."""
    await _save(harness, 10)
    harness.clock.advance(901)
    assert await _make_suspect(harness, "one") == [None]
    harness.clock.advance(1)
    await save(harness.store, a_connection(11, connected_at=harness.clock.now()))
    harness.clock.advance(901)
    assert await _make_suspect(harness, "another", "a third") == [None, InvalidClient.code]


async def test_circuit_breaker_only_refreshable_connection_opens_it(harness: RefreshHarness) -> None:
    """Frozen connections and those without a refresh token are neither counted nor probed."""
    connection = await save(harness.store, a_connection(1))
    await save(harness.store, a_connection(2, next_refresh_at=None, refresh_expires_at=None))
    frozen = await save(harness.store, a_connection(3))
    await harness.store.freeze(frozen.id, at=harness.clock.now())
    harness.clock.advance(901)
    assert await _make_suspect(harness, "one") == [InvalidClient.code]
    turn = timedelta(seconds=60)
    assert (await harness.store.probe(exclude=(), turn=turn) or frozen).id == connection.id
    assert await harness.store.probe(exclude=(connection.id,), turn=turn) is None


async def test_circuit_breaker_without_possible_introspection_stays_closed(harness: RefreshHarness) -> None:
    """Refused connections without `api_domain` and with expired access tokens do not open the circuit breaker."""
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


@pytest.mark.parametrize("why", ["circuit breaker", "mass failure"])
async def test_circuit_breaker_connection_with_open_attempt_may_be_probe(harness: RefreshHarness, why: str) -> None:
    """A connection with an unknown outcome may be the probe after its lease and close the circuit breaker."""
    connection = await harness.connect()
    await harness.fail(connection, UnknownOutcome, Fault.HTTP_500)
    if why == "mass failure":
        await harness.store.suspend_terminal(now=harness.clock.now())
    else:
        harness.lifecycle.breaker.refuse("Check the `client_id` parameter")
    async with harness.running(harness.lifecycle):
        await harness.pass_time(300, step=20)
    assert (await harness.now(connection)).pair_version == 2
    assert harness.lifecycle.breaker.reason is None


async def test_scheduler_without_probe_candidate_waits_for_poll(harness: RefreshHarness) -> None:
    """The store is asked for a probe once per poll interval if there is none."""
    await harness.store.suspend_terminal(now=harness.clock.now())
    harness.clock.advance(61)
    async with harness.running(harness.lifecycle):
        await harness.clock.until_sleeping(5)
        await harness.traffic.until_quiet()
        assert harness.traffic.calls["probe"] == 1


async def test_circuit_breaker_recheck_may_be_probe(harness: RefreshHarness) -> None:
    """The daily recheck of a `needs_reauth` connection may be the probe and close the circuit breaker."""
    connection = await harness.connect_revoked()
    harness.lifecycle.breaker.refuse("AMO refuses without a reason")
    harness.clock.advance(DAY)
    await harness.run_due_rechecks()
    assert (await harness.now(connection)).status is Status.ACTIVE
    assert harness.lifecycle.breaker.reason is None


@pytest.mark.parametrize("trigger", [RefreshTrigger.FORCED, RefreshTrigger.TRIAL])
async def test_circuit_breaker_probed_connection_waits_for_next_round(
    harness: RefreshHarness, trigger: RefreshTrigger
) -> None:
    """A connection is the probe once a round, and one probe is sent every minute."""
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
async def test_circuit_breaker_open_rejects_schedule_and_hand_out(
    harness: RefreshHarness, trigger: RefreshTrigger
) -> None:
    """A scheduled refresh and a hand-out are never the probe."""
    harness.lifecycle.breaker.refuse("Check the `client_id` parameter")
    harness.clock.advance(DAY)
    assert present(harness.lifecycle.breaker.refusal("one", trigger=trigger)).cause_code == InvalidClient.code


async def test_circuit_breaker_success_closes_it_for_every_process(harness: RefreshHarness) -> None:
    """A success ends the mass failure in the store, where the other processes read it."""
    await harness.store.suspend_terminal(now=harness.clock.now())
    other = harness.make_lifecycle(process="process-2")
    for lifecycle in (harness.lifecycle, other):
        await lifecycle.breaker.watch()
        assert lifecycle.breaker.reason == MassFailureSuspected.code
    await harness.lifecycle.breaker.succeeded()
    await other.breaker.watch()
    assert (harness.lifecycle.breaker.reason, other.breaker.reason) == (None, None)
    assert harness.witness.names() == ["terminal_failures.resumed"]


async def test_circuit_breaker_success_resets_probed_connections(harness: RefreshHarness) -> None:
    """A success clears the list of probed connections."""
    breaker = harness.lifecycle.breaker
    breaker.refuse("Check the `client_id` parameter")
    breaker.mark_probe("one")
    await breaker.succeeded()
    breaker.refuse("Check the `client_id` parameter")
    harness.clock.advance(60)
    assert breaker.refusal("one", trigger=RefreshTrigger.FORCED) is None


async def test_mass_failure_end_not_stored_is_repeated_at_next_success(harness: RefreshHarness) -> None:
    """A mass failure continues until its end is stored, so that every process reads it."""
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


async def test_mass_failure_started_by_another_process_applies_to_running_refresh(harness: RefreshHarness) -> None:
    """A terminal failure is suspended if another process started the mass failure during the refresh."""
    connection = await harness.connect()
    harness.amo.account.disabled = True
    refreshing = await harness.begin_slow(connection)
    await harness.store.suspend_terminal(now=harness.clock.now())
    harness.amo.sandbox.go_on.set()
    with pytest.raises(MassFailureSuspected):
        await refreshing
    after = await harness.now(connection)
    assert (after.status, after.sealed_pair) == (Status.ACTIVE, connection.sealed_pair)


async def test_mass_failure_first_probe_is_sent_after_a_minute(harness: RefreshHarness) -> None:
    """The first probe is sent a minute after the mass failure has started."""
    await _fail_five(harness)
    harness.clock.advance(60)
    breaker = harness.lifecycle.breaker
    assert breaker.probe_in == 0
    assert not await breaker.allows_terminal_failure()
    assert breaker.probe_in == 60
