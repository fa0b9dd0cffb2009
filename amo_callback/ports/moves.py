"""Records on their way into the store, out of it, and under another key, as protocols."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from amo_callback.brought import Brought
    from amo_callback.model import Connection, Freeze
    from amo_callback.moving import Key, Record, Step, Table, Target
    from amo_callback.sealing import Kind, Resealed, Sealed


class Transfers(Protocol):
    """Connections from another system, or another host."""

    async def count(self) -> int:
        """Count the connections that are not disconnected."""

    async def connections_by_id(self, ids: Sequence[str]) -> Sequence[Connection]:
        """Return those of these connections that there are."""

    async def bring(self, brought: Sequence[Brought]) -> Sequence[str]:
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


class Moves(Protocol):
    """All records, on their way to another database."""

    async def place(self, machine: str) -> str:
        """Return a name for where the store is, given one for where this process believes it to be."""

    async def records(self, table: Table, *, after: Key | None, limit: int) -> Sequence[Record]:
        """Return rows of a table by their keys, from the one after `after` on."""

    async def count_records(self) -> Mapping[Table, int]:
        """Count the rows that a move brings, of each table."""

    async def leave(self, frozen: Freeze) -> Freeze:
        """Note of a store that is `frozen` so, that what it holds lives elsewhere; return how it is frozen now."""

    async def target(self, source: str) -> Target:
        """Return what this store is to a move from `source`; changes nothing."""

    async def coming(self) -> bool:
        """Tell whether all this store holds is still on its way into it."""

    async def begin_coming(self, source: str) -> Target:
        """Be the target of a move: frozen until it ends; only a new store, and one where it was begun."""

    async def take_over(self, step: Step, *, source: str) -> Sequence[Record]:
        """Commit a step of a move as one; return the connections that were left, for they are others than were read.

        Raises `CommandFailed` where this is no longer the target of that move.
        """

    async def end_coming(self, *, source: str, machine: str, frozen: Freeze | None) -> None:
        """End a move: all is here, and lives in this place; it stays `frozen` where the other one was by itself.

        Raises `CommandFailed` where this is no longer the target of that move.
        """
