"""A file that is there whole or not at all, readable by its owner alone."""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from amo_callback.disk import sync
from amo_callback.errors import CommandFailed

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """Write beside its place, and put it there at the end; raises `CommandFailed`, also where something is there."""
    try:
        if os.path.lexists(path):  # before anything is done for it
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        descriptor, beside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".unfinished", dir=path.parent)
        unfinished = Path(beside)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))  # so that nobody's file is replaced
            unfinished.replace(path)
            sync(path.parent)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise CommandFailed(f"{path}: cannot be written: {error.strerror}") from None
