"""Grants between processes and at shutdown; the callback's tests cover the rest from outside."""

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
async def test_complete_in_other_process_waits_and_returns_same_result(
    process: Process, other: Process, minutes: int
) -> None:
    """One process exchanges and both return its handle; steps of the wall clock do not end the lease."""
    async with process.slow_exchange(code := process.amo.code()) as first:
        second = asyncio.create_task(other.complete(code))
        await other.clock.until_sleeping(0.25)
        other.clock.step(timedelta(minutes=minutes))
        await other.clock.tick(0.25)
        await other.clock.until_sleeping(0.25)
    assert (await first).status is GrantStatus.CONNECTED
    await _advance_until(other, second)
    assert await second == await first
    assert len(process.amo.fake.ledger.exchanges()) == 1


async def test_complete_after_lease_of_lost_process_exchanges_again(process: Process, other: Process) -> None:
    """Another process waits for a lost process's lease, then exchanges the code; a late result is discarded."""
    code = process.amo.code()
    other.connect = other.make(SlowAmo(process.clock, 0))
    lost = asyncio.create_task(other.complete(code))
    await process.clock.until_sleeping(600)
    waiting = asyncio.create_task(process.complete(code))
    await process.clock.until_sleeping(0.25)
    process.clock.advance(8)
    assert (await waiting).status is GrantStatus.EXCHANGING
    process.clock.advance(52)
    await _advance_until(process, asyncio.create_task(process.connect.drain()))
    outcome = await process.complete(code)
    assert outcome.status is GrantStatus.CONNECTED
    process.clock.advance(600)
    assert (await lost).status is GrantStatus.EXCHANGING
    await other.connect.drain()
    assert await process.complete(code) == outcome


async def _advance_until(process: Process, task: asyncio.Task[Any]) -> None:
    """Advance the clock until a polling task is done."""
    while not task.done():
        process.clock.advance(0.25)
        await asyncio.wait({task}, timeout=0.01)


async def _block(process: Process) -> None:
    await process.store.begin_amo_block("shown", probe_every=timedelta(minutes=15))
    await process.address_block.watch()


async def test_exchange_while_amo_blocked_is_sent_every_ten_seconds(process: Process) -> None:
    """The first exchange is sent immediately, and each further exchange ten seconds after the previous one."""
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
async def test_exchange_success_ends_amo_block(process: Process, *, allowed: bool) -> None:
    """The block ends once AMO issues a pair, even if the account is not allowed and the pair is discarded."""
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


async def test_exchange_of_refused_code_keeps_amo_block(process: Process) -> None:
    """A refusal of the code does not end the block."""
    await _block(process)
    await process.complete("not AMO's")
    assert await process.store.amo_block() is not None


async def test_exchange_unreadable_answer_is_kept_in_rescue_file(process: Process) -> None:
    """The code is spent and the answer may hold its pair; the file name starts with the user's support code."""
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


async def test_exchange_of_cancelled_caller_continues(process: Process) -> None:
    """The exchange continues, and its pair is stored."""
    async with process.slow_exchange(code := process.amo.code()) as caller:
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
    await process.connect.drain()
    assert (await process.complete(code)).status is GrantStatus.CONNECTED
    assert len(process.amo.fake.ledger.exchanges()) == 1
    assert process.woken == 1


async def test_claim_with_store_unavailable_spends_no_code(process: Process) -> None:
    """If the claim cannot be written, the code is not sent, and works later."""
    code = process.amo.code()
    process.failing.away = {"claim_grant"}
    with pytest.raises(StoreUnavailable):
        await process.complete(code)
    process.failing.away = set()
    assert (await process.complete(code)).status is GrantStatus.CONNECTED


async def test_pending_write_of_grant_is_stored_once_store_recovers(process: Process) -> None:
    """The code is spent: its pair stays in memory, and the return address shows it once it is stored."""
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


async def test_complete_with_unresponsive_store_raises_after_8_seconds(process: Process) -> None:
    """If the store does not respond within 8 s, there is no return address, and the user must try again."""
    process.failing.before["grant"] = lambda _: process.clock.sleep(3600)
    waiting = asyncio.create_task(process.complete("code"))
    await process.clock.tick(8)
    with pytest.raises(StoreUnavailable):
        await waiting


class QueuedAmo:
    """AMO behind a long rate-limit queue."""

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


class SlowAmo(QueuedAmo):
    """AMO that takes ten minutes to answer."""

    async def exchange(self, **_: object) -> TokenResponse:
        await self.clock.sleep(600)
        raise UnknownOutcome("timeout")


async def test_shutdown_exchange_without_slot_fails_unspent(process: Process) -> None:
    """The stop does not wait for the rate limit, and the code can be tried again."""
    queue = QueuedAmo(process.clock, 3600)
    process.connect = process.make(queue)
    waiting = asyncio.create_task(process.complete("code"))
    await process.clock.until_sleeping(3600)
    process.stop.set()
    await process.clock.tick(1)
    outcome = await waiting
    assert (outcome.status, outcome.error, queue.sent) == (GrantStatus.FAILED, "amo_unavailable", 0)


async def test_rate_limit_queue_holds_one_code_per_address(process: Process) -> None:
    """With four addresses that flood the queue, the code of another address is sent fifth at most."""
    slots, waiting = asyncio.Queue[None](), asyncio.Queue[None]()
    sent: list[object] = []

    class Slotted(QueuedAmo):
        async def acquire_slot(self, priority: Priority) -> None:
            del priority
            waiting.put_nowait(None)
            await slots.get()

        async def exchange(self, **request: object) -> TokenResponse:
            sent.append(request["code"])
            raise CodeUsed

    process.connect = process.make(Slotted(process.clock, 0), attempts=100)

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


async def test_claim_too_old_in_queue_is_not_sent(process: Process) -> None:
    """A code that cannot be sent within its lease leaves the queue unsent and uses no reservation."""
    queue = QueuedAmo(process.clock, 3600)
    process.connect = process.make(queue, attempts=1, wait_limit=100)
    for _ in range(2):
        waiting = asyncio.create_task(process.complete("code"))
        await process.clock.tick(45)
        outcome = await waiting
        assert (outcome.status, outcome.error, queue.sent) == (GrantStatus.FAILED, "amo_unavailable", 0)


async def test_exchange_bug_is_logged_and_code_is_in_doubt(process: Process) -> None:
    """An unexpected exception reaches the log and the caller, and the code is possibly spent."""
    process.connect = process.make(QueuedAmo(process.clock, 0))
    with pytest.raises(AssertionError):
        await process.complete("code")
    assert isinstance((await process.witness.until("grant.bug")).error, AssertionError)
    grant = await process.failing.grant(fingerprint("code"))
    assert (grant.status, grant.possibly_spent) == (GrantStatus.FAILED, True)
    [failed] = process.witness.named("grant.failed")
    assert (failed.fields["support_code"], failed.fields["word"]) == (fingerprint("code")[:8], "amo_unavailable")


async def test_claim_lost_to_other_process_returns_its_result(process: Process, other: Process) -> None:
    """If another process exchanges the code between read and claim, nothing is sent and no reservation used."""
    code = process.amo.code()
    process.before_claims(lambda: other.complete(code), client=QueuedAmo(process.clock, 0), attempts=1)
    assert (await process.complete(code)).status is GrantStatus.CONNECTED
    assert len(process.amo.fake.ledger.entries) == 1
    with pytest.raises(AssertionError):  # AMO is asked, so the one reservation is free
        await process.complete("another code")


async def test_exchange_late_pair_of_earlier_grant_is_superseded(process: Process) -> None:
    """If the earlier of two grants is answered last, the later grant's pair is kept, and an event is recorded."""
    async with process.slow_exchange(process.amo.code()) as late:
        process.clock.advance(5)
        assert (await process.complete(process.amo.code())).status is GrantStatus.CONNECTED
    assert (await late).status is GrantStatus.CONNECTED
    assert process.witness.names() == ["connection.connected", "grant.superseded"]
    [connection] = await process.store.connections_of(str(process.amo.account.id))
    assert (connection.pair_version, connection.access_issued_at) == (1, process.clock.now())


async def test_result_after_lease_of_lost_process_is_amo_unavailable(process: Process, other: Process) -> None:
    """Once the claim's lease has ended, the return address reports a retryable failure."""
    other.connect = other.make(SlowAmo(process.clock, 0))
    lost = asyncio.create_task(other.complete(process.amo.code()))
    await process.clock.until_sleeping(600)
    process.clock.advance(8)
    handle = (await lost).handle
    assert (await process.connect.result(handle)).status is GrantStatus.EXCHANGING
    process.clock.advance(52)
    result = await process.connect.result(handle)
    assert (result.status, result.error) == (GrantStatus.FAILED, "amo_unavailable")
    process.clock.advance(600)
    await other.connect.drain()


async def test_complete_concurrent_callers_claim_once(process: Process) -> None:
    """Within a process further callers of a code wait for the first one's task and write nothing."""
    code = process.amo.code()
    outcomes = await asyncio.gather(*(process.complete(code) for _ in range(20)))
    assert (process.failing.asked["claim_grant"], len({outcome.handle for outcome in outcomes})) == (1, 1)


async def test_complete_caller_without_host_fails_alone(process: Process) -> None:
    """If the app calls before the callback and without a host, only the app's request fails."""
    code = process.amo.code().encode()
    nameless = asyncio.create_task(process.connect.complete(CodePresentation(code=code)))
    named = asyncio.create_task(process.connect.complete(CodePresentation(code=code, state=b"s", host=HOST)))
    assert (await named).status is GrantStatus.CONNECTED
    with pytest.raises(InvalidRequest):
        await nameless
    assert len(process.amo.fake.ledger.entries) == 1


async def test_complete_after_lease_waits_for_pending_write_of_same_process(process: Process) -> None:
    """While a pair waits for the store, an app's call without a host after the lease waits as well."""
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


async def test_complete_concurrent_callers_have_separate_attempt_limits(process: Process, client: AmoClient) -> None:
    """Of two callers with one code, only the second one's address has a reservation left."""
    process.connect = process.make(client, attempts=1)
    assert (await process.complete("junk")).error == "auth_failed"
    code = process.amo.code()
    full = asyncio.create_task(process.complete(code))
    free = asyncio.create_task(
        process.connect.complete(CodePresentation(code=code.encode(), state=b"s", host=HOST, address="198.51.100.9"))
    )
    with pytest.raises(TooManyAttempts):
        await full
    assert (await free).status is GrantStatus.CONNECTED


async def test_claim_older_than_lease_is_not_sent(process: Process) -> None:
    """A process that was suspended between claim and slot does not send after its lease."""

    class SuspendedAmo(QueuedAmo):
        async def acquire_slot(self, _priority: Priority) -> None:
            self.clock.advance(70)

    queue = SuspendedAmo(process.clock, 0)
    process.connect = process.make(queue, wait_limit=100)
    outcome = await process.complete("code")
    assert (outcome.status, outcome.error, queue.sent) == (GrantStatus.FAILED, "amo_unavailable", 0)


async def test_shutdown_claim_being_committed_is_released(process: Process, other: Process) -> None:
    """If the process ends while a claim is committed, another process can exchange the code."""
    process.failing.after["claim_grant"] = asyncio.Event()
    process.connect = process.make(attempts=1)
    other.connect = other.make(attempts=1)
    code = process.amo.code()
    waiting = asyncio.create_task(process.complete(code))
    await process.failing.until_waiting("claim_grant")
    await process.connect.drain()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    grant = present(await process.store.grant(fingerprint(code)))
    assert (grant.status, grant.possibly_spent) == (GrantStatus.FAILED, False)
    assert (await other.complete(code)).status is GrantStatus.CONNECTED


async def test_attempt_limit_unsent_exchange_uses_no_reservation(process: Process) -> None:
    """An outage of this service does not count as a failed code."""
    unsent = Override(process.client, exchange=answering(RequestNotSent()))
    process.connect = process.make(unsent, attempts=1)
    for _ in range(3):
        outcome = await process.complete("code")
        assert (outcome.status, outcome.error) == (GrantStatus.FAILED, "amo_unavailable")
    process.failing.away = {"claim_grant"}
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await process.complete("code")


@pytest.mark.parametrize(
    ("rules", "error"),
    [({}, None), ({"allowed_accounts": ["1"]}, "account_not_allowed")],
    ids=["allowed", "not allowed"],
)
async def test_attempt_limit_accepted_code_releases_reservation(
    process: Process, rules: dict[str, Any], error: str | None
) -> None:
    """With one reservation an address connects any number of times, even with an account that is not allowed."""
    process.connect = process.make(attempts=1, **rules)
    for _ in range(3):
        assert (await process.complete(process.amo.code())).error == error


async def test_shutdown_waits_only_for_sent_exchange(process: Process, other: Process) -> None:
    """After the listeners close, a claimed exchange is finished; a wait for another process is cancelled."""
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


async def test_exchange_with_too_little_lease_left_is_not_sent(process: Process) -> None:
    """The rest of the claim is too short for AMO's answer, so the code stays unspent and can be exchanged later."""

    async def exchange(**request: Any) -> TokenResponse:
        process.clock.advance(55.1)
        return await process.client.exchange(**request)

    process.connect = process.make(Override(process.client, exchange=exchange), wait_limit=100)
    outcome = await process.complete(code := process.amo.code())
    assert (outcome.status, outcome.error) == (GrantStatus.FAILED, "amo_unavailable")
    assert process.amo.fake.ledger.exchanges() == []
    process.connect = process.make()
    assert (await process.complete(code)).status is GrantStatus.CONNECTED


async def test_code_in_doubt_stays_in_doubt_after_unsent_retry(process: Process) -> None:
    """After an unknown outcome and an unsent retry, a spent code is still `code_expired`, not `code_used`."""
    code, whole = process.amo.code(), process.connect
    away = process.make(Override(process.client, exchange=answering(RequestNotSent())))
    process.amo.sandbox.faults.add(Fault.HTTP_500_AFTER)
    outcomes = []
    for service in (whole, away, whole):
        process.connect = service
        outcomes.append((await process.complete(code)).error)
    assert outcomes == ["amo_unavailable", "amo_unavailable", "code_expired"]


async def test_shutdown_pending_write_is_left_in_rescue_file(process: Process) -> None:
    """With the store unavailable, shutdown does not wait: the pair is in its file and the next start stores it."""
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
