"""Full disks and files that cannot be written lose no connection."""

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from amo_callback.amo.sandbox.app import Fault
from tests.e2e.disk_faults import Disk, LimitedFiles, SmallDisk, remount, small_disk, unwritable
from tests.e2e.process import Process, command
from tests.e2e.processes import Stage, eventually, problem, staged


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Return a disk that can be filled, with the rescue folder on another one."""
    with ExitStack() as stack:
        try:
            small: Disk = stack.enter_context(small_disk(tmp_path / "disk"))
            stack.enter_context(small_disk(small.folder / "rescue"))
        except PermissionError:
            small = LimitedFiles(tmp_path)
        yield small


@pytest.fixture
def one_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Return a disk that can be filled, with every file on it."""
    with ExitStack() as stack:
        try:
            yield stack.enter_context(small_disk(tmp_path / "disk"))
        except PermissionError as error:
            pytest.skip(f"needs a file system of its own: {error}")


def _every_two_seconds(folder: Path, key: str, *, accounts: int = 2) -> AbstractAsyncContextManager[Stage]:
    """Create an environment in which a token is refreshed after two seconds and stays valid."""
    return staged(folder, key, accounts=accounts, every=2)


@contextmanager
def full(disk: Disk, process: Process) -> Iterator[None]:
    """Fill the disk during the block."""
    disk.fill(process)
    yield
    disk.empty(process)


@pytest.mark.parametrize("how", [full, unwritable])
async def test_unwritable_database_spends_no_token(disk: Disk, encryption_key: str, how: Any) -> None:
    """Without writes no refresh token is sent, valid access tokens are handed out, and the service is not ready."""
    async with _every_two_seconds(disk.folder, encryption_key) as stage:
        async with stage.connected() as process:
            with how(disk if how is full else disk.folder, process):
                await stage.until_ready(process, failing=["store"])
                for account in stage.accounts:
                    assert (await stage.token(process, account)).status == 200
                    assert problem(await stage.refresh(process, account)) == (503, "store_unavailable", None)
                assert stage.ledger.refreshes() == []
            await process.until("refresh.succeeded", times=2)
            await eventually(lambda: stage.open_claims() == {})
            await stage.until_ready(process)
            await process.stop()
        assert (stage.lost(), stage.ledger.doubles()) == ([], 0)


async def test_pending_writes_on_full_disk_are_handed_out_and_stored_later(disk: Disk, encryption_key: str) -> None:
    """Pairs stay in memory and in rescue files, also after a restart, and are stored once there is space."""
    async with _every_two_seconds(disk.folder, encryption_key) as stage:
        async with stage.serving() as process:
            await _issue_on_full_disk(stage, disk, process)
            await process.stop()
        assert len(_rescued(disk)) == 2
        disk.empty(process)
        async with stage.serving() as process:
            await process.until("pair.write_completed", times=2)
            await stage.until_ready(process)
            assert _rescued(disk) == []
            await stage.until_refreshed()
            await process.stop()
        assert (stage.lost(), stage.ledger.doubles()) == ([], 0)


async def _issue_on_full_disk(stage: Stage, disk: Disk, process: Process) -> None:
    """Let AMO issue pairs while the disk is full, and check their rescue files and hand-out."""
    await stage.connect(process)
    stage.amo.sandbox.faults.add(Fault.SLOW, Fault.SLOW)
    await stage.until_asked(2)
    claimed = stage.open_claims()
    disk.fill(process)
    stage.amo.sandbox.go_on.set()
    await process.until("pair.write_pending", times=2)
    assert _rescued(disk) == sorted(f"{row.id}-{row.pair_version}" for row in claimed.values())
    await stage.until_ready(process, failing=["store", "unsaved_pairs"])
    for account in stage.accounts:
        answer = await stage.token(process, account, min_ttl=30)
        assert answer.status == 200
        assert answer.json()["access_token"] in stage.ledger.access_tokens[-2:]
        assert "stale" not in answer.json()
    assert stage.open_claims() == claimed


def _rescued(disk: Disk) -> list[str]:
    return sorted(file.name for file in (disk.folder / "rescue").iterdir() if not file.name.startswith("."))


async def test_rescue_reserve_stores_pair_on_full_disk(one_disk: SmallDisk, encryption_key: str) -> None:
    """On a full disk shared with the rescue folder, the pair's rescue file fits into the reserved space each time."""
    async with _every_two_seconds(one_disk.folder, encryption_key, accounts=1) as stage:
        async with stage.connected() as process:
            for time in (1, 2):
                stage.amo.sandbox.go_on.clear()
                stage.amo.sandbox.faults.add(Fault.SLOW)
                await stage.until_asked(1)
                one_disk.fill(process)
                stage.amo.sandbox.go_on.set()
                await process.until("pair.write_completed", times=time)
                assert process.named("pair.write_pending")
                assert all(line["rescued"] for line in process.named("pair.write_pending"))
                await eventually(lambda: _rescued(one_disk) == [])  # the next refresh may already have a file
                one_disk.empty(process)
                await stage.until_ready(process)
                await stage.until_refreshed()
            await process.stop()
        assert (stage.lost(), stage.ledger.doubles()) == ([], 0)


async def test_serve_on_read_only_disk_exits_78(one_disk: SmallDisk, encryption_key: str) -> None:
    """A read-only disk is reported in one line with status 78."""
    async with _every_two_seconds(one_disk.folder, encryption_key) as stage:
        async with stage.connected() as process:
            await process.stop()
        remount(one_disk, "ro")
        status, out, err = await command("serve", folder=one_disk.folder, environ=stage.environ())
        assert (status, out, len(err.splitlines())) == (78, "", 1)
        assert err.startswith("amo-callback: storage.url: ")
        assert "Read-only file system" in err
