"""Where a database lives: this machine, this folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

MACHINE_ID = Path("/etc/machine-id")


def location_id(database: Path | None, *, machine_id: Path = MACHINE_ID) -> str:
    """Return a name for the place of a database file that tells nothing of it; PostgreSQL, no file, names its own.

    The machine's id is not to be shown to others (machine-id(5)), so it is hashed; where there is none, as in some
    containers, the folder alone is told apart.
    """
    if database is None:
        return ""
    try:
        machine = machine_id.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        machine = ""
    return hashlib.sha256(f"amo-callback:{machine}:{database.resolve()}".encode()).hexdigest()
