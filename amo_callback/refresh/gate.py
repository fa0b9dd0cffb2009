"""The facts of this process that decide whether a connection may be refreshed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.errors import HostNotAllowed
from amo_callback.refresh.decision import Decision, Facts, Refuse, decide, doubt_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from amo_callback.core import Core
    from amo_callback.model import Connection, RefreshTrigger
    from amo_callback.refresh.breaker import Breaker
    from amo_callback.refresh.leases import Leases
    from amo_callback.refresh.pending_writes import PendingWrites
    from amo_callback.refresh.stored_hosts import StoredHosts


class Gate:
    """Decides with the circuit breaker, the leases, the pending writes and the allow list of hosts."""

    def __init__(
        self, core: Core, *, breaker: Breaker, leases: Leases, pending_writes: PendingWrites, hosts: StoredHosts
    ) -> None:
        self._core = core
        self.breaker = breaker
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
            unsaved=self._pending_writes.blocks(row),
            closed=self.breaker.refusal(row.id, demand=demand),
            lease_left=self._leases.left(row),
            host_error=self._hosts.error(row),
            terminal_suspended=self.breaker.held,
            introspected=introspected == doubt_of(row),
        )
        decision = decide(row, demand, facts)
        if isinstance(decision, Refuse) and isinstance(decision.error, HostNotAllowed):
            await self._hosts.put_off(row, decision.error)
        return decision

    def lease_left(self, row: Connection) -> float:
        """Return the seconds for which the connection's open attempt is left alone; 0 where there is none."""
        return self._leases.left(row)

    def may_erase(self, row: Connection) -> bool:
        """Return whether a token that AMO rejects may be erased: no attempt of ours can be the reason."""
        doubted = row.in_doubt or row.frozen  # it may be in use elsewhere
        return not (doubted or self._pending_writes.blocks(row) or self.breaker.reason is not None)
