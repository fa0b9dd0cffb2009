"""Which connections a selector names: an id, `account:ID`, or `owner:ID`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.errors import Ambiguous, NotFound, StoreUnavailable
from amo_callback.model import Connection, Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.custody.unsaved import Unsaved
    from amo_callback.ports import Store

_ACCOUNT, _OWNER = "account:", "owner:"


class Selection:
    """Find connections, each with what is not yet stored of it."""

    def __init__(self, *, store: Store, unsaved: Unsaved) -> None:
        self._store = store
        self._unsaved = unsaved

    async def find(self, selector: str) -> Sequence[Connection]:
        """Return the connections that a selector names, the freshest active one first; raises `NotFound`."""
        if selector.startswith(_OWNER):
            return self._living(await self._store.connections_owned(selector.removeprefix(_OWNER)))
        account_id = selector.removeprefix(_ACCOUNT) if selector.startswith(_ACCOUNT) else None
        if account_id == "":
            raise NotFound  # it would name everyone whose account AMO did not tell
        try:
            if account_id is None:
                connection = await self._store.connection(selector)
                stored = [] if connection is None else [connection]
            else:
                stored = list(await self._store.connections_of(account_id))
        except StoreUnavailable:
            held = self._unsaved.find(connection_id=selector, account_id=account_id or "")
            if held is None:
                raise
            return [held]
        if not stored:
            held = self._unsaved.find(connection_id=selector, account_id=account_id or "")
            known = None if held is None else await self._store.connection(held.id)
            if held is not None and not (known and known.status is Status.DISCONNECTED):
                return [held]
        return self._living(stored)

    def _living(self, stored: Sequence[Connection]) -> Sequence[Connection]:
        found = [self._unsaved.newest(one) for one in stored if one.status is not Status.DISCONNECTED]
        if not found:
            raise NotFound
        return found

    async def only(self, selector: str) -> Connection:
        """Return the one connection that a selector names; raises `NotFound`, and `Ambiguous` where it names more."""
        [first, *others] = await self.find(selector)
        if others:
            raise Ambiguous
        return first
