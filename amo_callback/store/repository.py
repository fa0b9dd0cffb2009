"""What all tables share: each change is written together with its events, and with the webhooks that report it."""

from __future__ import annotations

import json
import uuid
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

from amo_callback.clock import rfc3339
from amo_callback.events import WEBHOOK_EVENTS, Event
from amo_callback.store.engine import Database

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from amo_callback.clock import Clock
    from amo_callback.events import Observer
    from amo_callback.model import Connection
    from amo_callback.store.engine import Statement, Transaction

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


def _ignore(_event: Event) -> None:
    """Take the place of an observer."""


def pair_obtained_key(client_id: str) -> str:
    """Return the name of a row in `meta`."""
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
