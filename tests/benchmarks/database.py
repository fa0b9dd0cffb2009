"""The stand-in for AMO with very many accounts, and the service's database with their connections."""

import gc
import random
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlencode

from aiohttp import web

from amo_callback.amo.protocol import AmoResponse, GrantType, Integration, exchange_request, read_token_response
from amo_callback.amo.sandbox.app import Sandbox
from amo_callback.amo.sandbox.fake_amo import FakeAmo, SandboxAccount, SandboxIntegration
from amo_callback.clock import SystemClock
from amo_callback.crypto import Cipher
from amo_callback.model import connection_id
from amo_callback.schedule import REFRESH_TOKEN_LIFETIME, refresh_due
from amo_callback.store import open_store
from amo_callback.store.engine import to_micros
from tests.service import BASE, HOST, Amo

FILE = "amo-callback.db"
"""The default name of the service's database file."""
_INSERT = """
INSERT INTO connections (
    id, account_id, user_id, domain, api_domain, client_id, status, sealed_pair, access_issued_at, access_expires_at,
    refresh_expires_at, next_refresh_at, connected_at, grant_iat
) VALUES (
    :id, :account_id, :user_id, :domain, :api_domain, :client_id, 'active', :sealed_pair, :issued, :expires,
    :dies, :due, :issued, :token_iat
)
"""


class BigVendor(FakeAmo):
    """A fake AMO whose accounts never move, so that an account is found by its host without a search."""

    def __init__(self) -> None:
        super().__init__(integration=SandboxIntegration(), now=SystemClock().now)
        self._by_host: dict[str, SandboxAccount] = {}

    def open_account(self, host: str, *, account_id: int | None = None, user_id: int | None = None) -> SandboxAccount:
        self._by_host[host] = account = super().open_account(host, account_id=account_id, user_id=user_id)
        return account

    def account_at(self, host: str) -> SandboxAccount | None:
        return self._by_host.get(host)

    def open_accounts(self, number: int) -> Sequence[SandboxAccount]:
        first = len(self.accounts)
        return [self.open_account(f"account{first + one}.amocrm.ru") for one in range(number)]

    def callback_paths(self, number: int) -> Sequence[str]:
        """Open accounts whose users allow access, and return the callback paths to which AMO redirects them."""
        accounts = self.open_accounts(number)
        settle()
        queries = (
            {"code": self.allow(one), "state": "the app's state", "referer": one.host, "platform": "1"}
            for one in accounts
        )
        return [f"{BASE}/callback?{urlencode(query)}" for query in queries]


@asynccontextmanager
async def serving_amo(*, latency: float = 0.0) -> AsyncIterator[tuple[Amo, BigVendor]]:
    """Serve the stand-in for AMO in the benchmark's process, with `latency` seconds before each answer."""
    fake = BigVendor()
    sandbox = Sandbox(fake, clock=SystemClock(), latency=latency)
    runner = web.AppRunner(sandbox.app(), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        host, port = runner.addresses[0][:2]
        yield Amo(sandbox=sandbox, address=f"{host}:{port}", account=fake.open_account(HOST)), fake
    finally:
        await runner.cleanup()


def settle() -> None:
    """Collect garbage now, and exclude the remaining objects from later collections, which would delay answers."""
    gc.collect()
    gc.freeze()


async def fill(folder: Path, cipher: Cipher, fake: BigVendor, *, connections: int) -> Sequence[str]:
    """Create the service's database with connections of new accounts; return the paths of their tokens."""
    async with open_store(f"sqlite:///{FILE}", folder=folder, clock=SystemClock()):
        pass  # opening the store creates its tables
    accounts = fake.open_accounts(connections)
    with closing(sqlite3.connect(folder / FILE)) as database, database:
        database.executemany(_INSERT, _rows(fake, cipher, accounts))
    settle()
    return [f"/connections/account:{account.id}/token" for account in accounts]


def _rows(fake: BigVendor, cipher: Cipher, accounts: Sequence[SandboxAccount]) -> Iterator[dict[str, object]]:
    """Exchange a code of each account, and yield its connection as the service stores it."""
    known = fake.integration
    integration = Integration(
        client_id=known.client_id, client_secret=known.client_secret, redirect_uri=known.redirect_uri
    )
    for account in accounts:
        request = exchange_request(integration, code=fake.allow(account).encode(), domain=account.host)
        reply = fake.token(account.host, body=request.body or b"", content_type="application/json")
        issued = read_token_response(
            AmoResponse(status=reply.status, body=reply.body), grant_type=GrantType.CODE, now=fake.now()
        )
        name = connection_id(issued.account, account.host)
        yield {
            "id": name,
            "account_id": issued.account.account_id,
            "user_id": issued.account.user_id,
            "domain": account.host,
            "api_domain": issued.account.api_domain,
            "client_id": integration.client_id,
            "sealed_pair": cipher.seal_pair(issued.pair, connection_id=name),
            "issued": to_micros(issued.pair.issued_at - timedelta(minutes=1)),  # a younger pair is not refreshed again
            "expires": to_micros(issued.pair.expires_at),
            "dies": to_micros(issued.pair.issued_at + REFRESH_TOKEN_LIFETIME),
            "due": to_micros(refresh_due(issued.pair, at=0.5, jitter=0.1, random=random.random)),
            "token_iat": issued.account.token_iat,
        }


def make_due(folder: Path) -> None:
    """Make every connection due, in the order of the rows; the service must not run meanwhile."""
    past = to_micros(SystemClock().now() - timedelta(hours=1))
    with closing(sqlite3.connect(folder / FILE)) as database, database:
        database.execute("UPDATE connections SET next_refresh_at = ? + rowid", [past])


def count(folder: Path, where: str, *values: object) -> int:
    with closing(sqlite3.connect(f"file:{folder / FILE}?mode=ro", uri=True)) as database:
        return int(database.execute(f"SELECT count(*) FROM connections WHERE {where}", values).fetchone()[0])  # noqa: S608 -- because the words are our own
