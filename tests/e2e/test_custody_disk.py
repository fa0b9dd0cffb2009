"""No connection is lost through our fault: disks that are full, and files that cannot be written."""

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
    """Give a disk that can be full, its rescue folder on one of its own that is not."""
    with ExitStack() as stack:
        try:
            small: Disk = stack.enter_context(small_disk(tmp_path / "disk"))
            stack.enter_context(small_disk(small.folder / "rescue"))
        except PermissionError:
            small = LimitedFiles(tmp_path)
        yield small


@pytest.fixture
def one_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Give a disk that can be full, with all that there is on it."""
    with ExitStack() as stack:
        try:
            yield stack.enter_context(small_disk(tmp_path / "disk"))
        except PermissionError as error:
            pytest.skip(f"needs a file system of its own: {error}")


def _slow_lives(folder: Path, key: str, *, accounts: int = 2) -> AbstractAsyncContextManager[Stage]:
    """Set a stage where a token is refreshed after some two seconds, and lives on."""
    return staged(folder, key, accounts=accounts, every=2)


@contextmanager
def full(disk: Disk, process: Process) -> Iterator[None]:
    """Let a disk have no room meanwhile."""
    disk.fill(process)
    yield
    disk.empty(process)


@pytest.mark.parametrize("how", [full, unwritable])
async def test_a_database_that_cannot_be_written_spends_nothing(disk: Disk, encryption_key: str, how: Any) -> None:
    """No refresh token goes out, valid access tokens do, the service is not ready; written again it goes on."""
    async with _slow_lives(disk.folder, encryption_key) as stage:
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


async def test_pairs_for_which_the_disk_has_no_room_are_handed_out_and_stored_once_there_is(
    disk: Disk, encryption_key: str
) -> None:
    """They wait in memory and in rescue files, which outlive a process that stops while the disk is still full."""
    async with _slow_lives(disk.folder, encryption_key) as stage:
        async with stage.serving() as process:
            await _paid_for_on_a_full_disk(stage, disk, process)
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


async def _paid_for_on_a_full_disk(stage: Stage, disk: Disk, process: Process) -> None:
    """Let pairs come when there is no room for them any more, and see how they are held."""
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


async def test_the_reserve_makes_room_on_a_disk_that_is_full(one_disk: SmallDisk, encryption_key: str) -> None:
    """Where database and rescue folder share a full disk, what was kept free takes the pair's file, time after time."""
    async with _slow_lives(one_disk.folder, encryption_key, accounts=1) as stage:
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
                assert _rescued(one_disk) == []
                one_disk.empty(process)
                await stage.until_ready(process)
                await stage.until_refreshed()
            await process.stop()
        assert (stage.lost(), stage.ledger.doubles()) == ([], 0)


async def test_a_disk_that_is_read_only_stops_the_start(one_disk: SmallDisk, encryption_key: str) -> None:
    """A disk that is mounted read-only is told in one line, with status 78."""
    async with _slow_lives(one_disk.folder, encryption_key) as stage:
        async with stage.connected() as process:
            await process.stop()
        remount(one_disk, "ro")
        status, out, err = await command("serve", folder=one_disk.folder, environ=stage.environ())
        assert (status, out, len(err.splitlines())) == (78, "", 1)
        assert err.startswith("amo-callback: storage.url: ")
        assert "Read-only file system" in err
