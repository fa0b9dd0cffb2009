"""Disks that are full, and files that cannot be written: by real means, for a process that is running."""

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
    """A folder for a database, and how to let it have no room."""

    folder: Path

    def fill(self, process: Process) -> None:
        """Leave no room for what the process would write."""

    def empty(self, process: Process) -> None:
        """Give room again."""


class SmallDisk:
    """A file system of a few megabytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, _process: Process) -> None:
        """Write until there is no room."""
        with (self.folder / _BALLAST).open("ab", buffering=0) as ballast:
            try:
                while True:
                    ballast.write(bytes(64 * 1024))
            except OSError as error:
                assert error.errno == errno.ENOSPC, error  # noqa: PT017 -- because any other error is no full disk

    def empty(self, _process: Process) -> None:
        """Remove what was written."""
        (self.folder / _BALLAST).unlink()


class LimitedFiles:
    """Where nobody may mount anything: the process's files may not grow, so that its database cannot."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, process: Process) -> None:
        """Let no file be longer than what SQLite has written ahead."""
        limit_files(process, (self.folder / _WAL).stat().st_size)

    def empty(self, process: Process) -> None:
        """Let them grow."""
        limit_files(process, resource.RLIM_INFINITY)


def limit_files(process: Process, size: int) -> None:
    """Limit how long the files of a running process may be."""
    if process.process.returncode is None:
        _, hard = resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, (size if hard < 0 else min(size, hard), hard))


@contextmanager
def small_disk(folder: Path, *, megabytes: int = 8) -> Iterator[SmallDisk]:
    """Mount a small file system; raises `PermissionError` where that may not be done."""
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder)
    try:
        yield SmallDisk(folder)
    finally:
        # Lazily: where a test fails, a process may still be there.
        subprocess.run(["umount", "--lazy", folder], check=True)  # noqa: S603, S607 -- because the folder is the test's


def remount(disk: SmallDisk, how: str) -> None:
    """Mount a small disk anew: `ro` or `rw`."""
    _mount("-o", f"remount,{how}", disk.folder)


def _mount(*arguments: str | Path) -> None:
    if shutil.which("mount") is None:
        raise PermissionError("there is no mount here")
    told = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)  # noqa: S603, S607 -- because the arguments are the tests'
    if told.returncode:
        raise PermissionError(told.stderr.strip())


@contextmanager
def unwritable(folder: Path, process: Process) -> Iterator[None]:
    """Let a running process's database be read and no longer written.

    A file system cannot be mounted read-only under an open file, so the files are made immutable; where that
    may not be done, or is not heeded, the process may write no file at all.
    """
    files = [folder / DATABASE, folder / _WAL]
    with ExitStack() as stack:
        if _heeds_immutable(folder):
            stack.callback(_chattr, "-i", *files)
            assert _chattr("+i", *files)
        else:
            stack.callback(limit_files, process, resource.RLIM_INFINITY)
            limit_files(process, 0)
        yield


def _heeds_immutable(folder: Path) -> bool:
    """Tell whether a file that is open for writing can be made immutable."""
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
    return not subprocess.run(["chattr", how, *files], capture_output=True, check=False).returncode  # noqa: S603, S607 -- because the arguments are the tests'
