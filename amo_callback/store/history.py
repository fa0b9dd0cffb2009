"""What happened: events, kept for a while, and the webhooks that wait for delivery, written with each change."""

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
"""A refresh token's lifetime: as long as somebody may ask who spent it."""
_KEEP_WEBHOOKS = timedelta(days=7)
"""Where nothing delivers them: for what begins to."""
_KEEP_UNDELIVERED = timedelta(days=30)
"""Those that were given up; and where they are delivered, any that wait: none is lost in silence."""
_STEP = 1000
"""Rows that are deleted in one transaction."""
_LAST = 2**62
_EVENTS = {
    None: "events",
    "account_id": "events_of_account",
    "owner": "events_of_owner",
    "connection_id": "events_of",
}
"""The statement that finds events, by what they are filtered by."""
_read_event = row_reader(StoredEvent, converters={"details": json_object})
_read_webhook = row_reader(QueuedWebhook, converters={"data": json_object})
_JSON = json.JSONEncoder(ensure_ascii=False)


class Repository(Database):
    """Access to some tables; what it changes goes into the history in the same transaction."""

    def __init__(self, *, clock: Clock, statements: Mapping[str, Statement], process: str) -> None:
        super().__init__(clock=clock, statements=statements, process=process)
        self._observer: Observer = _ignore
        self._on_webhook: Callable[[], None] | None = None
        self._proven_clients: set[str] = set()

    def observe(self, observer: Observer) -> None:
        """Report every event to `observer` once its transaction is committed."""
        self._observer = observer

    def on_webhook(self, call: Callable[[], None]) -> None:
        """Call `call` after each commit of webhooks that are to be delivered now."""
        self._on_webhook = call

    async def _record(
        self, transaction: Transaction, events: Sequence[Event], connection: Connection | None = None
    ) -> None:
        """Write events, and a webhook for each of those of which others are notified."""
        now = self.clock.now()
        for event in events:
            await self._save_event(transaction, event)
            transaction.on_commit.append(partial(self._observer, event))
            if event.name in WEBHOOK_EVENTS and connection is not None:
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
        """Write an event that each process reports by itself, once it reads the state that has changed."""
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
        """Note, with a pair of AMO's, which client it was issued to; an import is no proof. Once noted it stays."""
        if client_id not in self._proven_clients:
            await transaction.run("add_meta", name=pair_obtained_key(client_id), value=b"")
            transaction.on_commit.append(partial(self._proven_clients.add, client_id))

    async def _next_serial(self, transaction: Transaction, *, count: int = 1) -> int:
        """Take so many values of the store's counter, in a transaction that has locked nothing; return the last."""
        [[serial]] = await transaction.run("next_serial", count=count)
        return int(serial)


def _ignore(_event: Event) -> None: ...


def pair_obtained_key(client_id: str) -> str:
    return f"pair_obtained {client_id}"


def event_details(fields: Mapping[str, object]) -> str:
    """Return an event's fields as JSON: times in RFC 3339, without those that are not known."""
    plain: dict[str, object] = {}
    for name, value in fields.items():
        if isinstance(value, datetime):
            plain[name] = rfc3339(value)
        elif value is not None:
            plain[name] = value if isinstance(value, bool | int | float) else str(value)
    return _JSON.encode(plain)


def _webhook_data(event: Event, connection: Connection) -> str:
    """Return a webhook's data as JSON; the owners are added by the statement that writes it."""
    data = {
        "connection_id": connection.id,
        "account_id": connection.account_id,
        "domain": connection.domain,
        "owners": [],
    }
    reason = event.fields.get("reason")
    return json.dumps(data if reason is None else {**data, "reason": reason})


class History(Repository):
    """The tables `events` and `webhooks`."""

    async def record(self, event: Event) -> None:
        await self.transact(lambda transaction: self._record(transaction, [event]))

    async def events(
        self,
        *,
        connection_id: str | None = None,
        account_id: str | None = None,
        owner: str | None = None,
        before: int | None = None,
        limit: int,
    ) -> Sequence[StoredEvent]:
        """Return what happened, newest first, from before an event's id on: to whom is named, or to all."""
        given = {"account_id": account_id, "owner": owner, "connection_id": connection_id}
        named = {name: value for name, value in given.items() if value is not None}
        whose = next(iter(named), None)
        until = _LAST if before is None else before
        found = await self.read(_EVENTS[whose], before=until, limit=limit, **named)
        return [_read_event(row) for row in found]

    async def prune(self, *, now: datetime, keep: float) -> None:
        """Erase what expired grants hold, and forget them `keep` seconds later; step by step."""
        before = now - timedelta(seconds=keep)
        while len(await self.write("erase_grants", now=now, limit=_STEP)) == _STEP:
            continue
        while len(await self.write("forget_grants", before=before, limit=_STEP)) == _STEP:
            continue
        await self.cleanup()

    @in_transaction
    async def forget(self, transaction: Transaction, *, now: datetime) -> bool:
        """Forget a step of what is too old to be asked about; `True` where there is more."""
        gone = await transaction.run("prune_events", before=now - _KEEP_EVENTS, limit=_STEP)
        keep = _KEEP_WEBHOOKS if self._on_webhook is None else _KEEP_UNDELIVERED
        await transaction.run("prune_webhooks", before=now - keep, limit=_STEP)
        await transaction.run("prune_dead_lettered", before=now - _KEEP_UNDELIVERED, limit=_STEP)
        return len(gone) == _STEP

    # --- webhooks --------------------------------------------------------------------------------

    async def webhooks(self, *, limit: int, after: int = 0) -> Sequence[QueuedWebhook]:
        """Return the webhooks after a number that wait or are dead-lettered, in their order."""
        return [_read_webhook(row) for row in await self.read("webhooks", after=after, limit=limit)]

    async def next_webhook(
        self, *, now: datetime, length: timedelta, apart_from: Sequence[str] = ()
    ) -> datetime | None:
        """Return when the next delivery comes due, where leases are of this `length`."""
        [row] = await self.read("next_webhook", now=now, length=length, apart_from=json_list(apart_from))
        return None if row["at"] is None else from_micros(row["at"])

    async def claim_webhooks(
        self, *, now: datetime, length: timedelta, lease: str, limit: int, apart_from: Sequence[str] = ()
    ) -> Sequence[QueuedWebhook]:
        """Commit a lease of this `length` of due webhooks, each the first of its connection not dead-lettered."""
        found = await self.write(
            "claim_webhooks", now=now, length=length, lease=lease, limit=limit, apart_from=json_list(apart_from)
        )
        return [_read_webhook(row) for row in found]

    async def webhook_delivered(self, webhook_id: str, *, events: Sequence[Event] = ()) -> bool:
        """Take a webhook out of the webhooks; `False` where it is gone already."""
        return await self._end_webhook("webhook_delivered", events, id=webhook_id)

    async def webhook_failed(self, failed: FailedDelivery, *, events: Sequence[Event] = ()) -> bool:
        """Commit when it is tried again, or that it is dead-lettered; `False` where the lease is no longer ours."""
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
        """Let a webhook, or all that are dead-lettered, be tried now; return which these are."""
        found = await transaction.run("retry_webhooks", id=webhook_id, now=self.clock.now())
        self._wake_on_commit(transaction)
        return [row["id"] for row in found]
