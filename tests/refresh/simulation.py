"""A simulation that controls every step of several processes.

The processes share a SQLite file, a rescue folder, a clock that the simulation advances, and the stand-in's rules. Each
write and each request to AMO waits at a gate before it is executed, and at another before its result is returned. The
gates of a slow, stopped or killed process are opened late or never. The rules are checked when a token is presented, a
pair is stored, or a failure is stored.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, cast

from amo_callback.amo.introspection import (
    ACCESS_TOKEN_DEAD,
    NOT_CHECKED,
    REFRESH_TOKEN_REFUSED,
    UNKNOWN,
    read_introspection,
    refresh_token_request,
)
from amo_callback.amo.pair import account_of, read_claims
from amo_callback.amo.protocol import AmoResponse, GrantType, Integration, read_token_response, refresh_request
from amo_callback.amo.sandbox.app import Fault
from amo_callback.amo.sandbox.fake_amo import FakeAmo, Lifetimes, SandboxAccount, SandboxIntegration, problem
from amo_callback.clock import Clock, DatabaseClock
from amo_callback.crypto import Cipher
from amo_callback.errors import AmoCallbackError, RequestNotSent, StoreUnavailable, UnknownOutcome
from amo_callback.events import Event
from amo_callback.grant import GrantStatus, NewConnection
from amo_callback.model import (
    Account,
    Connection,
    IntrospectionResult,
    Reason,
    RefreshRules,
    Status,
    TokenPair,
    TokenResponse,
    connection_id,
    fingerprint,
)
from amo_callback.rate_limit import LocalLimits, Priority
from amo_callback.store import Store
from amo_callback.tokens.lifecycle import TokenLifecycle
from tests.builders import a_connection, a_core, a_grant, save
from tests.fakes import FakeClock, InlineExecutor, MemoryRescue, RecordingObserver
from tests.refresh.simulated_tokens import DAY, ProbeBudget, Token

RULES = RefreshRules(lease=60.0, retry_base=30.0, retry_cap=900.0, concurrency=4)
TIMEOUT = 15.0
PAIRS = frozenset({"save_refreshed", "save_connected"})
MANY = 1000
SILENCE_KEPT = 5.0
"""Seconds after an unanswered introspection in which a handed-out token is not checked."""
WRITES = frozenset(
    {
        *("claim", "extend", "save_refreshed", "save_connected", "save_failure", "release", "postpone", "disconnect"),
        *("give_up", "begin_recheck", "schedule_recheck", "begin_amo_block", "take_amo_probe", "end_amo_block"),
    }
)
"""The writes that wait at a gate."""
COMMITS = (
    *("save_refreshed", "save_failure", "claim", "release", "postpone", "extend", "disconnect", "save_connected"),
    *(
        "give_up",
        "begin_recheck",
        "schedule_recheck",
        "accept_token",
        "reactivate",
        "mark_in_doubt",
        "record_disabled_hook",
    ),
    *("begin_amo_block", "take_amo_probe", "end_amo_block", "suspend_terminal", "resume_terminal"),
)
"""The writes whose COMMIT answer can be lost, the most frequent first."""
ROWS = frozenset({"claim", "save_refreshed", "save_connected", "save_failure", "begin_recheck"})
"""The writes that return the changed row."""
REFUSALS = 8
"""The number of refusals before a connection becomes `refused`."""
MINUTE = timedelta(seconds=60)
OPEN = {
    Fault.HTTP_500: (500, b"<h1>500</h1>"),
    Fault.HTML_200: (200, b"<h1>Maintenance</h1>"),
    Fault.REDIRECT: (302, b""),
    Fault.TOO_MANY: (429, b""),
    Fault.UNPAID: (402, b""),
    Fault.BLOCKED: (403, b""),
    Fault.TEAPOT: (400, b'{"hint": "I am a teapot"}'),
    Fault.WRONG_CLIENT: (401, b'{"title": "?"}'),
}
"""Answers of AMO that do not depend on the token."""
LOST = (Fault.HTTP_500_AFTER, Fault.HALF_JSON_AFTER, Fault.NO_REFRESH_TOKEN_AFTER, Fault.NOTHING_AFTER)
BLOCKED = b"<html><head><title>403 Forbidden</title></head></html>"
NOT_FOUND = b"<html><head><title>404 Not Found</title></head></html>"
FAULTS = (*OPEN, *LOST, Fault.RESET)


@dataclass(frozen=True, slots=True)
class _MachineClock:
    """A machine's clock, which may differ from the database's."""

    process: Process

    def now(self) -> datetime:
        return self.process.simulation.clock.now() + self.process.ahead

    def monotonic(self) -> float:
        return self.process.simulation.clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self.process.simulation.clock.sleep(seconds)


@dataclass
class Process:
    """A process of the service, with its gates and its faults."""

    simulation: Simulation
    name: str
    waiting: list[tuple[str, asyncio.Future[None]]] = field(default_factory=list)
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    exchanging: list[asyncio.Task[Any]] = field(default_factory=list)
    received: list[tuple[str, str]] = field(default_factory=list)
    ahead: timedelta = timedelta(0)
    """The difference of its machine's clock from the database's, if clocks differ."""
    store_away: bool = False
    lost_answers: list[str] = field(default_factory=list)
    """The writes whose next COMMIT answer is lost."""
    dead: bool = False
    ended: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.witness = _Observer(self)
        self.clock: Clock = self.simulation.clock
        if self.simulation.shared:
            self.clock = DatabaseClock(_MachineClock(self))
            self.clock.set(self.simulation.clock.now(), asked_at=self.simulation.clock.monotonic())
        self.block_at_start = self.simulation.budget.began
        core = a_core(
            store=_Store(self),
            amo=_Amo(self),
            cipher=self.simulation.cipher,
            clock=self.clock,
            observer=self.witness,
            random=self.simulation.random,
            rules=self.simulation.rules,
            process=self.name,
        )
        self.lifecycle = TokenLifecycle(core, rescue=self.simulation.disk, machine="here")
        self.tasks.add(self.simulation.loop.create_task(self._run_scheduler()))

    async def _run_scheduler(self) -> None:
        await self.lifecycle.pending_writes.restore()
        await self.lifecycle.scheduler.run()

    def run(self, work: Any) -> asyncio.Task[Any]:
        task = self.simulation.loop.create_task(work)
        self.tasks.add(task)
        return task

    async def _drain(self) -> None:
        while exchanging := [task for task in self.exchanging if not task.done()]:
            await asyncio.wait(exchanging)
        await self.lifecycle.drain()

    async def gate(self, name: str) -> None:
        if not self.simulation.gated:
            return
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append((name, opened))
        await opened

    @property
    def knows_block(self) -> bool:
        """Whether the process has read the stored address block, or started after it was stored."""
        began = self.simulation.budget.began
        read = self.lifecycle.breaker.address_block.block is not None
        return began is not None and (read or self.block_at_start == began)

    def stop(self) -> None:
        """Begin the shutdown of the process, as SIGTERM does."""
        if self.ended is None:
            self.lifecycle.core.stop.set()
            self.ended = self.simulation.loop.create_task(self._drain())


class _Observer(RecordingObserver):
    """An observer that records unexpected exceptions, which the service only logs."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self._process = process

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        simulation = self._process.simulation
        if event.error is not None and not isinstance(event.error, AmoCallbackError):
            simulation.broken.append(event.error)
        if event.name == "refresh.superseded" and simulation.unheard.get(event.connection_id or "") is self._process:
            simulation.broken.append(AssertionError("a pair that was stored counts as superseded"))


class _Store:
    """The store of one process, with the gates and faults of the simulation."""

    def __init__(self, process: Process) -> None:
        simulation = process.simulation
        self._process = process
        self.last_write_error: str | None = None
        self.has_shared_clock, self.clock_skew = simulation.store.has_shared_clock, 0.0
        self.failed_at: float | None = simulation.clock.monotonic() if simulation.shared else None
        self.shared = LocalLimits(clock=process.clock) if simulation.shared else None
        self.clock = process.clock

    def subscribe(self, listener: Any) -> None:
        self._process.simulation.store.subscribe(listener)

    async def record(self, event: Event) -> None:
        await self.__getattr__("record")(event)
        self._process.witness(event)  # because the shared store does not report commits to processes

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any, **kwargs: Any) -> Any:
            process, simulation = self._process, self._process.simulation
            if process.dead:
                await asyncio.Event().wait()
            is_probe = name == "claim" and simulation.is_probe(process)
            if name in WRITES:
                await process.gate(name)
            if process.store_away:
                self.failed_at = simulation.clock.monotonic()
                raise StoreUnavailable("SQLITE_FULL")
            with simulation.recording_failures():
                result = await simulation.at_work(simulation.execute(process, name, args, kwargs))
            if isinstance(process.clock, DatabaseClock):
                process.clock.set(simulation.clock.now(), asked_at=simulation.clock.monotonic())
            changed = result or (result is None and name not in ROWS)
            if changed and name in process.lost_answers:
                process.lost_answers.remove(name)
                simulation.drawn["lost COMMIT answers"] += 1
                if name == "save_refreshed":
                    simulation.unheard[result.id] = process
                self.failed_at = simulation.clock.monotonic()
                raise StoreUnavailable("SQLITE_IOERR")
            if is_probe and result:  # because no request follows a claim that is not stored
                with simulation.recording_failures():
                    simulation.count_probe(process)
            if name in WRITES or name == "connection":
                await process.gate(f"{name}, done")
            return result

        return call


class _Amo:
    """The AMO client of one process, which applies the stand-in's rules without a network."""

    timeout = TIMEOUT

    def __init__(self, process: Process) -> None:
        self._process, self._simulation = process, process.simulation
        self.client_id = process.simulation.integration.client_id

    async def acquire_slot(self, _priority: Priority) -> None:
        return

    def base_url(self, host: str) -> str:
        return self._simulation.integration.address(host, "")

    def account_of(self, access_token: str) -> Account:
        return account_of(read_claims(access_token))

    async def refresh(self, *, refresh_token: str, domain: str, not_after: float) -> TokenResponse:
        simulation, process = self._simulation, self._process
        await process.gate("send")
        if simulation.clock.monotonic() > not_after:
            raise RequestNotSent
        sent, fault, token = simulation.clock.monotonic(), simulation.fault(), simulation.tokens[refresh_token]
        with simulation.recording_failures():
            status, body = simulation.present(refresh_token, domain=domain, fault=fault)
        await process.gate("answer")
        if simulation.clock.monotonic() - sent > TIMEOUT:
            raise UnknownOutcome("timeout")
        if fault in {Fault.RESET, Fault.NOTHING_AFTER} and not status:
            raise UnknownOutcome("connection_lost")
        try:
            issued = read_token_response(
                AmoResponse(status=status, body=body), grant_type=GrantType.REFRESH_TOKEN, now=process.clock.now()
            )
        except AmoCallbackError as error:
            token.open = token.open and isinstance(error, UnknownOutcome)
            raise
        token.open = False
        process.received.append((connection_id(issued.account, domain), issued.pair.refresh_token))
        return issued

    async def introspect_refresh_token(
        self, *, refresh_token: str, api_domain: str | None, account_id: str
    ) -> IntrospectionResult:
        request = refresh_token_request(
            self._simulation.integration, refresh_token=refresh_token, api_domain=api_domain
        )
        if request is None:
            return NOT_CHECKED
        await self._process.gate("introspect refresh token")
        reply = self._simulation.fake.current_subdomain(refresh_token)
        introspection = self._introspect(reply, account_id, REFRESH_TOKEN_REFUSED)
        self._simulation.tokens[refresh_token].introspected(introspection.state)
        return introspection

    async def introspect_access_token(self, *, access_token: str, domain: str, account_id: str) -> IntrospectionResult:
        assert domain
        with self._simulation.recording_failures():
            known = self._simulation.blocked and self._process.knows_block
            assert not known, "a blocked AMO was asked about an access token"
        await self._process.gate("introspect access token")
        return self._introspect(self._simulation.fake.subdomain(access_token), account_id, ACCESS_TOKEN_DEAD)

    def _introspect(self, reply: Any, account_id: str, refusals: frozenset[int]) -> IntrospectionResult:
        simulation = self._simulation
        answer = AmoResponse(status=reply.status, body=reply.body)
        if simulation.blocked:
            simulation.drawn["requests while the address is blocked"] += 1
            answer = AmoResponse(status=403, body=BLOCKED)
        if simulation.introspection_away or simulation.blocked:
            simulation.silent_at = simulation.clock.monotonic()
        if simulation.introspection_away:
            return UNKNOWN
        return read_introspection(answer, account_id=account_id, refusals=refusals)


def _damaged_answer(reply: Any, fault: Fault | None) -> tuple[int, bytes]:
    """Return the status and body that a process receives after a fault."""
    if fault is Fault.HTTP_500_AFTER:
        return 500, b""
    if fault is Fault.NOTHING_AFTER:
        return 0, b""
    if fault is Fault.HALF_JSON_AFTER:
        return reply.status, reply.body[: len(reply.body) // 2]
    return 200, json.dumps({**reply.content, "refresh_token": None}).encode()


class Simulation:
    """Processes, accounts, tokens and faults, with checks of the invariants."""

    def __init__(
        self,
        store: Store,
        cipher: Cipher,
        *,
        clock: FakeClock,
        accounts: int = 3,
        gated: bool = True,
        lifetimes: Lifetimes | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.loop.set_debug(False)  # tracing this many steps would take minutes
        self.loop.set_default_executor(InlineExecutor())
        self.store, self.cipher, self.gated = store, cipher, gated
        self.shared = store.has_shared_clock
        """Whether clocks differ and the store's clock decides on stored times, as on PostgreSQL."""
        self.clock = clock
        """The machine's clock or, if clocks differ, the database's."""
        self.disk = MemoryRescue()
        known = SandboxIntegration()
        self.integration = Integration(
            client_id=known.client_id, client_secret=known.client_secret, redirect_uri=known.redirect_uri
        )
        self.fake = FakeAmo(integration=known, now=self.clock.now, lifetimes=lifetimes)
        self.accounts = [self.fake.open_account(f"a{number}.amocrm.ru") for number in range(accounts)]
        self.faults: list[Fault] = []
        self.introspection_away = False
        self.blocked = False
        """Whether AMO answers 403 to every refresh and every introspection."""
        self.lying = False
        """Whether AMO rejects every refresh token as revoked."""
        self.pages: set[str] = set()
        """Hosts of deleted accounts that answer with a web server's page."""
        self.drawn: Counter[str] = Counter()
        """The number of occurrences of each effect of a fault."""
        self.silent_at = -math.inf
        """The monotonic time of the last unanswered introspection."""
        self.unheard: dict[str, Process] = {}
        """The process that stored a connection's current pair without receiving the COMMIT answer."""
        self.broken: list[BaseException] = []
        """Failed checks and unexpected exceptions of processes."""
        self.rules = RULES
        self.budget = ProbeBudget(every=RULES.retry_cap)
        self.steady = True
        """Whether the machine's clock has never been stepped."""
        self.random: Callable[[], float] = lambda: 0.5
        self.tokens: dict[str, Token] = {}
        self.generations: dict[str, int] = {}
        self.spent_elsewhere: set[str] = set()
        """Connections whose token another system has spent, or whose account is disabled."""
        self.processes: list[Process] = []
        self.steps = 0
        self._busy = 0
        self._ended = asyncio.Event()

    @contextmanager
    def recording_failures(self) -> Iterator[None]:
        """Record a failed check, which the service would only log as a bug."""
        try:
            yield
        except AssertionError as error:
            self.broken.append(error)
            raise

    # --- time and gates --------------------------------------------------------------------------

    async def at_work(self, work: Awaitable[Any]) -> Any:
        self._busy += 1
        try:
            return await work
        finally:
            self._busy -= 1
            self._ended.set()

    async def settle(self) -> None:
        """Run all tasks until each waits at a gate or sleeps."""
        ready = cast("Any", self.loop)._ready  # noqa: SLF001 -- because only this queue shows whether a task can run
        await asyncio.sleep(0)
        while ready or self._busy:
            if ready:
                await asyncio.sleep(0)
            else:
                self._ended.clear()
                await self._ended.wait()
        if self.broken:
            raise self.broken[0]
        for process in self.processes:
            if process.ended is not None and process.ended.done() and not process.dead:
                process.dead = True
                await self._check_left_behind(process)

    def start(self, ahead: timedelta = timedelta(0)) -> Process:
        process = Process(self, f"process-{len(self.processes)}", ahead=ahead)
        self.processes.append(process)
        return process

    def living(self) -> list[Process]:
        return [process for process in self.processes if not process.dead]

    def step(self, by: timedelta) -> None:
        """Step the machine's clock."""
        self.clock.step(by)
        self.budget.step()
        self.steady = False

    async def open(self, process: Process, number: int = 0) -> None:
        """Open one gate, and run until all tasks wait again."""
        process.waiting = [(name, gate) for name, gate in process.waiting if not gate.done()]
        if process.waiting:
            self.steps += 1
            _, gate = process.waiting.pop(number % len(process.waiting))
            gate.set_result(None)
            await self.settle()

    async def open_gates(self) -> None:
        """Open gates until no process waits at one."""
        before = self.steps
        while waiting := [process for process in self.living() if any(not gate.done() for _, gate in process.waiting)]:
            for process in waiting:
                await self.open(process)
            assert self.steps - before < MANY, "somebody is busy without end while the clock stands still"

    async def close(self) -> None:
        for process in self.processes:
            process.dead = True
            process.lifecycle.core.stop.set()
        for _ in range(5):
            everyone = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in everyone:
                task.cancel()
            await asyncio.wait(everyone, timeout=1) if everyone else None

    # --- the stand-in ----------------------------------------------------------------------------

    def fault(self) -> Fault | None:
        return self.faults.pop(0) if self.faults else None

    def name(self, account: SandboxAccount) -> str:
        return connection_id(Account(account_id=str(account.id), user_id=str(account.user_id)), account.host)

    def present(self, refresh_token: str, *, domain: str, fault: Fault | None) -> tuple[int, bytes]:
        """Present a refresh token, and return the status and body that the process receives."""
        token = self.tokens[refresh_token]
        token.present(at=self.clock.monotonic(), lifetime=self.fake.lifetimes.access, steady=self.steady)
        token.account_deleted = token.account.gone
        if unread := self._early_answer(fault):
            return unread
        if self.lying:
            token.false_revocations += 1
            reply = problem(401, "Token has been revoked")
        else:
            self.drawn["spent tokens presented again"] += token.spent_by == "us"
            reply = self._post(refresh_token, domain)
        if reply.status == 200:
            self._add_token(reply.content, account=token.account, parent=refresh_token, spent_by="us")
        if fault in LOST and not (fault is Fault.NO_REFRESH_TOKEN_AFTER and reply.status != 200):
            return _damaged_answer(reply, fault)
        self.drawn["refusals of accounts that are gone"] += token.account_deleted
        return (404, NOT_FOUND) if token.account_deleted and domain in self.pages else (reply.status, reply.body)

    def _early_answer(self, fault: Fault | None) -> tuple[int, bytes] | None:
        """Return AMO's answer if AMO does not check the token."""
        if self.blocked:
            self.drawn["requests while the address is blocked"] += 1
            return 403, BLOCKED
        return (0, b"") if fault is Fault.RESET else OPEN.get(cast("Fault", fault))

    def _post(self, refresh_token: str, domain: str) -> Any:
        request = refresh_request(self.integration, refresh_token=refresh_token, domain=domain)
        return self.fake.token(domain, body=request.body or b"", content_type="application/json")

    def _add_token(
        self, content: Any, *, account: SandboxAccount, parent: str | None, spent_by: str = "", generation: int = 0
    ) -> None:
        if parent is not None:
            self.tokens[parent].spent_by = spent_by
            generation = self.tokens[parent].generation
        self.tokens[content["refresh_token"]] = Token(
            parent=parent,
            generation=generation,
            number=len(self.tokens),
            access_token=content["access_token"],
            account=account,
            issued_at=self.clock.monotonic(),
        )

    async def grant(self, account: SandboxAccount) -> None:
        """Store a grant by another process, unless the account is deleted or the service is frozen."""
        if account.gone or await self.at_work(self.store.frozen()):
            return
        granted = self._exchange_code(account)
        await self.at_work(save(self.store, granted.connection, iat=granted.token_iat, code=granted.grant.code_hash))
        self.spent_elsewhere.discard(granted.connection_id)

    async def grant_by(self, process: Process, account: SandboxAccount) -> None:
        """Store a grant by `process`, as a pending write if necessary."""
        if account.gone or await self.at_work(self.store.frozen()):
            return
        granted = self._exchange_code(account)
        await self.at_work(self.store.claim_grant(granted.grant, now=self.clock.now()))
        process.received.append((granted.connection_id, self.pair(granted.connection).refresh_token))
        process.exchanging.append(
            process.run(process.lifecycle.pending_writes.save(granted, connection=granted.connection))
        )

    def _exchange_code(self, account: SandboxAccount) -> NewConnection:
        name = self.name(account)
        account.disabled = False
        body = {
            "client_id": self.integration.client_id,
            "client_secret": self.integration.client_secret,
            "redirect_uri": self.integration.redirect_uri,
            "grant_type": "authorization_code",
            "code": self.fake.allow(account),
        }
        reply = self.fake.token(account.host, body=json.dumps(body).encode(), content_type="application/json")
        now = self.clock.now()
        issued = read_token_response(AmoResponse(status=200, body=reply.body), grant_type=GrantType.CODE, now=now)
        self.generations[name] = self.generations.get(name, 0) + 1
        self._add_token(reply.content, account=account, parent=None, generation=self.generations[name])
        connection = a_connection(
            id=name,
            account_id=str(account.id),
            user_id=str(account.user_id),
            domain=account.host,
            api_domain=issued.account.api_domain,
            client_id=self.integration.client_id,
            sealed_pair=self.cipher.seal_pair(issued.pair, connection_id=name),
            access_issued_at=now,
            access_expires_at=issued.pair.expires_at,
            refresh_expires_at=now + timedelta(days=90),
            next_refresh_at=now + issued.pair.lifetime / 2,
            connected_at=now,
        )
        number = len(self.tokens)  # also the token's `iat`, because AMO's clock is never stepped
        grant = a_grant(
            f"code {number}",
            status=GrantStatus.CONNECTED,
            connection_id=name,
            attempt=f"attempt{number}",
            expires_at=now + timedelta(days=900),
        )
        return NewConnection(grant=grant, connection=connection, token_iat=number)

    async def spend_elsewhere(self, account: SandboxAccount) -> None:
        """Spend the stored refresh token by another system."""
        name = self.name(account)
        row = await self.row(name)
        if row.sealed_pair is None:
            return
        token = self.pair(row).refresh_token
        if self.fake.is_good(token):
            self.spent_elsewhere.add(name)
            self._add_token(
                self._post(token, account.host).content, account=account, parent=token, spent_by="a stranger"
            )

    async def freeze(self, account: SandboxAccount | None, *, frozen: bool) -> None:
        """Freeze or thaw an account's connection, or all connections."""
        if account is not None:
            await self.at_work(self.store.freeze(self.name(account), at=self.clock.now() if frozen else None))
        elif frozen:
            await self.at_work(self.store.freeze_all(why="a move"))
        else:
            await self.at_work(self.store.thaw_all(machine=None))

    def switch_off(self, account: SandboxAccount) -> None:
        account.disabled = True
        self.spent_elsewhere.add(self.name(account))

    def delete(self, account: SandboxAccount, *, page: bool) -> None:
        """Delete an account; AMO then answers in its own format or, if `page` is true, with a web server's page."""
        account.gone = True
        if page:
            self.pages.add(account.host)

    def bring_back(self, account: SandboxAccount) -> None:
        """Restore a deleted account with its tokens."""
        account.gone = False
        self.pages.discard(account.host)

    # --- checks ----------------------------------------------------------------------------------

    async def row(self, name: str) -> Connection:
        row = await self.at_work(self.store.connection(name))
        assert row is not None
        return cast("Connection", row)

    def pair(self, row: Connection) -> TokenPair:
        pair = self.cipher.decrypt_pair(row)
        assert pair is not None
        return pair

    async def execute(self, process: Process, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Execute a store call, and check its effect on the tokens."""
        before = await self.store.connection(args[0].connection_id) if name in PAIRS | {"claim"} else None
        if name == "claim" and self.shared and before is not None and before.attempt is not None:
            assert before.lease_until is not None
            if before.lease_until > self.clock.now():
                return None  # because PostgreSQL's statement checks the lease
        result = await getattr(self.store, name)(*args, **kwargs)
        if name == "disconnect" and result:
            assert not self.fake.is_good(self.pair(args[0]).refresh_token), "living tokens were erased"
        if name in {*PAIRS, "disconnect"} and result:
            self.unheard.pop(args[0].id if name == "disconnect" else result.id, None)
        if isinstance(result, Connection):
            self._check_written(process, name, before, result)
        if name == "give_up" and result:
            self.drawn["suspended answers applied"] += 1
            self._check_failure(await self.row(args[0].id))
        if name in {"begin_amo_block", "end_amo_block"}:
            self._note_block(stored=await self.store.amo_block() is not None)
        return result

    def _check_written(self, process: Process, name: str, before: Connection | None, row: Connection) -> None:
        """Check the row that a statement has returned."""
        if name == "claim":
            assert before is not None
            assert not before.frozen, "a frozen connection was claimed"
            self.drawn["claims by a process with a wrong clock"] += self.shared and abs(process.ahead) > MINUTE
        if name in PAIRS:
            self._check_stored(process, before, row)
        if name == "save_failure":
            self._check_failure(row)
        if self.shared:
            self._check_times(row)

    def _check_stored(self, process: Process, before: Connection | None, row: Connection) -> None:
        new = self.tokens[self.pair(row).refresh_token]
        if before is not None and before.sealed_pair is not None:
            old = self.tokens[self.pair(before).refresh_token]
            assert old.age < new.age, f"{process.name} has stored an older pair over a newer one"
        if new.parent is not None:
            self.tokens[new.parent].answered = True
        elif not any(account.disabled for account in self.accounts if self.name(account) == row.id):
            self.spent_elsewhere.discard(row.id)

    def _note_block(self, *, stored: bool) -> None:
        if stored:
            self.budget.begin(self.clock.monotonic())
        else:
            self.budget.end()

    def is_probe(self, process: Process) -> bool:
        """Return whether each refresh must be a probe: AMO blocks the address and `knows_block` is true."""
        return self.blocked and process.knows_block

    def count_probe(self, process: Process) -> None:
        """Count a probe, unless the block has ended since its claim was requested."""
        if self.is_probe(process):
            self.budget.probe(self.clock.monotonic())

    def _check_failure(self, row: Connection) -> None:
        token = self.tokens[refresh_token := self.pair(row).refresh_token]
        if row.suspended_token == fingerprint(refresh_token):
            self.drawn["suspended answers"] += not token.settled
            token.settle(row.suspended_reason)
        if row.status is not Status.NEEDS_REAUTH:
            return
        tried, token.was_needs_reauth = token.was_needs_reauth, True  # a later presentation's answer may be lost
        token.settle(row.reason)
        if row.reason is Reason.REFUSED:
            self.drawn["connections given up as refused"] += 1
            refused = tried or token.account_deleted or not self._is_good(refresh_token)
            assert refused, "a connection was refused whose account is there"
            long = self.clock.monotonic() - token.issued_at >= DAY - 60 or not self.steady
            assert long, "a connection was given up as refused within a day"
            assert token.times >= REFUSALS, "a connection was given up as refused too soon"
            return
        assert token.false_revocations or tried or not self._is_good(refresh_token), (
            "a live connection was declared dead"
        )
        if row.reason is Reason.REVOKED and row.id not in self.spent_elsewhere and not token.false_revocations:
            assert token.spent_by != "us", "a loss of our making was called revoked"

    def _is_good(self, refresh_token: str) -> bool:
        """Return whether a refresh token could be spent if its account were not deleted."""
        account = self.tokens[refresh_token].account
        gone, account.gone = account.gone, False
        good = self.fake.is_good(refresh_token)
        account.gone = gone
        return good

    def _check_times(self, row: Connection) -> None:
        """Check that every stored time agrees with the database's clock."""
        soon = self.clock.now() + MINUTE
        past = (
            *(row.access_issued_at, row.refreshed_at, row.connected_at),
            *(row.disabled_hook_at, row.rechecked_at, row.refused_since),
        )
        assert all(time is None or time <= soon for time in past), "a stored time is in the future"
        if row.sealed_pair is None or row.access_expires_at is None:
            return
        token = self.tokens[self.pair(row).refresh_token]
        left = token.issued_at + self.fake.lifetimes.access - self.clock.monotonic()
        dead = self.clock.now() + timedelta(seconds=left + TIMEOUT)
        assert row.access_expires_at <= dead + MINUTE, "an access token is stored as valid after its expiry"
        if row.next_refresh_at is not None and not row.failures:
            assert row.next_refresh_at <= row.access_expires_at, "a refresh is due after the expiry"

    async def _check_left_behind(self, process: Process) -> None:
        """Check that an ended process has left each received pair in the store or in a rescue file."""
        for name, refresh_token in process.received:
            row, token = await self.row(name), self.tokens[refresh_token]
            erased = row.status is Status.DISCONNECTED
            stored = erased or self.tokens[self.pair(row).refresh_token].age >= token.age
            rescued = any(file.startswith(name) for file in self.disk.read())
            assert stored or rescued, f"{process.name} has ended and left a pair nowhere"

    async def check_handed_out(self, process: Process, connection: Connection, access_token: str) -> None:
        """Check that a handed-out token is valid, except in cases that the process cannot detect."""
        row = await self.row(connection.id)
        known = process.lifecycle.leases.has_ended(row)
        under_way = row.attempt is not None and row.failures == 0 and not known
        changed = row.row_version != connection.row_version  # after the hand-out read it
        silent = self.clock.monotonic() - self.silent_at <= SILENCE_KEPT or any(
            name == "introspect access token" and not gate.done() for name, gate in process.waiting
        )
        silent = silent or process.lifecycle.breaker.address_block.block is not None
        gone = any(account.gone for account in self.accounts if self.name(account) == row.id)
        if (
            under_way
            or changed
            or silent
            or gone
            or row.id in self.spent_elsewhere
            or process.lifecycle.pending_writes.names
        ):
            return
        assert self.fake.live_account(access_token) is not None, "a dead token was handed out"

    async def check_recovered(self) -> None:
        """Check that, after all faults, connections with valid tokens are active and fresh, and no write is pending."""
        assert not self.disk.read()
        assert not any(process.lifecycle.pending_writes.names for process in self.living())
        rows = {account.id: await self.row(self.name(account)) for account in self.accounts}
        alone = not any(self._is_refreshable(account, rows[account.id]) for account in self.accounts)
        suspended = (await self.store.shared_state()).terminal_suspended
        assert alone or not suspended, "terminal failures are suspended, although others are active"
        blocked = await self.store.amo_block() is not None
        assert alone or not blocked, "the address counts as blocked, although others live"
        for account in self.accounts:
            row = rows[account.id]
            for version in range(row.pair_version):
                assert f"{row.id}-{version}.raw" not in self.disk.files, "an answer is kept that is of no use any more"
            if row.status is Status.DISCONNECTED:
                continue  # the disconnect was checked when it was written
            if account.gone:
                continue  # whether it is `refused` depends on the other connections
            token = self.pair(row).refresh_token
            good = self.fake.is_good(token)
            unreachable = row.domain != account.host  # no introspection is possible, and its old host answers 404
            alone_or_unreachable = alone or unreachable
            right = row.status is (Status.ACTIVE if good else Status.NEEDS_REAUTH) or (
                alone_or_unreachable and not good
            )
            right = right or self.tokens[token].false_revocations > 1  # presented twice during a fault of AMO
            right = right or (blocked and row.status is Status.NEEDS_REAUTH)  # only a success ends a block
            assert right, f"{row.status} {row.reason} {row.last_error}, and its token is good: {good}"
            if row.status is Status.ACTIVE and good:
                assert row.access_expires_at is not None
                assert row.access_expires_at > self.clock.now(), "nobody refreshes it any more"
                assert not row.in_doubt, "an attempt has no recorded end"
                assert row.suspended_token is None, "a suspended answer was not applied"

    def _is_refreshable(self, account: SandboxAccount, row: Connection) -> bool:
        return (
            row.status is Status.ACTIVE
            and not account.gone
            and row.sealed_pair is not None
            and self.fake.is_good(self.pair(row).refresh_token)
        )
