"""The rescue folder: where a pair waits, sealed, that the store does not take; and answers that could not be read.

A file is whole or not there: written beside its place, fsynced, renamed, the folder fsynced. A reserve is kept
on the disk from the start, and given up for it when the disk is full.
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
"""How the name of a file ends that holds no pair waiting for the store, but an answer that could not be read."""
RESERVE = 4 * 1024 * 1024
"""Bytes that are kept free for it: some thousand pairs."""
MAX_FILE = 1024 * 1024
"""Bytes of a file that are read: the longest pair that AMO could issue has 350,000, sealed."""
_RESERVE = ".reserve"
_UNFINISHED = ".unfinished"
_TRIAL = "trial"
_LONG_AGO = 3600.0
"""Seconds after which nobody is at work on an unfinished file any more."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class RescueFolder:
    """Files of one folder, readable by their owner alone. Its methods block; they raise `OSError`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self) -> None:
        """Make the folder and its reserve; raises `ConfigurationError` where nothing can be written there.

        A disk that is full now is no reason not to start: it may have room when a pair needs it.
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
        """Remove what was begun long ago: others may be at work here."""
        now = self._now()
        for unfinished in self._folder.glob(f".*{_UNFINISHED}"):
            with suppress(FileNotFoundError):
                if now - unfinished.lstat().st_mtime > _LONG_AGO:
                    unfinished.unlink()

    def _now(self) -> float:
        """Return the time by the clock that gives files theirs."""
        trial = self._begin(_TRIAL, b"")
        now = trial.stat().st_mtime
        trial.unlink()
        return now

    def reserve(self) -> bool:
        """Keep some of the disk free, where there is some; tell whether it is kept."""
        reserved = self._folder / _RESERVE
        try:
            descriptor = open_regular(reserved, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW)
            try:
                if os.fstat(descriptor).st_size != RESERVE:
                    os.posix_fallocate(descriptor, 0, RESERVE)
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except (OSError, AttributeError):  # a disk that is full, or a system that cannot
            return False
        return True

    def write(self, name: str, content: bytes) -> None:
        """Write a file; the reserve is given up where there is no room, and a folder that was removed is made again."""
        try:
            self._write(name, content)
        except OSError:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._folder / _RESERVE).unlink(missing_ok=True)
            self._write(name, content)

    def remove(self, name: str) -> None:
        """Remove a file: what it holds is in the store."""
        (self._folder / name).unlink(missing_ok=True)
        sync(self._folder)

    def read(self) -> Mapping[str, bytes | None]:
        """Return what each file with a pair holds; `None` of one that cannot be read."""
        return self._read(raw=False)

    def read_raw(self) -> Mapping[str, bytes | None]:
        """Return what each raw answer's file holds; `None` of one that cannot be read."""
        return self._read(raw=True)

    def _read(self, *, raw: bool) -> Mapping[str, bytes | None]:
        found: dict[str, bytes | None] = {}
        for file in self._files(raw=raw):
            try:
                found[file.name] = read_regular(file, limit=MAX_FILE, flags=os.O_RDONLY | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue  # another process has stored it meanwhile
            except OSError:
                found[file.name] = None
        return found

    def has(self, name: str) -> bool:
        """Tell whether a file is there."""
        return (self._folder / name).exists()

    def raw_ages(self) -> Mapping[str, float]:
        """Return how many seconds ago each raw answer was written."""
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
        # A pipe or a link is listed, too, and then not read: the operator has to learn of it.
        whole = (file for file in self._folder.iterdir() if not file.name.startswith(".") and not file.is_dir())
        return sorted(file for file in whole if (file.suffix == RAW) is raw)

    def _write(self, name: str, content: bytes) -> None:
        self._begin(name, content).replace(self._folder / name)
        sync(self._folder)

    def _begin(self, name: str, content: bytes) -> Path:
        """Write a file of its own, readable by its owner alone, that nobody reads yet."""
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
