"""The process's limit of open files, and how many client connections fit into it."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from amo_callback.errors import ConfigurationError

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

RESERVE = 200
"""Descriptors for everything but clients: requests to AMO, the database, rescue files, the log."""
_FEWEST = 8
_LISTENERS = 2


def fit_connections(wanted: int, log: FilteringBoundLogger) -> int:
    """Return how many clients each listener may have; raise the limit of open files if that is possible and needed.

    Raises `ConfigurationError` where hardly any client could connect.
    """
    needed = _LISTENERS * wanted + RESERVE
    before, limit = raise_limit(needed)
    if limit > before:
        log.info("descriptors.raised", before=before, limit=limit)
    fitting = connections_within(limit, wanted)
    if fitting < wanted:
        log.warning(
            "descriptors.low",
            limit=limit,
            max_connections=fitting,
            text=f"the process may open too few files for server.max_connections = {wanted} on each listener, and "
            f"{RESERVE} more: raise the limit to {needed} (LimitNOFILE= of the unit, ulimit -n), or lower the setting",
        )
    return fitting


def connections_within(limit: int, wanted: int) -> int:
    """Return how many clients each listener may have, at most `wanted`, with a limit of so many open files.

    Raises `ConfigurationError` where hardly any client could connect.
    """
    fitting = min(wanted, (limit - RESERVE) // _LISTENERS)
    if fitting < min(wanted, _FEWEST):
        raise ConfigurationError(
            f"the process may open {limit} files, and needs {RESERVE + _LISTENERS * _FEWEST} at least: raise the limit "
            "(LimitNOFILE= of the unit, ulimit -n)"
        )
    return fitting


def raise_limit(needed: int) -> tuple[int, int]:
    """Raise the soft limit of open files to the hard one where it is below `needed`; return it as it was, and is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _number(soft) < needed and soft != hard:
        with suppress(OSError, ValueError):  # some systems allow less than their hard limit says
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return _number(soft), _number(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _number(limit: int) -> int:
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit
