"""Three instances on one database under load, and the cost of faults during refreshes.

AMO answers slowly, access tokens are valid for 30 seconds, and a refresh immediately invalidates the previous token.
"""

import asyncio
import dataclasses
import signal
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp

from amo_callback.amo.sandbox.fake_amo import Lifetimes, SandboxAccount
from amo_callback.clock import SystemClock
from amo_callback.store.postgres_connection import ERRORS
from tests.e2e.costs import ACCESS, LATENCY, HandOut, costs
from tests.e2e.process import Process
from tests.e2e.processes import DATABASE, Row, Stage, eventually, postgres_rows, staged
from tests.e2e.proxy import CommitProxy
from tests.postgres import Server

INSTANCES, ACCOUNTS = 3, 40
CALLERS = 2
"""The number of backends per instance; each sends at most ten requests a second."""
FORCED = 0.02
"""The share of the backends' requests that force a refresh."""
BURST = 12
"""The number of connections refreshed at once just before a fault."""
LEASE, TIMEOUT = 10.0, 4.0
_UNREACHABLE = (sqlite3.Error, *ERRORS)


@dataclass(kw_only=True, slots=True)
class Cluster:
    """The instances, their backends and all observations."""

    stage: Stage
    folders: list[Path]
    """The working folder of each instance."""
    server: Server | None
    """PostgreSQL, or `None` for SQLite."""
    proxy: CommitProxy | None
    stack: AsyncExitStack
    instances: list[Process] = field(default_factory=list)
    hand_outs: list[HandOut] = field(default_factory=list)
    stored: dict[str, datetime] = field(default_factory=dict, repr=False)
    """Refresh tokens observed in the database, with the time of the first observation."""
    in_flight: int = 0
    lost: int = 0
    in_doubt: int = 0
    _burst: list[asyncio.Task[None]] = field(default_factory=list)
    _clock: SystemClock = field(default_factory=SystemClock)

    async def start(self, number: int) -> None:
        """Start an instance in place of the previous one with this number."""
        stage = dataclasses.replace(self.stage, folder=self.folders[number])
        process = await self.stack.enter_async_context(stage.serving())
        await eventually(lambda: bool(process.named("service.started")))
        self.instances[number:] = [process, *self.instances[number + 1 :]]

    async def rows(self) -> dict[int, Row]:
        """Return the connections by account."""
        if self.server is None:
            return self.stage.rows()
        return await postgres_rows(self.server.url(), self.stage.key)

    @asynccontextmanager
    async def under_load(self) -> AsyncIterator[None]:
        """Send backends' requests for random connections' tokens continuously during the block."""
        tasks = [asyncio.create_task(self._call(number % INSTANCES)) for number in range(INSTANCES * CALLERS)]
        tasks.append(asyncio.create_task(self._observe()))
        try:
            yield
            for task in tasks:
                if task.done():
                    task.result()  # raises the error that ended the task
        finally:
            for task in (*tasks, *self._burst):
                task.cancel()
            await asyncio.gather(*tasks, *self._burst, return_exceptions=True)

    async def _call(self, number: int) -> None:
        while True:
            await self._ask(number, self.stage.chance.choice(self.stage.accounts))
            await asyncio.sleep(0.1)

    async def _ask(self, number: int, account: SandboxAccount, *, min_ttl: float = 0) -> None:
        forced = not min_ttl and self.stage.chance.random() < FORCED
        began_at, instance = self._clock.now(), self.instances[number]
        try:
            if forced:
                answer = await self.stage.refresh(instance, account)
            else:
                answer = await self.stage.token(instance, account, min_ttl=int(min_ttl))
        except aiohttp.ClientError:  # the instance was killed
            return
        content: dict[str, Any] = answer.json()
        self.hand_outs.append(
            HandOut(
                host=account.host,
                began_at=began_at,
                ended_at=self._clock.now(),
                forced=forced,
                status=answer.status,
                token=content.get("access_token", ""),
                stale=content.get("stale", False),
            )
        )

    async def ask_for_all(self) -> None:
        """Request each connection's token from each instance, which caches it in case the store becomes unavailable."""
        for number in range(INSTANCES):
            await asyncio.gather(*(self._ask(number, account) for account in self.stage.accounts))

    async def _observe(self) -> None:
        """Record the pairs observed in the database."""
        while True:
            with suppress(*_UNREACHABLE):
                for row in (await self.rows()).values():
                    self.stored.setdefault(row.refresh_token, self._clock.now())
            await asyncio.sleep(0.5)

    async def begin_refreshes(self, *numbers: int) -> None:
        """Start many refreshes on the instances, and return at a random moment during these refreshes."""

        async def have_begun() -> bool:
            if all(task.done() for task in self._burst):
                accounts = self.stage.chance.sample(self.stage.accounts, BURST)
                self._burst = [
                    asyncio.create_task(self._ask(numbers[at % len(numbers)], account, min_ttl=ACCESS - 2))
                    for at, account in enumerate(accounts)
                ]
            return len(await self._claims(*numbers)) > BURST // 3

        await eventually(have_begun)
        await asyncio.sleep(self.stage.chance.uniform(0, 0.7 * LATENCY))

    async def count_in_flight(self, *numbers: int) -> None:
        """Count the refreshes in flight at the moment of the fault."""
        self.in_flight += len(await self._claims(*numbers))

    async def _claims(self, *numbers: int) -> list[Row]:
        owners = [f":{self.instances[number].process.pid}:" for number in numbers]
        return [
            row for row in (await self.rows()).values()
            if row.attempt and any(owner in (row.lease_owner or "") for owner in owners)
        ]  # fmt: skip

    async def settle(self, *, newer_than: Mapping[int, int] | None = None) -> None:
        """Wait until each connection is valid or in doubt, then reconnect those in doubt or not settled in time."""
        unsettled = {account.id: account for account in self.stage.accounts}
        broken: list[SandboxAccount] = []

        async def is_settled() -> bool:
            for account_id, row in (await self.rows()).items():
                if account_id not in unsettled:
                    continue
                is_new = row.pair_version > (newer_than or {}).get(account_id, 0)
                is_good = row.status == "active" and self.stage.amo.fake.is_good(row.refresh_token)
                if (row.status, row.reason) == ("needs_reauth", "in_doubt"):
                    broken.append(unsettled.pop(account_id))
                elif is_new and is_good and not row.attempt:
                    del unsettled[account_id]
            return not unsettled

        with suppress(TimeoutError):
            await eventually(is_settled)
        await asyncio.gather(*self._burst)
        self.in_doubt += len(broken)
        self.lost += len(unsettled)
        await asyncio.gather(*map(self.connect, (*broken, *unsettled.values())))

    async def connect(self, account: SandboxAccount) -> None:
        """Connect or reconnect an account, and repeat failed tries until one succeeds."""

        async def is_connected() -> bool:
            with suppress(AssertionError, aiohttp.ClientError):  # a busy service refuses the callback
                await self.stage.connect(self.instances[0], [account])
                return True
            return False

        await eventually(is_connected)

    async def stop(self) -> None:
        """Stop all instances."""
        for instance in self.instances:
            instance.signal(signal.SIGTERM)
        for instance in self.instances:
            assert await instance.ended() == 0

    def figures(self) -> dict[str, int]:
        """Return the counts so far."""
        return {
            "in flight": self.in_flight,
            "lost": self.lost,
            "in doubt": self.in_doubt,
            **costs(self.stage.ledger, self.hand_outs, self.stored),
            "requests": len(self.hand_outs),
            "refreshes": len(self.stage.ledger.refreshes()),
        }


@asynccontextmanager
async def running_cluster(
    folder: Path, key: str, *, server: Server | None = None, proxy: CommitProxy | None = None
) -> AsyncIterator[Cluster]:
    """Run the instances on one SQLite file or a PostgreSQL server, and connect the accounts."""
    url = proxy.url if proxy else server.url() if server else f"sqlite:///{DATABASE}"
    async with AsyncExitStack() as stack:
        stage = await stack.enter_async_context(
            staged(
                folder, key, accounts=ACCOUNTS,
                STORAGE__URL=url, STORAGE__RESCUE="rescue", AMO__REQUESTS_PER_SECOND="50",
                AMO__TIMEOUT=str(TIMEOUT), REFRESH__LEASE=str(LEASE),
            )
        )  # fmt: skip
        stage.amo.fake.lifetimes = Lifetimes(access=ACCESS)
        stage.amo.fake.quirks.refresh_kills_access = True
        folders = [folder / str(number) if server else folder for number in range(INSTANCES)]
        for own in folders:
            own.mkdir(exist_ok=True)
        cluster = Cluster(stage=stage, folders=folders, server=server, proxy=proxy, stack=stack)
        for number in range(INSTANCES):
            await cluster.start(number)
        for account in stage.accounts:
            await cluster.connect(account)
        await cluster.ask_for_all()
        stage.amo.sandbox.latency = LATENCY
        yield cluster
