"""More client connections than the process may have open files."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.e2e.process import command
from tests.e2e.processes import Stage, eventually, staged

OPEN_FILES = 256
ROOM = (OPEN_FILES - 200) // 2
CROWD = 400
"""The number of clients, far above the number of available descriptors."""
GET = b"GET /healthz HTTP/1.1\r\nHost: a\r\n"


@asynccontextmanager
async def _crowd(address: str, first: bytes) -> AsyncIterator[None]:
    """Connect many clients that send only `first`, and keep their connections open during the block."""
    host, _, port = address.rpartition(":")
    writers = []
    try:
        for _ in range(CROWD):
            _, writer = await asyncio.open_connection(host, int(port))
            writers.append(writer)
            writer.write(first)
        yield
    finally:
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


async def _closed(stage: Stage, address: str, listener: str) -> float:
    """Return the number of connections closed because of newer ones or a timeout."""
    async with stage.http.get(f"http://{address}/metrics") as answer:
        name = f'amo_callback_client_connections_closed_total{{listener="{listener}",'
        return sum(float(line.split()[-1]) for line in (await answer.text()).splitlines() if line.startswith(name))


async def _are_closed(stage: Stage, address: str, listener: str, number: int) -> bool:
    return await _closed(stage, address, listener) >= number


@pytest.mark.parametrize(
    ("listener", "first"),
    [("private", b""), ("public", b""), ("public", GET), ("public", GET + b"\r\n")],
    ids=["silent, private", "silent", "half a head", "keep-alive"],
)
async def test_idle_connections_block_neither_callbacks_nor_tokens_nor_refreshes(
    tmp_path: Path, encryption_key: str, listener: str, first: bytes
) -> None:
    """With hundreds of idle connections, callbacks and token requests are answered and connections refreshed."""
    async with (
        staged(tmp_path, encryption_key, accounts=3, every=1) as stage,
        stage.serving(open_files=(OPEN_FILES, OPEN_FILES)) as process,
    ):
        known, *new = stage.accounts
        await stage.connect(process, [known])
        started = await process.until("service.started")
        async with _crowd(started[listener], first):
            refreshed = stage.refreshed(known)
            for account in new:
                await stage.connect(process, [account])
                assert (await stage.token(process, account)).status == 200
            while stage.refreshed(known) < refreshed + 2:
                assert (await stage.token(process, known)).status == 200
                await asyncio.sleep(0.05)
            await eventually(lambda: _are_closed(stage, started["private"], listener, CROWD - ROOM))
        [low] = process.named("descriptors.low")
        assert (low["limit"], low["max_connections"], low["level"]) == (OPEN_FILES, ROOM, "warning")
        [full] = process.named("http.connections_full")
        assert (full["listener"], full["max_connections"]) == (listener, ROOM)
        assert process.named("refresh.failed") == []


async def test_low_soft_limit_is_raised_to_hard_limit(tmp_path: Path, encryption_key: str) -> None:
    """The start logs the soft limit that it has raised to the hard limit."""
    async with (
        staged(tmp_path, encryption_key, accounts=0, SERVER__MAX_CONNECTIONS="50") as stage,
        stage.serving(open_files=(256, 300)) as process,
    ):
        await process.until("service.started")
        [raised] = process.named("descriptors.raised")
        assert (raised["before"], raised["limit"]) == (256, 300)
        assert process.named("descriptors.low") == []


@pytest.mark.parametrize(("max_connections", "required"), [("1000", 216), ("2", 204)])
async def test_serve_with_too_few_descriptors_exits_78(
    tmp_path: Path, encryption_key: str, max_connections: str, required: int
) -> None:
    """The error names the required number of open files and its setting."""
    async with staged(tmp_path, encryption_key, accounts=0, SERVER__MAX_CONNECTIONS=max_connections) as stage:
        status, _, result = await command("serve", folder=tmp_path, environ=stage.environ(), open_files=(128, 128))
    assert status == 78
    assert f"the limit on open files is 128, but the service requires at least {required}:" in result
    assert "LimitNOFILE=" in result
