"""A block of this server's IP address, during which AMO answers every refresh with 403.

A block is suspected after 403 responses without problem+json from two hosts, or after 403 responses of any kind for
three connections, if AMO has not issued a pair since the first of these responses. While a block is suspected, only one
refresh at a time is sent, as the probe; the scheduler prefers the connection with the most recent success. If AMO
answers the probe with 403, too, the address is blocked.

The block is stored in the database, where all instances read it, and survives restarts. During a block, one probe is
sent per `retry_cap` seconds, and one code exchange per 10 seconds. Only the probe's refresh token is introspected. The
block ends when AMO issues a pair, or when no connection can be the probe.
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
    """The state of the block; while the address is blocked or a block is suspected, only probes are sent."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._probe_every = timedelta(seconds=core.rules.retry_cap)
        self._hosts: set[str] = set()
        """The hosts that have answered with 403, without problem+json, since the last success."""
        self._connections: set[str] = set()
        """The connections whose refresh AMO has answered with 403 since the last success."""
        self._suspected = False
        self._probing: str | None = None
        self.probed: set[str] = set()
        """The connections that have been the probe in this round."""
        self.block: AmoBlock | None = None
        """The block as last read from the store; `None` without a block."""

    @property
    def reason(self) -> str | None:
        """The code of the error that limits refreshes to probes; `None` without a block or a suspicion."""
        return AddressBlocked.code if self._suspected or self.block is not None else None

    @property
    def probe_in(self) -> float:
        """Seconds until the next probe may be sent."""
        return 0.0 if self.block is None else max((self.block.probe_at - self._core.clock.now()).total_seconds(), 0.0)

    async def watch(self) -> None:
        """Read the block from the store, where any process may have started or ended it."""
        self.adopt(await self._core.store.amo_block())

    def adopt(self, block: AmoBlock | None) -> None:
        """Adopt the block that was read from the store, and report its start or end."""
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
            self._probing = None  # reserved while the block was suspected; now the store reserves probes
            fields = {"since": self.block.since, "next_probe_at": self.block.probe_at}
            self._core.observer(Event(name="amo_blocked.started", level=Level.ERROR, fields=fields))

    # --- requests to AMO ---------------------------------------------------------------------------

    def refusal(self, connection_id: str, *, trigger: RefreshTrigger) -> NotYet | None:
        """Return an error if the connection must not be refreshed now, not even as the probe; otherwise `None`."""
        if self.reason is None or connection_id == self._probing:
            return None
        may_probe = trigger is RefreshTrigger.PROBE or (trigger is RefreshTrigger.FORCED and self.block is not None)
        if may_probe and connection_id not in self.probed and self.probe_in <= 0:
            return None
        return self._wait()

    def check_introspection(self, connection_id: str | None = None) -> None:
        """Raise `AddressBlocked` during a block, unless `connection_id` is the probe."""
        if self.block is not None and (connection_id is None or connection_id != self._probing):
            raise self._wait()

    async def reserve_probe(self, connection_id: str, *, trigger: RefreshTrigger) -> None:
        """Make a connection the probe if a block exists or is suspected; raises `NotYet` if it cannot be the probe."""
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
        """Release the probe if it is reserved for this connection, whose refresh has ended."""
        if connection_id == self._probing:
            self._probing = None

    def new_round(self) -> None:
        """Start a round in which every connection may be the probe again, and drop an unconfirmed suspicion."""
        self.probed.clear()
        if self.block is None:
            self._forget_refusals()

    async def end_without_candidates(self) -> None:
        """End a block if no connection can be the probe, because then no refresh could end it."""
        if self.block is not None and not (await self._core.store.successes(now=self._core.clock.now())).refreshable:
            await self._core.store.end_amo_block()
            await self.watch()

    async def exchange_turn(self) -> None:
        """Wait until a code exchange may be sent; returns immediately if the address is not blocked."""
        while self.block is not None and not await self._core.store.take_amo_exchange(every=_EXCHANGE_EVERY):
            await self.watch()
            if self.block is not None:
                wait = (self.block.exchange_at - self._core.clock.now()).total_seconds()
                await self._core.clock.sleep(min(max(wait, 0.25), _EXCHANGE_EVERY.total_seconds()))

    # --- responses of AMO --------------------------------------------------------------------------

    async def failed(self, claimed: Connection, error: AmoCallbackError) -> None:
        """Record a failed refresh, which may start, confirm or refute a suspicion."""
        if self.block is not None:
            return
        refused = error if isinstance(error, AccountBlocked) and error.status == HTTPStatus.FORBIDDEN else None
        if self._suspected and claimed.id == self._probing:
            if refused is not None:
                await self._core.store.begin_amo_block(claimed.id, probe_every=self._probe_every)
                await self.watch()
            elif error.status is not None or isinstance(error, UnknownOutcome):
                self._forget_refusals()  # a response other than 403, or no usable response, refutes the suspicion
            return
        if refused is not None:
            self._connections.add(claimed.id)
            if not refused.is_problem:
                self._hosts.add(claimed.domain)
            if not self._suspected and (len(self._hosts) >= _HOSTS or len(self._connections) >= _CONNECTIONS):
                self._suspected = True
                self.probed.clear()

    async def succeeded(self) -> None:
        """End a block or a suspicion, because AMO has issued a pair."""
        self._forget_refusals()
        if self.block is not None:
            with suppress(StoreUnavailable):  # retried after the next success
                await self._core.store.end_amo_block()
                await self.watch()

    def _wait(self) -> NotYet:
        return NotYet(1.0) if self.block is None else AddressBlocked(max(self.probe_in, 1.0))

    def _forget_refusals(self) -> None:
        self._hosts.clear()
        self._connections.clear()
        self._suspected = False
