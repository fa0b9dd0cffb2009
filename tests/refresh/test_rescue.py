"""The rescue folder: files that are whole or not there, room that is kept for them, and whoever shares it."""

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


def test_a_file_comes_out_as_it_went_in_until_it_is_removed(rescue: RescueFolder, folder: Path) -> None:
    """What is written is read, also after a restart; what is removed is gone, and removing it twice is no error."""
    rescue.write("x-1", b"first")
    rescue.write("x-1", b"again")
    rescue.write("x-2", b"another")
    restarted = RescueFolder(folder)
    restarted.open()
    assert restarted.read() == {"x-1": b"again", "x-2": b"another"}
    rescue.remove("x-1")
    rescue.remove("x-1")
    assert rescue.read() == {"x-2": b"another"}


def test_folder_and_files_are_the_owners_alone(rescue: RescueFolder, folder: Path) -> None:
    """Nobody else may look at a pair, sealed as it is."""
    rescue.write("x-1", b"pair")
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())}
    assert modes == {"rescue": 0o700, ".reserve": 0o600, "x-1": 0o600}


class FullDisk(RescueFolder):
    """A folder on a disk that has no room, at most but what is kept for it."""

    def __init__(self, folder: Path, *, but_the_reserve: bool) -> None:
        super().__init__(folder)
        self._kept = folder / ".reserve"
        self._but_the_reserve = but_the_reserve

    def _write(self, name: str, content: bytes) -> None:
        if self._kept.exists() or not self._but_the_reserve:
            raise OSError(errno.ENOSPC, "No space left on device")
        super()._write(name, content)


class Killing(bytes):
    """A content of which half can be written before the process is killed."""

    __slots__ = ()

    def __getitem__(self, part: Any) -> Any:
        if part.start:
            raise KeyboardInterrupt
        return bytes(self)[: len(self) // 2]


def test_an_unfinished_file_is_not_read_and_is_removed_at_the_start(rescue: RescueFolder, folder: Path) -> None:
    """A process that was killed while it wrote has left half a pair, which nobody takes for a whole one."""
    with pytest.raises(KeyboardInterrupt):
        rescue.write("x-1", Killing(b"pair"))
    [left] = [path for path in folder.iterdir() if path.name != ".reserve"]
    assert left.read_bytes() == b"pa"
    assert rescue.read() == {}
    RescueFolder(folder).open()
    assert left.exists()  # its process may be at work on it
    then = left.stat().st_mtime - 4000
    os.utime(left, (then, then))
    RescueFolder(folder).open()
    assert [path.name for path in folder.iterdir()] == [".reserve"]


def test_many_processes_may_open_and_use_one_folder_at_once(folder: Path) -> None:
    """Nobody takes another's unfinished file for one that was left behind."""
    with ThreadPoolExecutor(16) as pool:

        def work(number: int) -> None:
            rescue = RescueFolder(folder)
            rescue.open()
            rescue.write(f"x-{number}", b"pair")

        list(pool.map(work, range(200)))
    assert len(RescueFolder(folder).read()) == 200


def test_the_reserve_is_given_up_for_a_pair(folder: Path) -> None:
    """Where the disk has no room but what is kept for it, the pair is written there, and the reserve is made anew."""
    rescue = FullDisk(folder, but_the_reserve=True)
    rescue.open()
    assert (folder / ".reserve").stat().st_size == RESERVE
    rescue.write("x-1", b"pair")
    assert rescue.read() == {"x-1": b"pair"}
    rescue.reserve()
    assert (folder / ".reserve").stat().st_size == RESERVE


def test_a_disk_without_any_room_is_told(folder: Path) -> None:
    """Where even the reserve does not help, whoever writes hears of it."""
    rescue = FullDisk(folder, but_the_reserve=False)
    rescue.open()
    with pytest.raises(OSError, match="No space left"):
        rescue.write("x-1", b"pair")
    assert rescue.read() == {}


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A file in its place, or above it, is told as the configuration's fault before anything is spent."""
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "file", tmp_path / "file" / "rescue"):
        with pytest.raises(ConfigurationError, match=r"storage\.rescue"):
            RescueFolder(place).open()


def test_a_folder_inside_is_left_alone(rescue: RescueFolder, folder: Path) -> None:
    """The root of a volume has a `lost+found`, and serves as a rescue folder all the same."""
    (folder / "lost+found").mkdir()
    rescue.write("x-1", b"pair")
    assert rescue.read() == {"x-1": b"pair"}


def test_a_file_that_another_process_removes_meanwhile_is_no_loss(folder: Path) -> None:
    """Whoever removes a file has stored what it holds: the reader goes on with the others."""

    class SharedFolder(PosixPath):
        def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
            found = super().stat(follow_symlinks=follow_symlinks)
            if self.name == "x-1" and not follow_symlinks:  # as it is opened
                self.unlink()  # the other process is faster
            return found

    rescue = RescueFolder(SharedFolder(folder))
    rescue.open()
    rescue.write("x-1", b"stored meanwhile")
    rescue.write("x-2", b"pair")
    assert rescue.read() == {"x-2": b"pair"}


def test_a_folder_that_somebody_has_removed_is_made_again(tmp_path: Path) -> None:
    """While the service runs: nothing is read from it, and a pair that needs it finds it."""
    rescue = RescueFolder(tmp_path / "rescue")
    rescue.open()
    shutil.rmtree(tmp_path / "rescue")
    assert rescue.read() == {}
    rescue.write("x-1", b"pair")
    assert rescue.read() == {"x-1": b"pair"}


def test_what_is_no_file_of_a_pairs_size_is_told_and_unread(rescue: RescueFolder, folder: Path, tmp_path: Path) -> None:
    """A pipe would be waited for, a link followed to a device, a huge file read into all the memory there is."""
    may_be_copy = tmp_path / "may_be_copy"
    may_be_copy.write_bytes(b"somebody's")
    rescue.write("x-1", b"pair")
    for suffix, read in (("", rescue.read), (RAW, rescue.read_raw)):
        os.mkfifo(folder / f"pipe-1{suffix}")
        (folder / f"device-1{suffix}").symlink_to("/dev/zero")
        (folder / f"link-1{suffix}").symlink_to(may_be_copy)
        (folder / f"lost-1{suffix}").symlink_to(tmp_path / "nowhere")
        (folder / f"folder-1{suffix}").mkdir()
        (folder / f"huge-1{suffix}").touch()
        os.truncate(folder / f"huge-1{suffix}", 2**40)
        found = {name: content for name, content in read().items() if name != "x-1"}
        assert found == {f"{name}-1{suffix}": None for name in ("pipe", "device", "link", "lost", "huge")}
    assert rescue.read()["x-1"] == b"pair"
    assert set(rescue.raw_ages()) == set(rescue.read_raw())


def test_a_reserve_that_is_a_pipe_keeps_no_start_waiting(folder: Path) -> None:
    """The folder opens, without a reserve."""
    folder.mkdir(parents=True)
    os.mkfifo(folder / ".reserve")
    rescue = RescueFolder(folder)
    rescue.open()
    assert not rescue.reserve()
