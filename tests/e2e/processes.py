"""A stage for custody: real processes on one database, the stand-in in real time, and what each of them knows."""

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
"""Seconds that access tokens are good for, unless a stage says otherwise: none expires in a test on a slow machine."""
_QUICK = {
    # Longer than a process has to wait for its turn on a busy machine, also for the stand-in's answer.
    "AMO__TIMEOUT": "60",
    "REFRESH__LEASE": "70",
    "REFRESH__POLL_INTERVAL": "0.2",
    "REFRESH__RETRY_BASE": "0.5",
    "REFRESH__RETRY_CAP": "1",
    "LOG__ACCESS": "false",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A connection as it is in the database."""

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
    """Return a row of either engine."""
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
    """Read the connections in a PostgreSQL database by their accounts."""
    cipher = Cipher([key])
    connection = await asyncpg.connect(url)
    try:
        found = await connection.fetch("SELECT * FROM connections")
    finally:
        await connection.close()
    return {int(row["account_id"]): read_row(dict(row), cipher) for row in found}


@dataclass(kw_only=True, slots=True)
class Stage:
    """The stand-in, its accounts, the folder of one database, and whoever asks the processes on it."""

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
        """Run one more process on the database."""
        return serving(self.environ(), self.folder, **options)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Process]:
        """Run one more process, and connect all accounts there."""
        async with self.serving() as process:
            await self.connect(process)
            yield process

    async def connect(self, process: Process, accounts: Iterable[SandboxAccount] | None = None) -> None:
        """Connect accounts, again or for the first time; all of them where none is named."""
        for account in self.accounts if accounts is None else accounts:
            query = f"code={self.amo.fake.allow(account)}&referer={account.host}"
            answer = await self._ask(process, "GET", "public", f"{BASE}/callback?{query}")
            came_back = answer.status == 302 and answer.location.startswith("foryoure://amo-crm/callback?code=de")
            assert came_back, f"{answer.status} {answer.location}"

    async def token(self, process: Process, account: SandboxAccount, *, min_ttl: int = 0) -> Answer:
        """Ask for an access token."""
        return await self._ask(process, "GET", "private", f"/connections/account:{account.id}/token?min_ttl={min_ttl}")

    async def refresh(self, process: Process, account: SandboxAccount, *, rejected: str | None = None) -> Answer:
        """Ask for a refresh now, as a backend does that met 401 with this token, or with the one there is."""
        rejected = rejected or (await self.token(process, account)).json().get("access_token")
        body = {} if rejected is None else {"rejected_access_token": rejected}
        return await self._ask(process, "POST", "private", f"/connections/account:{account.id}/refresh", json=body)

    async def ready(self, process: Process) -> tuple[bool, list[str]]:
        """Ask whether a process is ready, and which checks say that it is not."""
        answer = await self._ask(process, "GET", "private", "/readyz")
        assert answer.status in {200, 503}
        failing = [name for name, check in answer.json()["checks"].items() if not check["ok"]]
        return answer.status == 200, failing

    async def _ask(self, process: Process, method: str, door: str, path: str, **options: Any) -> Answer:
        started = await process.until("service.started")
        url = URL(f"http://{started[door]}{path}", encoded=True)
        headers = {"Authorization": f"Bearer {API_KEY}"} if door == "private" else {}
        async with self.http.request(method, url, headers=headers, allow_redirects=False, **options) as response:
            return Answer(status=response.status, headers=dict(response.headers), text=await response.text())

    def rows(self) -> dict[int, Row]:
        """Read the connections, by their accounts, as nobody's business but the database's."""
        cipher = Cipher([self.key])
        with closing(sqlite3.connect(f"file:{self.folder / DATABASE}?mode=ro", uri=True)) as database:
            database.row_factory = sqlite3.Row
            found = database.execute("SELECT * FROM connections").fetchall()
        return {int(row["account_id"]): read_row(row, cipher) for row in found}

    def open_claims(self) -> dict[int, Row]:
        """Return the connections whose refresh is in flight, or was when their process was killed."""
        return {account_id: row for account_id, row in self.rows().items() if row.attempt is not None}

    def live(self) -> set[str]:
        """Return the refresh tokens that the stand-in would take."""
        return {token for token in self.ledger.issued if self.amo.fake.current_subdomain(token).status == 200}

    def presented(self, presented_token: str) -> list[Entry]:
        """Return the presentations of a refresh token, by its fingerprint."""
        return [entry for entry in self.ledger.refreshes() if fingerprint(entry.presented) == presented_token]

    def refreshed(self, account: SandboxAccount) -> int:
        """Count an account's refreshes."""
        return sum(entry.spent and entry.host == account.host for entry in self.ledger.refreshes())

    def lost(self) -> list[Row]:
        """Return the connections that are not in good order: given up, or with a token that has been spent."""
        live = self.live()
        return [row for row in self.rows().values() if row.status != "active" or row.refresh_token not in live]

    async def until_refreshed(self, *, times: int = 1) -> None:
        """Wait until every account has been refreshed so many times more."""
        before = {account.id: self.refreshed(account) for account in self.accounts}
        await eventually(
            lambda: all(self.refreshed(account) >= before[account.id] + times for account in self.accounts)
        )

    async def until_asked(self, times: int) -> None:
        """Wait until the stand-in was asked so many times more."""
        await asyncio.wait_for(self.amo.sandbox.until_asked(self.amo.sandbox.requests + times), WAIT_LIMIT)

    async def some_moment(self, *, latency: float) -> None:
        """Let a while go by that ends somewhere around a refresh; AMO takes its time, or a part of it, or none."""
        self.amo.sandbox.latency = self.chance.choice([0.0, 0.2 * latency, latency])
        await self.until_asked(self.chance.randint(1, 2 * len(self.accounts)))
        await asyncio.sleep(self.chance.uniform(0, 0.02 + self.amo.sandbox.latency))

    async def until_ready(self, process: Process, *, failing: Iterable[str] = (), among: bool = False) -> None:
        """Wait until a process is ready, or until just these checks say that it is not; or these `among` others."""
        wanted = (not failing, list(failing))

        async def is_so() -> bool:
            ready, told = await self.ready(process)
            return set(failing) <= set(told) if among else (ready, told) == wanted

        await eventually(is_so)


@asynccontextmanager
async def staged(
    folder: Path, key: str, *, accounts: int, every: float | None = None, access: float = LIFE, **settings: str
) -> AsyncIterator[Stage]:
    """Set a stage: a connection is refreshed `every` so many seconds, or halfway; each process has the settings."""
    due = {} if every is None else {"REFRESH__AT": str(every / access)}
    async with serve_amo(SystemClock(), access=access) as amo, aiohttp.ClientSession() as http:
        yield Stage(
            amo=amo,
            folder=folder,
            key=key,
            http=http,
            accounts=[amo.fake.open_account(f"account{number}.amocrm.ru") for number in range(accounts)],
            settings=_QUICK | due | settings,
            chance=Random(_SEED),  # noqa: S311 -- because the moments of one run are to be those of the next
        )


def hold_up(database: Path, when: str) -> Callable[[], None]:
    """Let whoever makes a change (`INSERT ON …`, `UPDATE ON …`) never come to its end; return what lifts that."""

    def run(statement: str) -> None:
        with closing(sqlite3.connect(database)) as opened, opened:
            opened.execute(statement)

    endless = ", ".join(f"sqlite_master AS t{number}" for number in range(12))
    run(f"CREATE TRIGGER held_up BEFORE {when} BEGIN SELECT count(*) FROM {endless}; END")  # noqa: S608 -- because it is ours
    return lambda: run("DROP TRIGGER held_up")


async def eventually(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Look again and again until something is so that nobody tells."""
    async with asyncio.timeout(WAIT_LIMIT):
        while not await _told(condition()):  # noqa: ASYNC110 -- because it becomes so in another process
            await asyncio.sleep(0.05)


async def _told(answer: bool | Awaitable[bool]) -> bool:  # noqa: FBT001 -- because it is an answer, no switch
    return answer if isinstance(answer, bool) else await answer


def problem(answer: Answer) -> tuple[int, Any, Any]:
    """Return an answer's status, and the code and reason of a problem."""
    return answer.status, answer.json().get("code"), answer.json().get("reason")
