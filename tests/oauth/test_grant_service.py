"""Grants between processes, and at the end of one; the callback's tests show the rest from outside."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from amo_callback.amo.client import AmoClient
from amo_callback.amo.sandbox.app import Fault
from amo_callback.errors import (
    CodeUsed,
    InvalidRequest,
    RequestNotSent,
    StoreUnavailable,
    TooManyAttempts,
    UnknownOutcome,
)
from amo_callback.grant import CodePresentation, GrantResult, GrantStatus
from amo_callback.model import Status, TokenResponse, fingerprint
from amo_callback.rate_limit import Priority
from amo_callback.refresh.raw_answers import open_raw
from tests.builders import present
from tests.fakes import FakeClock, Override, answering
from tests.oauth.process import Process
from tests.service import HOST


@pytest.mark.parametrize("minutes", [0, 10, -60])
async def test_another_process_waits_for_the_exchange_and_gives_the_same_answer(
    process: Process, other: Process, minutes: int
) -> None:
    """One exchanges, both answer with the same handle: however the wall clock is stepped, the lease is waited for."""
    async with process.slow_exchange(code := process.amo.code()) as first:
        second = asyncio.create_task(other.complete(code))
        await other.clock.until_sleeping(0.25)
        other.clock.step(timedelta(minutes=minutes))
        await other.clock.tick(0.25)
        await other.clock.until_sleeping(0.25)
    assert (await first).status is GrantStatus.CONNECTED
    await _waited(other, second)
    assert await second == await first
    assert len(process.amo.fake.ledger.exchanges()) == 1


async def test_what_a_lost_process_was_exchanging_is_tried_again_after_its_lease(
    process: Process, other: Process
) -> None:
    """Who claimed a code and was not heard of again is waited for, then followed; what it writes late is nothing."""
    code = process.amo.code()
    other.connect = other.make(Deaf(process.clock, 0))
    lost = asyncio.create_task(other.complete(code))
    await process.clock.until_sleeping(600)
    waiting = asyncio.create_task(process.complete(code))
    await process.clock.until_sleeping(0.25)
    process.clock.advance(8)
    assert (await waiting).status is GrantStatus.EXCHANGING
    process.clock.advance(52)
    await _waited(process, asyncio.create_task(process.connect.drain()))
    outcome = await process.complete(code)
    assert outcome.status is GrantStatus.CONNECTED
    process.clock.advance(600)
    assert (await lost).status is GrantStatus.EXCHANGING
    await other.connect.drain()
    assert await process.complete(code) == outcome


async def _waited(process: Process, task: asyncio.Task[Any]) -> None:
    """Let time pass until a task that looks from time to time is done."""
    while not task.done():
        process.clock.advance(0.25)
        await asyncio.wait({task}, timeout=0.01)


async def _block(process: Process) -> None:
    await process.store.begin_amo_block("shown", probe_every=timedelta(minutes=15))
    await process.address_block.watch()


async def test_while_amo_blocks_our_address_one_exchange_leaves_every_ten_seconds(process: Process) -> None:
    """The first leaves at once; each of the others waits until ten seconds after the one before."""
    await _block(process)
    process.amo.sandbox.faults.persistent = Fault.BLOCKED
    callbacks = [asyncio.create_task(process.complete(process.amo.code())) for _ in range(3)]
    for sent in (1, 2):
        await asyncio.wait_for(process.amo.sandbox.until_asked(sent), 10)
        await process.clock.until_sleeping(10)
        process.clock.advance(9.9)
        await process.clock.until_sleeping(0.1)
        assert process.amo.sandbox.requests == sent
        process.clock.advance(0.1)
    await asyncio.wait_for(process.amo.sandbox.until_asked(3), 10)
    await asyncio.wait(callbacks)
    assert await process.store.amo_block() is not None


@pytest.mark.parametrize("allowed", [True, False])
async def test_an_exchange_that_succeeds_ends_the_block_of_our_address(process: Process, *, allowed: bool) -> None:
    """AMO has issued a pair, also where it is discarded because the account is not allowed."""
    rules: dict[str, Any] = {} if allowed else {"allowed_accounts": ["1"]}
    process.connect = process.make(**rules)
    await _block(process)
    outcome = await process.complete(process.amo.code())
    assert outcome.status is (GrantStatus.CONNECTED if allowed else GrantStatus.REFUSED)
    assert await process.store.amo_block() is None
    assert [event.name for event in process.witness.events if event.name.startswith("amo_blocked")] == [
        "amo_blocked.started",
        "amo_blocked.ended",
    ]


async def test_a_refused_exchange_does_not_end_the_block_of_our_address(process: Process) -> None:
    """AMO's word about a code is no success."""
    await _block(process)
    await process.complete("not AMO's")
    assert await process.store.amo_block() is not None


async def test_an_answer_without_a_readable_pair_is_kept(process: Process) -> None:
    """The code has been spent, and its pair may be in the answer: the file is found by the user's support code."""
    process.amo.sandbox.faults.add(Fault.HALF_JSON_AFTER)
    outcome = await process.complete(process.amo.code())
    assert outcome.status is GrantStatus.FAILED
    [(name, sealed)] = process.rescue.files.items()
    assert name.startswith(outcome.support)
    answer = open_raw(name, sealed, process.cipher)
    assert (answer.domain, answer.presented) == (HOST, "")
    assert b"access_token" in answer.body
    assert [event.fields["file"] for event in process.witness.named("raw_answer.kept")] == [name]
    assert process.pending_writes.names == []


async def test_a_caller_who_hangs_up_cancels_nothing(process: Process) -> None:
    """The exchange goes on, and its pair is stored."""
    async with process.slow_exchange(code := process.amo.code()) as caller:
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
    await process.connect.drain()
    assert (await process.complete(code)).status is GrantStatus.CONNECTED
    assert len(process.amo.fake.ledger.exchanges()) == 1
    assert process.woken == 1


async def test_a_store_that_is_away_spends_no_code(process: Process) -> None:
    """Where the claim cannot be written the code is not sent, and works later."""
    code = process.amo.code()
    process.failing.away = {"claim_grant"}
    with pytest.raises(StoreUnavailable):
        await process.complete(code)
    process.failing.away = set()
    assert (await process.complete(code)).status is GrantStatus.CONNECTED


async def test_a_pair_that_cannot_be_stored_is_held_until_it_can(process: Process) -> None:
    """The code is spent: its pair stays in memory, the person waits at the return address, and it lands there."""
    code = process.amo.code()
    process.failing.away = {"save_connected"}
    waiting = asyncio.create_task(process.complete(code))
    await process.witness.until("pair.write_pending")
    await process.clock.until_sleeping(8)
    await process.clock.tick(1, times=8)
    outcome = await waiting
    assert outcome.status is GrantStatus.EXCHANGING
    process.failing.away = set()
    await process.clock.tick(1)
    await process.connect.drain()
    assert (await process.connect.result(outcome.handle)).status is GrantStatus.CONNECTED


async def test_a_store_that_does_not_answer_is_told_within_the_persons_patience(process: Process) -> None:
    """Where not even the claim is written after 8 s there is no address to wait at: try again."""
    process.failing.before["grant"] = lambda _: process.clock.sleep(3600)
    waiting = asyncio.create_task(process.complete("code"))
    await process.clock.tick(8)
    with pytest.raises(StoreUnavailable):
        await waiting


class Queue:
    """AMO behind a long queue at the rate limit."""

    client_id, timeout = "c619", 15.0

    def __init__(self, clock: FakeClock, wait: float) -> None:
        self.clock, self.wait, self.sent = clock, wait, 0

    def check_domain(self, host: str | None) -> str:
        assert host == HOST
        return HOST

    async def acquire_slot(self, priority: Priority) -> None:
        assert priority is Priority.ANONYMOUS
        await self.clock.sleep(self.wait)

    async def exchange(self, **_: object) -> TokenResponse:
        self.sent += 1
        raise AssertionError


class Deaf(Queue):
    """AMO that takes ten minutes for an answer."""

    async def exchange(self, **_: object) -> TokenResponse:
        await self.clock.sleep(600)
        raise UnknownOutcome("timeout")


async def test_stopping_does_not_wait_for_the_rate_limit(process: Process) -> None:
    """At the end of the process an exchange without a slot fails unspent, and can be tried again."""
    queue = Queue(process.clock, 3600)
    process.connect = process.make(queue)
    waiting = asyncio.create_task(process.complete("code"))
    await process.clock.until_sleeping(3600)
    process.stop.set()
    await process.clock.tick(1)
    outcome = await waiting
    assert (outcome.status, outcome.error, queue.sent) == (GrantStatus.FAILED, "amo_unavailable", 0)


async def test_a_flood_from_a_few_addresses_stands_before_nobody_else(process: Process) -> None:
    """Of each address one code at a time waits for the rate limit: with four that send, another is fifth at most."""
    slots, waiting = asyncio.Queue[None](), asyncio.Queue[None]()
    sent: list[object] = []

    class Slotted(Queue):
        async def acquire_slot(self, priority: Priority) -> None:
            del priority
            waiting.put_nowait(None)
            await slots.get()

        async def exchange(self, **request: object) -> TokenResponse:
            sent.append(request["code"])
            raise CodeUsed

    process.connect = process.make(Slotted(process.clock, 0), places=100)

    def bring(code: str, address: str) -> asyncio.Task[GrantResult]:
        visit = CodePresentation(code=code.encode(), state=b"s", host=HOST, address=address)
        return asyncio.create_task(process.connect.complete(visit))

    flood = [bring(f"junk {number}", f"192.0.2.{number % 4}") for number in range(20)]
    for _ in range(4):
        await waiting.get()
    good = bring("good", "198.51.100.1")
    await waiting.get()
    for _ in range(5):
        slots.put_nowait(None)
    await good
    assert b"good" in sent[:5]
    for _ in range(16):
        slots.put_nowait(None)
    await asyncio.gather(*flood)
    assert len(sent) == 21


async def test_a_claim_that_grew_old_in_the_queue_is_not_used(process: Process) -> None:
    """What cannot be sent within its lease leaves the queue, unsent, and takes no place: another may follow."""
    queue = Queue(process.clock, 3600)
    process.connect = process.make(queue, places=1, wait_limit=100)
    for _ in range(2):
        waiting = asyncio.create_task(process.complete("code"))
        await process.clock.tick(45)
        outcome = await waiting
        assert (outcome.status, outcome.error, queue.sent) == (GrantStatus.FAILED, "amo_unavailable", 0)


async def test_a_bug_is_told_and_the_code_may_be_tried_again(process: Process) -> None:
    """An exception that nobody expected reaches the log, the caller, and leaves the code doubtful."""
    process.connect = process.make(Queue(process.clock, 0))
    with pytest.raises(AssertionError):
        await process.complete("code")
    assert isinstance((await process.witness.until("grant.bug")).error, AssertionError)
    grant = await process.failing.grant(fingerprint("code"))
    assert (grant.status, grant.possibly_spent) == (GrantStatus.FAILED, True)


async def test_who_is_late_by_a_moment_sends_nothing(process: Process, other: Process) -> None:
    """Between our look and our claim another process claimed and exchanged: its answer is ours, and its place stays."""
    code = process.amo.code()
    process.before_claims(lambda: other.complete(code), client=Queue(process.clock, 0), places=1)
    assert (await process.complete(code)).status is GrantStatus.CONNECTED
    assert len(process.amo.fake.ledger.entries) == 1
    with pytest.raises(AssertionError):  # AMO is asked about another code, so the one place is free again
        await process.complete("another code")


async def test_a_pair_of_an_earlier_grant_that_comes_late_is_not_stored(process: Process) -> None:
    """The person connects twice, and the first answer comes last: the later grant's pair stays, and that is told."""
    async with process.slow_exchange(process.amo.code()) as late:
        process.clock.advance(5)
        assert (await process.complete(process.amo.code())).status is GrantStatus.CONNECTED
    assert (await late).status is GrantStatus.CONNECTED
    assert process.witness.names() == ["connection.connected", "grant.superseded"]
    [connection] = await process.store.connections_of(str(process.amo.account.id))
    assert (connection.pair_version, connection.access_issued_at) == (1, process.clock.now())


async def test_the_page_of_a_lost_process_says_try_again(process: Process, other: Process) -> None:
    """Once the lease of a claim has ended, whoever waits at its address is told so, and not to wait on."""
    other.connect = other.make(Deaf(process.clock, 0))
    lost = asyncio.create_task(other.complete(process.amo.code()))
    await process.clock.until_sleeping(600)
    process.clock.advance(8)
    handle = (await lost).handle
    assert (await process.connect.result(handle)).status is GrantStatus.EXCHANGING
    process.clock.advance(52)
    told = await process.connect.result(handle)
    assert (told.status, told.error) == (GrantStatus.FAILED, "amo_unavailable")
    process.clock.advance(600)
    await other.connect.drain()


async def test_callers_at_once_claim_once(process: Process) -> None:
    """Within a process, the second caller of a code waits for the first one's task, and writes nothing."""
    code = process.amo.code()
    outcomes = await asyncio.gather(*(process.complete(code) for _ in range(20)))
    assert (process.failing.asked["claim_grant"], len({outcome.handle for outcome in outcomes})) == (1, 1)


async def test_a_caller_without_a_host_does_not_spoil_one_who_names_it(process: Process) -> None:
    """The app is faster than the callback, and does not say where: its failure is its own."""
    code = process.amo.code().encode()
    nameless = asyncio.create_task(process.connect.complete(CodePresentation(code=code)))
    named = asyncio.create_task(process.connect.complete(CodePresentation(code=code, state=b"s", host=HOST)))
    assert (await named).status is GrantStatus.CONNECTED
    with pytest.raises(InvalidRequest):
        await nameless
    assert len(process.amo.fake.ledger.entries) == 1


async def test_one_process_never_exchanges_a_code_twice(process: Process) -> None:
    """While a pair waits for its store, the app asks, without a host, after the lease: it waits like everybody else."""
    code = process.amo.code()
    process.failing.away = {"save_connected"}
    callback = asyncio.create_task(process.complete(code))
    await process.witness.until("pair.write_pending")
    await process.clock.until_sleeping(8)
    process.clock.advance(68)
    assert (await callback).status is GrantStatus.EXCHANGING
    app = asyncio.create_task(process.connect.complete(CodePresentation(code=code.encode())))
    await process.clock.until_sleeping(8)
    process.failing.away = set()
    await process.clock.tick(1)
    assert (await app).status is GrantStatus.CONNECTED
    assert len(process.amo.fake.ledger.entries) == 1


async def test_another_addresss_full_limit_is_not_inherited(process: Process, client: AmoClient) -> None:
    """Two callers with the same code at once: the first one's address has no place left, the second one's has."""
    process.connect = process.make(client, places=1)
    assert (await process.complete("junk")).error == "auth_failed"
    code = process.amo.code()
    full = asyncio.create_task(process.complete(code))
    free = asyncio.create_task(
        process.connect.complete(CodePresentation(code=code.encode(), state=b"s", host=HOST, address="198.51.100.9"))
    )
    with pytest.raises(TooManyAttempts):
        await full
    assert (await free).status is GrantStatus.CONNECTED


async def test_a_claim_older_than_its_lease_is_not_sent_though_a_slot_is_free(process: Process) -> None:
    """A process that was stopped between claim and slot does not send on a lease that is over."""

    class Sleepy(Queue):
        async def acquire_slot(self, _priority: Priority) -> None:
            self.clock.advance(70)

    queue = Sleepy(process.clock, 0)
    process.connect = process.make(queue, wait_limit=100)
    outcome = await process.complete("code")
    assert (outcome.status, outcome.error, queue.sent) == (GrantStatus.FAILED, "amo_unavailable", 0)


async def test_a_claim_that_was_written_as_the_end_came_is_given_back(process: Process, other: Process) -> None:
    """The process ends while a claim is being committed: the code is free for the next."""
    process.failing.after["claim_grant"] = asyncio.Event()
    process.connect = process.make(places=1)
    other.connect = other.make(places=1)
    code = process.amo.code()
    waiting = asyncio.create_task(process.complete(code))
    await process.failing.until_waiting("claim_grant")
    await process.connect.drain()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    grant = present(await process.store.grant(fingerprint(code)))
    assert (grant.status, grant.possibly_spent) == (GrantStatus.FAILED, False)
    assert (await other.complete(code)).status is GrantStatus.CONNECTED


async def test_what_never_reached_amo_takes_no_place(process: Process) -> None:
    """Our own outage is not counted as somebody's junk."""
    unsent = Override(process.client, exchange=answering(RequestNotSent()))
    process.connect = process.make(unsent, places=1)
    for _ in range(3):
        outcome = await process.complete("code")
        assert (outcome.status, outcome.error) == (GrantStatus.FAILED, "amo_unavailable")
    process.failing.away = {"claim_grant"}
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await process.complete("code")


@pytest.mark.parametrize(
    ("rules", "error"), [({}, None), ({"allowed_accounts": ["1"]}, "account_not_allowed")], ids=["ours", "foreign"]
)
async def test_what_amo_accepts_gives_its_place_back(
    process: Process, rules: dict[str, Any], error: str | None
) -> None:
    """One address with one place connects as often as it likes; a foreign account is not kept, but was no junk."""
    process.connect = process.make(places=1, **rules)
    for _ in range(3):
        assert (await process.complete(process.amo.code())).error == error


async def test_the_end_waits_for_what_was_sent_and_for_nothing_else(process: Process, other: Process) -> None:
    """When the doors are closed, a claimed exchange is finished, and who only waits for another process is let go."""
    code = process.amo.code()
    async with process.slow_exchange(code) as sent:
        polling = asyncio.create_task(other.complete(code))
        await other.clock.until_sleeping(0.25)
        await other.connect.drain()
        with pytest.raises(asyncio.CancelledError):
            await polling
        draining = asyncio.create_task(process.connect.drain())
        await asyncio.sleep(0)
        assert not draining.done()
    await draining
    assert (await sent).status is GrantStatus.CONNECTED


async def test_a_process_stopped_after_its_slot_sends_nothing_on_a_lease_that_ends_under_it(process: Process) -> None:
    """What is left of the claim is not enough for AMO's answer: the code stays unspent, for whoever follows."""

    async def exchange(**request: Any) -> TokenResponse:
        process.clock.advance(55.1)
        return await process.client.exchange(**request)

    process.connect = process.make(Override(process.client, exchange=exchange), wait_limit=100)
    outcome = await process.complete(code := process.amo.code())
    assert (outcome.status, outcome.error) == (GrantStatus.FAILED, "amo_unavailable")
    assert process.amo.fake.ledger.exchanges() == []
    process.connect = process.make()
    assert (await process.complete(code)).status is GrantStatus.CONNECTED


async def test_a_code_stays_doubtful_whatever_comes_between(process: Process) -> None:
    """Our answer was lost, then AMO was away: that the code is spent is still our doing, and told as "start again"."""
    code, whole = process.amo.code(), process.connect
    away = process.make(Override(process.client, exchange=answering(RequestNotSent())))
    process.amo.sandbox.faults.add(Fault.HTTP_500_AFTER)
    outcomes = []
    for service in (whole, away, whole):
        process.connect = service
        outcomes.append((await process.complete(code)).error)
    assert outcomes == ["amo_unavailable", "amo_unavailable", "code_expired"]


async def test_the_end_leaves_a_granted_pair_in_its_file(process: Process) -> None:
    """The store is away as the process ends: nobody waits for it, for the pair is safe, and the next one stores it."""
    process.failing.away = {"save_connected"}
    connecting = asyncio.create_task(process.complete(process.amo.code()))
    await process.witness.until("pair.write_pending")
    await process.connect.drain()
    await asyncio.wait({connecting})
    assert len(process.rescue.files) == 1
    process.failing.away = set()
    await process.pending_writes.restore()
    [connection] = await process.store.connections_of(str(process.amo.account.id))
    assert connection.status is Status.ACTIVE
