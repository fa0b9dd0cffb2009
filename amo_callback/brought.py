"""Connections from elsewhere, on their way into the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.event import Event
    from amo_callback.model import Connection


@dataclass(frozen=True, kw_only=True, slots=True)
class Brought:
    """A connection from elsewhere, as it goes into the store."""

    connection: Connection
    over: Connection | None
    """What it replaces, as that was read; whatever else is stored by then stays."""
    event: Event
    owners: Sequence[str] = ()
    """Whose it is from now on, beside whoever owned it here."""
