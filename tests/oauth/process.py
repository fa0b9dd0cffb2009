"""The OAuth flow of one process on a shared store."""

import asyncio
import dataclasses
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

from amo_callback.amo.client import AmoClient
from amo_callback.amo.sandbox.app import Fault
from amo_callback.core import Core
from amo_callback.crypto import Cipher
from amo_callback.grant import CodePresentation, GrantResult
from amo_callback.model import Connection
from amo_callback.oauth.authorization import Authorizations
from amo_callback.oauth.code_exchange import ExchangeParts, Exchanger
from amo_callback.oauth.grant_service import GrantService
from amo_callback.oauth.grants import GrantRules
from amo_callback.oauth.limits import Limits
from amo_callback.oauth.redemption import Redeemer
from amo_callback.refresh.address_block import AddressBlock
from amo_callback.refresh.credentials import Credentials
from amo_callback.refresh.pending_writes import PendingWrites
from amo_callback.refresh.raw_answers import RawAnswers
from amo_callback.store import Store
from tests.builders import a_core
from tests.fakes import FakeClock, FaultyStore, MemoryRescue, RecordingObserver
from tests.service import HOST, Amo


def _counter() -> Callable[[], str]:
    """Return a factory of distinct handles."""
    numbers = itertools.count(1)
    return lambda: f"handle-{next(numbers)}"


class Process:
    """The grants of one process on a shared store."""

    def __init__(self, *, store: Store, amo: Amo, client: AmoClient, cipher: Cipher, clock: FakeClock) -> None:
        self.amo, self.clock, self.witness = amo, clock, RecordingObserver()
        self.store, self.client, self.cipher = store, client, cipher
        self.failing = FaultyStore(store, clock)
        self.stop = asyncio.Event()
        self.woken = 0
        self.new_secret = _counter()
        self.rescue = MemoryRescue()
        store.observe(self.witness)
        core = self.core(client)
        self.pending_writes = PendingWrites(core, rescue=self.rescue)
        self.raw_answers = RawAnswers(core, rescue=self.rescue, pending_writes=self.pending_writes)
        self.address_block = AddressBlock(core)
        self.connect = self.make()

    def core(self, client: object) -> Core:
        return a_core(
            store=self.failing, amo=client, cipher=self.cipher, clock=self.clock, observer=self.witness, stop=self.stop
        )

    def make(self, client: object = None, *, attempts: int = 30, **rules: Any) -> GrantService:
        core, rules_ = self.core(client or self.client), self.rules(**rules)
        parts = ExchangeParts(
            pending_writes=self.pending_writes,
            raw_answers=self.raw_answers,
            credentials=Credentials(core),
            address_block=self.address_block,
            connected=self._wake,
        )
        return GrantService(
            core,
            rules_,
            exchanger=Exchanger(core, rules_, parts),
            authorizations=Authorizations(core, rules_, starts=self.limits().starts),
            limits=self.limits(attempts),
        )

    def rules(self, **rules: Any) -> GrantRules:
        return GrantRules(**{"new_secret": self.new_secret, **rules})

    def authorizations(self) -> Authorizations:
        return Authorizations(self.core(self.client), self.rules(new_secret=_counter()), starts=self.limits().starts)

    def redeemer(self, store: object, *, attempts: int = 30) -> Redeemer:
        core = dataclasses.replace(self.core(self.client), store=cast("Store", store))
        return Redeemer(core, self.rules(), service=self.connect, limits=self.limits(attempts))

    def limits(self, attempts: int = 100) -> Limits:
        return Limits(attempts=attempts, window=60, requests_per_second=5, queued_for=40, clock=self.clock)

    def before_claims(self, call: Callable[[], Awaitable[object]], **rules: Any) -> None:
        """Call `call` between this process's read of a code and its claim."""
        self.failing.before["claim_grant"] = lambda *_, **__: call()
        self.connect = self.make(**rules)

    def _wake(self, _connected: Connection) -> None:
        self.woken += 1

    async def complete(self, code: str, state: bytes | None = b"s", *, host: str = HOST) -> GrantResult:
        return await self.connect.complete(
            CodePresentation(code=code.encode(), state=state, host=host, address="192.0.2.1")
        )

    @asynccontextmanager
    async def slow_exchange(self, code: str) -> AsyncIterator[asyncio.Task[GrantResult]]:
        """Start an exchange that AMO answers when the context ends."""
        self.amo.sandbox.faults.add(Fault.SLOW)
        self.amo.sandbox.asked.clear()
        task = asyncio.create_task(self.complete(code))
        await self.amo.sandbox.asked.wait()
        yield task
        self.amo.sandbox.go_on.set()
