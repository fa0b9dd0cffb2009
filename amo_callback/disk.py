"""Files: which may be opened without waiting, and what is to outlast a power failure."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MAX_TEXT = 1024 * 1024
"""Bytes of a configuration file, or of a file with a secret."""


def check_regular(path: Path, *, follow: bool = True) -> None:
    """Raise `OSError` where there is something other than a regular file: a pipe, a device, a folder."""
    try:
        mode = path.stat(follow_symlinks=follow).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "Not a regular file")


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a regular file, or make one (0600) where `flags` say so; raises `OSError`.

    To open a pipe may block for ever, and to open a device may do something: neither is opened.
    """
    follow = not flags & os.O_NOFOLLOW
    check_regular(path, follow=follow)
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # replaced since it was looked at
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Not a regular file")
    return descriptor


def read_regular(path: Path, *, limit: int, flags: int = os.O_RDONLY) -> bytes:
    """Return the content of a regular file of at most `limit` bytes; raises `OSError`."""
    with os.fdopen(open_regular(path, flags), "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"Longer than {limit:,} bytes")
    return content


def sync(path: Path) -> None:
    """Have a file's content, or a folder's names, on the disk before anything else happens."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new(path: Path, text: str, *, mode: int) -> None:
    """Write a file that is not there yet, all at once, never open to more users than `mode` says.

    Raises `FileExistsError` where there is anything of that name, also when it came meanwhile.
    """
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        os.link(beside, path)  # a rename would replace what came meanwhile
    finally:
        beside.unlink()
    sync(path.parent)
