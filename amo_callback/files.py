"""Functions to open files without blocking, read them up to a size limit, and write them atomically."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_TEXT = 1024 * 1024
"""The maximum size in bytes of a configuration file, or of a file with a secret."""
MACHINE_ID = Path("/etc/machine-id")


def check_regular(path: Path, *, follow: bool = True) -> None:
    """Raise `OSError` if the path exists but is not a regular file (for example, a pipe or a device)."""
    try:
        mode = path.stat(follow_symlinks=follow).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "Not a regular file")


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a regular file, or create it (mode 0600) if `flags` include `O_CREAT`; raises `OSError`.

    Opening a pipe may block forever, and opening a device may have side effects, so neither is opened.
    """
    follow = not flags & os.O_NOFOLLOW
    check_regular(path, follow=follow)
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # the file was replaced after the check
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Not a regular file")
    return descriptor


def read_regular(path: Path, *, limit: int, flags: int = os.O_RDONLY) -> bytes:
    """Return the content of a regular file of at most `limit` bytes; raises `OSError`."""
    with os.fdopen(open_regular(path, flags), "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"Larger than {limit:,} bytes")
    return content


def read_text(path: Path, error: Callable[[str], Exception]) -> str:
    """Return the text of a small UTF-8 file; raises `error` with a message that contains the path and the reason."""
    try:
        return read_regular(path, limit=MAX_TEXT).decode()
    except OSError as refused:
        raise error(f"cannot read {path}: {refused.strerror}") from None
    except UnicodeDecodeError:
        raise error(f"{path}: not valid UTF-8") from None


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path, *, mode: int = 0o600, replace: bool = False) -> Iterator[IO[bytes]]:
    """Open a file with the permissions `mode` that is written completely or not at all, even after a power failure.

    Raises `OSError`. Unless `replace` is true, raises `FileExistsError` if the file exists, even if it was created
    during the write.
    """
    if not replace and os.path.lexists(path):  # fail before the content is produced
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".unfinished", dir=path.parent)
    unfinished = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        if not replace:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        unfinished.replace(path)
        sync(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def write_file(path: Path, text: str, *, mode: int, replace: bool = False) -> None:
    """Write a text file atomically; raises the errors of `atomic_file`."""
    with atomic_file(path, mode=mode, replace=replace) as file:
        file.write(text.encode())


def location_id(database: Path | None, *, machine_id: Path = MACHINE_ID) -> str:
    """Return an opaque id for the location of a database file; empty for PostgreSQL, which has its own ids.

    The machine id must not be disclosed (machine-id(5)), so it is hashed. Some containers have no machine id; the
    location id then depends only on the path.
    """
    if database is None:
        return ""
    try:
        machine = machine_id.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        machine = ""
    return hashlib.sha256(f"amo-callback:{machine}:{database.resolve()}".encode()).hexdigest()
