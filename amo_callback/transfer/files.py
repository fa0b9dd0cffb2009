"""A file that is there whole or not at all, readable by its owner alone."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from amo_callback.errors import CommandFailed

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """Write beside its place, and put it there at the end; raises `CommandFailed` where something is there already."""
    _must_be_free(path)
    try:
        descriptor, beside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".unfinished", dir=path.parent)
    except OSError as error:
        raise CommandFailed(f"{path}: cannot be written: {error.strerror}") from None
    unfinished = Path(beside)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _must_be_free(path)
        unfinished.rename(path)
        _sync(path.parent)
    except OSError as error:
        raise CommandFailed(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        unfinished.unlink(missing_ok=True)


def _must_be_free(path: Path) -> None:
    if os.path.lexists(path):
        raise CommandFailed(f"{path}: exists; nothing is written over it")


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
