"""AMO blocks our address: what is taken for a block, what leaves while it lasts, and what ends it."""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from amo_callback.amo.sandbox.app import Fault
from amo_callback.errors import AccountBlocked, AddressBlocked, AmoCallbackError, NotYet
from amo_callback.model import Connection, RefreshTrigger, TokenState
from amo_callback.tokens.cache import open_connection
from amo_callback.tokens.lifecycle import TokenLifecycle
from tests.builders import present
from tests.fakes import START
from tests.refresh.harness import DAY, QueueingClient, RefreshHarness

_CAP = 900.0
"""The default `refresh.retry_cap`."""


async def _fleet(harness: RefreshHarness, size: int, **more: Any) -> list[Connection]:
    """Connect so many users, each at a host of their own unless one is given, the last one latest."""
    return [connection for _, connection in await harness.connect_accounts(size, **more)]


async def _suspected(harness: RefreshHarness) -> list[Connection]:
    """Connect four users, and have the first two refused."""
    connections = await _fleet(harness, 4)
    for connection in connections[:2]:
        await harness.fail(connection, AmoCallbackError, Fault.BLOCKED)
    return connections


async def _run(harness: RefreshHarness, lifecycle: TokenLifecycle, seconds: float = 5.0, *, step: float = 5.0) -> None:
    """Run a process for so long, and stop it."""
    async with harness.running(lifecycle):
        await harness.pass_time(seconds, step=step)


async def _blocked(
    harness: RefreshHarness, lifecycle: TokenLifecycle | None = None, size: int = 4, **more: Any
) -> list[Connection]:
    """Have AMO block our address, and the block found."""
    connections = await _fleet(harness, size, **more)
    _block(harness)
    await _find_block(harness, lifecycle or harness.lifecycle, connections)
    return connections


async def _find_block(harness: RefreshHarness, lifecycle: TokenLifecycle, connections: list[Connection]) -> None:
    """Have two connections refused, and the one connected last, which confirms the block."""
    demands = (RefreshTrigger.SCHEDULE, RefreshTrigger.SCHEDULE, RefreshTrigger.PROBE)
    for connection, trigger in zip((*connections[:2], connections[-1]), demands, strict=True):
        await harness.fail(connection, AccountBlocked, by=lifecycle.coordinator, trigger=trigger)
    assert _is_blocked(lifecycle)


def _is_blocked(lifecycle: TokenLifecycle) -> bool:
    return lifecycle.breaker.address_block.block is not None


def _is_closed(lifecycle: TokenLifecycle) -> bool:
    """Return whether nothing but a probe is refreshed: the address is blocked, or a block is suspected."""
    return lifecycle.breaker.address_block.reason is not None


def _block(harness: RefreshHarness) -> None:
    """Have AMO answer 403 with HTML to everything."""
    harness.amo.sandbox.faults.persistent = harness.amo.sandbox.introspection_faults.persistent = Fault.BLOCKED


def _unblock(harness: RefreshHarness) -> None:
    harness.amo.sandbox.faults.persistent = harness.amo.sandbox.introspection_faults.persistent = None


def _left(harness: RefreshHarness) -> int:
    """Count the requests of any kind that AMO has seen."""
    return harness.amo.sandbox.requests + harness.amo.sandbox.introspections


def _presented(harness: RefreshHarness, connections: list[Connection], since: int) -> list[int]:
    """Return whose refresh tokens were presented after so many refreshes, by their place in the list."""
    numbers = {harness.pair(connection).refresh_token: number for number, connection in enumerate(connections)}
    return [numbers[entry.presented] for entry in harness.presented()[since:]]


async def test_a_blocked_address_sends_the_few_that_show_it_and_then_a_probe_per_retry_cap(
    harness: RefreshHarness, record_property: Callable[[str, object], None]
) -> None:
    """Of 200 connections that are due, those under way and two more are sent, then 96 probes in a day."""
    connections = await _fleet(harness, 200, next_refresh_at=START)
    _block(harness)
    before = _left(harness)
    async with harness.running(harness.lifecycle):
        await harness.pass_time(60, step=5)
        opened = _left(harness) - before
        await harness.pass_time(DAY, step=300)
    record_property("requests that show the block", opened)
    record_property("requests in the day after that", _left(harness) - before - opened)
    assert opened <= 16 + 2  # one in the place of the first refusal, and the one that confirms the block
    assert _left(harness) - before - opened == DAY / _CAP
    assert harness.amo.sandbox.introspections == 0
    probes = _presented(harness, connections, opened)
    assert len(set(probes)) == len(probes)
    assert harness.witness.names().count("amo_blocked.started") == 1


@pytest.mark.parametrize("fault", [Fault.BLOCKED, Fault.ACCOUNT_BLOCKED])
async def test_enough_refusals_and_that_of_the_latest_success_are_a_block(
    harness: RefreshHarness, fault: Fault
) -> None:
    """Two hosts without problem+json, or three connections with it: one more request is sent, of the latest success."""
    connections = await _fleet(harness, 5)
    enough = 2 if fault is Fault.BLOCKED else 3
    for connection in connections[:enough]:
        await harness.fail(connection, AmoCallbackError, fault)
    assert _is_closed(harness.lifecycle)
    assert not _is_blocked(harness.lifecycle)
    harness.amo.sandbox.faults.persistent = fault
    await _run(harness, harness.lifecycle)
    assert _presented(harness, connections, 0) == [*range(enough), 4]
    assert _is_blocked(harness.lifecycle)
    [started] = harness.witness.named("amo_blocked.started")
    assert set(started.fields) == {"since", "next_probe_at"}


async def test_while_a_block_is_suspected_nothing_but_the_confirming_refresh_is_sent(harness: RefreshHarness) -> None:
    """Neither the schedule nor a caller refreshes meanwhile; callers wait a second."""
    connections = await _suspected(harness)
    for trigger in (RefreshTrigger.SCHEDULE, RefreshTrigger.HAND_OUT, RefreshTrigger.FORCED):
        refused = await harness.fail(connections[2], NotYet, trigger=trigger)
        assert (type(refused), refused.retry_after) == (NotYet, 1.0)


async def test_a_block_is_not_suspected_before_enough_refusals(harness: RefreshHarness) -> None:
    """Two connections of one host, or two that AMO refuses in its own problem+json, are refused each for itself."""
    one, two = await _fleet(harness, 2, host="shared.amocrm.ru")
    for connection in (one, two, one):
        harness.clock.advance(_CAP)
        await harness.fail(connection, AmoCallbackError, Fault.BLOCKED)
    assert not _is_closed(harness.lifecycle)
    await harness.lifecycle.breaker.address_block.succeeded()
    for connection in await _fleet(harness, 2):
        await harness.fail(connection, AmoCallbackError, Fault.ACCOUNT_BLOCKED)
    assert not _is_closed(harness.lifecycle)


async def test_a_success_between_the_refusals_forgets_them(harness: RefreshHarness) -> None:
    """A second host that refuses after a success is again the first."""
    connections = await _fleet(harness, 4)
    await harness.fail(connections[0], AmoCallbackError, Fault.BLOCKED)
    await harness.refresh(connections[1])
    await harness.fail(connections[2], AmoCallbackError, Fault.BLOCKED)
    assert not _is_closed(harness.lifecycle)
    await harness.fail(connections[3], AmoCallbackError, Fault.BLOCKED)
    assert _is_closed(harness.lifecycle)


@pytest.mark.parametrize("fault", [Fault.BLOCKED, Fault.ACCOUNT_BLOCKED])
async def test_one_blocked_account_among_others_is_no_block(harness: RefreshHarness, fault: Fault) -> None:
    """It is refused once per retry cap for a day, while the others are refreshed."""
    blocked, *others = await _fleet(harness, 5, next_refresh_at=START)
    for _ in range(round(DAY / _CAP)):
        await harness.fail(blocked, AccountBlocked, fault)
        harness.clock.advance(_CAP)
    for other in others:
        await harness.refresh(other)
    assert harness.witness.named("amo_blocked.started") == []
    assert not _is_closed(harness.lifecycle)


@pytest.mark.parametrize("answer", [None, Fault.HTTP_500, Fault.UNPAID, Fault.TEAPOT])
async def test_any_other_answer_to_the_confirmation_drops_the_suspicion(
    harness: RefreshHarness, answer: Fault | None
) -> None:
    """Only a 403 confirms it; after a pair, or any other refusal, the others are refreshed again."""
    connections = await _suspected(harness)
    harness.amo.sandbox.faults.add(*([answer] if answer else []))
    with suppress(AmoCallbackError):
        await harness.refresh(connections[3], trigger=RefreshTrigger.PROBE)
    assert len(harness.presented()) == 3
    assert not _is_closed(harness.lifecycle)
    assert (await harness.refresh(connections[2])).pair_version == 2
    assert harness.witness.named("amo_blocked.started") == []


async def test_a_suspicion_goes_on_where_the_confirming_refresh_was_not_sent(harness: RefreshHarness) -> None:
    """A pair of another client id is never presented: the next latest success confirms the block."""
    connections = await _fleet(harness, 3)
    await _fleet(harness, 1, host="foreign.amocrm.ru", client_id="another")
    _block(harness)
    for connection in connections[:2]:
        await harness.fail(connection, AccountBlocked)
    await _run(harness, harness.lifecycle, 15)
    assert _presented(harness, connections, 0) == [0, 1, 2]
    assert _is_blocked(harness.lifecycle)


async def test_a_suspicion_that_no_connection_can_confirm_is_dropped(harness: RefreshHarness) -> None:
    """With every connection frozen nothing can be presented, and nothing stays suspected."""
    connections = await _fleet(harness, 2)
    for connection in connections:
        await harness.fail(connection, AmoCallbackError, Fault.BLOCKED)
        await harness.lifecycle.freeze_switch.freeze(await harness.now(connection))
    await _run(harness, harness.lifecycle, 10)
    assert not _is_closed(harness.lifecycle)
    assert len(harness.presented()) == 2


async def test_refused_exchanges_and_questions_never_suspect_a_block(harness: RefreshHarness) -> None:
    """403 to codes, and to questions about tokens, says nothing of refreshes."""
    connections = await _fleet(harness, 4)
    _block(harness)
    for connection in connections:
        with pytest.raises(AccountBlocked):
            await harness.client.exchange(code=b"code", domain=connection.domain, not_after=math.inf)
        found = open_connection(connection, harness.lifecycle.core)
        state = await harness.lifecycle.access_token_check.state_of(found, in_doubt=True)
        assert state is TokenState.UNKNOWN
    assert harness.amo.sandbox.introspections == 4
    assert not _is_closed(harness.lifecycle)


async def test_while_blocked_callers_are_told_when_the_next_probe_leaves(harness: RefreshHarness) -> None:
    """Neither the schedule nor a hand-out is the probe; the token at hand is handed out as stale."""
    connections = await _blocked(harness)
    sent = _left(harness)
    for trigger in (RefreshTrigger.SCHEDULE, RefreshTrigger.HAND_OUT, RefreshTrigger.FORCED, RefreshTrigger.TRIAL):
        refused = await harness.fail(connections[2], AddressBlocked, trigger=trigger)
        assert _CAP - 10 <= refused.retry_after <= _CAP
    harness.clock.advance(DAY / 2)
    handed_out = await harness.lifecycle.access_tokens.token(connections[2].id, min_ttl=DAY)
    assert (handed_out.stale, handed_out.reason) == (True, "amo_blocked")
    harness.clock.advance(DAY)
    with pytest.raises(AddressBlocked):
        await harness.lifecycle.access_tokens.token(connections[2].id, min_ttl=0)
    assert _left(harness) == sent


@pytest.mark.parametrize("answer", [Fault.BLOCKED, Fault.TEAPOT])
async def test_probes_go_to_the_latest_success_first_and_to_another_each_time(
    harness: RefreshHarness, answer: Fault
) -> None:
    """Each connection once in the order of their last successes, then again, as long as AMO's answer has no pair."""
    connections = await _blocked(harness)
    sent = len(harness.presented())
    harness.amo.sandbox.faults.persistent = answer
    await _run(harness, harness.lifecycle, 7.5 * _CAP, step=50)
    # The one refreshed last, 3, was presented to confirm the block.
    assert _presented(harness, connections, sent) == [2, 1, 0, 3, 2, 1, 0]
    assert _is_blocked(harness.lifecycle)


async def test_a_forced_refresh_may_be_the_probe_but_not_the_same_one_twice(harness: RefreshHarness) -> None:
    """It is sent when a probe may leave; then nothing is for a retry cap, and the next one is another."""
    connections = await _blocked(harness)
    harness.clock.advance(_CAP)
    sent = _left(harness)
    await harness.fail(connections[2], AccountBlocked, trigger=RefreshTrigger.FORCED)
    await harness.fail(connections[1], AddressBlocked, trigger=RefreshTrigger.PROBE)
    harness.clock.advance(_CAP)
    await harness.fail(connections[2], AddressBlocked, trigger=RefreshTrigger.FORCED)
    assert _left(harness) == sent + 1


async def test_a_refresh_that_waited_while_the_block_was_found_is_not_the_probe(harness: RefreshHarness) -> None:
    """It was begun before, and is given up at its last look; the probe stays for the schedule."""
    connections = await _blocked(harness)
    harness.clock.advance(_CAP)
    address_block = harness.lifecycle.breaker.address_block
    with pytest.raises(AddressBlocked):
        await address_block.reserve_probe(connections[2].id, trigger=RefreshTrigger.SCHEDULE)
    assert address_block.probe_in == 0


async def test_while_blocked_no_question_is_asked(harness: RefreshHarness) -> None:
    """Neither a daily look-up nor a question about a token in doubt leaves, which is handed out as stale."""
    given_up = await harness.given_up()
    await _blocked(harness)
    asked = harness.amo.sandbox.introspections
    handed_out = await harness.lifecycle.access_tokens.token(given_up.id, min_ttl=0)
    assert (handed_out.stale, handed_out.reason) == (True, "in_doubt")
    await _run(harness, harness.lifecycle, 1.1 * DAY, step=900)
    assert present((await harness.now(given_up)).recheck_at) <= harness.clock.now()
    assert harness.amo.sandbox.introspections == asked


async def test_a_probe_in_doubt_asks_before_it_presents(harness: RefreshHarness) -> None:
    """The question is the probe: without an answer nothing is presented, and the next probe is another connection."""
    connections = await _fleet(harness, 4)
    await harness.fail(connections[2], AmoCallbackError, Fault.HTTP_500)
    _block(harness)
    await _find_block(harness, harness.lifecycle, connections)
    sent, asked = len(harness.presented()), harness.amo.sandbox.introspections
    async with harness.running(harness.lifecycle):
        await harness.pass_time(1.5 * _CAP, step=15)
        assert _presented(harness, connections, sent) == []
        assert harness.amo.sandbox.introspections == asked + 1
        await harness.pass_time(_CAP, step=15)
    assert _presented(harness, connections, sent) == [1]
    assert harness.amo.sandbox.introspections == asked + 1


async def test_a_refresh_that_succeeds_ends_the_block(harness: RefreshHarness) -> None:
    """The probe brings a pair: all the others that are due are refreshed at once, and other processes see it."""
    lifecycle, other = harness.make_lifecycle(), harness.make_lifecycle(process="process-2")
    connections = await _blocked(harness, lifecycle, next_refresh_at=START)
    await other.breaker.watch()
    _unblock(harness)
    await _run(harness, lifecycle, 2 * _CAP, step=20)
    assert {(await harness.now(connection)).pair_version for connection in connections} == {2}
    [ended] = harness.witness.named("amo_blocked.ended")
    assert set(ended.fields) == {"since"}
    assert _is_closed(other)
    await other.breaker.watch()
    assert not _is_closed(other)


async def test_a_block_ends_where_no_connection_can_be_the_probe(harness: RefreshHarness) -> None:
    """No refresh is left to hold back, and nothing else could end it: look-ups may heal the others again."""
    lifecycle = harness.lifecycle
    connections = await _blocked(harness, lifecycle)
    for connection in connections:
        assert await harness.store.disconnect(await harness.now(connection), on_request=True)
    await _run(harness, lifecycle, 900, step=60)
    assert not _is_blocked(lifecycle)
    assert await harness.store.amo_block() is None


async def test_a_block_that_cannot_be_ended_in_the_store_ends_with_the_next_success(harness: RefreshHarness) -> None:
    """While the store is away it stays, here as in the store."""
    connections = await _blocked(harness)
    harness.failing.away = {"end_amo_block"}
    await harness.lifecycle.breaker.address_block.succeeded()
    assert _is_blocked(harness.lifecycle)
    harness.failing.away = set()
    _unblock(harness)
    harness.clock.advance(_CAP)
    await harness.refresh(connections[2], trigger=RefreshTrigger.PROBE)
    assert not _is_blocked(harness.lifecycle)
    assert await harness.store.amo_block() is None


async def test_after_a_restart_nothing_but_the_probe_is_sent(harness: RefreshHarness) -> None:
    """The block is in the store: a new process sends nothing until the next probe may leave."""
    await _blocked(harness, harness.make_lifecycle(), 8, next_refresh_at=START)
    sent = _left(harness)
    for _ in range(3):
        await _run(harness, harness.make_lifecycle(), 60, step=5)
    assert _left(harness) == sent
    await _run(harness, harness.make_lifecycle(), 2 * _CAP, step=20)
    assert _left(harness) == sent + 2


async def test_two_processes_share_the_one_probe(harness: RefreshHarness) -> None:
    """The store gives it to one of them; a day of both sends no more than a day of one."""
    lifecycle, other = harness.make_lifecycle(), harness.make_lifecycle(process="process-2")
    await _blocked(harness, lifecycle, 20, next_refresh_at=START)
    sent = _left(harness)
    async with harness.running(other):
        await _run(harness, lifecycle, 8 * _CAP, step=25)
    assert 7 <= _left(harness) - sent <= 8


async def test_a_second_process_finds_a_block_in_the_store_before_it_confirms_its_own(harness: RefreshHarness) -> None:
    """It has seen two refusals, too: it presents nothing more."""
    lifecycle, other = harness.make_lifecycle(), harness.make_lifecycle(process="process-2")
    connections = await _fleet(harness, 6)
    _block(harness)
    for connection in connections[2:4]:
        await harness.fail(connection, AccountBlocked, by=other.coordinator)
    await _find_block(harness, lifecycle, connections)
    assert not _is_blocked(other)
    await _run(harness, other)
    assert _is_blocked(other)
    assert len(harness.presented()) == 5


async def test_a_confirmation_that_waited_while_another_process_found_the_block_is_not_sent(
    harness: RefreshHarness,
) -> None:
    """It was begun while this process suspected a block: the probes of a known one are reserved in the store."""
    queue = QueueingClient(harness.client)
    queue.served.set()
    lifecycle, other = harness.make_lifecycle(), harness.make_lifecycle(process="process-2", amo=queue)
    connections = await _fleet(harness, 6)
    _block(harness)
    for refused in connections[2:4]:
        await harness.fail(refused, AccountBlocked, by=other.coordinator)
    queue.asked.clear()
    queue.served.clear()
    confirming = harness.begin(connections[4], by=other.coordinator, trigger=RefreshTrigger.PROBE)
    await queue.asked.wait()
    await _find_block(harness, lifecycle, connections)
    await other.breaker.watch()
    sent = _left(harness)
    queue.served.set()
    with pytest.raises(AddressBlocked):
        await confirming
    assert _left(harness) == sent
