"""A database full of connections whose pairs AMO has issued, filled without the service."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING

from amo_callback.amo.protocol import Answer, GrantType, Integration, exchange_request, read_answer
from amo_callback.clock import SystemClock
from amo_callback.model import connection_id
from amo_callback.schedule import REFRESH_TOKEN_LIFE, refresh_due
from amo_callback.store import open_store
from amo_callback.store.engine import to_micros
from tests.benchmarks.amo import BigVendor, open_accounts, settle

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from amo_callback.amo.sandbox.fake_amo import SandboxAccount
    from amo_callback.crypto import Cipher

FILE = "amo-callback.db"
"""The service's own name for it, where nothing else is configured."""
_INSERT = """
INSERT INTO connections (
    id, account_id, user_id, domain, api_domain, client_id, status, sealed_pair, access_issued_at, access_expires_at,
    refresh_expires_at, next_refresh_at, connected_at, grant_iat
) VALUES (
    :id, :account_id, :user_id, :domain, :api_domain, :client_id, 'active', :sealed_pair, :issued, :expires,
    :dies, :due, :issued, :token_iat
)
"""


async def fill(folder: Path, cipher: Cipher, fake: BigVendor, *, connections: int) -> Sequence[str]:
    """Make the service's database, with so many connections of new accounts; return what names them."""
    clock = SystemClock()
    async with open_store(f"sqlite:///{FILE}", folder=folder, clock=clock):
        pass  # now it has its tables
    accounts = open_accounts(fake, connections)
    with closing(sqlite3.connect(folder / FILE)) as database, database:
        database.executemany(_INSERT, _rows(fake, cipher, accounts))
    settle()
    return [f"account:{account.id}" for account in accounts]


def _rows(fake: BigVendor, cipher: Cipher, accounts: Sequence[SandboxAccount]) -> Iterator[dict[str, object]]:
    """Exchange a code of each account, and return its connection as the service stores it."""
    known, now = fake.integration, fake.now
    integration = Integration(
        client_id=known.client_id, client_secret=known.client_secret, redirect_uri=known.redirect_uri
    )
    for account in accounts:
        code = fake.allow(account)
        request = exchange_request(integration, code=code.encode(), domain=account.host)
        reply = fake.token(account.host, body=request.body or b"", content_type="application/json")
        answer = Answer(status=reply.status, body=reply.body)
        issued = read_answer(answer, grant_type=GrantType.CODE, now=now())
        name = connection_id(issued.account, account.host)
        yield {
            "id": name,
            "account_id": issued.account.account_id,
            "user_id": issued.account.user_id,
            "domain": account.host,
            "api_domain": issued.account.api_domain,
            "client_id": integration.client_id,
            "sealed_pair": cipher.seal_pair(issued.pair, connection_id=name),
            "issued": to_micros(issued.pair.issued_at),
            "expires": to_micros(issued.pair.expires_at),
            "dies": to_micros(issued.pair.issued_at + REFRESH_TOKEN_LIFE),
            "due": to_micros(refresh_due(issued.pair, at=0.5, jitter=0.1, random=random.random)),
            "token_iat": issued.account.token_iat,
        }


def make_due(folder: Path) -> None:
    """Make the refresh of every connection due, one after the other; the service must not run."""
    past = to_micros(SystemClock().now() - timedelta(hours=1))
    with closing(sqlite3.connect(folder / FILE)) as database, database:
        database.execute("UPDATE connections SET next_refresh_at = ? + rowid", [past])


def refreshed(folder: Path, *, version: int) -> int:
    """Count the connections with this version of their pair, active, and with no attempt open."""
    with closing(sqlite3.connect(f"file:{folder / FILE}?mode=ro", uri=True)) as database:
        return int(
            database.execute(
                "SELECT count(*) FROM connections WHERE pair_version = ? AND status = 'active' AND attempt IS NULL",
                [version],
            ).fetchone()[0]
        )


def waiting(folder: Path) -> int:
    """Count the connections whose refresh is due."""
    with closing(sqlite3.connect(f"file:{folder / FILE}?mode=ro", uri=True)) as database:
        now = to_micros(SystemClock().now())
        return int(database.execute("SELECT count(*) FROM connections WHERE next_refresh_at <= ?", [now]).fetchone()[0])
