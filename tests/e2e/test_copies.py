"""No connection is lost through a copy of the database: beside the living one it spends nothing."""

import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.e2e.process import Process, command
from tests.e2e.processes import Stage, problem, staged


async def test_copies_beside_the_living_database_spend_nothing(
    tmp_path: Path, encryption_key: str, rounds: int, record_property: Callable[[str, object], None]
) -> None:
    """A plain copy of the files and a restored backup hand out what lives, refuse the rest, and say that they are."""
    handed_out = 0
    (tmp_path / "living").mkdir()
    async with staged(tmp_path / "living", encryption_key, accounts=4, every=2) as stage, stage.serving() as living:
        await stage.connect(living)
        await stage.until_refreshed()
        plain, restored = await _copied(stage, living), await _restored(stage)
        held = plain.rows(), restored.rows()
        async with plain.serving() as one, restored.serving() as other:
            for _ in range(rounds):
                for twin, process in ((plain, one), (restored, other)):
                    handed_out += await _harmless(twin, process)
                await stage.until_refreshed()
            for process in (one, other, living):
                process.signal(signal.SIGTERM)
            assert [await process.ended() for process in (one, other, living)] == [0, 0, 0]
        assert (plain.rows(), restored.rows()) == held
        assert (stage.lost(), stage.ledger.doubles()) == ([], 0)
    record_property("rounds", rounds)
    record_property("handed out by copies", handed_out)
    record_property("refreshes", len(stage.ledger.refreshes()))
    record_property("double spends", stage.ledger.doubles())
    assert handed_out > 0


async def _copied(stage: Stage, living: Process) -> Stage:
    """Copy the files as they are at one moment, as an image of the machine would."""
    twin = replace(stage, folder=stage.folder.with_name("plain"))
    living.signal(signal.SIGSTOP)
    shutil.copytree(stage.folder, twin.folder)
    living.signal(signal.SIGCONT)
    return twin


async def _restored(stage: Stage) -> Stage:
    """Restore a backup that was made while the service runs."""
    twin = replace(stage, folder=stage.folder.with_name("restored"))
    twin.folder.mkdir()
    for arguments, folder in (
        (["backup", "../backup"], stage.folder),
        (["restore", "../backup", "--yes"], twin.folder),
    ):
        status, _, err = await command(*arguments, folder=folder, environ=stage.environ())
        assert (status, err) == (0, "")
    return twin


async def _harmless(twin: Stage, process: Process) -> int:
    """Ask a copy for all it has, also by force; return how many tokens it handed out: they are alive."""
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
