"""The stored hosts of connections, checked against the allow list of this moment.

A stored host is untrusted input: to edit a row, or a backup before it is restored, takes no encryption key. The AMO
client sends nothing to a host that is not allowed. This module writes that down, and does not blame the connection: it
stays active, is tried again each `retry_cap` and at start, and works as soon as the host is allowed.
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
    """Check the stored hosts of connections."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._retry_cap = timedelta(seconds=core.rules.retry_cap)

    async def begin(self) -> None:
        """Make due what was put off because of its host: since the last start the setting may have changed."""
        await self._core.store.retry_hosts(now=self._core.clock.now())

    def base_url(self, connection: Connection) -> str:
        """Return the address of AMO's API for a connection's account; raises `HostNotAllowed`."""
        return self._core.amo.base_url(connection.domain)

    def error(self, connection: Connection) -> HostNotAllowed | None:
        """Return why nothing may be sent to the connection's host."""
        try:
            self.base_url(connection)
        except HostNotAllowed as error:
            return error
        return None

    async def check(self, connection: Connection) -> str:
        """Return the address of AMO's API for a connection's account; raises `HostNotAllowed`, and writes it down."""
        try:
            return self.base_url(connection)
        except HostNotAllowed as refused:
            await self.put_off(connection, refused)
            raise

    async def put_off(self, connection: Connection, refused: HostNotAllowed) -> None:
        """Put the refresh off by `retry_cap`; where it is put off already, a further caller writes nothing."""
        now, due = self._core.clock.now(), connection.next_refresh_at
        is_put_off = connection.last_error == refused.code and (due is None or due > now)
        if is_put_off or connection.status is not Status.ACTIVE:
            return
        again = None if due is None else now + self._retry_cap
        told = {"next_refresh_at": again, "text": str(refused)}
        event = connection_event("host.not_allowed", connection, Level.ERROR, told=told)
        await self._core.store.postpone(connection, last_error=refused.code, next_refresh_at=again, events=[event])
