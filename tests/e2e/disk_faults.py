"""Full disks and files that cannot be written, for a running process."""

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from tests.e2e.process import Process
from tests.e2e.processes import DATABASE

_BALLAST = "ballast"
_WAL = f"{DATABASE}-wal"


class Disk(Protocol):
    """A folder for a database, on a disk that can be filled."""

    folder: Path

    def fill(self, process: Process) -> None:
        """Leave no space for the process's writes."""

    def empty(self, process: Process) -> None:
        """Free the space."""


class SmallDisk:
    """A file system of a few megabytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, _process: Process) -> None:
        """Write until the disk is full."""
        with (self.folder / _BALLAST).open("ab", buffering=0) as ballast:
            try:
                while True:
                    ballast.write(bytes(64 * 1024))
            except OSError as error:
                assert error.errno == errno.ENOSPC, error  # noqa: PT017 -- only a full disk is expected

    def empty(self, _process: Process) -> None:
        """Remove the written file."""
        (self.folder / _BALLAST).unlink()


class LimitedFiles:
    """A limit on the process's file sizes, used if mounting is not permitted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, process: Process) -> None:
        """Limit every file to the size of the WAL."""
        limit_files(process, (self.folder / _WAL).stat().st_size)

    def empty(self, process: Process) -> None:
        """Remove the limit."""
        limit_files(process, resource.RLIM_INFINITY)


def limit_files(process: Process, size: int) -> None:
    """Limit the file size of a running process."""
    if process.process.returncode is None:
        _, hard = resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, (size if hard < 0 else min(size, hard), hard))


@contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    """Mount a small file system, or raise `PermissionError` if mounting is not permitted."""
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", "size=8m", "tmpfs", folder)
    try:
        yield SmallDisk(folder)
    finally:
        # A failed test may leave a process running, so the unmount is lazy.
        subprocess.run(["umount", "--lazy", folder], check=True)  # noqa: S603, S607 -- the test's folder


def remount(disk: SmallDisk, how: str) -> None:
    """Remount a small disk as `ro` or `rw`."""
    _mount("-o", f"remount,{how}", disk.folder)


def _mount(*arguments: str | Path) -> None:
    if shutil.which("mount") is None:
        raise PermissionError("there is no mount here")
    result = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)  # noqa: S603, S607 -- the tests' arguments
    if result.returncode:
        raise PermissionError(result.stderr.strip())


@contextmanager
def unwritable(folder: Path, process: Process) -> Iterator[None]:
    """Make a running process's database readable and not writable.

    A file system with an open file cannot be remounted read-only, so the files are made immutable.
    If that is not permitted or has no effect, the process's file size limit is set to zero.
    """
    files = [folder / DATABASE, folder / _WAL]
    with ExitStack() as stack:
        if _supports_immutable(folder):
            stack.callback(_chattr, "-i", *files)
            assert _chattr("+i", *files)
        else:
            stack.callback(limit_files, process, resource.RLIM_INFINITY)
            limit_files(process, 0)
        yield


def _supports_immutable(folder: Path) -> bool:
    """Check whether a file that is open for writing can be made immutable."""
    file = folder / "scratch"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        if not _chattr("+i", file):
            return False
        try:
            os.write(descriptor, b"?")
        except PermissionError:
            return True
        return False
    finally:
        _chattr("-i", file)
        os.close(descriptor)
        file.unlink()


def _chattr(how: str, *files: Path) -> bool:
    if shutil.which("chattr") is None:
        return False
    return not subprocess.run(["chattr", how, *files], capture_output=True, check=False).returncode  # noqa: S603, S607 -- the tests' arguments
