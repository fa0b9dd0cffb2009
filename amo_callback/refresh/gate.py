"""Collection of the facts for a refresh decision; `decision` contains the rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.errors import HostNotAllowed
from amo_callback.refresh.decision import Decision, Facts, Refuse, decide, doubt_key

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from amo_callback.core import Core
    from amo_callback.model import Connection, RefreshTrigger
    from amo_callback.refresh.address_block import AddressBlock
    from amo_callback.refresh.breaker import Breaker
    from amo_callback.refresh.leases import Leases
    from amo_callback.refresh.pending_writes import PendingWrites
    from amo_callback.refresh.stored_hosts import StoredHosts


class Gate:
    """A common interface to the circuit breaker, address block, leases, pending writes and stored hosts."""

    def __init__(
        self, core: Core, *, breaker: Breaker, leases: Leases, pending_writes: PendingWrites, hosts: StoredHosts
    ) -> None:
        self._core = core
        self._breaker = breaker
        self._address_block = breaker.address_block
        self._leases = leases
        self._pending_writes = pending_writes
        self._hosts = hosts

    async def decide(
        self,
        row: Connection | None,
        trigger: RefreshTrigger,
        *,
        is_fresh_enough: Callable[[Connection], bool],
        introspected: Hashable,
    ) -> Decision:
        """Return the next step for a connection.

        If the decision is to raise `HostNotAllowed`, the refresh is also postponed in the store.
        """
        if row is None:
            return decide(None, trigger, Facts(now=self._core.clock.now()))
        facts = Facts(
            now=self._core.clock.now(),
            is_fresh_enough=is_fresh_enough(row),
            stopping=self._core.stop.is_set(),
            has_pending_write=self._pending_writes.blocks(row),
            refusal=self._breaker.refusal(row.id, trigger=trigger),
            lease_left=self._leases.remaining(row),
            host_error=self._hosts.error(row),
            terminal_suspended=self._breaker.terminal_suspended,
            introspected=introspected == doubt_key(row),
        )
        decision = decide(row, trigger, facts)
        if isinstance(decision, Refuse) and isinstance(decision.error, HostNotAllowed):
            await self._hosts.put_off(row, decision.error)
        return decision

    @property
    def paused_by(self) -> AddressBlock | Breaker | None:
        """The address block or circuit breaker that currently limits refreshes to probes; `None` without either."""
        for pause in (self._address_block, self._breaker):
            if pause.reason is not None:
                return pause
        return None

    @property
    def is_address_blocked(self) -> bool:
        """Whether AMO blocks this server's address, or is suspected of blocking it."""
        return self._address_block.reason is not None

    @property
    def probe_every(self) -> float:
        """Seconds between two probes while the circuit breaker is open."""
        return self._breaker.probe_every

    async def reserve_probe(self, connection_id: str, trigger: RefreshTrigger) -> None:
        """If the address is blocked, or suspected to be, make a connection the probe.

        Raises `NotYet` if the connection cannot be the probe.
        """
        await self._address_block.reserve_probe(connection_id, trigger=trigger)

    def note_probe(self, connection_id: str) -> None:
        """Record that a connection's token is about to be presented; if the breaker is open, this is a probe."""
        self._breaker.mark_probe(connection_id)

    def release_probe(self, connection_id: str) -> None:
        """Record that the refresh of a connection has ended, so that another connection may be the probe."""
        self._address_block.release_probe(connection_id)

    async def end_round(self, pause: AddressBlock | Breaker) -> None:
        """Start the next round of probes, in which every connection may be the probe again.

        If no connection can be the probe, an address block ends.
        """
        pause.new_round()
        await self._address_block.end_without_candidates()

    def lease_left(self, row: Connection) -> float:
        """Return the seconds until the connection's attempt may be taken over; 0 without an attempt."""
        return self._leases.remaining(row)

    def may_erase(self, row: Connection) -> bool:
        """Return whether a token that AMO rejects may be erased.

        A token must be kept while this service or another host may have spent it, and while the breaker is open.
        """
        doubted = row.in_doubt or row.frozen  # another host may use a frozen connection
        return not (doubted or self._pending_writes.blocks(row) or self._breaker.reason is not None)
