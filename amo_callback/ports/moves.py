"""Imported connections, and records under another key, as protocols."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.model import Connection, ImportedConnection
    from amo_callback.sealing import Kind, Resealed, Sealed


class Transfers(Protocol):
    """Connections from another system, or another host."""

    async def count(self) -> int:
        """Count the connections that are not disconnected."""

    async def connections_by_id(self, ids: Sequence[str]) -> Sequence[Connection]:
        """Return those of these connections that there are."""

    async def bring(self, brought: Sequence[ImportedConnection]) -> Sequence[str]:
        """Commit connections from elsewhere as one, each with its event; return the ids of those that were left.

        One is left where the store has another one by now than it was meant to replace, or one that is being refreshed.
        """


class Seals(Protocol):
    """Whatever lies sealed in the store."""

    async def count_sealed(self) -> int:
        """Count what lies sealed in the store, of any kind."""

    async def sealed(self, kind: Kind, *, after: str, limit: int) -> Sequence[Sealed]:
        """Return what lies sealed of one kind by its names, from the one after `after` on."""

    async def reseal(self, resealed: Sequence[Resealed]) -> Sequence[Sealed]:
        """Commit the same under another key as one; return those that were left: other bytes are stored by then."""
