"""The rescue folder: encrypted files with uncommitted token pairs, and with raw answers (see `raw_answers`).

Each file is written atomically: a temporary file is written, synced to disk and renamed, and the folder is synced. Disk
space is reserved when the service starts, and released if it is needed for a file.
"""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from amo_callback.errors import ConfigurationError
from amo_callback.files import open_regular, read_regular, sync

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RAW = ".raw"
"""The suffix of files with raw answers."""
RESERVE = 4 * 1024 * 1024
"""Bytes of disk space to reserve, enough for about a thousand pairs."""
MAX_FILE = 1024 * 1024
"""The maximum number of bytes read from a file; the longest possible pair takes 350,000 bytes when encrypted."""
_RESERVE = ".reserve"
_UNFINISHED = ".unfinished"
_TRIAL = "trial"
_LONG_AGO = 3600.0
"""The age in seconds after which a temporary file counts as abandoned."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class RescueFolder:
    """A folder of files with mode 0600. The methods block, and may raise `OSError`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self) -> None:
        """Create the folder and reserve disk space; raises `ConfigurationError` if the folder cannot be written.

        A full disk is not an error, because space may be available by the time a pair has to be written.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.chmod(0o700)
            self._clean()
        except OSError as error:
            if error.errno not in _FULL:
                raise ConfigurationError(f"storage.rescue: {self._folder} cannot be used: {error.strerror}") from None
        self.reserve()

    def _clean(self) -> None:
        """Remove abandoned temporary files; recent files may belong to another process."""
        now = self._now()
        for unfinished in self._folder.glob(f".*{_UNFINISHED}"):
            with suppress(FileNotFoundError):
                if now - unfinished.lstat().st_mtime > _LONG_AGO:
                    unfinished.unlink()

    def _now(self) -> float:
        """Return the current time by the file system's clock."""
        trial = self._begin(_TRIAL, b"")
        now = trial.stat().st_mtime
        trial.unlink()
        return now

    def reserve(self) -> bool:
        """Reserve disk space if possible, and return whether the space is reserved."""
        reserved = self._folder / _RESERVE
        try:
            descriptor = open_regular(reserved, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW)
            try:
                if os.fstat(descriptor).st_size != RESERVE:
                    os.posix_fallocate(descriptor, 0, RESERVE)
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except (OSError, AttributeError):  # the disk is full, or the system cannot reserve space
            return False
        return True

    def write(self, name: str, content: bytes) -> None:
        """Write a file.

        If that fails, create the folder if it is missing, release the reserved space, and try once more.
        """
        try:
            self._write(name, content)
        except OSError:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._folder / _RESERVE).unlink(missing_ok=True)
            self._write(name, content)

    def remove(self, name: str) -> None:
        """Remove a file, and sync the folder to disk."""
        (self._folder / name).unlink(missing_ok=True)
        sync(self._folder)

    def read(self) -> Mapping[str, bytes | None]:
        """Return the content of each file with a pair; `None` for a file that cannot be read."""
        return self._read(raw=False)

    def read_raw(self) -> Mapping[str, bytes | None]:
        """Return the content of each file with a raw answer; `None` for a file that cannot be read."""
        return self._read(raw=True)

    def _read(self, *, raw: bool) -> Mapping[str, bytes | None]:
        found: dict[str, bytes | None] = {}
        for file in self._files(raw=raw):
            try:
                found[file.name] = read_regular(file, limit=MAX_FILE, flags=os.O_RDONLY | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue  # another process has stored the pair and removed its file
            except OSError:
                found[file.name] = None
        return found

    def has(self, name: str) -> bool:
        return (self._folder / name).exists()

    def raw_ages(self) -> Mapping[str, float]:
        """Return the age in seconds of each file with a raw answer."""
        ages: dict[str, float] = {}
        files = self._files(raw=True)
        now = self._now() if files else 0.0
        for file in files:
            with suppress(FileNotFoundError):
                ages[file.name] = now - file.lstat().st_mtime
        return ages

    def _files(self, *, raw: bool) -> Sequence[Path]:
        if not self._folder.exists():
            return []
        # Pipes and links are listed, although they are not read, so that they are reported to the operator.
        whole = (file for file in self._folder.iterdir() if not file.name.startswith(".") and not file.is_dir())
        return sorted(file for file in whole if (file.suffix == RAW) is raw)

    def _write(self, name: str, content: bytes) -> None:
        self._begin(name, content).replace(self._folder / name)
        sync(self._folder)

    def _begin(self, name: str, content: bytes) -> Path:
        """Write a temporary file with mode 0600, and return its path."""
        descriptor, path = tempfile.mkstemp(prefix=f".{name}.", suffix=_UNFINISHED, dir=self._folder)
        try:
            written = 0
            while written < len(content):
                written += os.write(descriptor, content[written:])
            os.fsync(descriptor)
        except OSError:
            Path(path).unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        return Path(path)
