"""An environment for e2e tests: real processes on one database, and AMO's stand-in in real time."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import asyncpg
from yarl import URL

from amo_callback.amo.sandbox.fake_amo import SandboxAccount
from amo_callback.amo.sandbox.ledger import Entry, Ledger
from amo_callback.clock import SystemClock
from amo_callback.crypto import Cipher
from amo_callback.model import fingerprint
from tests.e2e.process import Process, serving
from tests.service import API_KEY, BASE, Amo, Answer, environment, serve_amo
from tests.wait_limit import WAIT_LIMIT

DATABASE = "amo-callback.db"
_SEED = 31920194
LIFE = 3600.0
"""The access tokens' default lifetime in seconds, long enough that none expires in a test on a slow machine."""
_QUICK = {
    # Longer than the scheduling delays of a busy machine, including the stand-in's.
    "AMO__TIMEOUT": "60",
    "REFRESH__LEASE": "70",
    "REFRESH__POLL_INTERVAL": "0.2",
    "REFRESH__RETRY_BASE": "0.5",
    "REFRESH__RETRY_CAP": "1",
    "LOG__ACCESS": "false",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A connection as stored in the database."""

    id: str
    account_id: int
    status: str
    reason: str | None
    attempt: str | None
    lease_owner: str | None
    presented_token: str | None
    pair_version: int
    refresh_token: str = field(repr=False)


def read_row(row: Mapping[str, Any] | sqlite3.Row, cipher: Cipher) -> Row:
    """Read a row of either engine."""
    return Row(
        id=row["id"],
        account_id=int(row["account_id"]),
        status=row["status"],
        reason=row["reason"],
        attempt=row["attempt"],
        lease_owner=row["lease_owner"],
        presented_token=row["presented_token"],
        pair_version=row["pair_version"],
        refresh_token=cipher.open_tokens(row["sealed_pair"], connection_id=row["id"])[1],
    )


async def postgres_rows(url: str, key: str) -> dict[int, Row]:
    """Return the connections of a PostgreSQL database by account."""
    cipher = Cipher([key])
    connection = await asyncpg.connect(url)
    try:
        found = await connection.fetch("SELECT * FROM connections")
    finally:
        await connection.close()
    return {int(row["account_id"]): read_row(dict(row), cipher) for row in found}


@dataclass(kw_only=True, slots=True)
class Stage:
    """The stand-in, its accounts, the folder of one database, and a client of its processes."""

    amo: Amo
    folder: Path
    key: str = field(repr=False)
    http: aiohttp.ClientSession
    accounts: list[SandboxAccount]
    settings: dict[str, str]
    chance: Random

    @property
    def ledger(self) -> Ledger:
        return self.amo.fake.ledger

    def environ(self) -> dict[str, str]:
        """Return the environment of each process."""
        return environment(self.amo, self.key, **self.settings)

    def serving(self, **options: Any) -> AbstractAsyncContextManager[Process]:
        """Run another process on the database."""
        return serving(self.environ(), self.folder, **options)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Process]:
        """Run another process on the database and connect all accounts."""
        async with self.serving() as process:
            await self.connect(process)
            yield process

    async def connect(self, process: Process, accounts: Iterable[SandboxAccount] | None = None) -> None:
        """Connect or reconnect accounts, by default all of them."""
        for account in self.accounts if accounts is None else accounts:
            query = f"code={self.amo.fake.allow(account)}&referer={account.host}"
            answer = await self._ask(process, "GET", "public", f"{BASE}/callback?{query}")
            came_back = answer.status == 302 and answer.location.startswith("foryoure://amo-crm/callback?code=de")
            assert came_back, f"{answer.status} {answer.location}"

    async def token(self, process: Process, account: SandboxAccount, *, min_ttl: int = 0) -> Answer:
        """Request an access token."""
        return await self._ask(process, "GET", "private", f"/connections/account:{account.id}/token?min_ttl={min_ttl}")

    async def refresh(self, process: Process, account: SandboxAccount, *, rejected: str | None = None) -> Answer:
        """Request a refresh as a backend does after a 401, with `rejected` or the current token as the rejected one."""
        rejected = rejected or (await self.token(process, account)).json().get("access_token")
        body = {} if rejected is None else {"rejected_access_token": rejected}
        return await self._ask(process, "POST", "private", f"/connections/account:{account.id}/refresh", json=body)

    async def ready(self, process: Process) -> tuple[bool, list[str]]:
        """Return whether a process is ready, and its failing checks."""
        answer = await self._ask(process, "GET", "private", "/readyz")
        assert answer.status in {200, 503}
        failing = [name for name, check in answer.json()["checks"].items() if not check["ok"]]
        return answer.status == 200, failing

    async def _ask(self, process: Process, method: str, listener: str, path: str, **options: Any) -> Answer:
        started = await process.until("service.started")
        url = URL(f"http://{started[listener]}{path}", encoded=True)
        headers = {"Authorization": f"Bearer {API_KEY}"} if listener == "private" else {}
        async with self.http.request(method, url, headers=headers, allow_redirects=False, **options) as response:
            return Answer(status=response.status, headers=dict(response.headers), text=await response.text())

    def rows(self) -> dict[int, Row]:
        """Read the connections by account, directly from the database."""
        cipher = Cipher([self.key])
        with closing(sqlite3.connect(f"file:{self.folder / DATABASE}?mode=ro", uri=True)) as database:
            database.row_factory = sqlite3.Row
            found = database.execute("SELECT * FROM connections").fetchall()
        return {int(row["account_id"]): read_row(row, cipher) for row in found}

    def open_claims(self) -> dict[int, Row]:
        """Return the connections with an open attempt."""
        return {account_id: row for account_id, row in self.rows().items() if row.attempt is not None}

    def valid_refresh_tokens(self) -> set[str]:
        """Return the refresh tokens that the stand-in accepts."""
        return {token for token in self.ledger.issued if self.amo.fake.current_subdomain(token).status == 200}

    def presented(self, presented_token: str) -> list[Entry]:
        """Return the presentations of a refresh token with this fingerprint."""
        return [entry for entry in self.ledger.refreshes() if fingerprint(entry.presented) == presented_token]

    def refreshed(self, account: SandboxAccount) -> int:
        """Count an account's refreshes."""
        return sum(entry.spent and entry.host == account.host for entry in self.ledger.refreshes())

    def lost(self) -> list[Row]:
        """Return the connections that are not active or whose refresh token is spent."""
        valid_refresh_tokens = self.valid_refresh_tokens()
        return [
            row
            for row in self.rows().values()
            if row.status != "active" or row.refresh_token not in valid_refresh_tokens
        ]

    async def until_refreshed(self, *, times: int = 1) -> None:
        """Wait until every account has been refreshed `times` more times."""
        before = {account.id: self.refreshed(account) for account in self.accounts}
        await eventually(
            lambda: all(self.refreshed(account) >= before[account.id] + times for account in self.accounts)
        )

    async def until_asked(self, times: int) -> None:
        """Wait until the stand-in has received a number of further requests."""
        await asyncio.wait_for(self.amo.sandbox.until_asked(self.amo.sandbox.requests + times), WAIT_LIMIT)

    async def some_moment(self, *, latency: float) -> None:
        """Set AMO's latency to all, a fifth or none of `latency`, and wait until a random moment near a request."""
        self.amo.sandbox.latency = self.chance.choice([0.0, 0.2 * latency, latency])
        await self.until_asked(self.chance.randint(1, 2 * len(self.accounts)))
        await asyncio.sleep(self.chance.uniform(0, 0.02 + self.amo.sandbox.latency))

    async def until_ready(self, process: Process, *, failing: Iterable[str] = (), among: bool = False) -> None:
        """Wait until a process is ready, or until exactly the `failing` checks fail, or these `among` others."""
        wanted = (not failing, list(failing))

        async def is_so() -> bool:
            ready, result = await self.ready(process)
            return set(failing) <= set(result) if among else (ready, result) == wanted

        await eventually(is_so)


@asynccontextmanager
async def staged(
    folder: Path, key: str, *, accounts: int, every: float | None = None, access: float = LIFE, **settings: str
) -> AsyncIterator[Stage]:
    """Create the environment; `every` is the number of seconds between refreshes, by default half the lifetime."""
    due = {} if every is None else {"REFRESH__AT": str(every / access)}
    async with serve_amo(SystemClock(), access=access) as amo, aiohttp.ClientSession() as http:
        yield Stage(
            amo=amo,
            folder=folder,
            key=key,
            http=http,
            accounts=[amo.fake.open_account(f"account{number}.amocrm.ru") for number in range(accounts)],
            settings=_QUICK | due | settings,
            chance=Random(_SEED),  # noqa: S311 -- the seed makes runs repeatable
        )


def block_change(database: Path, when: str) -> Callable[[], None]:
    """Block a change (`INSERT ON …`, `UPDATE ON …`) indefinitely, and return a function that unblocks it."""

    def run(statement: str) -> None:
        with closing(sqlite3.connect(database)) as opened, opened:
            opened.execute(statement)

    endless = ", ".join(f"sqlite_master AS t{number}" for number in range(12))
    run(f"CREATE TRIGGER blocked BEFORE {when} BEGIN SELECT count(*) FROM {endless}; END")  # noqa: S608 -- constants
    return lambda: run("DROP TRIGGER blocked")


async def eventually(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Poll a condition until it is true."""
    async with asyncio.timeout(WAIT_LIMIT):
        while not await _result_of(condition()):  # noqa: ASYNC110 -- another process changes it
            await asyncio.sleep(0.05)


async def _result_of(answer: bool | Awaitable[bool]) -> bool:  # noqa: FBT001 -- the value to return
    return answer if isinstance(answer, bool) else await answer


def problem(answer: Answer) -> tuple[int, Any, Any]:
    """Return an answer's status, and the code and reason of its problem."""
    return answer.status, answer.json().get("code"), answer.json().get("reason")
