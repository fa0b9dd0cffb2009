"""A webhook dispatcher with a store, a clock and a receiver on a socket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from amo_callback.events import QueuedWebhook, connection_event
from amo_callback.model import RefreshRules
from amo_callback.store import Store
from amo_callback.webhooks.dispatcher import WebhookDispatcher
from amo_callback.webhooks.sender import Signer, open_sender
from tests.builders import a_connection, a_core, now, save
from tests.fakes import START, FakeClock, RecordingObserver
from tests.wait_limit import WAIT_LIMIT
from tests.webhooks.receiver import SECRET, Receiver

POLL = 5.0
CONNECT = "https://admin.example.com/api/amo-crm/connect"


class DispatcherHarness:
    """A store, a clock and a receiver around a dispatcher."""

    def __init__(self, *, store: Store, clock: FakeClock, witness: RecordingObserver, receiver: Receiver) -> None:
        self.store, self.clock, self.witness, self.receiver = store, clock, witness, receiver

    @asynccontextmanager
    async def dispatcher(
        self, *, store: Store | None = None, url: str | None = None, wait_limit: float = WAIT_LIMIT
    ) -> AsyncIterator[WebhookDispatcher]:
        """Run the dispatcher of one process."""
        used = store or self.store
        signer = Signer([SECRET], reconnect_url=CONNECT)
        async with open_sender(url or self.receiver.url, signer, wait_limit=wait_limit) as sender:
            core = a_core(store=used, clock=self.clock, observer=self.witness, rules=RefreshRules(poll_interval=POLL))
            used.observe(self.witness)
            self.stop = core.stop
            dispatcher = WebhookDispatcher(core, sender)
            used.on_webhook(dispatcher.wake)
            task = asyncio.create_task(dispatcher.run())
            try:
                yield dispatcher
            finally:
                core.stop.set()
                await task

    async def write(self, name: str = "connection.moved", *, account: int = 1, **fields: object) -> QueuedWebhook:
        """Change an account's connection and return the queued webhook."""
        connection = a_connection(account)
        if await self.store.connection(connection.id) is None:
            await save(self.store, connection)
        stored = await now(self.store, connection)
        assert await self.store.schedule_recheck(
            stored, at=START, events=[connection_event(name, stored, fields=fields)]
        )
        return (await self.store.webhooks(limit=1000))[-1]

    async def waiting(self) -> list[QueuedWebhook]:
        """Return the rows of the table `webhooks`."""
        return list(await self.store.webhooks(limit=1000))

    async def after(self, seconds: float) -> None:
        """Advance the clock once the dispatcher sleeps and has started everything due."""
        await self.clock.until_sleeping()
        self.clock.advance(seconds)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver().serve() as served:
        yield served


@pytest.fixture
def harness(store: Store, clock: FakeClock, witness: RecordingObserver, receiver: Receiver) -> DispatcherHarness:
    return DispatcherHarness(store=store, clock=clock, witness=witness, receiver=receiver)
