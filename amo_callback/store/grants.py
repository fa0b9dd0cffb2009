"""Grants: authorization codes, and what became of them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from amo_callback.errors import CodeExpired, Frozen, InvalidState
from amo_callback.grant import GrantStatus
from amo_callback.model import Status
from amo_callback.store import rows
from amo_callback.store.writer import Writer, columns, every, first, values_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from amo_callback.event import Event
    from amo_callback.grant import Grant, GrantedPair, IssuedState
    from amo_callback.model import Connection
    from amo_callback.store.database import Unit


class Grants(Writer):
    """The table `grants`."""

    async def grant(self, code_hash: str) -> Grant | None:
        """Return what is known of an authorization code."""
        return first(await self._database.read("grant", code_hash=code_hash), rows.grant)

    async def grant_by_ticket(self, ticket_hash: str) -> Grant | None:
        """Return the grant that a ticket stands for."""
        return first(await self._database.read("grant_by_ticket", ticket_hash=ticket_hash), rows.grant)

    async def issue_state(self, issued: IssuedState) -> None:
        """Remember a state that is issued."""
        await self._database.write("issue_state", **values_of(issued))

    async def issued_state(self, state_hash: str) -> IssuedState | None:
        """Return what is known of a state that was issued."""
        return first(await self._database.read("issued_state", state_hash=state_hash), rows.issued_state)

    async def grant_by_handle(self, handle_hash: str) -> Grant | None:
        """Return the grant that a return address names."""
        return first(await self._database.read("grant_by_handle", handle_hash=handle_hash), rows.grant)

    async def exchanging(self, *, now: datetime) -> Sequence[Grant]:
        """Return the grants whose code is being exchanged, or whose process died at it."""
        return every(await self._database.read("exchanging", now=now), rows.grant)

    async def claim_grant(
        self, grant: Grant, *, now: datetime, over: str | None = None, state_hash: str | None = None
    ) -> Grant:
        """Begin a grant, or try again `over` the attempt that was read, failed or with a lease that was seen to end.

        With it an issued state is used. Who began it is told by the result's `attempt`. Raises `Frozen`, and
        `InvalidState` where the state was used with another code, or is over.
        """

        async def work(unit: Unit) -> Grant:
            await unit.run("lock_for_spending")
            if await unit.run("frozen"):
                raise Frozen
            await unit.run("claim_grant", **values_of(grant), now=now, over=over)
            [row] = await unit.run("grant", code_hash=grant.code_hash)
            claimed = rows.grant(columns(row))
            if claimed.attempt == grant.attempt and state_hash is not None:
                used = await unit.run("use_state", state_hash=state_hash, code_hash=grant.code_hash, now=now)
                if not used:
                    raise InvalidState
            return claimed

        return await self._database.unit(work)

    async def finish_grant(self, grant: Grant) -> bool:
        """Commit a grant's end where its attempt is still the one given."""
        return bool(await self._database.write("finish_grant", **values_of(grant)))

    async def save_connected(self, granted: GrantedPair, *, events: Sequence[Event] = ()) -> Connection | None:
        """Commit a granted pair and its grant's end as one; `None` where a later grant's pair was kept."""

        async def work(unit: Unit) -> Connection | None:
            grant = granted.grant
            if await self._is_connected(unit, grant):
                return None
            found = await unit.run(
                "save_connected", **values_of(granted.connection), token_iat=granted.token_iat, grant_no=grant.no
            )
            saved = first(found, rows.connection)
            if granted.owner is not None:
                await self._bind(unit, granted.connection_id, owner=granted.owner, grant_no=grant.no)
            if saved is not None:
                await self._record(unit, events, saved)
            elif not await self._is_active(unit, granted.connection_id):
                grant = dataclasses.replace(grant, status=GrantStatus.REFUSED, error=CodeExpired.deep_link_error)
            await self._note_pair_obtained(unit, granted.connection.client_id)
            await unit.run("finish_grant", **values_of(grant))
            return saved

        return await self._database.unit(work)

    @staticmethod
    async def _is_connected(unit: Unit, grant: Grant) -> bool:
        """Tell whether this grant's pair is stored already, by whoever found its rescue file: it may be spent by now.

        Its times do not tell, since those in the store are put back where the clock is.
        """
        found = await unit.run("grant", code_hash=grant.code_hash)
        return bool(found) and (found[0]["status"], found[0]["attempt"]) == (GrantStatus.CONNECTED, grant.attempt)

    @staticmethod
    async def _is_active(unit: Unit, connection_id: str) -> bool:
        found = await unit.run("connection", id=connection_id)
        return bool(found) and found[0]["status"] == Status.ACTIVE
