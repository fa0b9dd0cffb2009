"""The rescue folder: atomic files, the disk reserve, and use by several processes."""

import errno
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PosixPath
from typing import Any

import pytest

from amo_callback.errors import ConfigurationError
from amo_callback.refresh.rescue import RAW, RESERVE, RescueFolder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "var" / "rescue"


@pytest.fixture
def rescue(folder: Path) -> RescueFolder:
    rescue = RescueFolder(folder)
    rescue.open()
    return rescue


def test_rescue_file_is_read_unchanged_until_removed(rescue: RescueFolder, folder: Path) -> None:
    """A written file is read unchanged after a restart, and removing it twice raises no error."""
    rescue.write("x-1", b"first")
    rescue.write("x-1", b"again")
    rescue.write("x-2", b"another")
    restarted = RescueFolder(folder)
    restarted.open()
    assert restarted.read() == {"x-1": b"again", "x-2": b"another"}
    rescue.remove("x-1")
    rescue.remove("x-1")
    assert rescue.read() == {"x-2": b"another"}


def test_rescue_folder_and_files_are_private_to_their_user(rescue: RescueFolder, folder: Path) -> None:
    """Only the service's user may read the folder and its files."""
    rescue.write("x-1", b"pair")
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())}
    assert modes == {"rescue": 0o700, ".reserve": 0o600, "x-1": 0o600}


class FullDisk(RescueFolder):
    """A rescue folder on a full disk, optionally with free space after the reserve is removed."""

    def __init__(self, folder: Path, *, with_reserve: bool) -> None:
        super().__init__(folder)
        self._kept = folder / ".reserve"
        self._with_reserve = with_reserve

    def _write(self, name: str, content: bytes) -> None:
        if self._kept.exists() or not self._with_reserve:
            raise OSError(errno.ENOSPC, "No space left on device")
        super()._write(name, content)


class InterruptedContent(bytes):
    """A content whose write raises `KeyboardInterrupt` halfway."""

    __slots__ = ()

    def __getitem__(self, part: Any) -> Any:
        if part.start:
            raise KeyboardInterrupt
        return bytes(self)[: len(self) // 2]


def test_rescue_file_unfinished_is_ignored_and_removed_when_old(rescue: RescueFolder, folder: Path) -> None:
    """The half-written file of a killed process is not read, and is removed at start once it is old."""
    with pytest.raises(KeyboardInterrupt):
        rescue.write("x-1", InterruptedContent(b"pair"))
    [left] = [path for path in folder.iterdir() if path.name != ".reserve"]
    assert left.read_bytes() == b"pa"
    assert rescue.read() == {}
    RescueFolder(folder).open()
    assert left.exists()  # its process may still be writing
    modified_at = left.stat().st_mtime - 4000
    os.utime(left, (modified_at, modified_at))
    RescueFolder(folder).open()
    assert [path.name for path in folder.iterdir()] == [".reserve"]


def test_rescue_folder_concurrent_use_loses_no_file(folder: Path) -> None:
    """Concurrent processes do not remove each other's unfinished files."""
    with ThreadPoolExecutor(16) as pool:

        def work(number: int) -> None:
            rescue = RescueFolder(folder)
            rescue.open()
            rescue.write(f"x-{number}", b"pair")

        list(pool.map(work, range(200)))
    assert len(RescueFolder(folder).read()) == 200


def test_rescue_write_on_full_disk_uses_reserve(folder: Path) -> None:
    """A pair is written on a full disk by removing the reserve, which can then be restored."""
    rescue = FullDisk(folder, with_reserve=True)
    rescue.open()
    assert (folder / ".reserve").stat().st_size == RESERVE
    rescue.write("x-1", b"pair")
    assert rescue.read() == {"x-1": b"pair"}
    rescue.reserve()
    assert (folder / ".reserve").stat().st_size == RESERVE


def test_rescue_write_without_reserve_raises_os_error(folder: Path) -> None:
    """A write raises `OSError` if the disk is full even without the reserve."""
    rescue = FullDisk(folder, with_reserve=False)
    rescue.open()
    with pytest.raises(OSError, match="No space left"):
        rescue.write("x-1", b"pair")
    assert rescue.read() == {}


def test_rescue_folder_not_creatable_raises_configuration_error(tmp_path: Path) -> None:
    """A folder that cannot be created raises an error that names `storage.rescue`."""
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "file", tmp_path / "file" / "rescue"):
        with pytest.raises(ConfigurationError, match=r"storage\.rescue"):
            RescueFolder(place).open()


def test_rescue_subfolder_is_ignored(rescue: RescueFolder, folder: Path) -> None:
    """A subfolder such as `lost+found` is ignored."""
    (folder / "lost+found").mkdir()
    rescue.write("x-1", b"pair")
    assert rescue.read() == {"x-1": b"pair"}


def test_rescue_file_removed_during_read_is_skipped(folder: Path) -> None:
    """A file that another process removes during the read is skipped."""

    class SharedFolder(PosixPath):
        def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
            found = super().stat(follow_symlinks=follow_symlinks)
            if self.name == "x-1" and not follow_symlinks:  # the last check before the file is opened
                self.unlink()  # as the other process does
            return found

    rescue = RescueFolder(SharedFolder(folder))
    rescue.open()
    rescue.write("x-1", b"stored meanwhile")
    rescue.write("x-2", b"pair")
    assert rescue.read() == {"x-2": b"pair"}


def test_rescue_folder_removed_is_recreated_by_write(tmp_path: Path) -> None:
    """A folder that was removed is read as empty and is recreated by the next write."""
    rescue = RescueFolder(tmp_path / "rescue")
    rescue.open()
    shutil.rmtree(tmp_path / "rescue")
    assert rescue.read() == {}
    rescue.write("x-1", b"pair")
    assert rescue.read() == {"x-1": b"pair"}


def test_rescue_entry_not_a_small_regular_file_is_unreadable(
    rescue: RescueFolder, folder: Path, tmp_path: Path
) -> None:
    """A pipe, a link or a huge file is listed as unreadable and its content is not read."""
    linked_file = tmp_path / "linked_file"
    linked_file.write_bytes(b"foreign")
    rescue.write("x-1", b"pair")
    for suffix, read in (("", rescue.read), (RAW, rescue.read_raw)):
        os.mkfifo(folder / f"pipe-1{suffix}")
        (folder / f"device-1{suffix}").symlink_to("/dev/zero")
        (folder / f"link-1{suffix}").symlink_to(linked_file)
        (folder / f"lost-1{suffix}").symlink_to(tmp_path / "nowhere")
        (folder / f"folder-1{suffix}").mkdir()
        (folder / f"huge-1{suffix}").touch()
        os.truncate(folder / f"huge-1{suffix}", 2**40)
        found = {name: content for name, content in read().items() if name != "x-1"}
        assert found == {f"{name}-1{suffix}": None for name in ("pipe", "device", "link", "lost", "huge")}
    assert rescue.read()["x-1"] == b"pair"
    assert set(rescue.raw_ages()) == set(rescue.read_raw())


def test_rescue_reserve_is_pipe_opens_without_reserve(folder: Path) -> None:
    """The folder opens without waiting if the reserve is a pipe."""
    folder.mkdir(parents=True)
    os.mkfifo(folder / ".reserve")
    rescue = RescueFolder(folder)
    rescue.open()
    assert not rescue.reserve()
