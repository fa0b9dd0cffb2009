"""The tables `grants` (authorization codes and their results) and `owners` (app users with a connection)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from amo_callback.deeplink import DEEP_LINK_ERRORS
from amo_callback.errors import AmoCallbackError, CodeExpired, Frozen, InvalidState
from amo_callback.events import Event, connection_event
from amo_callback.grant import Grant, GrantStatus, IssuedState
from amo_callback.model import Status
from amo_callback.store.connections import read_connection
from amo_callback.store.engine import in_transaction, json_list, lease_left, row_reader, values_of
from amo_callback.store.history import Repository

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from amo_callback.grant import NewConnection
    from amo_callback.model import Connection
    from amo_callback.store.engine import Row, Transaction


def _known_error(stored: str | None) -> str | None:
    """Return an error of the deep link; an unknown error can only have been written by hand."""
    return stored if stored is None or stored in DEEP_LINK_ERRORS else AmoCallbackError.deep_link_error


_read_grant = row_reader(
    Grant,
    converters={"status": GrantStatus, "possibly_spent": bool, "error": _known_error},
    computed={"lease_left": lease_left},
)
_read_state = row_reader(IssuedState, converters={"error": _known_error})


class Grants(Repository):
    async def grant(self, code_hash: str) -> Grant | None:
        return _first(await self.read("grant", code_hash=code_hash))

    async def grant_by_ticket(self, ticket_hash: str) -> Grant | None:
        return _first(await self.read("grant_by_ticket", ticket_hash=ticket_hash))

    async def issue_state(self, issued: IssuedState) -> None:
        await self.write("issue_state", **values_of(issued))

    async def issued_state(self, state_hash: str) -> IssuedState | None:
        return _first_state(await self.read("issued_state", state_hash=state_hash))

    async def latest_request(self, request_hash: str) -> IssuedState | None:
        """Return the latest authorization request of a user with the same state for the app."""
        return _first_state(await self.read("latest_request", request_hash=request_hash))

    async def record_refusal(self, state_hash: str, *, error: str) -> None:
        """Record the error of a redirect without a code in the authorization request, unless it has a code or error."""
        await self.write("record_refusal", state_hash=state_hash, error=error)

    async def grant_by_handle(self, handle_hash: str) -> Grant | None:
        return _first(await self.read("grant_by_handle", handle_hash=handle_hash))

    async def exchanging(self, *, now: datetime) -> Sequence[Grant]:
        """Return the grants whose code is being exchanged, including those abandoned by processes that exited."""
        return [_read_grant(row) for row in await self.read("exchanging", now=now)]

    @in_transaction
    async def claim_grant(
        self,
        transaction: Transaction,
        grant: Grant,
        *,
        now: datetime,
        over: str | None = None,
        state_hash: str | None = None,
    ) -> Grant:
        """Claim a code for its first exchange, or for a retry that replaces the attempt `over`.

        The caller must have checked that `over` has failed or that its lease has expired. The first claim uses up the
        state `state_hash`. The `attempt` of the result identifies the claim in effect, which may be another process's.
        Raises `Frozen`, and `InvalidState` if the state has expired or was used with another code.
        """
        statement = "claim_grant" if state_hash is None or over is not None else "claim_started_grant"
        await transaction.run("lock_for_spending")
        found = await transaction.run(statement, **values_of(grant), now=now, over=over, state_hash=state_hash)
        if not found:
            if await transaction.run("get_meta", name="frozen"):
                raise Frozen
            found = await transaction.run("grant", code_hash=grant.code_hash)
        if not found:
            raise InvalidState
        return _read_grant(found[0])

    async def finish_grant(self, grant: Grant) -> bool:
        """Commit the result of a grant; `False` if another attempt has replaced this one."""
        return bool(await self.write("finish_grant", **values_of(grant)))

    @in_transaction
    async def save_connected(
        self, transaction: Transaction, granted: NewConnection, *, events: Sequence[Event] = ()
    ) -> Connection | None:
        """Commit a grant's pair and result in one transaction; `None` if this call stores no pair.

        The pair is not stored if a later grant or a later disconnect on request takes precedence. If another process
        has already stored the pair from its rescue file, nothing changes, because the refresh token may have been spent
        since.
        """
        grant, serial = granted.grant, await self._next_serial(transaction)
        values = {
            **values_of(granted.connection),
            "precedence": serial,
            "token_iat": granted.token_iat,
            "grant_no": grant.no,
            "code_hash": grant.code_hash,
            "grant_attempt": grant.attempt,
        }
        found = await transaction.run("save_connected", **values)
        if not found and await self._is_connected(transaction, grant):
            return None
        saved = read_connection(found[0]) if found else None
        grant = dataclasses.replace(grant, connected_no=serial)
        if saved is None and not await self._is_active(transaction, granted.connection_id):
            grant = dataclasses.replace(grant, status=GrantStatus.REFUSED, error=CodeExpired.deep_link_error)
        await transaction.run("finish_grant", **values_of(grant))
        if granted.owner is not None:
            await self._bind(transaction, granted.connection_id, owner=granted.owner, grant=grant)
        if saved is not None:
            await self._record(transaction, events, saved)
        await self._note_pair_obtained(transaction, granted.connection.client_id)
        return saved

    @staticmethod
    async def _is_connected(transaction: Transaction, grant: Grant) -> bool:
        """Return whether this grant's pair is already stored; times are ignored, because clocks may be adjusted."""
        found = await transaction.run("grant", code_hash=grant.code_hash)
        return bool(found) and (found[0]["status"], found[0]["attempt"]) == (GrantStatus.CONNECTED, grant.attempt)

    @staticmethod
    async def _is_active(transaction: Transaction, connection_id: str) -> bool:
        found = await transaction.run("connection", id=connection_id)
        return bool(found) and found[0]["status"] == Status.ACTIVE

    # --- owners ----------------------------------------------------------------------------------

    async def owners_of(self, ids: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """Return the owners of each of these connections in the order in which they became owners."""
        return {name: list(bound) for name, bound in (await self.bindings_of(ids)).items()}

    async def bindings_of(self, ids: Sequence[str]) -> Mapping[str, Mapping[str, int]]:
        """Return the owners of each of these connections, with the counter's value at which they became owners."""
        bindings: dict[str, dict[str, int]] = {name: {} for name in ids}
        for row in await self.read("owners_of", ids=json_list(ids)):
            bindings[row["connection_id"]][row["owner"]] = row["bound_no"]
        return bindings

    async def connections_named(self, owner: str) -> Sequence[Connection]:
        """Return an owner's connections; the one that the user connected last comes first.

        If AMO's hook ended the user's ownership, the connection is included as disconnected until the user connects or
        disconnects, even if another user has connected it again.
        """
        return [_read_named(row) for row in await self.read("connections_named", owner=owner)]

    async def bind(self, connection_id: str, *, owner: str, code_hash: str, first_only: bool) -> bool:
        """Make a user an owner of a connection through a successful grant, and return whether the user is an owner.

        The connection becomes the one that the user connected last, unless a later grant of the user has succeeded.
        Returns `False` in these cases:

        - the connection does not exist or is disconnected;
        - all its owners were removed, or the user left it, after the grant was claimed;
        - `first_only` is true and the connection has another owner.
        """
        if await self.read("is_bound", connection_id=connection_id, owner=owner, code_hash=code_hash):
            return True  # a repeated request writes nothing

        async def work(transaction: Transaction) -> bool:
            grant = _first(await transaction.run("grant", code_hash=code_hash))
            await transaction.run("lock_connection", id=connection_id)
            owners = await self._owners(transaction, connection_id)
            if grant is None or (first_only and owners and owner not in owners):
                return False
            return await self._bind(transaction, connection_id, owner=owner, grant=grant) or owner in owners

        return await self.transact(work)

    async def unbind(self, owner: str, *, account_id: str | None = None) -> Sequence[Event]:
        """Remove a user from the connections of one account, or of all accounts.

        Connections of which they were the only owner are disconnected. Returns the events. Raises `Frozen` if one of
        the connections is frozen, because another host may use its tokens.
        """
        if not await self.connections_named(owner):
            return []  # a repeated request writes nothing

        async def work(transaction: Transaction) -> Sequence[Event]:
            serial = await self._next_serial(transaction)
            await transaction.run("lock_owned", owner=owner)
            await transaction.run("forget_ended", owner=owner)
            named = map(_read_named, await transaction.run("connections_named", owner=owner))
            left = [connection for connection in named if account_id in {None, connection.account_id}]
            if any(connection.frozen for connection in left):
                raise Frozen
            return [await self._take(transaction, connection, owner=owner, serial=serial) for connection in left]

        return await self.transact(work)

    async def forget_ended(self, owner: str) -> None:
        """Forget the connections of which AMO's hook ended a user's ownership; `owner:` no longer names them."""
        await self.write("forget_ended", owner=owner)

    async def _take(self, transaction: Transaction, connection: Connection, *, owner: str, serial: int) -> Event:
        last = await self._owners(transaction, connection.id) == [owner]
        fields = {"owner": owner, "reason": "requested by its owner" if last else None}
        gone = connection_event("connection.disconnected" if last else "owner.unbound", connection, fields=fields)
        await self._record(transaction, [gone], connection)
        if last:
            await transaction.run(
                "disconnect", id=connection.id, row_version=connection.row_version, serial=serial, on_request=True
            )
            await transaction.run("forget_owners", connection_id=connection.id)
        else:
            await transaction.run("unbind_owner", connection_id=connection.id, owner=owner, serial=serial)
        return gone

    async def _owners(self, transaction: Transaction, connection_id: str) -> Sequence[str]:
        return [row["owner"] for row in await transaction.run("owners_of", ids=json_list([connection_id]))]

    async def _bind(self, transaction: Transaction, connection_id: str, *, owner: str, grant: Grant) -> bool:
        """Make a user an owner through a grant within a transaction; `False` if that changes nothing."""
        binding = {"connection_id": connection_id, "owner": owner, "connected_no": grant.connected_no}
        if await transaction.run("bind_owner", **binding, grant_no=grant.no):
            event = Event(name="owner.bound", connection_id=connection_id, fields={"owner": owner})
            await self._record(transaction, [event])
        elif not await transaction.run("rebind_owner", **binding):
            return False
        await transaction.run("forget_ended", owner=owner)
        return True


def _first(found: Sequence[Row]) -> Grant | None:
    return _read_grant(found[0]) if found else None


def _first_state(found: Sequence[Row]) -> IssuedState | None:
    return _read_state(found[0]) if found else None


def _read_named(row: Row) -> Connection:
    connection = read_connection(row)
    if row["hook_no"] is None:
        return connection
    return dataclasses.replace(connection, status=Status.DISCONNECTED, sealed_pair=None)
