"""Copies of the database spend no token while the original is in use."""

import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.e2e.process import Process, command
from tests.e2e.processes import Stage, problem, staged


async def test_copies_beside_original_database_spend_nothing(
    tmp_path: Path, encryption_key: str, rounds: int, record_property: Callable[[str, object], None]
) -> None:
    """A file copy and a restored backup hand out valid tokens, refuse refreshes and report the freeze."""
    handed_out = 0
    (tmp_path / "original").mkdir()
    async with staged(tmp_path / "original", encryption_key, accounts=4, every=2) as stage, stage.serving() as original:
        await stage.connect(original)
        await stage.until_refreshed()
        plain, restored = await _copied(stage, original), await _restored(stage)
        held = plain.rows(), restored.rows()
        async with plain.serving() as one, restored.serving() as other:
            for _ in range(rounds):
                for twin, process in ((plain, one), (restored, other)):
                    handed_out += await _check_twin(twin, process)
                await stage.until_refreshed()
            for process in (one, other, original):
                process.signal(signal.SIGTERM)
            assert [await process.ended() for process in (one, other, original)] == [0, 0, 0]
        assert (plain.rows(), restored.rows()) == held
        assert (stage.lost(), stage.ledger.doubles()) == ([], 0)
    record_property("rounds", rounds)
    record_property("handed out by copies", handed_out)
    record_property("refreshes", len(stage.ledger.refreshes()))
    record_property("double spends", stage.ledger.doubles())
    assert handed_out > 0


async def _copied(stage: Stage, original: Process) -> Stage:
    """Copy the files at one moment, as an image of the machine does."""
    twin = replace(stage, folder=stage.folder.with_name("plain"))
    original.signal(signal.SIGSTOP)
    shutil.copytree(stage.folder, twin.folder)
    original.signal(signal.SIGCONT)
    return twin


async def _restored(stage: Stage) -> Stage:
    """Restore a backup made while the service runs."""
    twin = replace(stage, folder=stage.folder.with_name("restored"))
    twin.folder.mkdir()
    for arguments, folder in (
        (["backup", "../backup"], stage.folder),
        (["restore", "../backup", "--yes"], twin.folder),
    ):
        status, _, err = await command(*arguments, folder=folder, environ=stage.environ())
        assert (status, err) == (0, "")
    return twin


async def _check_twin(twin: Stage, process: Process) -> int:
    """Request each token and its refresh from a copy, and return the number of tokens handed out."""
    ready, failing = await twin.ready(process)
    assert not ready
    assert "frozen" in failing
    handed_out = 0
    for account in twin.accounts:
        assert problem(await twin.refresh(process, account)) == (503, "frozen", None)
        answer = await twin.token(process, account, min_ttl=1)
        if answer.status == 200:
            assert twin.amo.fake.live_account(answer.json()["access_token"]) is account
            handed_out += 1
        else:
            assert problem(answer) == (503, "frozen", None)
    return handed_out
