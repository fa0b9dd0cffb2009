"""What this process knows of whether a connection may be refreshed: it gathers the facts, and `decision` judges."""

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
    """The circuit breaker, the block of our address, the leases, the pending writes and the hosts, asked together."""

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
        demand: RefreshTrigger,
        *,
        satisfied: Callable[[Connection], bool],
        introspected: Hashable,
    ) -> Decision:
        """Return what to do next; where the stored host is not allowed, the refresh is put off in the store, too."""
        if row is None:
            return decide(None, demand, Facts(now=self._core.clock.now()))
        facts = Facts(
            now=self._core.clock.now(),
            satisfied=satisfied(row),
            stopping=self._core.stop.is_set(),
            has_pending_write=self._pending_writes.blocks(row),
            refusal=self._breaker.refusal(row.id, demand=demand),
            lease_left=self._leases.left(row),
            host_error=self._hosts.error(row),
            terminal_suspended=self._breaker.held,
            introspected=introspected == doubt_key(row),
        )
        decision = decide(row, demand, facts)
        if isinstance(decision, Refuse) and isinstance(decision.error, HostNotAllowed):
            await self._hosts.put_off(row, decision.error)
        return decision

    @property
    def closed_by(self) -> AddressBlock | Breaker | None:
        """What lets nothing but probes through, if anything does."""
        for closed in (self._address_block, self._breaker):
            if closed.reason is not None:
                return closed
        return None

    @property
    def is_address_blocked(self) -> bool:
        """Whether AMO blocks our address, or is suspected to."""
        return self._address_block.reason is not None

    @property
    def probe_every(self) -> float:
        """Seconds between two probes while the breaker is open."""
        return self._breaker.probe_every

    async def reserve_probe(self, connection_id: str, demand: RefreshTrigger) -> None:
        """Reserve the probe of a blocked address for a connection; raises `NotYet` where it cannot be the probe."""
        await self._address_block.enter(connection_id, demand=demand)

    def note_probe(self, connection_id: str) -> None:
        """Note that a connection is presented now: while the breaker is open it is the probe."""
        self._breaker.enter(connection_id)

    def release_probe(self, connection_id: str) -> None:
        """Note that the refresh of a connection has ended."""
        self._address_block.leave(connection_id)

    async def end_round(self, closed: AddressBlock | Breaker) -> None:
        """Let each connection be the probe again, since each has been."""
        closed.new_round()
        await self._address_block.end_without_candidates()

    def lease_left(self, row: Connection) -> float:
        """Return the seconds for which the connection's open attempt is left alone; 0 where there is none."""
        return self._leases.left(row)

    def may_erase(self, row: Connection) -> bool:
        """Return whether a token that AMO rejects may be erased: the rejection cannot come from an attempt of ours."""
        doubted = row.in_doubt or row.frozen  # it may be in use elsewhere
        return not (doubted or self._pending_writes.blocks(row) or self._breaker.reason is not None)
