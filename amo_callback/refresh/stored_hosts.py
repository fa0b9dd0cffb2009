"""The stored hosts of connections, checked against the current allow list.

A stored host is untrusted input, because no encryption key is needed to edit it in a row or a backup. The AMO client
sends nothing to a host that is not allowed. This module postpones the refresh of a connection with such a host by
`retry_cap` and leaves the connection active, so that it can be refreshed as soon as the host is allowed.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from amo_callback.errors import HostNotAllowed
from amo_callback.events import Level, connection_event
from amo_callback.model import Connection, Status

if TYPE_CHECKING:
    from amo_callback.core import Core


class StoredHosts:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._retry_cap = timedelta(seconds=core.rules.retry_cap)

    async def begin(self) -> None:
        """Cancel the postponement of refreshes whose host was not allowed, because the allow list may have changed.

        These refreshes are due immediately.
        """
        await self._core.store.retry_hosts(now=self._core.clock.now())

    def base_url(self, connection: Connection) -> str:
        """Return the base URL of the account's API; raises `HostNotAllowed`."""
        return self._core.amo.base_url(connection.domain)

    def error(self, connection: Connection) -> HostNotAllowed | None:
        """Return an error if the connection's host is not allowed; otherwise `None`."""
        try:
            self.base_url(connection)
        except HostNotAllowed as error:
            return error
        return None

    async def check(self, connection: Connection) -> str:
        """Return the base URL of the account's API.

        If the host is not allowed, postpones the refresh and raises `HostNotAllowed`.
        """
        try:
            return self.base_url(connection)
        except HostNotAllowed as refused:
            await self.put_off(connection, refused)
            raise

    async def put_off(self, connection: Connection, refused: HostNotAllowed) -> None:
        """Postpone the refresh by `retry_cap`, unless it is already postponed or the connection is not active."""
        now, due = self._core.clock.now(), connection.next_refresh_at
        is_put_off = connection.last_error == refused.code and (due is None or due > now)
        if is_put_off or connection.status is not Status.ACTIVE:
            return
        again = None if due is None else now + self._retry_cap
        fields = {"next_refresh_at": again, "text": str(refused)}
        event = connection_event("host.not_allowed", connection, Level.ERROR, fields=fields)
        await self._core.store.postpone(connection, last_error=refused.code, next_refresh_at=again, events=[event])
