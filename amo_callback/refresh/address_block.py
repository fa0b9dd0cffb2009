"""A block of this server's IP address: AMO answers every refresh with 403.

A block is suspected after 403 responses without problem+json from two hosts, or any 403 responses for three
connections, without a success in between. Then only one refresh is sent: that of the connection that was refreshed
last. If it is also answered with 403, the address is blocked.

The block is stored, for all instances and across restarts. While it lasts, one refresh (the probe) is sent per
`retry_cap`, one code exchange per 10 seconds, and no introspection except of the probe. Any success ends it.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING

from amo_callback.errors import AccountBlocked, AddressBlocked, NotYet, StoreUnavailable, UnknownOutcome
from amo_callback.events import Event, Level
from amo_callback.model import RefreshTrigger

if TYPE_CHECKING:
    from amo_callback.core import Core
    from amo_callback.errors import AmoCallbackError
    from amo_callback.model import AmoBlock, Connection

_HOSTS = 2
_CONNECTIONS = 3
_EXCHANGE_EVERY = timedelta(seconds=10)


class AddressBlock:
    """The state of the block; during a block, only probes are sent."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._probe_every = timedelta(seconds=core.rules.retry_cap)
        self._hosts: set[str] = set()
        """The hosts that answered 403 without problem+json since the last success."""
        self._connections: set[str] = set()
        """The connections that were answered with 403 since the last success."""
        self._suspected = False
        self._probing: str | None = None
        self.probed: set[str] = set()
        """The connections that were the probe in this round."""
        self.block: AmoBlock | None = None
        """The block as last read from the store."""

    @property
    def reason(self) -> str | None:
        """The code of the error that allows only probes; `None` without a block."""
        return AddressBlocked.code if self._suspected or self.block is not None else None

    @property
    def probe_in(self) -> float:
        """Seconds until the next probe may be sent."""
        return 0.0 if self.block is None else max((self.block.probe_at - self._core.clock.now()).total_seconds(), 0.0)

    async def watch(self) -> None:
        """Read the state that this or another process has stored."""
        self.adopt(await self._core.store.amo_block())

    def adopt(self, block: AmoBlock | None) -> None:
        """Adopt the state from the store."""
        before, self.block = self.block, block
        if self.block is None:
            if before is not None:
                self.probed.clear()
                self._core.observer(Event(name="amo_blocked.ended", fields={"since": before.since}))
            return
        self._forget_refusals()
        if before is None or before.probed != self.block.probed:
            self.probed = set(self.block.probed)
        if before is None:
            self._probing = None  # the probe of a suspicion; probes of a block are reserved in the store
            fields = {"since": self.block.since, "next_probe_at": self.block.probe_at}
            self._core.observer(Event(name="amo_blocked.started", level=Level.ERROR, fields=fields))

    # --- requests to AMO ---------------------------------------------------------------------------

    def refusal(self, connection_id: str, *, trigger: RefreshTrigger) -> NotYet | None:
        """Return why the connection may not be refreshed now, not even as the probe."""
        if self.reason is None or connection_id == self._probing:
            return None
        may_probe = trigger is RefreshTrigger.PROBE or (trigger is RefreshTrigger.FORCED and self.block is not None)
        if may_probe and connection_id not in self.probed and self.probe_in <= 0:
            return None
        return self._wait()

    def check_introspection(self, connection_id: str | None = None) -> None:
        """Raise `AddressBlocked` if introspection is not allowed; the probe's refresh token may be introspected."""
        if self.block is not None and (connection_id is None or connection_id != self._probing):
            raise self._wait()

    async def reserve_probe(self, connection_id: str, *, trigger: RefreshTrigger) -> None:
        """Reserve the probe for a connection before its token is presented; raises `NotYet`."""
        if self.reason is None or connection_id == self._probing:
            return
        if refusal := self.refusal(connection_id, trigger=trigger):
            raise refusal
        if self.block is not None:
            taken = await self._core.store.take_amo_probe(connection_id, every=self._probe_every)
            await self.watch()
            if not taken:
                raise self._wait()
        self.probed.add(connection_id)
        self._probing = connection_id

    def release_probe(self, connection_id: str) -> None:
        """Record that the refresh of a connection has ended."""
        if connection_id == self._probing:
            self._probing = None

    def new_round(self) -> None:
        """Allow every connection to be the probe again, and drop a suspicion that no connection could confirm."""
        self.probed.clear()
        if self.block is None:
            self._forget_refusals()

    async def end_without_candidates(self) -> None:
        """End a block if no connection can be the probe, because nothing else could end it."""
        if self.block is not None and not (await self._core.store.successes(now=self._core.clock.now())).refreshable:
            await self._core.store.end_amo_block()
            await self.watch()

    async def exchange_turn(self) -> None:
        """Wait until a code exchange may be sent."""
        while self.block is not None and not await self._core.store.take_amo_exchange(every=_EXCHANGE_EVERY):
            await self.watch()
            if self.block is not None:
                wait = (self.block.exchange_at - self._core.clock.now()).total_seconds()
                await self._core.clock.sleep(min(max(wait, 0.25), _EXCHANGE_EVERY.total_seconds()))

    # --- responses of AMO --------------------------------------------------------------------------

    async def failed(self, claimed: Connection, error: AmoCallbackError) -> None:
        """Record a failed refresh."""
        if self.block is not None:
            return
        refused = error if isinstance(error, AccountBlocked) and error.status == HTTPStatus.FORBIDDEN else None
        if self._suspected and claimed.id == self._probing:
            if refused is not None:
                await self._core.store.begin_amo_block(claimed.id, probe_every=self._probe_every)
                await self.watch()
            elif error.status is not None or isinstance(error, UnknownOutcome):
                self._forget_refusals()  # any other response, or none, refutes the suspicion
            return
        if refused is not None:
            self._connections.add(claimed.id)
            if not refused.is_problem:
                self._hosts.add(claimed.domain)
            if not self._suspected and (len(self._hosts) >= _HOSTS or len(self._connections) >= _CONNECTIONS):
                self._suspected = True
                self.probed.clear()

    async def succeeded(self) -> None:
        """End the block: AMO has issued a pair."""
        self._forget_refusals()
        if self.block is not None:
            with suppress(StoreUnavailable):  # the next success ends the block
                await self._core.store.end_amo_block()
                await self.watch()

    def _wait(self) -> NotYet:
        return NotYet(1.0) if self.block is None else AddressBlocked(max(self.probe_in, 1.0))

    def _forget_refusals(self) -> None:
        self._hosts.clear()
        self._connections.clear()
        self._suspected = False
