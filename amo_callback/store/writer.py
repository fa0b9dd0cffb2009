"""A write, what is remembered of it, and whom to notify: one transaction."""

from __future__ import annotations

import dataclasses
import json
import uuid
from typing import TYPE_CHECKING, Any, TypeVar

from amo_callback.event import NOTICES, Event
from amo_callback.store import rows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from amo_callback.model import Connection
    from amo_callback.store.database import Database, Unit
    from amo_callback.store.row import Row

T = TypeVar("T")


class Writer:
    """What the parts of a store share."""

    def __init__(self, database: Database, *, process: str) -> None:
        self._database = database
        self._clock = database.clock
        self._process = process
        self._told: Callable[[], None] | None = None

    def on_notice(self, told: Callable[[], None]) -> None:
        """Tell of each notice that this process commits, or wants tried again: somebody delivers them."""
        self._told = told

    async def _change(self, name: str, *, events: Sequence[Event] = (), **values: object) -> Connection | None:
        """Change one connection, and record what that is; `None` where it is no longer as the statement wants it."""

        async def work(unit: Unit) -> Connection | None:
            changed = first(await unit.run(name, **values), rows.connection)
            if changed is not None:
                await self._record(unit, events, changed)
            return changed

        return await self._database.unit(work)

    async def _record(self, unit: Unit, events: Sequence[Event], connection: Connection | None = None) -> None:
        """Write events within a unit, and into the outbox those of which others are notified."""
        now = self._clock.now()
        for event in events:
            await unit.run("save_event", **self._event_row(event, now))
            if event.name in NOTICES and connection is not None:
                owners = await self._owners(unit, connection.id)
                await unit.run(
                    "save_notice",
                    id=uuid.uuid4().hex,
                    at=now,
                    type=event.name,
                    connection_id=connection.id,
                    data=_notice(event, connection, owners),
                )
                self._tell_of_notices(unit)

    def _tell_of_notices(self, unit: Unit) -> None:
        """Wake whoever delivers them, once this unit is committed."""
        if self._told is not None:
            unit.afterwards(self._told)

    async def _owners(self, unit: Unit, connection_id: str) -> Sequence[str]:
        """Return a connection's owners, within a unit."""
        return [row["owner"] for row in await unit.run("owners_of", ids=json_list([connection_id]))]

    async def _bind(self, unit: Unit, connection_id: str, *, owner: str, grant_no: int) -> bool:
        """Make somebody an owner, within a unit; `False` where he may not be, or is one already."""
        bound = await unit.run(
            "bind_owner", connection_id=connection_id, owner=owner, at=self._clock.now(), grant_no=grant_no
        )
        if bound:
            await self._record(unit, [Event(name="owner.bound", connection_id=connection_id, fields={"owner": owner})])
        return bool(bound)

    async def _next_serial(self, unit: Unit) -> int:
        """Count a disconnect, within a unit that has locked what it disconnects."""
        [[serial]] = await unit.run("next_serial")
        return int(serial)

    async def _note_pair_obtained(self, unit: Unit, client_id: str) -> None:
        """Note, within the unit that stores a pair of AMO's, which client it was issued to; an import is no proof."""
        await unit.run("note_pair_obtained", name=pair_obtained_mark(client_id), value=b"")

    def _event_row(self, event: Event, now: datetime) -> dict[str, object]:
        return {
            "at": now,
            "connection_id": event.connection_id,
            "name": event.name,
            "process": self._process,
            "details": rows.details(event.fields),
        }


def pair_obtained_mark(client_id: str) -> str:
    """Return the mark's name in `meta`."""
    return f"pair_obtained {client_id}"


def _notice(event: Event, connection: Connection, owners: Sequence[str]) -> str:
    data = {
        "connection_id": connection.id,
        "account_id": connection.account_id,
        "domain": connection.domain,
        "owners": owners,
        "reason": event.fields.get("reason"),
    }
    return json.dumps({name: value for name, value in data.items() if value is not None})


def values_of(value: Any) -> dict[str, Any]:  # noqa: ANN401 -- because any dataclass is taken
    """Return a value's fields: the statements name them alike."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def json_list(names: Sequence[str]) -> str:
    """Return names as the statements take many of them."""
    return json.dumps(list(names))


def first(found: Sequence[Row], read: Callable[[Mapping[str, Any]], T]) -> T | None:
    """Return the first row as a value."""
    return read(columns(found[0])) if found else None


def every(found: Sequence[Row], read: Callable[[Mapping[str, Any]], T]) -> list[T]:
    """Return rows as values."""
    return [read(columns(row)) for row in found]


def columns(row: Row) -> dict[str, Any]:
    """Return a row's values by their columns; SQLite's would look for each of them among all."""
    return dict(zip(row.keys(), row, strict=True))
