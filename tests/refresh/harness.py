"""The harness of refresh tests: a token lifecycle with a stand-in of AMO, a faulty store and a fake clock."""

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import pytest

from amo_callback.amo.client import AmoClient
from amo_callback.amo.rate_limiter import RateLimiter
from amo_callback.amo.sandbox.app import Fault
from amo_callback.amo.sandbox.fake_amo import SandboxAccount
from amo_callback.amo.sandbox.ledger import Entry
from amo_callback.crypto import Cipher
from amo_callback.errors import NeedsReauth, RequestNotSent, StoreUnavailable
from amo_callback.grant import GrantStatus, NewConnection
from amo_callback.model import Connection, RefreshTrigger, TokenPair, TokenResponse, connection_id
from amo_callback.rate_limit import LocalLimits
from amo_callback.refresh.coordinator import RefreshCoordinator
from amo_callback.store import Store
from amo_callback.tokens.access_tokens import HandOut
from amo_callback.tokens.lifecycle import TokenLifecycle
from tests.builders import a_connection, a_core, a_grant, save
from tests.fakes import FakeClock, FaultyStore, IdleTracker, MemoryRescue, Override, RecordingObserver
from tests.service import HOST, Amo

E = TypeVar("E", bound=Exception)

API_DOMAIN = "api-b.amocrm.ru"
"""The stand-in's host for introspections of refresh tokens."""
DAY = 86_400.0
WAIT_LIMIT = 8.0
"""Seconds that a caller waits for a forced refresh: AMO's time limit plus one second, and at least eight seconds."""


class RefreshHarness:
    """The token lifecycle of one process, and an account that can be connected."""

    def __init__(
        self, *, store: Store, amo: Amo, client: AmoClient, cipher: Cipher, clock: FakeClock, witness: RecordingObserver
    ) -> None:
        self.store, self.amo, self.client, self.cipher = store, amo, client, cipher
        self.clock, self.witness = clock, witness
        store.observe(witness)
        self.failing: Any = FaultyStore(store, clock)
        self.rescue = MemoryRescue()
        self.traffic = IdleTracker()
        self.grants = 0
        self.lifecycle = self.make_lifecycle()
        self.coordinator = self.lifecycle.coordinator

    def make_lifecycle(self, **more: Any) -> TokenLifecycle:
        """Create the token lifecycle of another process."""
        others = {"rescue": self.rescue, "machine": "here"}
        others = {name: more.pop(name, value) for name, value in others.items()}
        edges: dict[str, Any] = {
            "store": self.failing,
            "amo": self.client,
            "cipher": self.cipher,
            "clock": self.store.clock,
            "observer": self.witness,
            **more,
        }
        watched = {name: self.traffic.watch(edges[name]) for name in ("store", "amo")}
        return TokenLifecycle(a_core(**{**edges, **watched}), **cast("Any", others))

    def make_coordinator(self, **more: Any) -> RefreshCoordinator:
        return self.make_lifecycle(stop=self.lifecycle.core.stop, **more).coordinator

    async def connect(self, **more: Any) -> Connection:
        return await self.keep(await self.exchange(), **more)

    async def exchange(self) -> TokenResponse:
        """Exchange a new code of the account."""
        self.clock.advance(self.grants)  # so that no two grants have the same time
        self.grants += 1
        return await self.exchange_of(self.amo.account)

    async def exchange_of(self, account: SandboxAccount) -> TokenResponse:
        """Exchange a new code of any account."""
        code = self.amo.fake.allow(account).encode()
        return await self.client.exchange(code=code, domain=account.host, not_after=math.inf)

    def connection_of(self, issued: TokenResponse, **more: Any) -> Connection:
        name = connection_id(issued.account, HOST)
        values: dict[str, Any] = {
            "id": name,
            "account_id": issued.account.account_id,
            "user_id": issued.account.user_id,
            "domain": HOST,
            "client_id": self.client.client_id,
            "sealed_pair": self.cipher.seal_pair(issued.pair, connection_id=name),
            "access_issued_at": issued.pair.issued_at,
            "connected_at": issued.pair.issued_at,
            "access_expires_at": issued.pair.expires_at,
        }
        return a_connection(**{**values, **more})

    async def keep(self, issued: TokenResponse, **more: Any) -> Connection:
        return await save(self.store, self.connection_of(issued, **more), code=issued.pair.refresh_token)

    async def connect_users(self, size: int, **more: Any) -> list[Connection]:
        """Connect `size` users of the account."""
        connections = []
        for _ in range(size):
            self.amo.account.user_id += 1
            connections.append(await self.connect(**{"api_domain": API_DOMAIN, **more}))
        return connections

    async def connect_accounts(
        self, size: int, *, host: str = "a{}.amocrm.ru", **more: Any
    ) -> list[tuple[SandboxAccount, Connection]]:
        """Connect accounts whose refreshes are due at different times."""
        connected = []
        for number in range(size):
            self.clock.advance(1)
            domain = host.format(number)
            account = self.amo.fake.account_at(domain) or self.amo.fake.open_account(domain)
            account.user_id += 1
            values = {
                "domain": domain,
                "api_domain": API_DOMAIN,
                "next_refresh_at": self.clock.now() + timedelta(hours=12) * (number + 1) / size,
                **more,
            }
            connected.append((account, await self.keep(await self.exchange_of(account), **values)))
        return connected

    async def grant(self) -> NewConnection:
        """Return the result of a grant whose pair is not stored yet."""
        issued = await self.exchange()
        begun = a_grant(issued.pair.refresh_token, attempt="attempt1")
        await self.store.claim_grant(begun, now=self.clock.now())
        connection = self.connection_of(issued, api_domain=API_DOMAIN)
        ended = a_grant(
            issued.pair.refresh_token, attempt="attempt1", status=GrantStatus.CONNECTED, connection_id=connection.id
        )
        return NewConnection(grant=ended, connection=connection, token_iat=issued.account.token_iat)

    async def connect_revoked(self) -> Connection:
        """Connect, and have AMO reject one refresh as revoked; afterwards AMO accepts the token."""
        connection = await self.connect(api_domain=API_DOMAIN)
        self.amo.account.disabled = True
        with pytest.raises(NeedsReauth):
            await self.refresh(connection)
        self.amo.account.disabled = False
        return await self.now(connection)

    async def now(self, connection: Connection) -> Connection:
        stored = await self.store.connection(connection.id)
        assert stored is not None
        return stored

    def pair(self, connection: Connection) -> TokenPair:
        pair = self.cipher.decrypt_pair(connection)
        assert pair is not None
        return pair

    async def refresh(self, connection: Connection, *, by: RefreshCoordinator | None = None, **more: Any) -> Connection:
        """Refresh a connection by this process or by `by`, as a scheduled refresh unless `trigger` is given."""
        trigger = more.pop("trigger", RefreshTrigger.SCHEDULE)
        return await (by or self.coordinator).refresh(connection.id, trigger=trigger, **more)

    def begin(self, connection: Connection, **more: Any) -> asyncio.Task[Connection]:
        """Begin a refresh in a task."""
        return asyncio.create_task(self.refresh(connection, **more))

    async def begin_slow(self, connection: Connection, **more: Any) -> asyncio.Task[Connection]:
        """Begin a refresh whose request AMO answers once `sandbox.go_on` is set."""
        self.amo.sandbox.asked.clear()
        self.amo.sandbox.faults.add(Fault.SLOW)
        refreshing = self.begin(connection, **more)
        await self.amo.sandbox.asked.wait()
        return refreshing

    async def begin_queued(self, connection: Connection, **more: Any) -> tuple[asyncio.Task[Connection], asyncio.Event]:
        """Begin a refresh that waits for its slot until the returned event is set."""
        queue = QueueingClient(self.client)
        refreshing = self.begin(connection, by=self.make_coordinator(amo=queue), **more)
        await queue.asked.wait()
        return refreshing, queue.served

    def before_slot(self, number: int, call: Callable[[], Awaitable[object]]) -> Any:
        """Return a client that awaits `call` before it grants the slot with this number."""
        slots = itertools.count(1)

        async def acquire_slot(_priority: object) -> None:
            if next(slots) == number:
                await call()

        return Override(self.client, acquire_slot=acquire_slot)

    def rate_limiter(self, per_second: float, shared: LocalLimits | None = None) -> RateLimiter:
        """Return a rate limiter that uses the fake clock."""
        limits = shared or LocalLimits(clock=self.clock)
        return RateLimiter(per_second=per_second, shared=limits, clock=self.clock, observer=self.witness)

    async def begin_pending_write(self, connection: Connection, **more: Any) -> asyncio.Task[Connection]:
        """Begin a refresh whose pair the store does not accept."""
        self.failing.away = {"save_refreshed"}
        refreshing = self.begin(connection, **more)
        await self.witness.until("pair.write_pending")
        return refreshing

    async def fail(self, connection: Connection, error: type[E], *faults: Fault, **more: Any) -> E:
        """Add the given faults to AMO, refresh a connection, and return the expected error."""
        self.amo.sandbox.faults.add(*faults)
        with pytest.raises(error) as raised:
            await self.refresh(connection, **more)
        return raised.value

    def count_requests(self) -> int:
        """Count the requests of any kind that AMO has received."""
        return self.amo.sandbox.requests + self.amo.sandbox.introspections

    async def hand_out(self, selector: str) -> HandOut:
        """Request an access token with any remaining lifetime, and wait until background work has ended."""
        handed_out = await self.lifecycle.access_tokens.token(selector, min_ttl=0)
        await self.traffic.until_quiet()  # changes by other processes are checked in the background
        return handed_out

    def presented(self) -> list[Entry]:
        """Return the requests that presented a refresh token to AMO."""
        return self.amo.fake.ledger.refreshes()

    def spent(self) -> int:
        """Return the number of refresh tokens that AMO has accepted."""
        return sum(entry.spent for entry in self.presented())

    def failing_store(self, *calls: str) -> FaultyStore:
        """Return a view of the store in which these calls fail."""
        store = FaultyStore(self.store, self.clock)
        store.away = set(calls)
        return store

    async def fail_store_once(self) -> None:
        """Have one store call of this process fail."""
        self.failing.away = {"count"}
        with pytest.raises(StoreUnavailable):
            await self.failing.count()

    async def restore_store(self, lifecycle: TokenLifecycle | None = None) -> None:
        """End the store's failure, and flush the pending writes."""
        self.failing.away = set()
        await (lifecycle or self.lifecycle).pending_writes.flush()

    def refresh_elsewhere(self, connection: Connection) -> None:
        """Refresh a connection as another system, so that AMO rejects both tokens of the stored pair."""
        self.amo.fake.quirks.refresh_kills_access = True
        self.amo.spend(grant_type="refresh_token", refresh_token=self.pair(connection).refresh_token)

    async def run_due_rechecks(self, lifecycle: TokenLifecycle | None = None) -> None:
        """Run the due rechecks, as the scheduler does."""
        for name in (await self.store.due(now=self.clock.now(), limit=0, rechecks=100, exclude=())).rechecks:
            await (lifecycle or self.lifecycle).rechecker.check(name)

    @asynccontextmanager
    async def running(self, lifecycle: TokenLifecycle) -> AsyncIterator[None]:
        """Run the scheduler within the context."""
        task = asyncio.create_task(lifecycle.scheduler.run())
        try:
            yield
        finally:
            lifecycle.core.stop.set()
            await task
            await lifecycle.drain()

    async def pass_time(self, seconds: float, *, step: float) -> None:
        """Advance the clock in steps, each after all calls in progress have ended."""
        for _ in range(round(seconds / step)):
            await self.traffic.until_quiet()
            self.clock.advance(step)
        await self.traffic.until_quiet()

    async def pass_days(self, days: float) -> None:
        """Run the scheduler for `days`, from one due time to the next."""
        end = self.clock.monotonic() + days * DAY
        while self.clock.monotonic() < end:
            await self.traffic.until_quiet()
            step = min([left for left in self.clock.sleeping() if left > 0], default=600.0)
            self.clock.advance(max(step, 0.001))
        await self.traffic.until_quiet()


class GatedClient:
    """A client that holds its requests or AMO's answers until an event is set."""

    def __init__(self, client: AmoClient, *, hold_request: bool = False, hold_answer: bool = False) -> None:
        self.client = client
        self.asked, self.send = asyncio.Event(), asyncio.Event()
        self.answered, self.go_on = asyncio.Event(), asyncio.Event()
        if not hold_request:
            self.send.set()
        if not hold_answer:
            self.go_on.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    async def refresh(self, **request: Any) -> TokenResponse:
        """Send the request once `send` is set, and return AMO's answer once `go_on` is set."""
        self.asked.set()
        await self.send.wait()
        issued = await self.client.refresh(**request)
        self.answered.set()
        await self.go_on.wait()
        return issued


class QueueingClient(GatedClient):
    """A client whose rate limit grants no slot until `served` is set."""

    def __init__(self, client: AmoClient) -> None:
        super().__init__(client)
        self.served = asyncio.Event()

    async def acquire_slot(self, _priority: object) -> None:
        self.asked.set()
        await self.served.wait()


class UnreachableClient(GatedClient):
    """A client whose first request does not reach AMO."""

    async def refresh(self, **request: Any) -> TokenResponse:
        """Raise `RequestNotSent` for the first request, and send every later one."""
        if not self.asked.is_set():
            self.asked.set()
            raise RequestNotSent
        return await self.client.refresh(**request)


def newer_than(connection: Connection) -> Callable[[Connection], bool]:
    """Return a condition that accepts every pair version except this connection's."""
    return lambda now: now.pair_version != connection.pair_version
