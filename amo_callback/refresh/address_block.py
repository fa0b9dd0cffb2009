"""AMO blocks our address: every refresh is answered 403, whatever connection it is for.

Two connections of different hosts that are answered 403 without AMO's problem+json, or three that are answered any
403, without a success between, are a suspicion. Then the connection that was refreshed last is presented, once, and
nothing else: only if that is answered 403, too, the address is blocked.

The block is kept in the store, for all instances and across restarts. While it lasts, one refresh (the probe) leaves
per `probe_every`, one exchange per 10 seconds, and no question at all. Any success ends it.
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
    """The block of our address: while it lasts, nothing but probes is refreshed."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._probe_every = timedelta(seconds=core.rules.retry_cap)
        self._hosts: set[str] = set()
        """The hosts that have answered 403 without problem+json since the last success."""
        self._connections: set[str] = set()
        """The connections that have been answered 403 since then."""
        self._suspected = False
        self._probing: str | None = None
        self.probed: set[str] = set()
        """The connections that have been the probe in this round."""
        self.block: AmoBlock | None = None
        """The block, as of the last read."""

    @property
    def reason(self) -> str | None:
        """Why nothing but a probe is refreshed, as an error's code; `None` where there is no block."""
        return AddressBlocked.code if self._suspected or self.block is not None else None

    @property
    def probe_in(self) -> float:
        """Seconds until the next probe may leave."""
        return 0.0 if self.block is None else max((self.block.probe_at - self._core.clock.now()).total_seconds(), 0.0)

    async def watch(self) -> None:
        """Read whether any process has found the address blocked, or no longer blocked."""
        self.adopt(await self._core.store.amo_block())

    def adopt(self, block: AmoBlock | None) -> None:
        """Take over what is stored."""
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
            self._probing = None  # a suspicion's probe: those of the block are reserved in the store
            fields = {"since": self.block.since, "next_probe_at": self.block.probe_at}
            self._core.observer(Event(name="amo_blocked.started", level=Level.ERROR, fields=fields))

    # --- what may leave --------------------------------------------------------------------------

    def refusal(self, connection_id: str, *, demand: RefreshTrigger) -> NotYet | None:
        """Return why this connection may neither be refreshed now, nor be the probe."""
        if self.reason is None or connection_id == self._probing:
            return None
        may_probe = demand is RefreshTrigger.PROBE or (demand is RefreshTrigger.FORCED and self.block is not None)
        if may_probe and connection_id not in self.probed and self.probe_in <= 0:
            return None
        return self._wait()

    def check_question(self, connection_id: str | None = None) -> None:
        """Raise `AddressBlocked` where AMO may not be asked; the probe may ask about its refresh token."""
        if self.block is not None and (connection_id is None or connection_id != self._probing):
            raise self._wait()

    async def enter(self, connection_id: str, *, demand: RefreshTrigger) -> None:
        """Take the probe for a connection that is about to be presented; raises `NotYet`."""
        if self.reason is None or connection_id == self._probing:
            return
        if refusal := self.refusal(connection_id, demand=demand):
            raise refusal
        if self.block is not None:
            taken = await self._core.store.take_amo_probe(connection_id, every=self._probe_every)
            await self.watch()
            if not taken:
                raise self._wait()
        self.probed.add(connection_id)
        self._probing = connection_id

    def leave(self, connection_id: str) -> None:
        """Note that the refresh of a connection is over."""
        if connection_id == self._probing:
            self._probing = None

    def new_round(self) -> None:
        """Let each connection be the probe again; a suspicion that no connection can confirm is dropped."""
        self.probed.clear()
        if self.block is None:
            self._forget_refusals()

    async def end_without_candidates(self) -> None:
        """End a block while no connection can be the probe: nothing is held back by it but what could end it."""
        if self.block is not None and not (await self._core.store.successes(now=self._core.clock.now())).refreshable:
            await self._core.store.end_amo_block()
            await self.watch()

    async def exchange_turn(self) -> None:
        """Wait until an exchange may leave."""
        while self.block is not None and not await self._core.store.take_amo_exchange(every=_EXCHANGE_EVERY):
            await self.watch()
            if self.block is not None:
                wait = (self.block.exchange_at - self._core.clock.now()).total_seconds()
                await self._core.clock.sleep(min(max(wait, 0.25), _EXCHANGE_EVERY.total_seconds()))

    # --- what AMO has answered -------------------------------------------------------------------

    async def failed(self, claimed: Connection, error: AmoCallbackError) -> None:
        """Note how a refresh has failed."""
        if self.block is not None:
            return
        refused = error if isinstance(error, AccountBlocked) and error.status == HTTPStatus.FORBIDDEN else None
        if self._suspected and claimed.id == self._probing:
            if refused is not None:
                await self._core.store.begin_amo_block(claimed.id, probe_every=self._probe_every)
                await self.watch()
            elif error.status is not None or isinstance(error, UnknownOutcome):
                self._forget_refusals()  # AMO answers in another way, or not at all
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
            with suppress(StoreUnavailable):  # the next success ends it
                await self._core.store.end_amo_block()
                await self.watch()

    def _wait(self) -> NotYet:
        return NotYet(1.0) if self.block is None else AddressBlocked(max(self.probe_in, 1.0))

    def _forget_refusals(self) -> None:
        self._hosts.clear()
        self._connections.clear()
        self._suspected = False
