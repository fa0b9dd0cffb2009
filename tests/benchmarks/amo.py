"""The stand-in for AMO, in the benchmark's own process, fit for very many accounts."""

from __future__ import annotations

import gc
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from aiohttp import web

from amo_callback.amo.sandbox.app import Sandbox
from amo_callback.amo.sandbox.fake_amo import FakeAmo, SandboxAccount
from amo_callback.amo.sandbox.rules import SandboxIntegration
from amo_callback.clock import SystemClock
from tests.conftest import BASE, HOST, Amo

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


class BigVendor(FakeAmo):
    """AMO whose accounts never move, so that one is found by its host at once."""

    def __init__(self) -> None:
        super().__init__(integration=SandboxIntegration(), now=SystemClock().now)
        self._by_host: dict[str, SandboxAccount] = {}

    def open_account(self, host: str, *, account_id: int | None = None, user_id: int | None = None) -> SandboxAccount:
        account = super().open_account(host, account_id=account_id, user_id=user_id)
        self._by_host[host] = account
        return account

    def account_at(self, host: str) -> SandboxAccount | None:
        return self._by_host.get(host)


@asynccontextmanager
async def serving_amo(*, latency: float = 0.0) -> AsyncIterator[Amo]:
    """Serve the stand-in, which takes so many seconds for an answer."""
    fake = BigVendor()
    sandbox = Sandbox(fake, clock=SystemClock(), latency=latency)
    runner = web.AppRunner(sandbox.app(), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        host, port = runner.addresses[0][:2]
        yield Amo(sandbox=sandbox, address=f"{host}:{port}", account=fake.open_account(HOST))
    finally:
        await runner.cleanup()


def open_accounts(fake: FakeAmo, number: int) -> Sequence[SandboxAccount]:
    """Open so many new accounts."""
    first = len(fake.accounts)
    return [fake.open_account(f"account{first + one}.amocrm.ru") for one in range(number)]


def callback_paths(fake: FakeAmo, accounts: Sequence[SandboxAccount]) -> Sequence[str]:
    """Let each account's user allow access, and return the paths that AMO redirects to."""
    settle()
    queries = (
        {"code": fake.allow(one), "state": "the app's state", "referer": one.host, "platform": "1"} for one in accounts
    )
    return [f"{BASE}/callback?{urlencode(query)}" for query in queries]


def settle() -> None:
    """Look through what the stand-in remembers for garbage now, and never again, while others wait for its answers."""
    gc.collect()
    gc.freeze()
