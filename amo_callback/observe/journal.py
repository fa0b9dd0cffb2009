"""systemd's journal: whether lines go there, and how it is told how urgent each is.

See `JOURNAL_STREAM` in systemd.exec(5), and sd-daemon(3) for the prefixes.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIXES = {"debug": "<7>", "info": "<6>", "warning": "<4>", "error": "<3>", "critical": "<2>"}


def is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Tell whether the journal reads this very stream: who is redirected elsewhere has the variable, too."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # closed, or no file at all
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
