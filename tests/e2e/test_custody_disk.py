"""No connection is lost through our fault: disks that are full, and files that cannot be written."""

import signal
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, ExitStack
from pathlib import Path

import pytest

from amo_callback.amo.sandbox.faults import Fault
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


async def test_a_disk_that_is_full_before_a_refresh_spends_nothing(disk: Disk, encryption_key: str) -> None:
    """No refresh token goes out, living tokens do, the service is not ready; with room again it goes on."""
    async with _slow_lives(disk.folder, encryption_key) as stage:
        async with stage.serving() as process:
            await stage.connect(process)
            disk.fill(process)
            await stage.until_ready(process, failing=["store"])
            for account in stage.accounts:
                assert (await stage.token(process, account)).status == 200
                assert problem(await stage.refresh(process, account)) == (503, "store_unavailable", None)
            assert stage.ledger.refreshes() == []
            disk.empty(process)
            await process.until("refresh.succeeded", times=2)
            await stage.until_ready(process)
            process.signal(signal.SIGTERM)
            assert await process.ended() == 0
        assert (stage.lost(), stage.ledger.doubles()) == ([], 0)


async def test_pairs_for_which_the_disk_has_no_room_are_handed_out_and_stored_once_there_is(
    disk: Disk, encryption_key: str
) -> None:
    """They come out of memory, wait in their rescue files, and readiness says so; afterwards the files are gone."""
    async with _slow_lives(disk.folder, encryption_key) as stage:
        async with stage.serving() as process:
            await _paid_for_on_a_full_disk(stage, disk, process)
            disk.empty(process)
            await process.until("pair.write_completed", times=2)
            await stage.until_ready(process)
            assert _rescued(disk) == []
            await stage.until_refreshed()
            process.signal(signal.SIGTERM)
            assert await process.ended() == 0
        assert (stage.lost(), stage.ledger.doubles()) == ([], 0)


async def test_pairs_in_their_rescue_files_outlive_the_process(disk: Disk, encryption_key: str) -> None:
    """Stopped while the disk is still full the service exits with 0; the next one stores the pairs, and goes on."""
    async with _slow_lives(disk.folder, encryption_key) as stage:
        async with stage.serving() as process:
            await _paid_for_on_a_full_disk(stage, disk, process)
            process.signal(signal.SIGTERM)
            assert await process.ended() == 0
            assert len(_rescued(disk)) == 2
            disk.empty(process)
        async with stage.serving() as process:
            await process.until("pair.write_completed", times=2)
            await stage.until_ready(process)
            assert _rescued(disk) == []
            await stage.until_refreshed()
            process.signal(signal.SIGTERM)
            assert await process.ended() == 0
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
    """Where database and rescue folder share a full disk, what was kept free takes the pair's file, and the pair."""
    async with _slow_lives(one_disk.folder, encryption_key, accounts=1) as stage:
        async with stage.serving() as process:
            await stage.connect(process)
            await _paid_for_without_room(stage, one_disk, process)
            assert _rescued(one_disk) == []
            await stage.until_ready(process)
            await stage.until_refreshed()
            process.signal(signal.SIGTERM)
            assert await process.ended() == 0
        assert (stage.lost(), stage.ledger.doubles()) == ([], 0)


async def test_the_reserve_is_kept_again_once_there_is_room(one_disk: SmallDisk, encryption_key: str) -> None:
    """A disk that is full for a second time takes the pair's file as it did for the first time."""
    async with _slow_lives(one_disk.folder, encryption_key, accounts=1) as stage, stage.serving() as process:
        await stage.connect(process)
        for _ in range(2):
            await _paid_for_without_room(stage, one_disk, process)
            one_disk.empty(process)
            stage.amo.sandbox.go_on.clear()
            await stage.until_ready(process)
            await stage.until_refreshed()


async def _paid_for_without_room(stage: Stage, disk: SmallDisk, process: Process) -> None:
    """Let a pair come when the disk is full but for the reserve, and see it stored."""
    stage.amo.sandbox.faults.add(Fault.SLOW)
    await stage.until_asked(1)
    disk.fill(process)
    saved = len(process.named("pair.write_completed"))
    stage.amo.sandbox.go_on.set()
    await eventually(lambda: len(process.named("pair.write_completed")) > saved)
    assert all(line["rescued"] for line in process.named("pair.write_pending"))
    assert process.named("pair.write_pending")


async def test_a_database_that_cannot_be_written_stops_the_start(one_disk: SmallDisk, encryption_key: str) -> None:
    """A disk that is mounted read-only is told in one line, with status 78."""
    async with _slow_lives(one_disk.folder, encryption_key) as stage:
        async with stage.serving() as process:
            await stage.connect(process)
            process.signal(signal.SIGTERM)
            assert await process.ended() == 0
        remount(one_disk, "ro")
        status, out, err = await command("serve", folder=one_disk.folder, environ=stage.environ())
        assert (status, out, len(err.splitlines())) == (78, "", 1)
        assert err.startswith("amo-callback: storage.url: ")
        assert "Read-only file system" in err


async def test_a_database_that_can_no_longer_be_written_spends_nothing(tmp_path: Path, encryption_key: str) -> None:
    """No refresh token goes out, living tokens do, the service is not ready; written again it goes on."""
    async with _slow_lives(tmp_path, encryption_key) as stage:
        async with stage.serving() as process:
            await stage.connect(process)
            with unwritable(tmp_path, process):
                await stage.until_ready(process, failing=["store"])
                for account in stage.accounts:
                    assert (await stage.token(process, account)).status == 200
                assert stage.ledger.refreshes() == []
            await process.until("refresh.succeeded", times=2)
            await eventually(lambda: stage.open_claims() == {})
            await stage.until_ready(process)
            process.signal(signal.SIGTERM)
            assert await process.ended() == 0
        assert (stage.lost(), stage.ledger.doubles()) == ([], 0)
