"""The address block: how it is detected, which requests are sent meanwhile, and what ends it."""

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

_RETRY_CAP = 900.0
"""The default `refresh.retry_cap`."""


async def _connect(harness: RefreshHarness, size: int, **more: Any) -> list[Connection]:
    """Connect users, each at a separate host unless one is given, the last one latest."""
    return [connection for _, connection in await harness.connect_accounts(size, **more)]


async def _suspect_block(harness: RefreshHarness) -> list[Connection]:
    """Connect four users, and have the first two refused."""
    connections = await _connect(harness, 4)
    for connection in connections[:2]:
        await harness.fail(connection, AmoCallbackError, Fault.BLOCKED)
    return connections


async def _run_for(
    harness: RefreshHarness, lifecycle: TokenLifecycle, seconds: float = 5.0, *, step: float = 5.0
) -> None:
    """Run a process for `seconds`, and stop it."""
    async with harness.running(lifecycle):
        await harness.pass_time(seconds, step=step)


async def _connect_blocked(
    harness: RefreshHarness, lifecycle: TokenLifecycle | None = None, size: int = 4, **more: Any
) -> list[Connection]:
    """Connect users, have AMO block the address, and detect the block."""
    connections = await _connect(harness, size, **more)
    _block_address(harness)
    await _detect_block(harness, lifecycle or harness.lifecycle, connections)
    return connections


async def _detect_block(harness: RefreshHarness, lifecycle: TokenLifecycle, connections: list[Connection]) -> None:
    """Have two connections refused, and then the latest connection, whose refusal confirms the block."""
    demands = (RefreshTrigger.SCHEDULE, RefreshTrigger.SCHEDULE, RefreshTrigger.PROBE)
    for connection, trigger in zip((*connections[:2], connections[-1]), demands, strict=True):
        await harness.fail(connection, AccountBlocked, by=lifecycle.coordinator, trigger=trigger)
    assert _is_blocked(lifecycle)


def _is_blocked(lifecycle: TokenLifecycle) -> bool:
    return lifecycle.breaker.address_block.block is not None


def _is_suspected_or_blocked(lifecycle: TokenLifecycle) -> bool:
    """Return whether only probes are refreshed."""
    return lifecycle.breaker.address_block.reason is not None


def _block_address(harness: RefreshHarness) -> None:
    """Have AMO answer every request with 403 and HTML."""
    harness.amo.sandbox.faults.persistent = harness.amo.sandbox.introspection_faults.persistent = Fault.BLOCKED


def _unblock_address(harness: RefreshHarness) -> None:
    harness.amo.sandbox.faults.persistent = harness.amo.sandbox.introspection_faults.persistent = None


def _presented_numbers(harness: RefreshHarness, connections: list[Connection], since: int) -> list[int]:
    """Return the indexes of the connections whose tokens were presented after the first `since` refreshes."""
    numbers = {harness.pair(connection).refresh_token: number for number, connection in enumerate(connections)}
    return [numbers[entry.presented] for entry in harness.presented()[since:]]


async def test_address_block_limits_requests_to_one_probe_per_retry_cap(
    harness: RefreshHarness, record_property: Callable[[str, object], None]
) -> None:
    """For 200 due connections at most 18 requests are sent before the block is found, then 96 probes in a day."""
    connections = await _connect(harness, 200, next_refresh_at=START)
    _block_address(harness)
    before = harness.count_requests()
    async with harness.running(harness.lifecycle):
        await harness.pass_time(60, step=5)
        opened = harness.count_requests() - before
        await harness.pass_time(DAY, step=300)
    record_property("requests that show the block", opened)
    record_property("requests in the day after that", harness.count_requests() - before - opened)
    assert opened <= 16 + 2  # plus the replacement of the first refused refresh, and the confirming refresh
    assert harness.count_requests() - before - opened == DAY / _RETRY_CAP
    assert harness.amo.sandbox.introspections == 0
    probes = _presented_numbers(harness, connections, opened)
    assert len(set(probes)) == len(probes)
    assert harness.witness.names().count("amo_blocked.started") == 1


@pytest.mark.parametrize("fault", [Fault.BLOCKED, Fault.ACCOUNT_BLOCKED])
async def test_address_block_is_confirmed_by_latest_successful_connection(
    harness: RefreshHarness, fault: Fault
) -> None:
    """Two hosts without problem+json, or three connections with it, cause one confirming refresh."""
    connections = await _connect(harness, 5)
    enough = 2 if fault is Fault.BLOCKED else 3
    for connection in connections[:enough]:
        await harness.fail(connection, AmoCallbackError, fault)
    assert _is_suspected_or_blocked(harness.lifecycle)
    assert not _is_blocked(harness.lifecycle)
    harness.amo.sandbox.faults.persistent = fault
    await _run_for(harness, harness.lifecycle)
    assert _presented_numbers(harness, connections, 0) == [*range(enough), 4]
    assert _is_blocked(harness.lifecycle)
    [started] = harness.witness.named("amo_blocked.started")
    assert set(started.fields) == {"since", "next_probe_at"}


async def test_address_block_suspected_rejects_other_refreshes(harness: RefreshHarness) -> None:
    """While a block is suspected, refreshes by the scheduler and by callers are rejected for one second."""
    connections = await _suspect_block(harness)
    for trigger in (RefreshTrigger.SCHEDULE, RefreshTrigger.HAND_OUT, RefreshTrigger.FORCED):
        refused = await harness.fail(connections[2], NotYet, trigger=trigger)
        assert (type(refused), refused.retry_after) == (NotYet, 1.0)


async def test_address_block_too_few_refusals_are_not_suspected(harness: RefreshHarness) -> None:
    """Refusals of one host, or of two connections with problem+json, do not raise the suspicion."""
    one, two = await _connect(harness, 2, host="shared.amocrm.ru")
    for connection in (one, two, one):
        harness.clock.advance(_RETRY_CAP)
        await harness.fail(connection, AmoCallbackError, Fault.BLOCKED)
    assert not _is_suspected_or_blocked(harness.lifecycle)
    await harness.lifecycle.breaker.address_block.succeeded()
    for connection in await _connect(harness, 2):
        await harness.fail(connection, AmoCallbackError, Fault.ACCOUNT_BLOCKED)
    assert not _is_suspected_or_blocked(harness.lifecycle)


async def test_address_block_success_between_refusals_resets_count(harness: RefreshHarness) -> None:
    """A success resets the count of refusing hosts."""
    connections = await _connect(harness, 4)
    await harness.fail(connections[0], AmoCallbackError, Fault.BLOCKED)
    await harness.refresh(connections[1])
    await harness.fail(connections[2], AmoCallbackError, Fault.BLOCKED)
    assert not _is_suspected_or_blocked(harness.lifecycle)
    await harness.fail(connections[3], AmoCallbackError, Fault.BLOCKED)
    assert _is_suspected_or_blocked(harness.lifecycle)


@pytest.mark.parametrize("fault", [Fault.BLOCKED, Fault.ACCOUNT_BLOCKED])
async def test_address_block_one_refused_account_is_not_suspected(harness: RefreshHarness, fault: Fault) -> None:
    """One account that is refused for a day does not raise the suspicion."""
    blocked, *others = await _connect(harness, 5, next_refresh_at=START)
    for _ in range(round(DAY / _RETRY_CAP)):
        await harness.fail(blocked, AccountBlocked, fault)
        harness.clock.advance(_RETRY_CAP)
    for other in others:
        await harness.refresh(other)
    assert harness.witness.named("amo_blocked.started") == []
    assert not _is_suspected_or_blocked(harness.lifecycle)


@pytest.mark.parametrize("answer", [None, Fault.HTTP_500, Fault.UNPAID, Fault.TEAPOT])
async def test_address_block_confirmation_without_403_drops_suspicion(
    harness: RefreshHarness, answer: Fault | None
) -> None:
    """Any answer to the confirming refresh except 403 drops the suspicion."""
    connections = await _suspect_block(harness)
    harness.amo.sandbox.faults.add(*([answer] if answer else []))
    with suppress(AmoCallbackError):
        await harness.refresh(connections[3], trigger=RefreshTrigger.PROBE)
    assert len(harness.presented()) == 3
    assert not _is_suspected_or_blocked(harness.lifecycle)
    assert (await harness.refresh(connections[2])).pair_version == 2
    assert harness.witness.named("amo_blocked.started") == []


async def test_address_block_unsent_confirmation_uses_next_connection(harness: RefreshHarness) -> None:
    """The next latest connection confirms the block if the latest belongs to another `client_id`."""
    connections = await _connect(harness, 3)
    await _connect(harness, 1, host="foreign.amocrm.ru", client_id="another")
    _block_address(harness)
    for connection in connections[:2]:
        await harness.fail(connection, AccountBlocked)
    await _run_for(harness, harness.lifecycle, 15)
    assert _presented_numbers(harness, connections, 0) == [0, 1, 2]
    assert _is_blocked(harness.lifecycle)


async def test_address_block_suspicion_without_confirmable_connection_is_dropped(harness: RefreshHarness) -> None:
    """The suspicion is dropped if every connection is frozen."""
    connections = await _connect(harness, 2)
    for connection in connections:
        await harness.fail(connection, AmoCallbackError, Fault.BLOCKED)
        await harness.lifecycle.freeze_switch.freeze(await harness.now(connection))
    await _run_for(harness, harness.lifecycle, 10)
    assert not _is_suspected_or_blocked(harness.lifecycle)
    assert len(harness.presented()) == 2


async def test_address_block_refused_exchange_or_introspection_is_not_counted(harness: RefreshHarness) -> None:
    """A 403 to an exchange or an introspection does not raise the suspicion."""
    connections = await _connect(harness, 4)
    _block_address(harness)
    for connection in connections:
        with pytest.raises(AccountBlocked):
            await harness.client.exchange(code=b"code", domain=connection.domain, not_after=math.inf)
        found = open_connection(connection, harness.lifecycle.core)
        state = await harness.lifecycle.access_token_check.state_of(found, in_doubt=True)
        assert state is TokenState.UNKNOWN
    assert harness.amo.sandbox.introspections == 4
    assert not _is_suspected_or_blocked(harness.lifecycle)


async def test_address_block_callers_get_time_of_next_probe(harness: RefreshHarness) -> None:
    """Callers get the time of the next probe, and the valid token is handed out as stale."""
    connections = await _connect_blocked(harness)
    sent = harness.count_requests()
    for trigger in (RefreshTrigger.SCHEDULE, RefreshTrigger.HAND_OUT, RefreshTrigger.FORCED, RefreshTrigger.TRIAL):
        refused = await harness.fail(connections[2], AddressBlocked, trigger=trigger)
        assert _RETRY_CAP - 10 <= refused.retry_after <= _RETRY_CAP
    harness.clock.advance(DAY / 2)
    handed_out = await harness.lifecycle.access_tokens.token(connections[2].id, min_ttl=DAY)
    assert (handed_out.stale, handed_out.reason) == (True, "amo_blocked")
    harness.clock.advance(DAY)
    with pytest.raises(AddressBlocked):
        await harness.lifecycle.access_tokens.token(connections[2].id, min_ttl=0)
    assert harness.count_requests() == sent


@pytest.mark.parametrize("answer", [Fault.BLOCKED, Fault.TEAPOT])
async def test_address_block_probes_are_ordered_by_latest_success(harness: RefreshHarness, answer: Fault) -> None:
    """Each probe is another connection, in the order of the latest successes, then from the start."""
    connections = await _connect_blocked(harness)
    sent = len(harness.presented())
    harness.amo.sandbox.faults.persistent = answer
    await _run_for(harness, harness.lifecycle, 7.5 * _RETRY_CAP, step=50)
    # Connection 3 was refreshed last and has confirmed the block.
    assert _presented_numbers(harness, connections, sent) == [2, 1, 0, 3, 2, 1, 0]
    assert _is_blocked(harness.lifecycle)


async def test_address_block_forced_refresh_may_be_probe_once(harness: RefreshHarness) -> None:
    """A forced refresh may be the due probe, but not the same connection twice."""
    connections = await _connect_blocked(harness)
    harness.clock.advance(_RETRY_CAP)
    sent = harness.count_requests()
    await harness.fail(connections[2], AccountBlocked, trigger=RefreshTrigger.FORCED)
    await harness.fail(connections[1], AddressBlocked, trigger=RefreshTrigger.PROBE)
    harness.clock.advance(_RETRY_CAP)
    await harness.fail(connections[2], AddressBlocked, trigger=RefreshTrigger.FORCED)
    assert harness.count_requests() == sent + 1


async def test_address_block_waiting_scheduled_refresh_is_not_probe(harness: RefreshHarness) -> None:
    """A scheduled refresh that waited while the block was found is rejected and takes no probe."""
    connections = await _connect_blocked(harness)
    harness.clock.advance(_RETRY_CAP)
    address_block = harness.lifecycle.breaker.address_block
    with pytest.raises(AddressBlocked):
        await address_block.reserve_probe(connections[2].id, trigger=RefreshTrigger.SCHEDULE)
    assert address_block.probe_in == 0


async def test_address_block_stops_introspection(harness: RefreshHarness) -> None:
    """Neither a daily recheck nor a token check is sent, and a token in doubt is handed out as stale."""
    rejected = await harness.connect_revoked()
    await _connect_blocked(harness)
    asked = harness.amo.sandbox.introspections
    handed_out = await harness.lifecycle.access_tokens.token(rejected.id, min_ttl=0)
    assert (handed_out.stale, handed_out.reason) == (True, "in_doubt")
    await _run_for(harness, harness.lifecycle, 1.1 * DAY, step=900)
    assert present((await harness.now(rejected)).recheck_at) <= harness.clock.now()
    assert harness.amo.sandbox.introspections == asked


async def test_address_block_probe_in_doubt_is_introspected_only(harness: RefreshHarness) -> None:
    """An introspection of a token in doubt is the probe, and the next probe is another connection."""
    connections = await _connect(harness, 4)
    await harness.fail(connections[2], AmoCallbackError, Fault.HTTP_500)
    _block_address(harness)
    await _detect_block(harness, harness.lifecycle, connections)
    sent, asked = len(harness.presented()), harness.amo.sandbox.introspections
    async with harness.running(harness.lifecycle):
        await harness.pass_time(1.5 * _RETRY_CAP, step=15)
        assert _presented_numbers(harness, connections, sent) == []
        assert harness.amo.sandbox.introspections == asked + 1
        await harness.pass_time(_RETRY_CAP, step=15)
    assert _presented_numbers(harness, connections, sent) == [1]
    assert harness.amo.sandbox.introspections == asked + 1


async def test_address_block_successful_refresh_ends_it(harness: RefreshHarness) -> None:
    """A successful probe ends the block for all processes, and all due connections are refreshed."""
    lifecycle, other = harness.make_lifecycle(), harness.make_lifecycle(process="process-2")
    connections = await _connect_blocked(harness, lifecycle, next_refresh_at=START)
    await other.breaker.watch()
    _unblock_address(harness)
    await _run_for(harness, lifecycle, 2 * _RETRY_CAP, step=20)
    assert {(await harness.now(connection)).pair_version for connection in connections} == {2}
    [ended] = harness.witness.named("amo_blocked.ended")
    assert set(ended.fields) == {"since"}
    assert _is_suspected_or_blocked(other)
    await other.breaker.watch()
    assert not _is_suspected_or_blocked(other)


async def test_address_block_without_probe_candidates_ends(harness: RefreshHarness) -> None:
    """A block ends if no connection can be the probe, because nothing else could end it."""
    lifecycle = harness.lifecycle
    connections = await _connect_blocked(harness, lifecycle)
    for connection in connections:
        assert await harness.store.disconnect(await harness.now(connection), on_request=True)
    await _run_for(harness, lifecycle, 900, step=60)
    assert not _is_blocked(lifecycle)
    assert await harness.store.amo_block() is None


async def test_address_block_end_not_stored_is_repeated_at_next_success(harness: RefreshHarness) -> None:
    """A block whose end cannot be stored continues until the next success."""
    connections = await _connect_blocked(harness)
    harness.failing.away = {"end_amo_block"}
    await harness.lifecycle.breaker.address_block.succeeded()
    assert _is_blocked(harness.lifecycle)
    harness.failing.away = set()
    _unblock_address(harness)
    harness.clock.advance(_RETRY_CAP)
    await harness.refresh(connections[2], trigger=RefreshTrigger.PROBE)
    assert not _is_blocked(harness.lifecycle)
    assert await harness.store.amo_block() is None


async def test_address_block_after_restart_sends_only_probes(harness: RefreshHarness) -> None:
    """A restarted process reads the block from the store and sends nothing before the next probe."""
    await _connect_blocked(harness, harness.make_lifecycle(), 8, next_refresh_at=START)
    sent = harness.count_requests()
    for _ in range(3):
        await _run_for(harness, harness.make_lifecycle(), 60, step=5)
    assert harness.count_requests() == sent
    await _run_for(harness, harness.make_lifecycle(), 2 * _RETRY_CAP, step=20)
    assert harness.count_requests() == sent + 2


async def test_address_block_probe_is_shared_by_processes(harness: RefreshHarness) -> None:
    """Two processes together send one probe per `retry_cap`."""
    lifecycle, other = harness.make_lifecycle(), harness.make_lifecycle(process="process-2")
    await _connect_blocked(harness, lifecycle, 20, next_refresh_at=START)
    sent = harness.count_requests()
    async with harness.running(other):
        await _run_for(harness, lifecycle, 8 * _RETRY_CAP, step=25)
    assert 7 <= harness.count_requests() - sent <= 8


async def test_address_block_stored_block_prevents_second_confirmation(harness: RefreshHarness) -> None:
    """A process that suspects a block reads the stored block and presents no token to confirm it."""
    lifecycle, other = harness.make_lifecycle(), harness.make_lifecycle(process="process-2")
    connections = await _connect(harness, 6)
    _block_address(harness)
    for connection in connections[2:4]:
        await harness.fail(connection, AccountBlocked, by=other.coordinator)
    await _detect_block(harness, lifecycle, connections)
    assert not _is_blocked(other)
    await _run_for(harness, other)
    assert _is_blocked(other)
    assert len(harness.presented()) == 5


async def test_address_block_confirmation_waiting_for_slot_is_not_sent(
    harness: RefreshHarness,
) -> None:
    """A confirming refresh is not sent if another process stores the block during its slot wait."""
    queue = QueueingClient(harness.client)
    queue.served.set()
    lifecycle, other = harness.make_lifecycle(), harness.make_lifecycle(process="process-2", amo=queue)
    connections = await _connect(harness, 6)
    _block_address(harness)
    for refused in connections[2:4]:
        await harness.fail(refused, AccountBlocked, by=other.coordinator)
    queue.asked.clear()
    queue.served.clear()
    confirming = harness.begin(connections[4], by=other.coordinator, trigger=RefreshTrigger.PROBE)
    await queue.asked.wait()
    await _detect_block(harness, lifecycle, connections)
    await other.breaker.watch()
    sent = harness.count_requests()
    queue.served.set()
    with pytest.raises(AddressBlocked):
        await confirming
    assert harness.count_requests() == sent
