"""Export and import under load, to another host and to PostgreSQL."""

import asyncio
import dataclasses
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

from amo_callback.clock import SystemClock
from amo_callback.crypto import new_key
from amo_callback.store import open_store
from amo_callback.transfer.importer import BATCH
from tests.cli.harness import environ_with
from tests.e2e.process import Process, command, process_environment
from tests.e2e.processes import DATABASE, Stage, block_change, eventually, postgres_rows, staged
from tests.transfer.samples import a_record, sealed

EVERY = 1.0
"""Seconds between two refreshes of a connection."""
ACCOUNTS = 12


@asynccontextmanager
async def _asked(stage: Stage, process: Process) -> AsyncIterator[None]:
    """Let callers request tokens and refreshes from one process continuously during the block."""

    async def ask(number: int) -> None:
        while True:
            account = stage.accounts[number]
            await (stage.refresh(process, account) if number % 3 == 0 else stage.token(process, account, min_ttl=1))
            await asyncio.sleep(0.2)

    callers = [asyncio.create_task(ask(number)) for number in range(len(stage.accounts))]
    try:
        yield
        assert not any(caller.done() for caller in callers)
    finally:
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)


async def _run(stage: Stage, *arguments: str) -> str:
    status, out, err = await command("connections", *arguments, folder=stage.folder, environ=stage.environ())
    assert (status, err) == (0, "")
    return out


async def test_move_under_load_loses_no_connection(
    tmp_path: Path, encryption_key: str, either: str, record_property: Callable[[str, object], None]
) -> None:
    """Connections exported during refreshes and imported into a running service are refreshed only by that one."""
    old_folder, new_folder = tmp_path / "old", tmp_path / "new"
    old_folder.mkdir()
    new_folder.mkdir()
    export = tmp_path / "all.export"
    async with staged(old_folder, encryption_key, accounts=ACCOUNTS, every=EVERY) as old:
        settings = old.settings | {"STORAGE__URL": either}
        new = dataclasses.replace(old, folder=new_folder, key=new_key(), settings=settings)
        (old_folder / "new.key").write_text(new.key)
        async with old.serving() as old_process, new.serving() as new_process:
            await old.connect(old_process)
            old.amo.sandbox.latency = 0.3
            async with _asked(old, old_process):
                await old.until_refreshed()
                in_flight = len(old.open_claims())
                await _run(old, "export", str(export), "--to-key-file", "new.key")
                assert old.open_claims() == {}
                spent = len(old.ledger.refreshes())
                await asyncio.sleep(4 * EVERY)  # time for an unwanted refresh
                assert len(old.ledger.refreshes()) == spent
                assert "frozen" in (await old.ready(old_process))[1]
                async with _asked(new, new_process):
                    await _run(new, "import", str(export), "--yes")
                    await new.until_refreshed(times=2)
            answers = [await new.token(new_process, account, min_ttl=1) for account in new.accounts]
            assert {answer.status for answer in answers} == {200}
            await old_process.stop()
            await new_process.stop()
        rows = new.rows() if either.startswith("sqlite") else await postgres_rows(either, new.key)
        live = new.valid_refresh_tokens()
        assert [(row.status, row.refresh_token in live) for row in rows.values()] == [("active", True)] * ACCOUNTS
    record_property("in flight", in_flight)
    record_property("refreshes before", spent)
    record_property("refreshes after", len(new.ledger.refreshes()) - spent)
    record_property("double spends", new.ledger.doubles())
    assert new.ledger.doubles() == 0


async def test_import_killed_continues_with_remaining_records(tmp_path: Path, encryption_key: str) -> None:
    """Committed batches stay, and a second import writes the remaining records once."""
    records = [a_record(number) for number in range(10 * BATCH)]
    async with open_store(f"sqlite:///{DATABASE}", folder=tmp_path, clock=SystemClock()):
        pass
    unblock = block_change(
        tmp_path / DATABASE, f"INSERT ON connections WHEN new.account_id = '{records[-1].account_id}'"
    )
    (tmp_path / "all.export").write_bytes(sealed(records, key=encryption_key).read())
    environ = environ_with(STORAGE__ENCRYPTION_KEYS=encryption_key)
    importing = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "amo_callback.cli.main", "connections", "import", "all.export", "--yes",
        cwd=tmp_path, env=process_environment(environ), stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    await eventually(lambda: _count(tmp_path) > 0)
    importing.kill()
    await importing.wait()
    unblock()
    killed_at = _count(tmp_path)
    assert (killed_at % BATCH, killed_at < 10 * BATCH) == (0, True)
    status, out, err = await command("connections", "import", "all.export", "--yes", folder=tmp_path, environ=environ)
    assert (status, err) == (0, "")
    assert f"{10 * BATCH - killed_at:>9,}  new" in out
    assert _count(tmp_path) == _count(tmp_path, "events") == 10 * BATCH


def _count(folder: Path, table: str = "connections") -> int:
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(folder / DATABASE)) as database:
        return int(database.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608 -- a constant
    return 0
