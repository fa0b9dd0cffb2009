"""What all instances share beside the records, on PostgreSQL: each asks under a lock, by the database's clock.

Why a row of slots, and not the n-th part of the rate for each of n instances: the whole rate is there for whichever of
them has work, no instance need know how many there are, and while the database is away nobody goes, which is right:
nothing could be claimed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.rate_limit import RateState, SlotDecision, WaiterKind, ask, pause

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from amo_callback.store.engine import Database, Row, Transaction

_SECOND = 1e6
"""Microseconds."""


class PostgresLimits:
    """The table `slots`."""

    at_once = False

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ask_for_slot(self, *, interval: float, waiting: Collection[WaiterKind]) -> SlotDecision:
        """Ask for a slot at the rate limit, `interval` seconds after the last one."""

        def asking(slots: RateState, now: float) -> SlotDecision:
            return ask(slots, now=now, interval=interval, waiting=waiting)

        return await self._database.coordinate(lambda transaction: _ask(transaction, asking))

    async def pause(self, seconds: float) -> None:
        """Give no slot for a while."""

        def asking(slots: RateState, now: float) -> SlotDecision:
            return SlotDecision(slots=pause(slots, now=now, seconds=seconds))

        await self._database.coordinate(lambda transaction: _ask(transaction, asking))


async def _ask(transaction: Transaction, asking: Callable[[RateState, float], SlotDecision]) -> SlotDecision:
    """Change the row under its lock, and return the decision."""
    found = await transaction.run("lock_slots")
    if not found:
        await transaction.run("make_slots")
        found = await transaction.run("lock_slots")
    asked = asking(_slots(found[0]), found[0]["clock"] / _SECOND)
    slots = asked.slots
    await transaction.run(
        "save_slots",
        last=slots.last,
        free_at=int(slots.free_at * _SECOND),
        people_until=int(slots.people_until * _SECOND),
        background_until=int(slots.background_until * _SECOND),
    )
    return asked


def _slots(row: Row) -> RateState:
    return RateState(
        last=WaiterKind(row["last"]),
        free_at=row["free_at"] / _SECOND,
        people_until=row["people_until"] / _SECOND,
        background_until=row["background_until"] / _SECOND,
    )
