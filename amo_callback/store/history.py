"""The tables `events` and `webhooks`. Each row is written in the transaction of the change that it reports."""

from __future__ import annotations

import json
import uuid
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from amo_callback.clock import rfc3339
from amo_callback.events import WEBHOOK_EVENTS, Event, QueuedWebhook, StoredEvent
from amo_callback.store.engine import (
    Database,
    from_micros,
    in_transaction,
    json_list,
    json_object,
    row_reader,
    values_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from amo_callback.clock import Clock
    from amo_callback.events import FailedDelivery, Observer
    from amo_callback.model import Connection
    from amo_callback.store.engine import Statement, Transaction

_KEEP_EVENTS = timedelta(days=90)
"""The retention of events: the lifetime of a refresh token, because its history may be needed that long."""
_KEEP_WEBHOOKS = timedelta(days=30)
_STEP = 1000
"""The maximum number of rows that one transaction deletes from a table."""
_LAST = 2**62
_EVENTS = {
    None: "events",
    "account_id": "events_of_account",
    "owner": "events_of_owner",
    "connection_id": "events_of",
}
"""The names of the statements that return events, by filter field; `None` means no filter."""
_read_event = row_reader(StoredEvent, converters={"details": json_object})
_read_webhook = row_reader(QueuedWebhook, converters={"data": json_object})
_JSON = json.JSONEncoder(ensure_ascii=False)


class Repository(Database):
    """The base of the store's classes. It records changes in the history, in the transaction of each change."""

    stores_webhooks = True
    """Whether webhooks are stored; false if no receiver is configured."""

    def __init__(self, *, clock: Clock, statements: Mapping[str, Statement], process: str) -> None:
        super().__init__(clock=clock, statements=statements, process=process)
        self._observer: Observer = _ignore
        self._on_webhook: Callable[[], None] | None = None
        self._proven_clients: set[str] = set()

    def observe(self, observer: Observer) -> None:
        """Call `observer` with every event after the event is committed."""
        self._observer = observer

    def on_webhook(self, call: Callable[[], None]) -> None:
        """Call `call` after each commit that adds webhooks or makes them due."""
        self._on_webhook = call

    async def _record(
        self, transaction: Transaction, events: Sequence[Event], connection: Connection | None = None
    ) -> None:
        """Write events, and report them after the commit.

        If a receiver is configured, also write a webhook for each event of `connection` in `WEBHOOK_EVENTS`.
        """
        now = self.clock.now()
        for event in events:
            await self._save_event(transaction, event)
            transaction.on_commit.append(partial(self._observer, event))
            if self.stores_webhooks and event.name in WEBHOOK_EVENTS and connection is not None:
                await transaction.run(
                    "save_webhook",
                    id=uuid.uuid4().hex,
                    at=now,
                    type=event.name,
                    connection_id=connection.id,
                    data=_webhook_data(event, connection),
                )
                self._wake_on_commit(transaction)

    async def _save_event(self, transaction: Transaction, event: Event) -> None:
        """Write an event without reporting it; each process reports the event when it reads the changed state."""
        await transaction.run("save_event", **self._event_row(event, self.clock.now()))

    def _wake_on_commit(self, transaction: Transaction) -> None:
        if self._on_webhook is not None:
            transaction.on_commit.append(self._on_webhook)

    def _event_row(self, event: Event, now: datetime) -> dict[str, object]:
        return {
            "at": now,
            "connection_id": event.connection_id,
            "name": event.name,
            "process": self.process,
            "details": event_details(event.fields),
        }

    async def _note_pair_obtained(self, transaction: Transaction, client_id: str) -> None:
        """Record that AMO has issued a pair to this client id; imported pairs do not count."""
        if client_id not in self._proven_clients:
            await transaction.run("add_meta", name=pair_obtained_key(client_id), value=b"")
            transaction.on_commit.append(partial(self._proven_clients.add, client_id))

    async def _next_serial(self, transaction: Transaction, *, count: int = 1) -> int:
        """Increment the store's counter by `count`, and return the new value.

        A transaction must call this method before it acquires any other lock.
        """
        [[serial]] = await transaction.run("next_serial", count=count)
        return int(serial)


def _ignore(_event: Event) -> None: ...


def pair_obtained_key(client_id: str) -> str:
    return f"pair_obtained {client_id}"


def event_details(fields: Mapping[str, object]) -> str:
    """Encode an event's fields as JSON. Times are written in RFC 3339; fields that are `None` are omitted."""
    plain: dict[str, object] = {}
    for name, value in fields.items():
        if isinstance(value, datetime):
            plain[name] = rfc3339(value)
        elif value is not None:
            plain[name] = value if isinstance(value, bool | int | float) else str(value)
    return _JSON.encode(plain)


def _webhook_data(event: Event, connection: Connection) -> str:
    """Encode a webhook's data as JSON; the INSERT statement adds the owners."""
    data = {
        "connection_id": connection.id,
        "account_id": connection.account_id,
        "domain": connection.domain,
        "owners": [],
    }
    reason = event.fields.get("reason")
    return json.dumps(data if reason is None else {**data, "reason": reason})


class History(Repository):
    """The store's methods for the tables `events` and `webhooks`."""

    async def record(self, event: Event) -> None:
        await self.transact(lambda transaction: self._record(transaction, [event]))

    async def events(
        self,
        *,
        connection_id: str | None = None,
        account_id: str | None = None,
        owner: str | None = None,
        ids: Sequence[str] | None = None,
        before: int | None = None,
        limit: int,
    ) -> Sequence[StoredEvent]:
        """Return up to `limit` events with ids below `before`, newest first.

        At most one of `connection_id`, `account_id` and `owner` may be given, to filter the events. If `ids` is given,
        events of connections with other ids are omitted.
        """
        given = {"account_id": account_id, "owner": owner, "connection_id": connection_id}
        named: dict[str, str | None] = {name: value for name, value in given.items() if value is not None}
        statement = _EVENTS[next(iter(named), None)]
        if ids is not None:
            statement, named = "events_among", {**given, "ids": json_list(ids)}
        until = _LAST if before is None else before
        found = await self.read(statement, before=until, limit=limit, **named)
        return [_read_event(row) for row in found]

    async def prune(self, *, now: datetime, keep: float) -> None:
        """Delete grants `keep` seconds after they expire, and erase the secrets of all expired grants.

        It also deletes expired rows that coordinate instances.
        """
        before = now - timedelta(seconds=keep)
        while len(await self.write("erase_grants", now=now, limit=_STEP)) == _STEP:
            continue
        while len(await self.write("forget_grants", before=before, limit=_STEP)) == _STEP:
            continue
        await self.cleanup()

    @in_transaction
    async def forget(self, transaction: Transaction, *, now: datetime) -> bool:
        """Delete a batch of old events and webhooks; return whether more old events may be left."""
        gone = await transaction.run("prune_events", before=now - _KEEP_EVENTS, limit=_STEP)
        await transaction.run("prune_webhooks", before=now - _KEEP_WEBHOOKS, limit=_STEP)
        await transaction.run("prune_dead_lettered", before=now - _KEEP_WEBHOOKS, limit=_STEP)
        return len(gone) == _STEP

    # --- webhooks --------------------------------------------------------------------------------

    async def webhooks(
        self, *, limit: int, after: int = 0, ids: Sequence[str] | None = None
    ) -> Sequence[QueuedWebhook]:
        """Return up to `limit` waiting and dead-lettered webhooks with numbers above `after`, ordered by number.

        If `ids` is given, webhooks about connections with other ids are omitted.
        """
        statement, among = ("webhooks", {}) if ids is None else ("webhooks_among", {"ids": json_list(ids)})
        return [_read_webhook(row) for row in await self.read(statement, after=after, limit=limit, **among)]

    async def next_webhook(self, *, now: datetime, length: timedelta, exclude: Sequence[str] = ()) -> datetime | None:
        """Return the due time of the next delivery, or `None` if there is none; `length` is the duration of a lease."""
        [row] = await self.read("next_webhook", now=now, length=length, exclude=json_list(exclude))
        return None if row["at"] is None else from_micros(row["at"])

    async def claim_webhooks(
        self, *, now: datetime, length: timedelta, lease: str, limit: int, exclude: Sequence[str] = ()
    ) -> Sequence[QueuedWebhook]:
        """Lease due webhooks: for each connection, only the first webhook that is not dead-lettered."""
        found = await self.write(
            "claim_webhooks", now=now, length=length, lease=lease, limit=limit, exclude=json_list(exclude)
        )
        return [_read_webhook(row) for row in found]

    async def webhook_delivered(self, webhook_id: str, *, events: Sequence[Event] = ()) -> bool:
        """Delete a delivered webhook; return `False` if it has already been deleted."""
        return await self._end_webhook("webhook_delivered", events, id=webhook_id)

    async def webhook_failed(self, failed: FailedDelivery, *, events: Sequence[Event] = ()) -> bool:
        """Schedule the next try or dead-letter the webhook; return `False` if this process has lost its lease."""
        return await self._end_webhook("webhook_failed", events, **values_of(failed), now=self.clock.now())

    @in_transaction
    async def _end_webhook(
        self, transaction: Transaction, /, statement: str, events: Sequence[Event], **values: object
    ) -> bool:
        changed = await transaction.run(statement, **values)
        await self._record(transaction, events if changed else [])
        return bool(changed)

    @in_transaction
    async def retry_webhooks(self, transaction: Transaction, webhook_id: str | None) -> Sequence[str]:
        """Make one webhook due now, or all dead-lettered webhooks if `webhook_id` is `None`; return their ids."""
        found = await transaction.run("retry_webhooks", id=webhook_id, now=self.clock.now())
        self._wake_on_commit(transaction)
        return [row["id"] for row in found]
