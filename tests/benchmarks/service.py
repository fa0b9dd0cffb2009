"""The real service in a process of its own, for benchmarks."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.conftest import API_KEY, BASE, Amo

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiohttp

AT_ONCE = 16
_SERVE = ("-m", "amo_callback.cli.main", "serve")


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """A process that serves, and where."""

    public: str = ""
    private: str
    pid: int = 0


@asynccontextmanager
async def running(*arguments: str, folder: Path, environ: dict[str, str], out: Path) -> AsyncIterator[int]:
    """Run Python with its output in a file; give its process id."""
    with out.open("wb") as file:
        here = {"PYTHONPATH": str(Path.cwd()), "PATH": "/usr/bin:/bin", **environ}
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, cwd=folder, env=here, stdout=file)
    try:
        yield process.pid
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def serving(folder: Path, environ: dict[str, str], *, access: bool) -> AsyncIterator[Server]:
    out = folder / f"access-{access}.log"
    environ = {**environ, "AMO_CALLBACK_LOG__ACCESS": str(access).lower()}
    async with running(*_SERVE, folder=folder, environ=environ, out=out) as pid:
        while "service.started" not in (text := out.read_text(encoding="utf-8")):
            await asyncio.sleep(0.05)
        [line] = [line for line in map(json.loads, text.splitlines()) if line["event"] == "service.started"]
        yield Server(public=f"http://{line['public']}", private=f"http://{line['private']}", pid=pid)


async def connect_accounts(http: aiohttp.ClientSession, server: Server, amo: Amo, *, connections: int) -> list[str]:
    """Connect accounts, and return what names them."""
    accounts = [amo.vendor.open_account(f"account{number}.amocrm.ru") for number in range(connections)]
    places = asyncio.Semaphore(AT_ONCE)

    async def connect(number: int) -> None:
        account = accounts[number]
        query = f"code={amo.vendor.allow(account)}&referer={account.host}"
        async with places, http.get(f"{server.public}{BASE}/callback?{query}", allow_redirects=False) as answer:
            assert answer.headers["Location"].startswith("foryoure://amo-crm/callback?code="), answer

    await asyncio.gather(*map(connect, range(connections)))
    return [f"account:{account.id}" for account in accounts]


def key_header() -> dict[str, str]:
    return {"Authorization": f"Bearer {API_KEY}"}
