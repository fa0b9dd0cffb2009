"""The stored hosts of connections, checked against the current allow list.

A stored host is untrusted input: no encryption key is needed to edit a row, or a backup before it is restored. The AMO
client sends nothing to a host that is not allowed. This module postpones the refresh of such a connection by
`retry_cap` and otherwise leaves it active, so it works as soon as the host is allowed.
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
        """Make refreshes due that were postponed because of their host, since the allow list may have changed."""
        await self._core.store.retry_hosts(now=self._core.clock.now())

    def base_url(self, connection: Connection) -> str:
        """Return the base URL of the account's API; raises `HostNotAllowed`."""
        return self._core.amo.base_url(connection.domain)

    def error(self, connection: Connection) -> HostNotAllowed | None:
        """Return the error if nothing may be sent to the connection's host."""
        try:
            self.base_url(connection)
        except HostNotAllowed as error:
            return error
        return None

    async def check(self, connection: Connection) -> str:
        """Return the base URL of the account's API; raises `HostNotAllowed` and postpones the refresh."""
        try:
            return self.base_url(connection)
        except HostNotAllowed as refused:
            await self.put_off(connection, refused)
            raise

    async def put_off(self, connection: Connection, refused: HostNotAllowed) -> None:
        """Postpone the refresh by `retry_cap`, unless it is postponed already."""
        now, due = self._core.clock.now(), connection.next_refresh_at
        is_put_off = connection.last_error == refused.code and (due is None or due > now)
        if is_put_off or connection.status is not Status.ACTIVE:
            return
        again = None if due is None else now + self._retry_cap
        fields = {"next_refresh_at": again, "text": str(refused)}
        event = connection_event("host.not_allowed", connection, Level.ERROR, fields=fields)
        await self._core.store.postpone(connection, last_error=refused.code, next_refresh_at=again, events=[event])
