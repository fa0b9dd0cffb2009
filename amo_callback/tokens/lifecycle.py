"""The composition of the components that refresh connections and hand out access tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.refresh.address_block import AddressBlock
from amo_callback.refresh.attempt import RefreshAttempts
from amo_callback.refresh.breaker import Breaker
from amo_callback.refresh.coordinator import RefreshCoordinator
from amo_callback.refresh.credentials import Credentials
from amo_callback.refresh.failure_recorder import FailureRecorder
from amo_callback.refresh.freeze import FreezeSwitch
from amo_callback.refresh.gate import Gate
from amo_callback.refresh.introspector import Introspector
from amo_callback.refresh.leases import Leases
from amo_callback.refresh.maintenance import Maintenance
from amo_callback.refresh.pending_writes import PendingWrites
from amo_callback.refresh.raw_answers import RawAnswers
from amo_callback.refresh.rechecks import Rechecker
from amo_callback.refresh.scheduler import RefreshScheduler
from amo_callback.refresh.stats_poller import StatsPoller
from amo_callback.refresh.stored_hosts import StoredHosts
from amo_callback.tokens.access_token_check import AccessTokenCheck
from amo_callback.tokens.access_tokens import AccessTokens
from amo_callback.tokens.cache import ConnectionCache
from amo_callback.tokens.lookup import ConnectionLookup
from amo_callback.tokens.oauth_tokens import OAuthTokens

if TYPE_CHECKING:
    from amo_callback.core import Core
    from amo_callback.model import Connection
    from amo_callback.refresh.rescue import RescueFolder


class TokenLifecycle:
    """The components that maintain the tokens in one process.

    The constructor starts no component. `machine` is the id of the location of a database file.
    """

    def __init__(self, core: Core, *, rescue: RescueFolder, machine: str) -> None:
        self.core = core
        self.leases = leases = Leases(length=core.rules.lease, store=core.store, clock=core.clock)
        self.breaker = breaker = Breaker(core, address_block=AddressBlock(core))
        self.pending_writes = pending_writes = PendingWrites(core, rescue=rescue)
        self.raw_answers = raw_answers = RawAnswers(core, rescue=rescue, pending_writes=pending_writes)
        self.hosts = hosts = StoredHosts(core)
        self.credentials = Credentials(core)
        self.freeze_switch = FreezeSwitch(core, machine=machine)
        self.gate = gate = Gate(core, breaker=breaker, leases=leases, pending_writes=pending_writes, hosts=hosts)
        failures = FailureRecorder(core, breaker=breaker, leases=leases, raw_answers=raw_answers)
        introspector = Introspector(core, breaker=breaker, failures=failures, hosts=hosts, raw_answers=raw_answers)
        attempts = RefreshAttempts(
            core, introspector=introspector, failures=failures, breaker=breaker, pending_writes=pending_writes
        )
        self.coordinator = coordinator = RefreshCoordinator(
            core, gate=gate, introspector=introspector, attempts=attempts, pending_writes=pending_writes
        )
        self.rechecker = rechecker = Rechecker(core, gate=gate, introspector=introspector, coordinator=coordinator)
        self.scheduler = RefreshScheduler(
            core,
            gate=gate,
            coordinator=coordinator,
            rechecker=rechecker,
            before_round=[
                pending_writes.watch,
                Maintenance(core).watch,
                self.credentials.watch,
                raw_answers.watch,
                self.watch_shared_state,
            ],
        )
        self.access_token_check = AccessTokenCheck(core, introspector=introspector, leases=leases)
        self.cache = ConnectionCache(store=core.store, clock=core.clock)
        self.lookup = ConnectionLookup(core, pending_writes=pending_writes, cache=self.cache)
        self.access_tokens = AccessTokens(
            core,
            lookup=self.lookup,
            coordinator=coordinator,
            check=self.access_token_check,
            hosts=hosts,
        )
        self.oauth_tokens = OAuthTokens(core, access_tokens=self.access_tokens, check=self.access_token_check)
        self.stats_poller = StatsPoller(core)

    async def prepare(self) -> None:
        """Initialize the components from the store, and store the pairs that earlier processes left in rescue files."""
        await self.freeze_switch.begin()
        await self.leases.begin()
        await self.hosts.begin()
        await self.breaker.address_block.watch()
        await self.pending_writes.restore()
        await self.credentials.watch()

    async def watch_shared_state(self) -> None:
        """Read the freeze, the breaker state and the address block, which any process may have changed."""
        state = await self.core.store.shared_state()
        self.freeze_switch.adopt(state.frozen)
        await self.breaker.watch(state)

    def connected(self, connection: Connection) -> None:
        """Record that AMO accepted a code for a connection.

        The client credentials are therefore valid. The refresh scheduler wakes up if the new pair is due soon.
        """
        self.breaker.accepted()
        self.scheduler.wake_if_due_soon(connection.next_refresh_at)

    async def integration_disabled(self, account_id: str) -> None:
        """Check an account in which AMO's hook reports the integration as disabled."""
        if await self.rechecker.begin(account_id):
            self.scheduler.wake()

    async def drain(self) -> None:
        """Wait until all refreshes in progress have ended, and their pairs are in the store or in rescue files.

        Access-token checks are cancelled.
        """
        await self.cache.drain()
        await self.access_token_check.drain()
        await self.coordinator.drain()
