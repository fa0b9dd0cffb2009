"""The circuit breaker: what opens and closes it, and who is tried while it is open."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from amo_callback.amo.sandbox.faults import Fault
from amo_callback.errors import (
    AmoCallbackError,
    InvalidClient,
    MassFailureSuspected,
    NeedsReauth,
    NotYet,
    UnknownOutcome,
)
from amo_callback.model import ConnectionCounts, RefreshTrigger, Status
from amo_callback.refresh.breaker import is_epidemic
from tests.builders import a_claim, a_connection, a_verdict, save
from tests.fakes import START, Override
from tests.refresh.house import API_DOMAIN, DAY

if TYPE_CHECKING:
    from tests.refresh.house import House


# --- what opens it ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("died", "living", "epidemic"), [(4, 0, False), (5, 0, True), (5, 19, True), (5, 20, False), (50, 300, False)]
)
def test_many_deaths_of_a_large_share_are_an_epidemic(died: int, living: int, epidemic: bool) -> None:  # noqa: FBT001 -- because it is a column of the table above
    """Five deaths at least, and more than a fifth of all."""
    assert is_epidemic(ConnectionCounts(living=living, fresh=living, died=died)) is epidemic


async def test_the_deaths_of_a_whole_fleet_are_not_believed(house: House) -> None:
    """After five connections have died within ten minutes, the sixth is kept, and nothing more is refreshed."""
    for number in range(5):
        dead = await save(house.store, a_connection(number + 1))
        await house.store.claim(a_claim(dead))
        verdict = a_verdict(dead, status=Status.NEEDS_REAUTH, next_refresh_at=None, died_at=house.clock.now())
        await house.store.save_verdict(verdict)
    connection = await house.connect()
    house.amo.account.disabled = True
    with pytest.raises(MassFailureSuspected):
        await house.refresh(connection)
    assert (await house.now(connection)).status is Status.ACTIVE
    assert (await house.witness.until("terminal_failures.suspended")).fields == {"died": 5, "living": 1}
    with pytest.raises(NotYet) as raised:
        await house.refresh(await save(house.store, a_connection(7)))
    assert raised.value.cause_code == MassFailureSuspected.code


async def _suspect(house: House, *names: str) -> list[str | None]:
    """Make connections suspect, and return why the breaker is open after each."""
    breaker, reasons = house.lifecycle.breaker, []
    for name in names:
        house.clock.advance(1)
        await breaker.suspect(name, "AMO's words")
        reasons.append(breaker.reason)
    return reasons


async def test_the_breaker_opens_with_two_suspects_once_the_last_success_is_older_than_the_retry_cap(
    house: House,
) -> None:
    """One connection may have a trouble of its own, however often it is refused; a second one is no accident."""
    for number in range(10):
        await save(house.store, a_connection(number))
    house.clock.advance(900)
    assert await _suspect(house, "one", "one", "another") == [None, None, InvalidClient.code]
    assert house.witness.names() == ["amo_credentials.refused"]
    assert house.lifecycle.breaker.refused == "AMO's words"


async def test_the_breaker_opens_with_ten_suspects_in_a_row_however_recent_the_last_success_is(house: House) -> None:
    """The same connection twice counts once, and a success in between begins the count anew."""
    for number in range(20):
        await save(house.store, a_connection(number))
    names = [str(number) for number in range(10)]
    assert await _suspect(house, *names[:9], *names[:9]) == [None] * 18
    await house.lifecycle.breaker.succeeded()
    assert await _suspect(house, *names) == [None] * 9 + [InvalidClient.code]


async def test_a_success_of_another_process_clears_the_suspects(house: House) -> None:
    """The store tells of it: suspects from before count no more, those from after do."""
    for number in range(10):
        await save(house.store, a_connection(number))
    house.clock.advance(901)
    assert await _suspect(house, "one") == [None]
    house.clock.advance(1)
    await save(house.store, a_connection(11, connected_at=house.clock.now()))
    house.clock.advance(901)
    assert await _suspect(house, "another", "a third") == [None, InvalidClient.code]


async def test_the_breaker_opens_with_the_only_connection_that_can_be_refreshed(house: House) -> None:
    """Connections that are frozen, or have no refresh token, are neither counted nor probed."""
    connection = await save(house.store, a_connection(1))
    await save(house.store, a_connection(2, next_refresh_at=None, refresh_expires_at=None))
    frozen = await save(house.store, a_connection(3))
    await house.store.freeze(frozen.id, at=house.clock.now())
    house.clock.advance(901)
    assert await _suspect(house, "one") == [InvalidClient.code]
    turn = timedelta(seconds=60)
    assert (await house.store.probe(apart_from=(), turn=turn) or frozen).id == connection.id
    assert await house.store.probe(apart_from=(connection.id,), turn=turn) is None


async def test_accounts_that_nobody_can_be_asked_about_are_no_fault_of_the_configuration(house: House) -> None:
    """Moved, without an API host, their access tokens over: they are refused without a reason, and stop nobody else."""
    connections = []
    for _ in range(2):
        house.amo.account.user_id += 1
        connections.append(await house.connect())
    for number in range(10):
        await save(house.store, a_connection(number + 1))
    house.amo.account.host = "renamed.amocrm.ru"
    house.clock.advance(DAY)
    for connection in connections:
        with suppress(AmoCallbackError):
            await house.refresh(connection)
    assert len(house.amo.fake.ledger.refreshes()) == 2
    assert house.lifecycle.breaker.reason is None


# --- while it is open -------------------------------------------------------------------------------


@pytest.mark.parametrize("why", ["refused", "held"])
async def test_a_connection_whose_attempt_stays_open_may_be_the_probe(house: House, why: str) -> None:
    """Where AMO has answered nobody, the probe is one of those without an answer, after its lease; and it closes."""
    connection = await house.connect()
    house.amo.sandbox.faults.add(Fault.HTTP_500)
    with pytest.raises(UnknownOutcome):
        await house.refresh(connection)
    if why == "held":
        await house.store.suspend_terminal(now=house.clock.now())
    else:
        house.lifecycle.breaker.refuse("Check the `client_id` parameter")
    async with house.running(house.lifecycle):
        await house.pass_time(300, step=20)
    assert (await house.now(connection)).pair_version == 2
    assert house.lifecycle.breaker.reason is None


async def test_where_there_is_no_probe_the_loop_waits(house: House) -> None:
    """With nobody to be tried, the store is asked once a poll interval."""
    await house.store.suspend_terminal(now=house.clock.now())
    house.clock.advance(61)
    async with house.running(house.lifecycle):
        await house.clock.until_sleeping(5)
        await house.traffic.until_quiet()
        assert house.traffic.calls["probe"] == 1


async def test_while_the_probe_waits_for_its_slot_the_loop_waits_too(house: House) -> None:
    """A rate limit that is paused for an hour has nobody ask the store meanwhile, but once a poll interval."""
    await house.connect(next_refresh_at=START)

    async def slot(_priority: object) -> None:
        await house.clock.sleep(3600)

    lifecycle = house.make_lifecycle(amo=Override(house.client, slot=slot))
    lifecycle.breaker.refuse("Check the `client_id` parameter")
    house.clock.advance(61)
    async with house.running(lifecycle):
        await house.clock.until_sleeping(3600)
        await house.clock.until_sleeping(5)
        assert house.traffic.calls["shared_state"] == 1


async def test_a_trial_may_be_the_probe(house: House) -> None:
    """Where nobody else lives, the daily look-up of one that was given up closes the breaker, and heals it."""
    connection = await house.given_up()
    house.lifecycle.breaker.refuse("AMO refuses without a reason")
    house.clock.advance(DAY)
    await house.look_up_due()
    assert (await house.now(connection)).status is Status.ACTIVE
    assert house.lifecycle.breaker.reason is None


@pytest.mark.parametrize("demand", [RefreshTrigger.FORCED, RefreshTrigger.TRIAL])
async def test_who_was_the_probe_lets_another_be_it(house: House, demand: RefreshTrigger) -> None:
    """One that callers ask for again and again is the probe once a round, and one probe goes every minute."""
    breaker = house.lifecycle.breaker
    breaker.refuse("Check the `client_id` parameter")
    refusal = breaker.refusal("one", demand=demand)
    assert refusal is not None
    assert refusal.retry_after == 60
    house.clock.advance(60)
    assert breaker.refusal("one", demand=demand) is None
    breaker.enter("one")
    house.clock.advance(60)
    assert breaker.refusal("another", demand=demand) is None
    assert breaker.refusal("one", demand=demand) is not None
    breaker.new_round()
    assert breaker.refusal("one", demand=demand) is None


@pytest.mark.parametrize("demand", [RefreshTrigger.SCHEDULE, RefreshTrigger.HAND_OUT])
async def test_nobody_else_is_refreshed(house: House, demand: RefreshTrigger) -> None:
    """Neither the schedule nor a hand-out is the probe."""
    house.lifecycle.breaker.refuse("Check the `client_id` parameter")
    house.clock.advance(DAY)
    refusal = house.lifecycle.breaker.refusal("one", demand=demand)
    assert refusal is not None
    assert refusal.cause_code == InvalidClient.code


async def test_a_token_that_is_refused_is_kept_while_deaths_are_held(house: House) -> None:
    """The probe asks before it presents: what AMO does not know is put off, and its one presentation is not risked."""
    connection = await house.connect(api_domain=API_DOMAIN)
    house.amo.account.disabled = True
    await house.store.suspend_terminal(now=house.clock.now())
    await house.lifecycle.breaker.watch()
    house.clock.advance(60)
    with pytest.raises(MassFailureSuspected):
        await house.refresh(connection, demand=RefreshTrigger.PROBE)
    after = await house.now(connection)
    assert (after.status, after.next_refresh_at) == (Status.ACTIVE, house.clock.now() + timedelta(minutes=15))
    assert house.amo.fake.ledger.refreshes() == []


async def test_one_success_closes_it_for_every_process(house: House) -> None:
    """What one process has found ends the hold in the store, where the others read it before they begin anything."""
    await house.store.suspend_terminal(now=house.clock.now())
    other = house.make_lifecycle(process="process-2")
    for lifecycle in (house.lifecycle, other):
        await lifecycle.breaker.watch()
        assert lifecycle.breaker.reason == MassFailureSuspected.code
    await house.lifecycle.breaker.succeeded()
    await other.breaker.watch()
    assert (house.lifecycle.breaker.reason, other.breaker.reason) == (None, None)
    assert house.witness.names() == ["terminal_failures.resumed"]


async def test_a_person_who_is_needed_is_no_reason_to_open_it(house: House) -> None:
    """One dead token among the living is believed at once."""
    for number in range(5):
        await save(house.store, a_connection(number + 1))
    connection = await house.connect()
    house.amo.account.disabled = True
    with pytest.raises(NeedsReauth):
        await house.refresh(connection)
    assert house.lifecycle.breaker.reason is None
