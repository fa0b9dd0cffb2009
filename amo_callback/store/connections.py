"""Queries and updates of the table `connections`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import itemgetter
from typing import TYPE_CHECKING

from amo_callback.events import Event, connection_event
from amo_callback.model import Connection, ConnectionFilter, Reason, Status
from amo_callback.schedule import CLOCK_TOLERANCE, TURN
from amo_callback.stats import ConnectionCounts, Successes
from amo_callback.store.engine import from_micros, in_transaction, json_list, lease_left, row_reader, values_of
from amo_callback.store.history import Repository

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from amo_callback.model import (
        Claim,
        ConnectionLimits,
        ImportedConnection,
        LeaseExtension,
        RefreshedPair,
        RefreshFailure,
    )
    from amo_callback.store.engine import Row, Transaction

_LAST_DAY = timedelta(days=1)
_WARNINGS = 100
"""The maximum number of connections changed by one statement that records expiry warnings or expiries."""
_SECOND = timedelta(seconds=1)
_ID = itemgetter("id")
_STATUSES = {status.value: status for status in Status}
_REASONS = {reason.value: reason for reason in Reason}
_MICROSECOND = timedelta(microseconds=1)


# An unknown status or reason can only have been written by hand. It must not break queries that return many rows.
read_connection = row_reader(
    Connection,
    converters={
        "status": lambda word: _STATUSES.get(word, Status.NEEDS_REAUTH),
        "reason": lambda word: _REASONS.get(word, Reason.UNREADABLE) if word else None,
        "suspended_reason": lambda word: _REASONS.get(word, Reason.IN_DOUBT) if word else None,
        "recheck_pause": _MICROSECOND.__mul__,
    },
    computed={
        "frozen": lambda columns: columns["frozen_at"] is not None or bool(columns.get("all_frozen")),
        "lease_left": lease_left,
    },
    leave=frozenset({"reactivated"}),
)
_read_counts = row_reader(ConnectionCounts)
_read_successes = row_reader(Successes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Due:
    refreshes: Sequence[Connection]
    """The connections due for a refresh, including those with an attempt in progress.

    Connections with impossible times (issued in the future, or due after expiry) come first. The others are ordered by
    due time.
    """
    rechecks: Sequence[str]
    """The ids of connections whose tokens are due for introspection."""
    next_at: datetime | None
    """The earliest future due time among the connections without an attempt in progress."""


class Connections(Repository):
    """The store's methods for the table `connections`."""

    async def connection(self, connection_id: str) -> Connection | None:
        return _first(await self.read("connection", id=connection_id))

    async def connections_of(self, account_id: str) -> Sequence[Connection]:
        """Return an AMO account's connections, except disconnected ones.

        They are ordered by status, active first, and then by precedence.
        """
        return [read_connection(row) for row in await self.read("connections_of", account_id=account_id)]

    async def page(
        self, *, after: str, limit: int, only: ConnectionFilter, ids: Sequence[str] | None = None
    ) -> Sequence[Connection]:
        """Return up to `limit` connections that match `only`, in the order of their ids, starting after `after`.

        If `ids` is given, connections with other ids are omitted.
        """
        statement = "page" if only.account_id is None else "page_of_account"
        if only.owner is not None:
            statement = "page_of_owner"
        filters = values_of(only)
        if ids is not None:
            statement, filters["ids"] = "page_among", json_list(ids)
        found = await self.read(statement, after=after, limit=limit, **filters)
        return [read_connection(row) for row in found]

    async def ids_within(self, limits: ConnectionLimits) -> Sequence[str]:
        """Return the ids of the connections within the limits, including disconnected connections of the accounts."""
        accounts, owners = json_list(sorted(limits.accounts)), json_list(sorted(limits.owners))
        return [row["id"] for row in await self.read("ids_within", accounts=accounts, owners=owners)]

    async def attempts(self) -> Sequence[Connection]:
        return [read_connection(row) for row in await self.read("attempts")]

    async def due(
        self, *, now: datetime, limit: int, rechecks: int = 0, exclude: Sequence[str], turn: timedelta = TURN
    ) -> Due:
        """Return due connections: at most `limit` refreshes and `rechecks` rechecks."""
        found = await self.claim_work(
            "due",
            now=now,
            impossible_after=now + CLOCK_TOLERANCE,
            limit=limit,
            rechecks=rechecks,
            exclude=json_list(exclude),
            turn=turn,
        )
        rows: dict[str, list[Row]] = {"refresh": [], "recheck": [], "next": []}
        for row in found:
            rows[row["kind"]].append(row)
        return Due(
            refreshes=list(map(read_connection, rows["refresh"])),
            rechecks=list(map(_ID, rows["recheck"])),
            next_at=from_micros(rows["next"][0]["next_refresh_at"]) if rows["next"] else None,
        )

    async def probe(self, *, exclude: Sequence[str], turn: timedelta) -> Connection | None:
        """Return an active connection to probe, or `None`.

        The connection with the most recent success is preferred. A connection with an attempt after its last success is
        returned only if there is no other. Connections without a refresh token, or whose host is not allowed, are never
        returned.
        """
        found = await self.claim_work("probe", exclude=json_list(exclude), turn=turn)
        return _first(found)

    async def connection_counts(self, *, now: datetime, since: datetime) -> ConnectionCounts:
        """Count active connections, those with a valid access token, and terminal failures since `since`.

        Active connections without a refresh token are not counted.
        """
        [row] = await self.read("connection_counts", now=now, since=since)
        return _read_counts(row)

    async def successes(self, *, now: datetime) -> Successes:
        """Return statistics of recent successful refreshes and grants, for all connections."""
        [row] = await self.read("successes", now=now, since=now - _LAST_DAY)
        return _read_successes(row)

    # --- one refresh -----------------------------------------------------------------------------

    @in_transaction
    async def claim(self, transaction: Transaction, claim: Claim, *, events: Sequence[Event] = ()) -> Connection | None:
        """Commit a claim of a connection; `None` if the connection is frozen or has changed since it was read."""
        await transaction.run("lock_for_spending")
        return await self._run_and_record(transaction, "claim", events, values_of(claim))

    async def extend(self, extension: LeaseExtension, *, events: Sequence[Event] = ()) -> bool:
        """Commit a longer lease and the account's new host; `False` if another attempt has replaced this one."""
        return await self._change("extend", events=events, **values_of(extension)) is not None

    @in_transaction
    async def save_refreshed(
        self, transaction: Transaction, refreshed: RefreshedPair, *, events: Sequence[Event] = ()
    ) -> Connection | None:
        """Commit a refreshed pair and end its claim; `None` if the pair that was refreshed is no longer stored.

        If the connection needed reauthorization, it becomes active, and `reactivated` is set in the result.
        """
        await transaction.run("lock_connection", id=refreshed.connection_id)
        before = await transaction.run("connection", id=refreshed.connection_id)
        saved = _first(await transaction.run("save_refreshed", **values_of(refreshed)))
        if not before or saved is None:
            return None
        await self._note_pair_obtained(transaction, saved.client_id)
        reactivated = before[0]["status"] == Status.NEEDS_REAUTH
        recovered = [connection_event("connection.recovered", saved)] if reactivated else []
        await self._record(transaction, [*events, *recovered], saved)
        return dataclasses.replace(saved, reactivated=reactivated)

    async def save_failure(self, failure: RefreshFailure, *, events: Sequence[Event] = ()) -> Connection | None:
        """Commit the result of an attempt that yielded no pair; `None` if another attempt has replaced this one."""
        return await self._change("save_failure", events=events, **values_of(failure))

    async def give_up(
        self,
        connection: Connection,
        *,
        last_error: str,
        now: datetime,
        recheck_at: datetime,
        events: Sequence[Event] = (),
    ) -> bool:
        """Apply a suspended terminal failure; `False` if the row has changed since it was read."""
        return await self._change_read(
            "give_up", connection, events=events, last_error=last_error, now=now, recheck_at=recheck_at
        )

    async def accept_token(self, connection: Connection) -> None:
        """Clear the refusals and the suspended failure of a pair, because AMO accepts its refresh token."""
        await self.write("accept_token", id=connection.id, pair_version=connection.pair_version)

    async def release(self, *, connection_id: str, attempt: str) -> None:
        """Release a claim whose token was not spent."""
        await self.write("release", connection_id=connection_id, attempt=attempt)

    # --- other changes ---------------------------------------------------------------------------

    async def postpone(
        self, connection: Connection, *, last_error: str, next_refresh_at: datetime | None, events: Sequence[Event] = ()
    ) -> bool:
        """Postpone a refresh that was not started; `False` if the row has changed since it was read."""
        return await self._change_read(
            "postpone", connection, events=events, last_error=last_error, next_refresh_at=next_refresh_at
        )

    async def retry_hosts(self, *, now: datetime) -> None:
        """Reschedule for `now` all refreshes that were postponed because the stored host was not allowed."""
        await self.write("retry_hosts", now=now)

    async def reactivate(
        self, connection: Connection, *, next_refresh_at: datetime, events: Sequence[Event] = ()
    ) -> bool:
        """Make a connection active again; `False` if the row has changed since it was read."""
        return await self._change_read("reactivate", connection, events=events, next_refresh_at=next_refresh_at)

    async def mark_in_doubt(self, connection: Connection, *, events: Sequence[Event] = ()) -> bool:
        """Set the reason of a connection to `in_doubt`, because its token may have been spent.

        Returns `False` if the row has changed since it was read.
        """
        return await self._change_read("mark_in_doubt", connection, events=events)

    @in_transaction
    async def disconnect(
        self, transaction: Transaction, connection: Connection, *, on_request: bool, events: Sequence[Event] = ()
    ) -> bool:
        """Erase a connection's tokens, and end its ownerships; `False` if the row has changed since it was read.

        With `on_request`, the owners are deleted, and a grant claimed before the disconnect can no longer store its
        pair. Without it, the grant can still store its pair, and `owner:` still names the connection until the user
        connects or disconnects.
        """
        serial = await self._next_serial(transaction)
        await transaction.run("lock_connection", id=connection.id)
        changed = await transaction.run(
            "disconnect",
            id=connection.id,
            row_version=connection.row_version,
            serial=serial,
            on_request=on_request,
        )
        if changed:
            await self._record(transaction, events, connection)
            ended = {"connection_id": connection.id}
            if on_request:
                await transaction.run("forget_owners", **ended)
            else:
                await transaction.run("end_ownerships", **ended, serial=serial)
        return bool(changed)

    async def freeze(self, connection_id: str, *, at: datetime | None, events: Sequence[Event] = ()) -> bool:
        """Freeze one connection, or thaw it if `at` is `None`; `False` if nothing changed."""
        return await self._change("freeze", events=events, id=connection_id, at=at) is not None

    @in_transaction
    async def due_expiry_warnings(
        self, transaction: Transaction, *, days: int, before: datetime, event: Callable[[Connection], Event]
    ) -> Sequence[Event]:
        """Record a warning for active connections whose tokens expire by `before`, once per value of `days`.

        Returns the events.
        """
        found = await transaction.run("due_expiry_warnings", days=days, before=before, limit=_WARNINGS)
        return await self._record_each(transaction, found, event)

    async def expire_missing(self, *, now: datetime, event: Callable[[Connection], Event]) -> Sequence[Event]:
        """Set connections without a refresh token to `needs_reauth` (reason `missing`) once the access token expires.

        If the clock was wrong and the access token is still valid, the connection becomes active again. Returns the
        events.
        """
        if not await self.read("missing_changes", now=now):
            return []

        async def work(transaction: Transaction) -> Sequence[Event]:
            expired = await transaction.run("expire_missing", now=now, limit=_WARNINGS)
            restored = await transaction.run("restore_missing", now=now, limit=_WARNINGS)
            return await self._record_each(transaction, [*expired, *restored], event)

        return await self.transact(work)

    async def _record_each(
        self, transaction: Transaction, found: Sequence[Row], event: Callable[[Connection], Event]
    ) -> Sequence[Event]:
        """Record and return one event per row."""
        events = []
        for connection in map(read_connection, found):
            events.append(event(connection))
            await self._record(transaction, events[-1:], connection)
        return events

    @in_transaction
    async def record_disabled_hook(
        self, transaction: Transaction, account_id: str, *, shortest: timedelta, quiet: timedelta
    ) -> Sequence[str]:
        """Record AMO's hook for an integration disabled in an account.

        Returns the ids of the connections for which a recheck was scheduled.
        """
        found = await transaction.run("record_disabled_hook", account_id=account_id, shortest=shortest, quiet=quiet)
        await transaction.run("repeat_disabled_hook", account_id=account_id, second=_SECOND)
        names = [row["id"] for row in found]
        await self._record(transaction, [Event(name="hook.received", connection_id=name) for name in names])
        return names

    async def begin_recheck(self, connection: Connection, *, again_in: timedelta) -> Connection | None:
        """Record that a recheck begins.

        Returns `None` if the row has changed since it was read, or if another process has begun the recheck.
        """
        return await self._change(
            "begin_recheck",
            id=connection.id,
            row_version=connection.row_version,
            recheck_at=connection.recheck_at,
            again_in=again_in,
        )

    async def schedule_recheck(
        self,
        connection: Connection,
        *,
        at: datetime | None,
        pause: timedelta | None = None,
        events: Sequence[Event] = (),
    ) -> bool:
        """Schedule the next recheck; `False` if the row has changed since it was read.

        `pause` is the minimum time between the last recheck and one caused by a further hook.
        """
        return await self._change_read(
            "schedule_recheck", connection, events=events, recheck_at=connection.recheck_at, at=at, pause=pause
        )

    async def _change_read(
        self, name: str, connection: Connection, *, events: Sequence[Event] = (), **values: object
    ) -> bool:
        """Update a connection's row; `False` if the row has changed since it was read."""
        changed = await self._change(
            name, events=events, id=connection.id, row_version=connection.row_version, **values
        )
        return changed is not None

    async def _change(self, name: str, *, events: Sequence[Event] = (), **values: object) -> Connection | None:
        """Update one connection and record events; `None` if the row does not meet the statement's condition."""
        return await self.transact(lambda transaction: self._run_and_record(transaction, name, events, values))

    async def _run_and_record(
        self, transaction: Transaction, name: str, events: Sequence[Event], values: Mapping[str, object]
    ) -> Connection | None:
        changed = _first(await transaction.run(name, **values))
        if changed is not None:
            await self._record(transaction, events, changed)
        return changed

    # --- imports -------------------------------------------------------------------------------------

    async def count(self) -> int:
        """Count the connections that are not disconnected."""
        [[number]] = await self.read("count_connections")
        return int(number)

    async def connections_by_id(self, ids: Sequence[str]) -> Sequence[Connection]:
        """Return the connections with these ids; unknown ids are skipped."""
        found = await self.read("connections_by_id", ids=json_list(ids))
        return [read_connection(row) for row in found]

    async def reserve_serials(self, count: int) -> int:
        """Reserve `count` values of the store's counter, and return the value before the first of them."""
        return await self.transact(lambda transaction: self._next_serial(transaction, count=count)) - count

    @in_transaction
    async def import_connections(
        self, transaction: Transaction, brought: Sequence[ImportedConnection], *, events: Sequence[Event] = ()
    ) -> Sequence[str]:
        """Import connections with their events in one transaction; return the ids of those that were not imported."""
        now, ids = self.clock.now(), [one.connection.id for one in brought]
        # Sorted, so that two imports of the same connections cannot deadlock.
        ordered = sorted(brought, key=lambda one: one.connection.id)
        await transaction.run_many("import_connections", [{**_row(one), "now": now} for one in ordered])
        found = await transaction.run("connections_by_id", ids=json_list(ids))
        stored = {row["id"]: row["sealed_pair"] for row in found}
        # Encryption is randomized: if the stored pair equals the given one exactly, this import wrote it.
        done = [one for one in brought if stored[one.connection.id] == one.connection.sealed_pair]
        owners = [
            {"connection_id": one.connection.id, "owner": owner, "bound_no": bound_no}
            for one in done
            for owner, bound_no in one.owners.items()
        ]
        await transaction.run_many("import_owner", owners)
        imported = {one.connection.id for one in done}
        rows = [self._event_row(event, now) for event in events if event.connection_id in imported]
        await transaction.run_many("save_event", rows)
        for one in done:
            if changed := _change_of_status(one):
                await self._record(transaction, [changed], one.connection)
        return sorted({*ids} - imported)


def _first(found: Sequence[Row]) -> Connection | None:
    return read_connection(found[0]) if found else None


def _change_of_status(brought: ImportedConnection) -> Event | None:
    """Return the event for an imported status; `None` if the connection is new or its status is unchanged."""
    over, now = brought.replaces, brought.connection
    if over is None or over.status is now.status:
        return None
    if now.status is Status.NEEDS_REAUTH:
        return connection_event("connection.needs_reauth", now, fields={"reason": now.reason})
    return connection_event(
        "connection.recovered" if over.status is Status.NEEDS_REAUTH else "connection.connected", now
    )


def _row(brought: ImportedConnection) -> dict[str, object]:
    over = brought.replaces
    return {
        **values_of(brought.connection),
        "over_pair": over and over.sealed_pair,
        "over_version": over and over.pair_version,
        "over_attempt": over and over.attempt,
        "over_lease_until": over and over.lease_until,
    }
