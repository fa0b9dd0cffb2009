"""Grants and owners in the store, as protocols."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from amo_callback.event import Event
    from amo_callback.grant import Grant, GrantedPair, IssuedState
    from amo_callback.model import Connection


class Grants(Protocol):
    """Authorization codes and states, and what became of them."""

    async def grant(self, code_hash: str) -> Grant | None:
        """Return what is known of an authorization code."""

    async def grant_by_handle(self, handle_hash: str) -> Grant | None:
        """Return the grant that a return address names."""

    async def exchanging(self, *, now: datetime) -> Sequence[Grant]:
        """Return the grants whose code is being exchanged, or whose process died at it."""

    async def grant_by_ticket(self, ticket_hash: str) -> Grant | None:
        """Return the grant that a ticket stands for."""

    async def issue_state(self, issued: IssuedState) -> None:
        """Remember a state that is issued."""

    async def issued_state(self, state_hash: str) -> IssuedState | None:
        """Return what is known of a state that was issued."""

    async def claim_grant(
        self, grant: Grant, *, now: datetime, over: str | None = None, state_hash: str | None = None
    ) -> Grant:
        """Begin a grant, or try again `over` the attempt that was read, failed or with a lease that was seen to end.

        With it an issued state is used. Who began it is told by the result's `attempt`. Raises `Frozen`, and
        `InvalidState` where the state was used with another code, or is over.
        """

    async def finish_grant(self, grant: Grant) -> bool:
        """Commit a grant's end where its attempt is still the one given."""

    async def save_connected(self, granted: GrantedPair, *, events: Sequence[Event] = ()) -> Connection | None:
        """Commit a granted pair and its grant's end as one: renews the connection where there is one.

        A pair granted earlier than the connection's present grant (by AMO's `iat`), or before it was disconnected,
        changes nothing: `None`. Where the connection is not active then, its grant ends as refused.
        """

    async def prune(self, *, now: datetime, keep: float) -> None:
        """Erase what expired grants and states hold, and forget them `keep` seconds later."""


class Owners(Protocol):
    """Whose connections are, among the app's users."""

    async def owners_of(self, ids: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """Return the owners of each of these connections, who came first, first."""

    async def connections_owned(self, owner: str) -> Sequence[Connection]:
        """Return an owner's connections, the freshest active one first."""

    async def bind(self, connection_id: str, *, owner: str, grant_no: int, first_only: bool) -> bool:
        """Make somebody an owner, by a grant with this number.

        `False` where the connection is gone, where its owners were forgotten or the user has left since the grant, and
        where it has another owner and `first_only` is said.
        """

    async def unbind(self, owner: str) -> Sequence[Event]:
        """Take somebody from all that is his; what has no owner left is disconnected.

        Returns what that was, as it is remembered. Raises `Frozen` where something of it is: that may live elsewhere.
        """
