"""Whose fault it is: what is not one connection's own stops all refreshing, and one success ends that."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from amo_callback.amo.rate_limiter import RateLimiter
from amo_callback.amo.sandbox.faults import Fault
from amo_callback.errors import (
    AmoCallbackError,
    ClientMismatch,
    InvalidClient,
    MassFailureSuspected,
    NeedsReauth,
    NotYet,
    UnauthorizedWithoutHint,
)
from amo_callback.model import Connection, ConnectionCounts, Reason, RefreshRules, RefreshTrigger, Status, TokenResponse
from amo_callback.rate_limit import LocalLimits
from amo_callback.refresh.breaker import is_epidemic
from tests.fakes import START, Override
from tests.refresh.house import API_DOMAIN

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from amo_callback.amo.sandbox.fake_amo import SandboxAccount
    from amo_callback.rate_limit import Priority
    from amo_callback.tokens.lifecycle import TokenLifecycle
    from tests.refresh.house import House


async def _fleet(house: House, size: int, **more: Any) -> list[Connection]:
    """Connect so many users of the account."""
    connections = []
    for _ in range(size):
        house.amo.account.user_id += 1
        connections.append(await house.connect(**{"api_domain": API_DOMAIN, **more}))
    return connections


async def _refresh(
    lifecycle: TokenLifecycle, connection: Connection, demand: RefreshTrigger = RefreshTrigger.SCHEDULE
) -> Connection:
    return await lifecycle.coordinator.refresh(connection.id, demand=demand)


# --- our credentials ------------------------------------------------------------------------------


async def test_listed_client_errors_of_two_connections_stop_everything(house: House) -> None:
    """Nothing is refreshed, everything is kept, and callers hear whose fault it is; nobody is hammered."""
    one, two, three = await _fleet(house, 3)
    lifecycle = house.make_lifecycle()
    house.clock.advance(901)
    house.amo.sandbox.faults.add(Fault.CLIENT_ID, Fault.CLIENT_ID)
    for connection in (one, three):
        assert lifecycle.breaker.reason is None
        with pytest.raises(InvalidClient):
            await _refresh(lifecycle, connection)
    assert lifecycle.breaker.refused == "Check the `client_id` parameter"
    for demand in (RefreshTrigger.SCHEDULE, RefreshTrigger.HAND_OUT, RefreshTrigger.FORCED):
        with pytest.raises(NotYet) as raised:
            await _refresh(lifecycle, two, demand)
        assert (raised.value.cause_code, raised.value.retry_after) == ("amo_credentials", 60)
    assert len(house.amo.fake.ledger.refreshes()) == 2
    assert {(await house.now(each)).status for each in (one, two, three)} == {Status.ACTIVE}


async def test_a_token_that_is_not_linked_to_our_client_concerns_its_connection_alone(house: House) -> None:
    """However many there are, nothing else stops; each is asked again after the retry cap."""
    connections = await _fleet(house, 4)
    lifecycle = house.make_lifecycle()
    house.clock.advance(901)
    for connection in connections[:3]:
        house.amo.sandbox.faults.add(Fault.NOT_LINKED)
        with pytest.raises(ClientMismatch):
            await _refresh(lifecycle, connection)
        after = await house.now(connection)
        again = house.clock.now() + timedelta(seconds=900)
        assert (after.status, after.last_error, after.next_refresh_at) == (Status.ACTIVE, "client_mismatch", again)
    assert lifecycle.breaker.reason is None
    assert (await _refresh(lifecycle, connections[3])).pair_version == 2
    survey = await house.store.survey(now=house.clock.now(), late=house.clock.now())
    assert (survey.active, survey.mismatched) == (4, 3)


async def test_a_lone_connection_refused_without_a_reason_backs_off_alone(house: House) -> None:
    """Looked up and not moved: a suspect; the others go on, and their success clears it."""
    one, two, _ = await _fleet(house, 3)
    lifecycle = house.make_lifecycle()
    house.amo.sandbox.faults.add(Fault.WRONG_CLIENT)
    with pytest.raises(UnauthorizedWithoutHint):
        await _refresh(lifecycle, one)
    assert lifecycle.breaker.reason is None
    assert (await house.now(one)).status is Status.ACTIVE
    assert (await _refresh(lifecycle, two)).pair_version == 2
    house.amo.sandbox.faults.add(Fault.WRONG_CLIENT)
    with pytest.raises(UnauthorizedWithoutHint):
        await _refresh(lifecycle, two)
    assert lifecycle.breaker.reason is None


@pytest.mark.parametrize(("size", "suspects"), [(3, 2), (1, 1)])
async def test_two_suspects_or_all_there_are_mean_our_configuration(house: House, size: int, suspects: int) -> None:
    """A wrong secret is found out by the second connection, or by the only one."""
    connections = await _fleet(house, size)
    lifecycle = house.make_lifecycle()
    house.clock.advance(901)
    for connection in connections[:suspects]:
        assert lifecycle.breaker.reason is None
        house.amo.sandbox.faults.add(Fault.WRONG_CLIENT)
        with pytest.raises(UnauthorizedWithoutHint):
            await _refresh(lifecycle, connection)
    assert lifecycle.breaker.reason == "amo_credentials"
    assert house.witness.names().count("amo_credentials.refused") == 1


async def test_a_silent_look_up_makes_nobody_a_suspect(house: House) -> None:
    """An AMO that is ill is not a wrong secret."""
    connections = await _fleet(house, 3)
    lifecycle = house.make_lifecycle()
    for connection in connections:
        house.amo.sandbox.faults.add(Fault.WRONG_CLIENT)
        house.amo.sandbox.look_up_faults.add(Fault.HTTP_500, Fault.HTTP_500)
        with pytest.raises(UnauthorizedWithoutHint):
            await _refresh(lifecycle, connection)
    assert lifecycle.breaker.reason is None


async def test_while_it_is_open_one_after_the_other_is_the_probe_and_a_success_closes_it(house: House) -> None:
    """A probe a minute, each another connection, due or not; the first that succeeds lets all the others go."""
    connections = await _fleet(house, 3, next_refresh_at=START)
    lifecycle = house.make_lifecycle()
    lifecycle.breaker.refuse("Check the `client_id` parameter")
    house.amo.sandbox.faults.add(Fault.NOT_LINKED, Fault.NOT_LINKED)
    async with house.running(lifecycle):
        for probes in (1, 2):
            for _ in range(12):
                await house.clock.until_sleeping(5)
                assert house.amo.sandbox.requests == 3 + probes - 1
                house.clock.advance(5)
            await house.witness.until("refresh.failed", times=probes)
        for _ in range(12):
            await house.clock.until_sleeping(5)
            house.clock.advance(5)
        await house.witness.until("refresh.succeeded", times=1)
    presented = [entry.presented for entry in house.amo.fake.ledger.refreshes()]
    assert len(set(presented[:3])) == 3
    assert lifecycle.breaker.reason is None
    assert "amo_credentials.accepted" in house.witness.names()
    assert set(presented) == {house.pair(connection).refresh_token for connection in connections}


async def test_an_exchange_that_succeeds_closes_it_too(house: House) -> None:
    """The person who connects proves the same credentials."""
    [connection] = await _fleet(house, 1)
    lifecycle = house.make_lifecycle()
    lifecycle.breaker.refuse("Check the `client_id` parameter")
    lifecycle.breaker.accepted()
    assert (await _refresh(lifecycle, connection)).pair_version == 2


async def test_a_forced_refresh_may_be_the_probe_but_not_the_same_one_each_time(house: House) -> None:
    """A backend that insists on one bad connection does not keep the others from being tried."""
    one, two = await _fleet(house, 2)
    lifecycle = house.make_lifecycle()
    lifecycle.breaker.refuse("Check the `client_id` parameter")
    house.clock.advance(60)
    house.amo.sandbox.faults.add(Fault.CLIENT_ID)
    with pytest.raises(InvalidClient):
        await _refresh(lifecycle, one, RefreshTrigger.FORCED)
    house.clock.advance(900)
    with pytest.raises(NotYet):
        await _refresh(lifecycle, one, RefreshTrigger.FORCED)
    assert (await _refresh(lifecycle, two, RefreshTrigger.FORCED)).pair_version == 2
    assert lifecycle.breaker.reason is None


# --- a fleet that dies at once --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("died", "living", "held"),
    [(4, 0, False), (5, 0, True), (5, 19, True), (5, 20, False), (21, 79, True), (20, 80, False), (0, 0, False)],
)
def test_an_epidemic_is_five_at_least_and_more_than_a_fifth(died: int, living: int, held: bool) -> None:  # noqa: FBT001 -- because it is a column of the table above
    """Of all there are, those who have died counted in."""
    assert is_epidemic(ConnectionCounts(living=living, fresh=0, died=died)) is held


async def _die(house: House, lifecycle: TokenLifecycle, connections: list[Connection]) -> list[AmoCallbackError]:
    """Refresh connections whose tokens AMO has revoked."""
    house.amo.account.disabled = True
    told = []
    for connection in connections:
        with pytest.raises(AmoCallbackError) as raised:
            await _refresh(lifecycle, connection)
        told.append(raised.value)
    return told


async def test_a_whole_fleet_dying_at_once_is_not_believed(house: House) -> None:
    """Five are given up; the sixth verdict is held, and nothing more is presented, also after a restart."""
    connections = await _fleet(house, 8)
    lifecycle = house.make_lifecycle()
    told = await _die(house, lifecycle, connections[:6])
    assert [type(error) for error in told] == [NeedsReauth] * 5 + [MassFailureSuspected]
    held = await house.now(connections[5])
    assert (held.status, held.last_error) == (Status.ACTIVE, "verdicts")
    restarted = house.make_lifecycle(process="process-2")
    await restarted.breaker.watch()
    for each in (lifecycle, restarted):
        with pytest.raises(NotYet) as raised:
            await _refresh(each, connections[6])
        assert raised.value.cause_code == "mass_failure"
    assert len(house.amo.fake.ledger.refreshes()) == 6
    assert house.witness.names().count("terminal_failures.suspended") == 1


async def test_sixteen_at_once_do_not_slip_through(house: House) -> None:
    """Verdicts that come at the same moment are counted one after the other."""
    connections = await _fleet(house, 16)
    lifecycle = house.make_lifecycle()
    house.amo.account.disabled = True
    await asyncio.gather(*(_refresh(lifecycle, each) for each in connections), return_exceptions=True)
    assert [(await house.now(each)).status for each in connections].count(Status.NEEDS_REAUTH) == 5


async def test_a_trial_that_fails_is_no_death(house: House) -> None:
    """Who was given up before cannot die again: after five deaths a trial's refusal holds nothing."""
    connections = await _fleet(house, 5)
    lifecycle = house.make_lifecycle()
    await _die(house, lifecycle, connections)
    with pytest.raises(NeedsReauth):
        await _refresh(lifecycle, connections[0], RefreshTrigger.TRIAL)
    assert not lifecycle.breaker.held


async def test_deaths_spread_over_time_are_believed(house: House) -> None:
    """Four now and four in ten minutes are people who left."""
    connections = await _fleet(house, 8)
    lifecycle = house.make_lifecycle()
    assert {type(error) for error in await _die(house, lifecycle, connections[:4])} == {NeedsReauth}
    house.clock.advance(600)
    assert {type(error) for error in await _die(house, lifecycle, connections[4:8])} == {NeedsReauth}


async def test_while_verdicts_are_held_a_token_that_the_look_up_refuses_stays_at_home(house: House) -> None:
    """An old database put back: what probes find is not made worse by presenting spent tokens."""
    connections = await _fleet(house, 3, next_refresh_at=START)
    house.amo.fake.quirks.look_up_knows_spent = False
    lifecycle = house.make_lifecycle()
    await house.store.suspend_terminal(now=house.clock.now())
    house.amo.account.disabled = True
    asked = house.amo.sandbox.requests
    async with house.running(lifecycle):
        await house.pass_time(200, step=5)
    assert house.amo.sandbox.look_ups == 3
    assert house.amo.sandbox.requests == asked
    assert {(await house.now(each)).last_error for each in connections} == {"mass_failure"}


async def test_one_success_makes_the_dead_believed(house: House) -> None:
    """A probe that succeeds shows AMO, the credentials and the database to be well: the others are heard again."""
    connections = await _fleet(house, 8)
    lifecycle = house.make_lifecycle()
    await _die(house, lifecycle, connections[:6])
    house.amo.account.disabled = False
    house.clock.advance(60)
    assert (await _refresh(lifecycle, connections[6], RefreshTrigger.FORCED)).pair_version == 2
    assert "terminal_failures.resumed" in house.witness.names()
    house.amo.account.disabled = True
    assert {type(error) for error in await _die(house, lifecycle, [connections[7]])} == {NeedsReauth}


# --- accounts that are gone -----------------------------------------------------------------------


def _presented(house: House, accounts: list[SandboxAccount]) -> int:
    """Count how often tokens were presented at these accounts' hosts."""
    hosts = {account.host for account in accounts}
    return sum(entry.host in hosts for entry in house.amo.fake.ledger.refreshes())


@pytest.mark.timeout(600)
@pytest.mark.parametrize("gone", [2, 8])
async def test_accounts_that_are_gone_stop_nobody_and_their_users_are_told_after_a_day(
    house: House, gone: int, record_property: Any
) -> None:
    """In two days the breaker never opens, the other accounts stay fresh, and the dead are hardly asked any more."""
    everyone = await house.connect_accounts(40)
    dead, living = everyone[:gone], everyone[gone:]
    for account, _ in dead:
        account.gone = True
    lifecycle = house.make_lifecycle(rules=RefreshRules(poll_interval=600.0))
    async with house.running(lifecycle):
        await house.pass_days(1.25)
        first = _presented(house, [account for account, _ in dead])
        await house.pass_days(0.75)
    assert "amo_credentials.refused" not in house.witness.names()
    assert lifecycle.breaker.reason is None
    for _, connection in dead:
        after = await house.now(connection)
        assert (after.status, after.reason, after.sealed_pair) == (
            Status.NEEDS_REAUTH, Reason.REFUSED, connection.sealed_pair,
        )  # fmt: skip
        assert after.refused_since is not None
    given_up = house.witness.named("connection.needs_reauth")
    assert {(event.connection_id, event.fields["reason"]) for event in given_up} == {
        (connection.id, Reason.REFUSED) for _, connection in dead
    }
    webhooks = [one for one in await house.store.webhooks(limit=100) if one.type == "connection.needs_reauth"]
    assert len(webhooks) == gone
    for one in webhooks:
        assert one.data["reason"] == "refused"
    for _, connection in living:
        after = await house.now(connection)
        assert (after.status, after.failures, after.pair_version >= 4) == (Status.ACTIVE, 0, True)
    later = _presented(house, [account for account, _ in dead]) - first
    assert later <= gone, "a refused connection's token is presented once a day"
    assert first <= 130 * gone
    record_property("presentations of a dead account in its first 30 hours", first / gone)
    record_property("and in the next 18 hours", later / gone)


async def test_where_nobody_else_succeeds_a_refused_connection_is_kept(house: House) -> None:
    """Everyone is refused and rejected: AMO is ill, or it is our fault; after days all are still active."""
    everyone = await house.connect_accounts(3)
    for account, _ in everyone:
        account.gone = True
    lifecycle = house.make_lifecycle(rules=RefreshRules(poll_interval=1800.0, retry_base=7200.0, retry_cap=7200.0))
    async with house.running(lifecycle):
        await house.pass_days(2.5)
    for _, connection in everyone:
        after = await house.now(connection)
        assert (after.status, after.refusals >= 8) == (Status.ACTIVE, True)
    assert lifecycle.breaker.reason is None


# --- a backlog ------------------------------------------------------------------------------------


async def test_a_backlog_is_spread_by_the_rate_limit_and_whose_token_dies_first_goes_first(
    house: House, rounds: int
) -> None:
    """Everything due at once after a day's outage: so many a second, the oldest expiry first, and each once."""
    rate_limiter = RateLimiter(
        per_second=5, shared=LocalLimits(clock=house.clock), clock=house.clock, observer=house.witness
    )
    slots: list[float] = []
    sent: list[str] = []

    def slot(priority: Priority) -> Awaitable[None]:  # no coroutine function: that one waits is no traffic
        async def wait() -> None:
            await rate_limiter.slot(priority)
            slots.append(house.clock.monotonic())

        return wait()

    async def refresh(*, refresh_token: str, **more: Any) -> TokenResponse:
        sent.append(refresh_token)
        return await house.client.refresh(refresh_token=refresh_token, **more)

    connections = await _fleet(house, 20 * rounds)
    tokens = [house.pair(each).refresh_token for each in connections]
    house.clock.advance(86_400 - 1)
    amo = Override(house.client, slot=slot, refresh=refresh)
    lifecycle = house.make_lifecycle(amo=amo, rules=RefreshRules(concurrency=1))
    async with house.running(lifecycle):
        while len(house.witness.named("refresh.succeeded")) < len(connections):
            await house.pass_time(0.1, step=0.1)
    await rate_limiter.close()
    assert sent == tokens
    assert all(sixth - first >= 0.999 for first, sixth in zip(slots, slots[5:], strict=False))
    assert house.amo.fake.ledger.doubles() == 0
